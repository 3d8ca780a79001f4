"""How long this machine itself stood still: what a check finds about times meanwhile is not the driver's doing."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

TURN_SECONDS = 0.1
MOST_SECONDS = 1.0
"""What is less than this in a check changes nothing that it decides."""


class Stillness:
    """Turns of a task that sleeps, and how much too late each of them came. Use as an async context manager."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._begun = asyncio.get_running_loop().time()

    @property
    def much(self) -> bool:
        """Whether what was found in the block has to be looked at again."""
        return self._seconds > MOST_SECONDS

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._look()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TURN_SECONDS)
            self._look()

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        self._seconds += max(0.0, now - self._begun - TURN_SECONDS)
        self._begun = now
