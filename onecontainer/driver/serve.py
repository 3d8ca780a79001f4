"""A sidecar as a process: server, signals, end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer
from pydantic import ValidationError

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.driver.announcement import Announcement
from onecontainer.driver.calls import DriverServices
from onecontainer.driver.driver import Driver
from onecontainer.driver.entry_point import DriverUnusable, folder_of
from onecontainer.driver.lifecycle import Sidecar
from onecontainer.driver.parent import ParentGone, bind_to_parent
from onecontainer.driver.servicer import DriverServicer
from onecontainer.driver.settings import SidecarSettings
from onecontainer.driver.worker import start_worker
from onecontainer.errors import OneContainerError
from onecontainer.rpc.channel import server_options
from onecontainer.rpc.manifest import Manifest, load_manifest
from onecontainer.rpc.server import service_handler
from onecontainer.rpc.tls import KeyPair
from onecontainer.settings import reachable

log = logging.getLogger(__name__)

DRIVER_SERVICE = driver_pb2.DESCRIPTOR.services_by_name["DriverService"]
REFLECTION_SERVICE = cast(ServiceDescriptor, reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"])
DETACH_SECONDS = 10.0
"""What the driver gets to let go of its backend, and the worker to bring its last reports to the gateway, when the process ends."""
CLOSE_SECONDS = 2.0
"""What answers get to leave the server once nothing runs any more."""


class SidecarServer:
    """A sidecar on its address: serves from `__aenter__` on, drains and lets go in `__aexit__`."""

    def __init__(self, driver: Driver, manifest: Manifest, settings: SidecarSettings) -> None:
        self.sidecar = Sidecar(driver, manifest, settings, start_worker)
        self.stop_asked = asyncio.Event()
        """Set to stop. Set by SIGTERM in `run`."""
        self._settings = settings
        self._health = HealthServicer()
        self._server = grpc.aio.server(options=server_options(settings.max_message_bytes))
        self._teller: asyncio.Task[None] | None = None
        self._announcement: Announcement | None = None
        self.target = ""
        """Where it listens, with the port that was picked for port 0."""

    async def __aenter__(self) -> SidecarServer:
        sidecar = self.sidecar
        names = [DRIVER_SERVICE.full_name, *sidecar.manifest.services]
        reflection = ReflectionServicer(
            [*names, REFLECTION_SERVICE.full_name, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        )
        # Without a token on purpose: whoever probes a container has none, and it tells nothing but serving or not.
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers(
            (
                service_handler(DriverServicer(sidecar), DRIVER_SERVICE, sidecar.authenticator, hop="sidecar"),
                service_handler(reflection, REFLECTION_SERVICE, sidecar.authenticator, hop="sidecar"),
                DriverServices(sidecar),
            )
        )
        listen = self._settings.listen
        tls = self._tls() if self._settings.tls_cert_file else None
        try:
            port = self._server.add_insecure_port(listen) if tls is None else self._server.add_secure_port(listen, tls)
        except RuntimeError:
            raise OSError(f"cannot listen on {listen}: is something else there already?") from None
        self.target = listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"
        for name in ("", *names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        self._teller = asyncio.create_task(self._tell_health())
        if self._settings.gateway:
            self._announcement = Announcement(sidecar, self._settings.advertise or reachable(self.target))
            await self._announcement.__aenter__()
        return self

    def _tls(self) -> grpc.ServerCredentials:
        cert, key = self._settings.tls_cert_file, self._settings.tls_key_file
        assert cert is not None
        assert key is not None
        return KeyPair.read(cert, key).server_credentials()

    async def __aexit__(self, *_exception: object) -> None:
        sidecar = self.sidecar
        if self._teller is not None:
            self._teller.cancel()
        if self._announcement is not None:
            self._announcement.drain()
        await self._health.enter_graceful_shutdown()
        aborted = await sidecar.drain(self._settings.stop_timeout)
        if aborted:
            log.warning("%d calls and attempts were aborted at the end of the stop timeout", aborted)
        # Ends an Attach that hangs, too, which would keep the sidecar for itself.
        await self._server.stop(CLOSE_SECONDS)
        try:
            async with asyncio.timeout(DETACH_SECONDS):
                await sidecar.detach(0)
        except TimeoutError:
            log.warning("the driver does not let go of its backend; it is left behind")
        except OneContainerError as error:
            log.warning("the driver could not be detached: %s", error)
        if self._announcement is not None:
            await self._announcement.__aexit__()

    async def run(self) -> None:
        """Serves until SIGTERM, or `stop_asked`. A second SIGTERM cuts the drain short.

        SIGINT stops too, but not a sidecar with a parent: a Ctrl-C in a terminal goes to the whole process group, and it is the
        parent that decides then. One that registers itself stops, too, when its service has another driver.

        Raises what makes its registration impossible: CredentialsInvalid, StateInvalid, FieldInvalid or DataInvalid.
        """
        loop = asyncio.get_running_loop()
        stops = [signal.SIGTERM] if self._settings.parent_pid is not None else [signal.SIGTERM, signal.SIGINT]
        if self._settings.parent_pid is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in stops:
            loop.add_signal_handler(number, self.ask_to_stop)
        try:
            await self._wait_for_stop()
        finally:
            for number in stops:
                loop.remove_signal_handler(number)
                # Default again: the second one ends the process at once.
                signal.signal(number, signal.SIG_DFL)

    async def _wait_for_stop(self) -> None:
        if self._announcement is None:
            await self.stop_asked.wait()
            return
        stopping = asyncio.ensure_future(self.stop_asked.wait())
        ending = asyncio.ensure_future(self._announcement.wait_end())
        try:
            await asyncio.wait((stopping, ending), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                ending.result()
        finally:
            for one in (stopping, ending):
                one.cancel()
            await asyncio.gather(stopping, ending, return_exceptions=True)

    def ask_to_stop(self) -> None:
        self.stop_asked.set()

    async def _tell_health(self) -> None:
        """Drain, too, makes health checks say NOT_SERVING."""
        await self.sidecar.drain_asked.wait()
        await self._health.enter_graceful_shutdown()


def serving(driver: Driver, manifest: Manifest, settings: SidecarSettings) -> SidecarServer:
    """A sidecar in this process, for tests and for embedding: it serves while the `async with` block runs."""
    return SidecarServer(driver, manifest, settings)


PACKAGES_MISSING = 4
"""Exit code of a driver that needs packages which this environment does not have."""


def run_driver(driver_class: type[Driver], folder: Path, **values: object) -> int:
    """Runs a driver of a folder as this process, from `ONECONTAINER_…` variables with ``values`` over them, until it is told to stop.
    Returns the exit code.

    0: it stopped as asked. 1: the machine was against it (a port that is taken, a full disk). 2: settings, metadata.json or the class
    are wrong, or the gateway refuses it for good, and a restart would not help. 3: its parent has gone. (4, `PACKAGES_MISSING`, is
    said by who imports the class.)
    """
    try:
        settings = SidecarSettings(**values)  # type: ignore[arg-type]
        logging.basicConfig(
            level=settings.log_level.upper(),
            stream=sys.stderr,
            format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        )
        if settings.parent_pid is not None:
            bind_to_parent(settings.parent_pid)
        asyncio.run(_serve(driver_class, load_manifest(folder), settings))
    except ParentGone as error:
        return _complain(error, 3)
    except ValidationError as error:
        told = [".".join(map(str, item["loc"])) + ": " * bool(item["loc"]) + item["msg"] for item in error.errors()]
        return _complain("\n".join(text.removeprefix("Value error, ") for text in told), 2)
    except OSError as error:
        return _complain(error, 1)
    except (OneContainerError, DriverUnusable, ValueError) as error:
        return _complain(error, 2)
    return 0


async def _serve(driver_class: type[Driver], manifest: Manifest, settings: SidecarSettings) -> None:
    async with SidecarServer(driver_class(), manifest, settings) as server:
        log.info("%s %s serves on %s", manifest.name, manifest.version, server.target)
        await server.run()
        log.info("stopping")
    if server.sidecar.running:
        # A handler that does not let go would hold up the loop's end for ever.
        log.warning("ending with %d handlers still running", server.sidecar.running)
        logging.shutdown()
        os._exit(0)


def _complain(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"{error}\n")
    return code


def main(driver_class: type[Driver]) -> None:
    """Runs the driver as this process: for `if __name__ == "__main__"` of a driver's module."""
    try:
        folder = folder_of(driver_class)
    except DriverUnusable as error:
        sys.exit(_complain(error, 2))
    sys.exit(run_driver(driver_class, folder))
