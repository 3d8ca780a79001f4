"""What a child prints: passed on to the sidecar's own stderr, and the end of it kept for the error, should the child die."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque

LAST_LINES = 15
LINE_CHARACTERS = 120
_CHUNK = 64 * 1024


class Output:
    """The end of an output that may be endless and may have no line breaks."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        self._rest = rest[:LINE_CHARACTERS]
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                self._lines.append(text[:LINE_CHARACTERS])

    def lines(self) -> list[str]:
        rest = self._rest.decode(errors="replace").rstrip()
        return [*self._lines, rest][-LAST_LINES:] if rest else list(self._lines)

    def forget(self) -> None:
        """What comes from here on belongs to another run."""
        self._lines.clear()
        self._rest = b""

    async def pump(self, stream: asyncio.StreamReader) -> None:
        """Passes on all there is."""
        while data := await stream.read(_CHUNK):
            self.feed(data)
            with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: the child must not block on that
                sys.stderr.write(data.decode(errors="replace"))
                sys.stderr.flush()
