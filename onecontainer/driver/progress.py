"""Progress of one run: never backwards, at most four a second, always the last one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf import any_pb2
from google.protobuf.message import Message

from onecontainer.api.type.v1 import progress_pb2
from onecontainer.errors import FieldInvalid
from onecontainer.rpc.status import duration
from onecontainer.rpc.texts import sendable

INTERVAL_SECONDS = 0.25
MAX_MESSAGE_CHARS = 256
ETA_AFTER_SECONDS = 1.0
MAX_ETA_SECONDS = 315_576_000_000.0
"""What `google.protobuf.Duration` allows."""

Emit = Callable[[progress_pb2.Progress], None]


@dataclass(frozen=True, slots=True)
class _Told:
    """One call of `context.progress`. The message for the wire is made of the few that are sent."""

    done: float
    total: float | None
    unit: str
    message: str
    details: any_pb2.Any | None


class ProgressGate:
    """Takes progress from any thread, and gives on the latest of each quarter of a second, in the loop.

    What changes nothing is not passed on, and is no progress for the stall timeout either.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, emit: Emit) -> None:
        self._loop = loop
        self._emit = emit
        self._lock = threading.Lock()
        self._latest: _Told | None = None
        self._first: tuple[float, float] | None = None
        self._waiting = False
        self._wake_asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._last_emit = float("-inf")
        self._closed = False
        self.last_change = loop.time()

    def report(self, done: float, total: float | None, unit: str, message: str, details: Message | None) -> None:
        """Notes where the work stands. Thread-safe, does not block. Raises FieldInvalid for a negative number."""
        if not done >= 0:
            raise FieldInvalid("progress.done", "must not be negative")
        if total is not None and not total >= 0:
            raise FieldInvalid("progress.total", "must not be negative")
        packed: any_pb2.Any | None = None
        if details is not None:
            packed = any_pb2.Any()
            packed.Pack(details)
        now = self._loop.time()
        with self._lock:
            latest = self._latest
            if latest is not None and done < latest.done:
                done = latest.done
            told = _Told(done, total, unit, message[:MAX_MESSAGE_CHARS], packed)
            if told == latest:
                return
            self._latest = told
            self._waiting = True
            self.last_change = now
            if self._first is None:
                self._first = (now, done)
            if self._wake_asked or self._closed:
                return
            self._wake_asked = True
        self._loop.call_soon_threadsafe(self._wake)

    def _to_proto(self, told: _Told, now: float) -> progress_pb2.Progress:
        progress = progress_pb2.Progress(
            done=told.done,
            total=told.total,
            unit=sendable(told.unit),
            message=sendable(told.message)[:MAX_MESSAGE_CHARS],
            details=told.details,
        )
        began, done = self._first or (now, told.done)
        if told.total is not None and told.done > done and now - began >= ETA_AFTER_SECONDS:
            left = max(0.0, told.total - told.done)
            eta = left * (now - began) / (told.done - done)
            # Not so for a total that is infinite either.
            if eta <= MAX_ETA_SECONDS:
                progress.eta.CopyFrom(duration(eta))
        return progress

    def _wake(self) -> None:
        if self._closed:
            return
        wait = self._last_emit + INTERVAL_SECONDS - self._loop.time()
        if wait > 0:
            self._timer = self._loop.call_later(wait, self._send)
        else:
            self._send()

    def _send(self) -> None:
        self._timer = None
        with self._lock:
            self._wake_asked = False
            told = self._latest if self._waiting else None
            self._waiting = False
        if told is not None:
            self._last_emit = self._loop.time()
            self._emit(self._to_proto(told, self.last_change))

    def relay(self, progress: progress_pb2.Progress) -> None:
        """Gives on what a gate in another process has let through. In the loop only."""
        self.last_change = self._loop.time()
        self._emit(progress)

    def close(self) -> None:
        """Gives on what still waits, whatever the interval: the last word before the outcome. In the loop only."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._send()


class ProgressRelay:
    """Passes on the progress that another process tells, the latest of each quarter of a second. In the loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, emit: Emit) -> None:
        self._loop = loop
        self._emit = emit
        self._waiting = False
        self._timer: asyncio.TimerHandle | None = None
        self._last_emit = float("-inf")
        self.latest: progress_pb2.Progress | None = None
        self.last_change = loop.time()

    def tell(self, progress: progress_pb2.Progress) -> None:
        """Notes where the work stands. The same again is no progress."""
        if progress == self.latest:
            return
        self.latest, self._waiting, self.last_change = progress, True, self._loop.time()
        wait = self._last_emit + INTERVAL_SECONDS - self.last_change
        if wait <= 0:
            self._send()
        elif self._timer is None:
            self._timer = self._loop.call_later(wait, self._send)

    def _send(self) -> None:
        self._timer = None
        if self._waiting and self.latest is not None:
            self._waiting = False
            self._last_emit = self._loop.time()
            self._emit(self.latest)

    def close(self) -> None:
        """Gives on what still waits, whatever the interval: the last word before the outcome."""
        if self._timer is not None:
            self._timer.cancel()
        self._send()
