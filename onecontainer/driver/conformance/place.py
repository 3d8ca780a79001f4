"""Where the driver under test is: at an address, or started by the kit from its folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onecontainer.driver.conformance.servicer import socket_in
from onecontainer.rpc.manifest import load_manifest

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""What a driver that the kit starts is told: enough for every scenario, and quick to go beyond."""
STOP_SECONDS = 20.0
LOG_LINES = 20


@dataclass(frozen=True, slots=True)
class Place:
    """A driver that runs, or will in a moment.

    Attributes:
        target: gRPC target of it, `unix:PATH` or `HOST:PORT`.
        token: the instance token that callers need. None: they need none.
        ca_file: PEM file with the CA of its certificate. None: no TLS.
        instance: which one it was started as, or by default is attached as.
        desk: where the kit listens for the driver's worker; for one in a container, something that it reaches.
        desk_target: what the driver is told of that. Empty: the address that was bound.
        descriptors: FileDescriptorSet of its services, for one without reflection. None: not known.
        log: file with what it wrote, for the report. None: not known.
        gone: set when its process has ended. None: that is not seen.
        exit_code: asked once it is gone: the exit code of its process, None if that is not known.
    """

    target: str
    token: str | None = None
    ca_file: Path | None = None
    instance: str = "sidecars/conformance"
    desk: str = "127.0.0.1:0"
    desk_target: str = ""
    descriptors: bytes | None = None
    log: Path | None = None
    gone: asyncio.Event | None = None
    exit_code: Callable[[], int | None] = lambda: None

    def last_lines(self) -> str:
        """What the driver wrote last; empty if that is not known."""
        if self.log is None or not self.log.is_file():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])


class Starter(Protocol):
    """Brings a driver up for one run of the kit. A container runtime is one more of these."""

    def start(self) -> AbstractAsyncContextManager[Place]:
        """The driver runs, or is on its way, while the block does."""
        ...


class Endpoint:
    """A driver that somebody else has started. `listen` is where the kit waits for its worker."""

    def __init__(self, target: str, *, token: str | None = None, ca_file: Path | None = None, listen: str = "") -> None:
        self._target = target
        self._token = token
        self._ca_file = ca_file
        self._listen = listen

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Place]:
        with _short_folder() as folder:
            listen = self._listen or socket_in(folder)
            yield Place(self._target, self._token, self._ca_file, desk=listen)


class Folder:
    """A driver's folder, started as a process like the gateway's runtime does it."""

    def __init__(self, folder: Path, *, secrets_dir: Path | None = None) -> None:
        self._folder = folder
        self._secrets_dir = secrets_dir

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Place]:
        with _short_folder() as folder:
            token = secrets.token_urlsafe(24)
            token_file = folder / "token"
            token_file.touch(mode=0o600)
            token_file.write_text(token)
            for name in ("state", "scratch"):
                (folder / name).mkdir()
            target = f"unix:{folder / 's'}"
            log = folder / "log"
            with log.open("wb") as output:
                # This thread forks, for the child is bound to the life of it.
                child = subprocess.Popen(  # noqa: ASYNC220
                    [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(self._folder.resolve())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder / "scratch",
                    env=self._environment(folder, target, token_file),
                    start_new_session=True,
                )
            gone = asyncio.Event()
            watch = asyncio.create_task(_watch(child, gone))
            try:
                yield Place(
                    target,
                    token,
                    desk=socket_in(folder),
                    descriptors=descriptors_of(self._folder),
                    log=log,
                    gone=gone,
                    exit_code=lambda: _exit_code(child),
                )
            finally:
                await _stop(child, gone)
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)

    def _environment(self, folder: Path, target: str, token_file: Path) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ONECONTAINER_")}
        environment |= {
            "PYTHONUNBUFFERED": "1",
            "ONECONTAINER_LISTEN": target,
            "ONECONTAINER_TOKEN_FILE": str(token_file),
            "ONECONTAINER_STATE_DIR": str(folder / "state"),
            "ONECONTAINER_SCRATCH_DIR": str(folder / "scratch"),
            "ONECONTAINER_PARENT_PID": str(os.getpid()),
            "ONECONTAINER_MAX_MESSAGE_BYTES": str(MAX_MESSAGE_BYTES),
            "ONECONTAINER_LOG_LEVEL": "warning",
        }
        if self._secrets_dir is not None:
            environment["ONECONTAINER_SECRETS_DIR"] = str(self._secrets_dir.resolve())
        return environment


def descriptors_of(folder: Path) -> bytes | None:
    """FileDescriptorSet that a driver's folder comes with. None: it has none."""
    path = folder / load_manifest(folder).descriptor_set
    return path.read_bytes() if path.is_file() else None


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """A temporary folder; the path of a UNIX socket has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="oc-kit-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _watch(child: subprocess.Popen[bytes], gone: asyncio.Event) -> None:
    """Sees the child's end. Its number is its own until `_stop` has waited for it."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(child.pid)
    try:
        loop.add_reader(pidfd, gone.set)
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _exit_code(child: subprocess.Popen[bytes]) -> int | None:
    # Looked at, not waited for: until `_stop` is through the number stays the child's.
    ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return ended.si_status if ended is not None and ended.si_code == os.CLD_EXITED else None


async def _stop(child: subprocess.Popen[bytes], gone: asyncio.Event) -> None:
    if not gone.is_set():
        child.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await gone.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
