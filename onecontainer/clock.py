"""Time as a parameter: what has logic takes a Clock, and tests advance it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """Tells the time, as microseconds since 1970-01-01 UTC: what the ledger stores and compares."""

    def now(self) -> int: ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 1000


class ManualClock:
    """A clock that stands until it is told to go on."""

    def __init__(self, start: int = 1_700_000_000_000_000) -> None:
        self._now = start

    def now(self) -> int:
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves the clock on by so many seconds."""
        self._now += int(seconds * 1_000_000)


def to_datetime(micros: int) -> datetime:
    """The same moment as an aware datetime."""
    return EPOCH + timedelta(microseconds=micros)
