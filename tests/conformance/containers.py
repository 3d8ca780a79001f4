"""A driver in a container, made by the gateway's own docker runtime: the same image, the same restrictions, the same sockets."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import secrets
import socket
import socketserver
import struct
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import docker

from onecontainer.clock import SystemClock
from onecontainer.driver.conformance import Place
from onecontainer.driver.conformance.place import MAX_MESSAGE_BYTES, STOP_SECONDS, descriptors_of
from onecontainer.driver.conformance.waiting import until
from onecontainer.rpc.manifest import load_manifest, manifest_to_proto
from onecontainer.settings import Settings, private_folder
from onecontainer.sidecars.authority import Authority
from onecontainer.sidecars.folders import Folders
from onecontainer.sidecars.logs import LogBuffer
from onecontainer.sidecars.model import RuntimeKind, RuntimeSpec, Target
from onecontainer.sidecars.runtime import RunningSidecar, StartSpec
from onecontainer.sidecars.runtimes.docker import DockerRuntime, DockerSettings
from onecontainer.sidecars.runtimes.docker_spec import GATEWAY_SOCKET, HOST_NAME, Defaults
from tests.fixtures.docker import base_image

UID = "conformance"
START_SECONDS = 60.0
BUFFER = 64 * 1024
GET_INTERFACE_ADDRESS = 0x8915
"""SIOCGIFADDR, see netdevice(7)."""


class Container:
    """`Starter` of a driver's folder as a container, on a base image."""

    def __init__(self, folder: Path, image: Callable[[], str] = base_image) -> None:
        self._folder = folder.resolve()
        self._image = image

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Place]:
        # A short path: that of a UNIX socket has at most 107 bytes.
        with tempfile.TemporaryDirectory(prefix="oc-kit-") as name:
            data = Path(name)
            runtime = DockerRuntime(_settings(data, self._image()), Authority(data / "ca"))
            instance, token = f"sidecars/{secrets.token_hex(8)}", secrets.token_urlsafe(24)
            folders = Folders(data, data).make(instance, UID, token, {}, outlives=True)
            log = data / "log"
            logs = LogBuffer(SystemClock(), log)
            desk = data / "gateway" / GATEWAY_SOCKET
            spec = StartSpec(instance, self._target(), folders, logs, MAX_MESSAGE_BYTES, "warning")
            try:
                async with _running(runtime, spec, desk) as (running, gone):
                    yield Place(
                        running.target,
                        token,
                        instance=instance,
                        desk=f"unix:{desk}",
                        desk_target=runtime.internal_target,
                        descriptors=descriptors_of(self._folder),
                        log=log,
                        gone=gone,
                    )
            finally:
                await runtime.close()
                logs.end()

    def _target(self) -> Target:
        """What the kit attaches it to is the kit's own: here is only what a container is made of."""
        manifest = load_manifest(self._folder)
        return Target(
            uid=UID,
            service="services/conformance",
            app=manifest.app,
            app_version="",
            endpoints={},
            options={},
            secrets=(),
            driver=f"drivers/{manifest.name}-{manifest.version}",
            manifest=manifest_to_proto(manifest),
            folder=self._folder,
            runtime=RuntimeSpec(RuntimeKind.DOCKER),
            slots=manifest.job_slots,
            drain_timeout=STOP_SECONDS,
            generation=1,
        )


def _settings(data: Path, image: str) -> DockerSettings:
    defaults = Settings(data_dir=data)
    return DockerSettings(
        installation=secrets.token_hex(8),
        gateway=private_folder(data / "gateway"),
        mark=data / "docker",
        base_image=image,
        build_timeout=defaults.docker_build_timeout,
        defaults=Defaults(defaults.docker_memory_bytes, defaults.docker_cpus, defaults.docker_pids),
    )


@asynccontextmanager
async def _running(
    runtime: DockerRuntime, spec: StartSpec, desk: Path
) -> AsyncIterator[tuple[RunningSidecar, asyncio.Event]]:
    """The container while the block runs, and an event for its end."""
    running = await runtime.start(spec)
    gone = asyncio.Event()
    tasks = [asyncio.create_task(_watch(running, gone)), asyncio.create_task(_admit(runtime, desk))]
    try:
        yield running, gone
    finally:
        await running.stop(STOP_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(running: RunningSidecar, gone: asyncio.Event) -> None:
    await running.wait()
    gone.set()


async def _admit(runtime: DockerRuntime, desk: Path) -> None:
    """The kit binds its desk after the driver has been started; then the container's user is let in, as a gateway does."""

    async def bound() -> bool | None:
        return desk.exists() or None

    if await until(bound, START_SECONDS):
        await runtime.admit()


# --- backends ----------------------------------------------------------------------------------------------------------


class _Relay(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, to: tuple[str, int]) -> None:
        super().__init__((_bridge(), 0), _Relayed)
        self.to = to


class _Relayed(socketserver.BaseRequestHandler):
    """One connection, in a thread; the way back is in another one."""

    def handle(self) -> None:
        assert isinstance(self.server, _Relay)
        # A backend that is gone is a connection that ends.
        with contextlib.suppress(OSError), socket.create_connection(self.server.to) as backend:
            back = threading.Thread(target=_copy, args=(backend, self.request), daemon=True)
            back.start()
            _copy(self.request, backend)
            back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(BUFFER):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def relayed(address: str) -> Iterator[str]:
    """An address at which containers reach what listens on loopback only."""
    host, _, port = address.rpartition(":")
    with _Relay((host, int(port))) as relay:
        threading.Thread(target=relay.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"{HOST_NAME}:{relay.server_address[1]}"
        finally:
            relay.shutdown()


def _bridge() -> str:
    """This host's address on docker's bridge, which is what containers know it by."""
    client = docker.from_env()
    try:
        name = client.networks.get("bridge").attrs["Options"]["com.docker.network.bridge.name"]
    finally:
        client.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        found = fcntl.ioctl(any_socket, GET_INTERFACE_ADDRESS, struct.pack("256s", name.encode()))
    return socket.inet_ntoa(found[20:24])
