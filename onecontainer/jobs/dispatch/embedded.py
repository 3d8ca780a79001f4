"""Embedded dispatch: workers long-poll the gateway, and the poll's answer is the claim. Durable, without another process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.ledger import Changed, Granted, Ledger, Outcome, Worker

LOOK_AGAIN = 5.0
"""Seconds after which a waiting poll looks by itself: the bell is a hint."""


class EmbeddedDispatch:
    """Dispatch by long polling."""

    def __init__(self, ledger: Ledger, changes: Changes) -> None:
        self._ledger = ledger
        self._changes = changes
        # What each instance was last granted and has not been heard of since: its answer may have been lost.
        self._unconfirmed: dict[str, set[tuple[str, int]]] = {}
        changes.listen(self._changed)

    def _changed(self, change: Changed) -> None:
        if change.left_lease and change.instance in self._unconfirmed:
            self._unconfirmed[change.instance].discard((change.id, change.fence))

    async def poll(
        self, worker: Worker, limit: int, max_running: int, wait: float, held: Sequence[tuple[str, int]]
    ) -> list[Granted]:
        lost = self._unconfirmed.pop(worker.instance, set()) - set(held)
        if lost:
            # What it holds is confirmed; the rest stays remembered, whatever becomes of this poll.
            self._unconfirmed[worker.instance] = lost
            asked = sorted(lost)[:limit]
            again = await self._ledger.regrant(worker, asked)
            found = {(grant.id, grant.fence) for grant in again}
            # What is not its any more was lost or ended.
            self._unconfirmed.get(worker.instance, set()).difference_update(set(asked) - found)
            if again:
                return again
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        with self._changes.of_queue(worker.service_uid) as bell:
            while True:
                claimed = asyncio.ensure_future(self._ledger.claim(worker, limit, max_running))
                try:
                    grants, outcome = await asyncio.shield(claimed)
                except asyncio.CancelledError:
                    # The caller has gone while the claim was on its way: what it got is given again to its next poll.
                    claimed.add_done_callback(lambda done: self._late(worker, done))
                    raise
                self._changes.publish(outcome.changed)
                if grants:
                    return self._remember(worker, grants)
                left = end - loop.time()
                if left <= 0:
                    return []
                await bell.wait(min(left, LOOK_AGAIN))

    def _late(self, worker: Worker, claimed: asyncio.Future[tuple[list[Granted], Outcome]]) -> None:
        if not claimed.cancelled() and claimed.exception() is None:
            grants, outcome = claimed.result()
            self._changes.publish(outcome.changed)
            self._remember(worker, grants)

    def _remember(self, worker: Worker, grants: list[Granted]) -> list[Granted]:
        self._unconfirmed.setdefault(worker.instance, set()).update((grant.id, grant.fence) for grant in grants)
        return grants

    def source(self, service_uid: str) -> driver_pb2.JobSource:
        return driver_pb2.JobSource(embedded=driver_pb2.EmbeddedDispatch())

    def forget(self, instance: str) -> None:
        """An instance has gone for good."""
        self._unconfirmed.pop(instance, None)
