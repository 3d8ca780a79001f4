"""What a sidecar writes: the last lines in memory, all of them in a file that rotates, and whoever follows."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import BinaryIO

from onecontainer.clock import Clock, to_datetime
from onecontainer.sidecars.model import LogLine

MAX_LINE_BYTES = 8 * 1024
RING_LINES = 10_000
RING_BYTES = 4 * 1024 * 1024
FILE_BYTES = 5 * 1024 * 1024
FOLLOWER_LINES = 10_000
ERROR_LINES = 20
ERROR_BYTES = 2 * 1024


class LineSplitter:
    """Cuts a byte stream into lines of at most MAX_LINE_BYTES; the rest of a longer one is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete with this data."""
        lines = []
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            if self._skipping:
                self._skipping = False
            else:
                lines.append(_text(line))
        if self._skipping:
            self._rest = b""
        elif len(self._rest) > MAX_LINE_BYTES:
            lines.append(_text(self._rest))
            self._rest, self._skipping = b"", True
        return lines

    def end(self) -> list[str]:
        """What was written last without a line end."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


def _text(line: bytes) -> str:
    # Invalid UTF-8 grows when it is replaced, so the bound is kept on what goes out.
    text = line[:MAX_LINE_BYTES].rstrip(b"\r").decode("utf-8", "replace")
    return text.encode()[:MAX_LINE_BYTES].decode("utf-8", "ignore")


class LogBuffer:
    """The log of one sidecar. Writing never waits: a follower that is too slow loses lines, and is told."""

    def __init__(self, clock: Clock, path: Path | None = None) -> None:
        self._clock = clock
        self._path = path
        self._file: BinaryIO | None = None
        self._file_bytes = 0
        self._lines: deque[LogLine] = deque()
        self._bytes = 0
        self._followers: set[asyncio.Queue[LogLine | None]] = set()
        self._ended = False

    def write(self, text: str, *, stderr: bool, time: int | None = None) -> None:
        """`time`: when it was written, in microseconds since the epoch. None: now."""
        line = LogLine(self._clock.now() if time is None else time, stderr, text)
        self._lines.append(line)
        self._bytes += len(text)
        while len(self._lines) > RING_LINES or self._bytes > RING_BYTES:
            self._bytes -= len(self._lines.popleft().text)
        self._write_file(line)
        for queue in self._followers:
            _offer(queue, line)

    def end(self) -> None:
        """No more lines come: followers end."""
        self._ended = True
        for queue in self._followers:
            _offer(queue, None)
        if self._file is not None:
            self._file.close()
            self._file = None

    def forget(self) -> None:
        """Removes the files."""
        self.end()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._old_path(self._path).unlink(missing_ok=True)

    def last_errors(self) -> str:
        """The last lines of stderr, at most ERROR_LINES and ERROR_BYTES; of stdout if there are none."""
        return self._last(stderr=True) or self._last(stderr=False)

    def _last(self, *, stderr: bool) -> str:
        wanted: deque[str] = deque()
        room = ERROR_BYTES
        for line in itertools.islice((one for one in reversed(self._lines) if one.stderr == stderr), ERROR_LINES):
            size = len(line.text.encode()) + 1
            if size > room:
                break
            wanted.appendleft(line.text)
            room -= size
        return "\n".join(wanted)

    def tail(self, lines: int) -> list[LogLine]:
        """The last lines, oldest first."""
        return list(self._lines)[-lines:] if lines > 0 else []

    async def follow(self, lines: int) -> AsyncGenerator[list[LogLine], None]:
        """The last lines, then each further one, until the sidecar has ended."""
        queue: asyncio.Queue[LogLine | None] = asyncio.Queue(FOLLOWER_LINES)
        if not self._ended:
            self._followers.add(queue)
        try:
            yield self.tail(lines)
            while not self._ended or not queue.empty():
                line = await queue.get()
                batch = [] if line is None else [line]
                while not queue.empty() and len(batch) < 100:
                    line = queue.get_nowait()
                    if line is not None:
                        batch.append(line)
                if batch:
                    yield batch
        finally:
            self._followers.discard(queue)

    def _write_file(self, line: LogLine) -> None:
        if self._path is None or self._ended:
            return
        if self._file is not None and self._file_bytes > FILE_BYTES:
            self._file.close()
            self._file = None
            self._path.replace(self._old_path(self._path))
        if self._file is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
            self._file_bytes = self._path.stat().st_size
        mark = "E" if line.stderr else "O"
        data = f"{to_datetime(line.time).isoformat()} {mark} {line.text}\n".encode()
        self._file.write(data)
        self._file_bytes += len(data)

    @staticmethod
    def _old_path(path: Path) -> Path:
        return path.with_name(path.name + ".1")


def _offer(queue: asyncio.Queue[LogLine | None], line: LogLine | None) -> None:
    if queue.full():
        lost = queue.get_nowait()
        if lost is not None:
            queue.get_nowait()
            queue.put_nowait(LogLine(lost.time, True, "… lines were lost here: the reader is too slow"))
    queue.put_nowait(line)
