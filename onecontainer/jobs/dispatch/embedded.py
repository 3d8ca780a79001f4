"""Embedded dispatch: workers long-poll the gateway, and the poll's answer is the claim. Durable, without another process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.jobs.changes import Bell, Changes
from onecontainer.jobs.ledger import Granted, Ledger, Outcome, Worker
from onecontainer.jobs.unconfirmed import Unconfirmed

LOOK_AGAIN = 5.0
"""Seconds after which a waiting poll looks by itself: the bell is a hint."""


class EmbeddedDispatch:
    """Dispatch by long polling."""

    reachable = True

    def __init__(self, ledger: Ledger, changes: Changes) -> None:
        self._ledger = ledger
        self._changes = changes
        self.unconfirmed = Unconfirmed(ledger, changes)
        self._empty: dict[str, tuple[int, float]] = {}
        """By service: the arrivals, and the loop's time, at which its queue was empty."""
        self._polls: dict[str, set[Bell]] = {}
        """By instance: those of its polls that are to be answered with jobs."""

    async def poll(
        self, worker: Worker, limit: int, max_running: int, wait: float, held: Sequence[tuple[str, int]]
    ) -> list[Granted]:
        with self._changes.of_queue(worker.service_uid) as bell, self._polling(worker.instance, bell):
            if again := await self.unconfirmed.again(worker, held, limit):
                return again
            loop = asyncio.get_running_loop()
            end = loop.time() + wait
            while bell in self._polls.get(worker.instance, ()):
                if not self._is_empty(worker.service_uid):
                    grants = await self.unconfirmed.claimed(worker, self._claim(worker, limit, max_running))
                    if grants:
                        return grants
                left = end - loop.time()
                if left <= 0:
                    return []
                await bell.wait(min(left, LOOK_AGAIN))
        return []

    @contextmanager
    def _polling(self, instance: str, bell: Bell) -> Iterator[None]:
        self._polls.setdefault(instance, set()).add(bell)
        try:
            yield
        finally:
            polls = self._polls.get(instance, set())
            polls.discard(bell)
            if not polls:
                self._polls.pop(instance, None)

    def _is_empty(self, service_uid: str) -> bool:
        """Whether a claim would find nothing: none that finds nothing is to keep the others' writes waiting."""
        arrivals, since = self._empty.get(service_uid, (-1, 0.0))
        return (
            arrivals == self._changes.arrivals(service_uid) and asyncio.get_running_loop().time() - since < LOOK_AGAIN
        )

    async def _claim(self, worker: Worker, limit: int, max_running: int) -> tuple[list[Granted], Outcome]:
        arrivals, asked = self._changes.arrivals(worker.service_uid), asyncio.get_running_loop().time()
        grants, outcome = await self._ledger.claim(worker, limit, max_running)
        if outcome.emptied:
            # What has come since then may have come behind this look.
            self._empty[worker.service_uid] = arrivals, asked
        return grants, outcome

    def source(self, service_uid: str) -> driver_pb2.JobSource:
        return driver_pb2.JobSource(embedded=driver_pb2.EmbeddedDispatch())

    def forget(self, instance: str) -> None:
        """An instance has gone for good."""
        self.unconfirmed.forget(instance)
        # That the connection of one that was killed has gone may be noticed later: nobody hears the answer to its poll.
        for bell in self._polls.pop(instance, ()):
            bell.ring()
