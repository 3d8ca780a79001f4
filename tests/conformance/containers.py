"""A driver in a container, made by the gateway's own docker runtime: the same image, the same restrictions, the same sockets."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import secrets
import socket
import struct
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
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
    """`Starter` of a driver's folder as a container."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Place]:
        # A short path: that of a UNIX socket has at most 107 bytes.
        with tempfile.TemporaryDirectory(prefix="oc-kit-") as name:
            data = Path(name)
            runtime = DockerRuntime(_settings(data), Authority(data / "ca"))
            instance, token = f"sidecars/{secrets.token_hex(8)}", secrets.token_urlsafe(24)
            folders = Folders(data, data).make(instance, UID, token, {}, outlives=True)
            log = data / "log"
            logs = LogBuffer(SystemClock(), log)
            spec = StartSpec(instance, self._target(), folders, logs, MAX_MESSAGE_BYTES, "warning")
            running = await runtime.start(spec)
            gone = asyncio.Event()
            tasks = [
                asyncio.create_task(_watch(running, gone)),
                asyncio.create_task(_admit(runtime, data / "gateway" / GATEWAY_SOCKET)),
            ]
            try:
                yield Place(
                    running.target,
                    token,
                    instance=instance,
                    desk=f"unix:{data / 'gateway' / GATEWAY_SOCKET}",
                    desk_target=runtime.internal_target,
                    descriptors=descriptors_of(self._folder),
                    log=log,
                    gone=gone,
                )
            finally:
                await running.stop(STOP_SECONDS)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
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


def _settings(data: Path) -> DockerSettings:
    defaults = Settings(data_dir=data)
    return DockerSettings(
        installation=secrets.token_hex(8),
        gateway=private_folder(data / "gateway"),
        mark=data / "docker",
        base_image=base_image(),
        build_timeout=defaults.docker_build_timeout,
        defaults=Defaults(defaults.docker_memory_bytes, defaults.docker_cpus, defaults.docker_pids),
    )


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


@contextmanager
def relayed(address: str) -> Iterator[str]:
    """An address at which containers reach what listens on loopback only."""
    host, _, port = address.rpartition(":")
    with socket.create_server((_bridge(), 0)) as listener:
        threading.Thread(target=_accept, args=(listener, (host, int(port))), daemon=True).start()
        yield f"{HOST_NAME}:{listener.getsockname()[1]}"


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


def _accept(listener: socket.socket, to: tuple[str, int]) -> None:
    with contextlib.suppress(OSError):  # the listener is closed
        while True:
            inner, _ = listener.accept()
            try:
                outer = socket.create_connection(to)
            except OSError:
                inner.close()
                continue
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(BUFFER):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
