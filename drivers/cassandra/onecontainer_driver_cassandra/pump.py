"""Many statements at once: the next is sent from where the answer to one arrives, which is a thread of cassandra-driver.

A round through the asyncio loop for each would cost more than the statements themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from cassandra.cluster import Session as DriverSession
from cassandra.query import Statement

from onecontainer.driver import errors
from onecontainer_driver_cassandra.faults import translate
from onecontainer_driver_cassandra.session import Session
from onecontainer_driver_cassandra.wire import Rows

CONCURRENCY = 128

Outcome = Rows | errors.OneContainerError | None
"""None: it was not sent, because one before it failed in a way that the others would, too."""


async def run_all(
    session: Session,
    statements: Sequence[Statement],
    concurrency: int = CONCURRENCY,
    goes_on: Callable[[errors.OneContainerError], bool] = lambda _: False,
    lanes: Sequence[Sequence[int]] | None = None,
) -> list[Outcome]:
    """The outcome of each. ``goes_on`` tells after which errors the rest is sent.

    ``lanes`` has the places of statements that are sent one after another; ``concurrency`` is how many lanes go at once. None: each
    statement is a lane.
    """
    if not statements:
        return []
    pump = _Pump(
        await session.connected(),
        statements,
        session.timeout(),
        goes_on,
        [[index] for index in range(len(statements))] if lanes is None else lanes,
    )
    try:
        for _ in range(min(concurrency, len(pump.lanes))):
            pump.next_lane()
        await pump.done
    finally:
        pump.stopped = True
    if pump.broken is not None:
        raise pump.broken
    return pump.outcomes


def lanes_of(keys: Sequence[Hashable]) -> list[list[int]]:
    """One lane for each key, in the order that they come."""
    lanes: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        lanes.setdefault(key, []).append(index)
    return list(lanes.values())


class _Pump:
    def __init__(
        self,
        session: DriverSession,
        statements: Sequence[Statement],
        timeout: float,
        goes_on: Callable[[errors.OneContainerError], bool],
        lanes: Sequence[Sequence[int]],
    ) -> None:
        self._session = session
        self._statements = statements
        self._timeout = timeout
        self._goes_on = goes_on
        self._next = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self.lanes = lanes
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.outcomes: list[Outcome] = [None] * len(statements)
        self.stopped = False
        self.broken: BaseException | None = None

    def next_lane(self) -> None:
        with self._lock:
            if self.stopped or self._next == len(self.lanes):
                return
            lane, self._next = self.lanes[self._next], self._next + 1
            self._in_flight += 1
        self._send(lane, 0)

    def _send(self, lane: Sequence[int], place: int) -> None:
        try:
            future = self._session.execute_async(self._statements[lane[place]], timeout=self._timeout)
        except Exception as error:  # noqa: BLE001 - it is that statement's outcome
            self._answered(lane, place, error)
            return
        answered = partial(self._answered, lane, place)
        future.add_callbacks(answered, answered)

    def _answered(self, lane: Sequence[int], place: int, answer: object) -> None:
        # Who answers before it was sent fails, and nothing is sent after that: so this goes no deeper than once.
        outcome: Outcome = answer if isinstance(answer, Rows) else Rows((), 0, b"", None)
        if isinstance(answer, BaseException):
            outcome = translate(answer)
            if outcome is None:
                self.broken = answer
            if outcome is None or not self._goes_on(outcome):
                self.stopped = True
        self.outcomes[lane[place]] = outcome
        if place + 1 < len(lane) and not self.stopped:
            self._send(lane, place + 1)
            return
        with self._lock:
            self._in_flight -= 1
            ended = self._in_flight == 0 and (self.stopped or self._next == len(self.lanes))
        if ended:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._finish)
        else:
            self.next_lane()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
