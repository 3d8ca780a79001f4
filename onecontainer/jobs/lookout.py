"""What stands behind the notices of other gateways: a look at everything that somebody here waits for, four times a second.

One read for all watchers, one for all waiting workers, one for all connected workers; none where nobody waits. A notice that is lost is
only a delay then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Protocol

from onecontainer.errors import OneContainerError
from onecontainer.jobs.changes import Bell, Changes
from onecontainer.jobs.ledger import Changed

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.25
MOST_AWAITED = 1000


class View(Protocol):
    """What a look reads."""

    async def sequences(self, jobs: Collection[str]) -> dict[str, int]:
        """The sequence of each of these jobs that is there."""
        ...

    async def ended(self, jobs: Collection[str]) -> list[str]:
        """Which of these jobs have ended, or are gone."""
        ...

    async def queued(self, services: Collection[str]) -> list[str]:
        """Which of these services (uids) have a queued job."""
        ...

    async def ending(self, instances: Collection[str]) -> list[Changed]:
        """Attempts at these instances that are to end."""
        ...


class Lookout:
    """Looks. A task: `run`."""

    def __init__(self, view: View, changes: Changes, connected: Callable[[], Collection[str]]) -> None:
        """``connected()``: instances whose report stream ends at this gateway."""
        self._view = view
        self._changes = changes
        self._connected = connected
        self._bell = Bell()
        self._seen: dict[str, int] = {}
        self._turn = 0
        self._ordered: set[tuple[str, int, int, int]] = set()

    def soon(self) -> None:
        """Something may have been missed: looks at once."""
        self._bell.ring()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self.look()
            except OneContainerError as error:
                log.warning("the database cannot be looked at, trying again: %s", error)
            await self._bell.wait(LOOK_INTERVAL)

    async def look(self) -> None:
        """One look."""
        watched = self._changes.watched()
        if watched:
            found = await self._view.sequences(watched)
            for job in watched:
                # One that has gone is a change too.
                if self._seen.get(job) != found.get(job):
                    self._changes.touch(job)
            self._seen = found
        awaited = self._changes.awaited()
        if awaited:
            # So many of them at a time; the others' turn comes.
            self._turn = self._turn + MOST_AWAITED if self._turn + MOST_AWAITED < len(awaited) else 0
            for job in await self._view.ended(awaited[self._turn : self._turn + MOST_AWAITED]):
                self._changes.touch(job)
        waiting = self._changes.waited_for()
        if waiting:
            for service_uid in await self._view.queued(waiting):
                self._changes.work(service_uid)
        instances = self._connected()
        if instances:
            self._order(await self._view.ending(instances))

    def _order(self, ending: list[Changed]) -> None:
        ordered = {(change.id, change.fence, int(change.state), change.cancel_mode) for change in ending}
        self._changes.publish(
            replace(change, orders=True)
            for change in ending
            if (change.id, change.fence, int(change.state), change.cancel_mode) not in self._ordered
        )
        self._ordered = ordered
