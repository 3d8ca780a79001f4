"""Grants whose answers may have got lost on their way: they are given again to whoever they were given to.

Without that a job that nobody has begun would wait for its lease to run out, and one that must not be repeated would end as if it
had been begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from onecontainer.jobs.changes import Changes
from onecontainer.jobs.ledger import Changed, Decision, Granted, Ledger, Outcome, Worker

A = TypeVar("A", bound=Granted | Decision)


class Unconfirmed:
    """What each instance was granted and has not been heard of since. In memory only, for every dispatch."""

    def __init__(self, ledger: Ledger, changes: Changes) -> None:
        self._ledger = ledger
        self._changes = changes
        self._grants: dict[str, set[tuple[str, int]]] = {}
        changes.listen(self._changed)

    def _changed(self, change: Changed) -> None:
        if change.left_lease and change.instance in self._grants:
            self._grants[change.instance].discard((change.id, change.fence))

    async def again(self, worker: Worker, held: Sequence[tuple[str, int]], limit: int) -> list[Granted]:
        """Up to so many of the grants that the instance does not know of although it has them; what it holds is confirmed."""
        lost = self._grants.pop(worker.instance, set()) - set(held)
        if not lost:
            return []
        # They stay remembered, whatever becomes of this answer.
        self._grants[worker.instance] = lost
        asked = sorted(lost)[:limit]
        grants = await self._ledger.regrant(worker, asked)
        found = {(grant.id, grant.fence) for grant in grants}
        # What is not its any more was lost or ended.
        self._grants.get(worker.instance, set()).difference_update(set(asked) - found)
        return grants

    async def claimed(self, worker: Worker, claim: Awaitable[tuple[list[A], Outcome]]) -> list[A]:
        """The answers of a claim in the ledger; its changes are told, and its grants remembered even if the caller goes meanwhile."""
        claiming = asyncio.ensure_future(claim)
        try:
            await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(lambda _done: self._late(worker, claiming))
            raise
        return self._settled(worker, claiming)

    def _late(self, worker: Worker, claiming: asyncio.Future[tuple[list[A], Outcome]]) -> None:
        if not claiming.cancelled() and claiming.exception() is None:
            self._settled(worker, claiming)

    def _settled(self, worker: Worker, claiming: asyncio.Future[tuple[list[A], Outcome]]) -> list[A]:
        answers, outcome = claiming.result()
        self._changes.publish(outcome.changed)
        fences = {(answer.id, answer.fence) for answer in answers if isinstance(answer, Granted)}
        if fences:
            self._grants.setdefault(worker.instance, set()).update(fences)
        return answers

    def forget(self, instance: str) -> None:
        """An instance has gone for good, or its process may be another one: what it does not know of is not given again."""
        self._grants.pop(instance, None)
