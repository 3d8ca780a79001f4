"""Sidecars as child processes on UNIX sockets (Linux): each the leader of a session of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from onecontainer.errors import DriverNotAvailable, DriverUnreachable, InternalError
from onecontainer.sidecars.folders import InstanceFolders
from onecontainer.sidecars.logs import LineSplitter, LogBuffer
from onecontainer.sidecars.model import RuntimeKind, Target
from onecontainer.sidecars.runtime import StartSpec, exited

PIPE_GRACE = 1.0
"""Seconds that the pipes of an ended process get to bring its last lines; a grandchild may hold them open for ever."""


def sdk_command(target: Target) -> list[str]:
    """Starts a Python driver with our SDK."""
    if target.folder is None:
        raise DriverNotAvailable(f"{target.driver} is not installed here; only the runtime `attached` can use it")
    return [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(target.folder)]


class _Lines(asyncio.Protocol):
    def __init__(self, logs: LogBuffer, *, stderr: bool) -> None:
        self._logs = logs
        self._stderr = stderr
        self._splitter = LineSplitter()
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            self._logs.write(line, stderr=self._stderr)

    def connection_lost(self, exc: Exception | None) -> None:
        for line in self._splitter.end():
            self._logs.write(line, stderr=self._stderr)
        self.closed.set()


class _Process:
    """A child and its pipes. Its end is seen by a pidfd: no thread, no polling, and no number that is used again."""

    def __init__(self, child: subprocess.Popen[bytes], target: str) -> None:
        self.target = target
        self.runtime_id = str(child.pid)
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(child.pid)
        self._ended = asyncio.Event()
        self._pipes: list[tuple[asyncio.ReadTransport, _Lines]] = []
        self._loop.add_reader(self._pidfd, self._on_end)

    async def read(self, pipe: IO[bytes] | None, logs: LogBuffer, *, stderr: bool) -> None:
        transport, protocol = await self._loop.connect_read_pipe(lambda: _Lines(logs, stderr=stderr), pipe)
        self._pipes.append((transport, protocol))

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # Until it is waited for, its number is still its own, and so is the group's: what it left behind (an ffmpeg, say) goes.
        self._kill_group()
        self._child.wait()
        self._ended.set()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)

    async def wait(self) -> str:
        await self._ended.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PIPE_GRACE):
                for _, protocol in self._pipes:
                    await protocol.closed.wait()
        for transport, _ in self._pipes:
            transport.close()
        code = self._child.returncode
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return exited(code)

    async def stop(self, grace: float) -> None:
        if not self._ended.is_set() and grace > 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._ended.wait()
        if not self._ended.is_set():
            self._kill_group()
        await self._ended.wait()


class ProcessRuntime:
    """`Runtime` of child processes.

    A child does not outlive the gateway: the SDK asks the kernel for that at its start (PR_SET_PDEATHSIG, with
    ONECONTAINER_PARENT_PID against the race). The kernel ties it to the thread that forked, so children are started
    on the event loop's own thread.
    """

    kind = RuntimeKind.PROCESS
    owns = True

    def __init__(
        self,
        command: Callable[[Target], list[str]] = sdk_command,
        environment: Mapping[str, str] | None = None,
        *,
        ca_file: Path | None = None,
    ) -> None:
        """``ca_file``: by which children know the gateway's internal listener; None: it is on loopback, or a socket."""
        self._command = command
        self._ca_file = ca_file
        self._environment = os.environ if environment is None else environment

    async def start(self, spec: StartSpec) -> _Process:
        if spec.folders is None:
            raise InternalError("a child process needs folders")
        command = self._command(spec.target)
        target = f"unix:{spec.folders.socket}"
        try:
            child = subprocess.Popen(  # noqa: ASYNC220 - it must be this thread that forks, see above
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=spec.folders.scratch,
                env=self._sidecar_environment(spec, spec.folders, target),
                start_new_session=True,
            )
        except OSError as error:
            raise DriverUnreachable(f"the sidecar could not be started: {error}") from error
        process = _Process(child, target)
        try:
            await process.read(child.stdout, spec.logs, stderr=False)
            await process.read(child.stderr, spec.logs, stderr=True)
        except BaseException:
            await process.stop(0)
            raise
        return process

    def _sidecar_environment(self, spec: StartSpec, folders: InstanceFolders, target: str) -> dict[str, str]:
        # Our own variables are the gateway's settings and secrets: a sidecar gets only what is meant for it.
        environment = {name: value for name, value in self._environment.items() if not name.startswith("ONECONTAINER_")}
        environment |= {
            "PYTHONUNBUFFERED": "1",
            "ONECONTAINER_LISTEN": target,
            "ONECONTAINER_INSTANCE": spec.instance,
            "ONECONTAINER_STATE_DIR": str(folders.state),
            "ONECONTAINER_SCRATCH_DIR": str(folders.scratch),
            "ONECONTAINER_PARENT_PID": str(os.getpid()),
            "ONECONTAINER_MAX_MESSAGE_BYTES": str(spec.max_message_bytes),
            "ONECONTAINER_LOG_LEVEL": spec.log_level,
        }
        if self._ca_file is not None:
            environment["ONECONTAINER_TLS_CA_FILE"] = str(self._ca_file)
        if folders.token_file is not None:
            environment["ONECONTAINER_TOKEN_FILE"] = str(folders.token_file)
        if folders.secrets is not None:
            environment["ONECONTAINER_SECRETS_DIR"] = str(folders.secrets)
        return environment
