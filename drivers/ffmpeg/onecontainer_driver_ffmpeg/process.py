"""Runs one child process: own group, bounded, killed with its call and with the sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CHILD = Path(__file__).with_name("child.py")
LAST_LINES = 20
LINE_CHARACTERS = 400
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Bounds:
    """Bounds of one process; 0 is none."""

    memory_bytes: int = 0
    file_bytes: int = 0
    cpu_seconds: int = 0


@dataclass(frozen=True)
class Finished:
    """`return_code` is minus the signal's number if a signal ended the process."""

    return_code: int
    last_lines: list[str]
    output: bytes = b""
    output_truncated: bool = False


class LastLines:
    """The end of a log that may be endless and may have no line breaks."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._rest = rest[:LINE_CHARACTERS]
        for line in lines:
            if text := line.decode(errors="replace").strip():
                self._lines.append(text[:LINE_CHARACTERS])

    def lines(self) -> list[str]:
        rest = self._rest.decode(errors="replace").strip()
        return [*self._lines, rest][-LAST_LINES:] if rest else list(self._lines)


class Child:
    """A running child. `interrupt` asks it to end well; leaving `running_child` kills its whole group."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.log = LastLines()

    @property
    def pid(self) -> int:
        return self._process.pid

    def interrupt(self) -> None:
        # Not SIGINT: a sidecar ignores that one, and its children inherit it.
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # While the process is not reaped its id cannot be given to another one.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def wait(self, on_output: Callable[[bytes], None]) -> int:
        """Feeds standard output to `on_output` and standard error to `log` until both end, and gives the return code."""
        stdout, stderr = self._process.stdout, self._process.stderr
        if stdout is None or stderr is None:
            raise RuntimeError("the child was started without pipes")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_drain(stdout, on_output))
            tasks.create_task(_drain(stderr, self.log.feed))
        return await self._process.wait()


async def _drain(stream: asyncio.StreamReader, consume: Callable[[bytes], None]) -> None:
    while data := await stream.read(_CHUNK):
        consume(data)


def bounded(command: Sequence[str], bounds: Bounds) -> list[str]:
    """What starts `command` so that it keeps its bounds, and dies with the process that starts it."""
    numbers = (os.getpid(), bounds.memory_bytes, bounds.file_bytes, bounds.cpu_seconds)
    return [sys.executable, "-I", "-S", str(CHILD), *map(str, numbers), *command]


@contextlib.asynccontextmanager
async def running_child(
    command: Sequence[str],
    *,
    folder: Path,
    bounds: Bounds = Bounds(),
    environment: dict[str, str] | None = None,
    stdin: bytes = b"",
) -> AsyncIterator[Child]:
    """Starts `command` in `folder`; on the way out, by whatever way, its process group is killed and reaped.

    `stdin` is all that it will hear, less than a pipe holds (64 KiB). There a secret is safe from other processes.

    The environment is only what `environment` says, so that no proxy setting or secret of the sidecar reaches the child.
    """
    process = await asyncio.create_subprocess_exec(
        *bounded(command, bounds),
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={"LC_ALL": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder), **(environment or {})},
        start_new_session=True,
    )
    child = Child(process)
    try:
        if process.stdin is not None:
            process.stdin.write(stdin)
            process.stdin.close()
        yield child
    finally:
        child.kill()
        # Reaping a killed process takes no time, and must happen even if this task is cancelled again meanwhile.
        await asyncio.shield(process.wait())


async def run(
    command: Sequence[str],
    *,
    folder: Path,
    timeout: float | None = None,
    bounds: Bounds = Bounds(),
    environment: dict[str, str] | None = None,
    most_output: int = 64 * 1024 * 1024,
    stdin: bytes = b"",
) -> Finished:
    """Runs `command` to its end and gives what it printed, at most `most_output` bytes. TimeoutError after `timeout` seconds."""
    async with (
        asyncio.timeout(timeout),
        running_child(command, folder=folder, bounds=bounds, environment=environment, stdin=stdin) as child,
    ):
        return await finish(child, most_output)


async def finish(child: Child, most_output: int = 64 * 1024 * 1024) -> Finished:
    """Waits for a child's end, and gives what it printed, at most `most_output` bytes."""
    output = bytearray()
    truncated = False

    def collect(data: bytes) -> None:
        nonlocal truncated
        room = most_output - len(output)
        output.extend(data[:room])
        truncated = truncated or len(data) > room

    code = await child.wait(collect)
    return Finished(code, child.log.lines(), bytes(output), truncated)
