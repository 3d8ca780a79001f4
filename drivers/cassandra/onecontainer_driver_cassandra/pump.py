"""Many statements at once: the next is sent from where the answer to one arrives, which is a thread of cassandra-driver.

A round through the asyncio loop for each would cost more than the statements themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
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
) -> list[Outcome]:
    """The outcome of each. With ``concurrency`` 1 they are sent in order; ``goes_on`` tells after which errors the rest is sent."""
    if not statements:
        return []
    pump = _Pump(await session.connected(), statements, session.timeout(), goes_on)
    try:
        for _ in range(min(concurrency, len(statements))):
            pump.send_next()
        await pump.done
    finally:
        pump.stopped = True
    if pump.broken is not None:
        raise pump.broken
    return pump.outcomes


class _Pump:
    def __init__(
        self,
        session: DriverSession,
        statements: Sequence[Statement],
        timeout: float,
        goes_on: Callable[[errors.OneContainerError], bool],
    ) -> None:
        self._session = session
        self._statements = statements
        self._timeout = timeout
        self._goes_on = goes_on
        self._next = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.outcomes: list[Outcome] = [None] * len(statements)
        self.stopped = False
        self.broken: BaseException | None = None

    def send_next(self) -> None:
        """Without recursion, for a statement may be answered before it is out of our hands."""
        while True:
            with self._lock:
                if self.stopped or self._next == len(self._statements):
                    return
                index, self._next = self._next, self._next + 1
                self._in_flight += 1
            try:
                future = self._session.execute_async(self._statements[index], timeout=self._timeout)
            except Exception as error:  # noqa: BLE001 - it is that statement's outcome
                self._settle(index, error)
                continue
            future.add_callbacks(partial(self._answered, index), partial(self._answered, index))
            return

    def _answered(self, index: int, answer: object) -> None:
        self._settle(index, answer)
        if not self.stopped:
            self.send_next()

    def _settle(self, index: int, answer: object) -> None:
        outcome: Outcome = answer if isinstance(answer, Rows) else Rows((), 0, b"", None)
        if isinstance(answer, BaseException):
            outcome = translate(answer)
            if outcome is None:
                self.broken = answer
            if outcome is None or not self._goes_on(outcome):
                self.stopped = True
        with self._lock:
            self.outcomes[index] = outcome
            self._in_flight -= 1
            ended = self._in_flight == 0 and (self.stopped or self._next == len(self._statements))
        if ended:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
