"""Embedded dispatch: workers long-poll the gateway, and the poll's answer is the claim. Durable, without another process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.ledger import Granted, Ledger, Worker
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

    async def poll(
        self, worker: Worker, limit: int, max_running: int, wait: float, held: Sequence[tuple[str, int]]
    ) -> list[Granted]:
        if again := await self.unconfirmed.again(worker, held, limit):
            return again
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        with self._changes.of_queue(worker.service_uid) as bell:
            while True:
                grants = await self.unconfirmed.claimed(worker, self._ledger.claim(worker, limit, max_running))
                left = end - loop.time()
                if grants or left <= 0:
                    return grants
                await bell.wait(min(left, LOOK_AGAIN))

    def source(self, service_uid: str) -> driver_pb2.JobSource:
        return driver_pb2.JobSource(embedded=driver_pb2.EmbeddedDispatch())

    def forget(self, instance: str) -> None:
        """An instance has gone for good."""
        self.unconfirmed.forget(instance)
