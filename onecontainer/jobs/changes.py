"""Who is told when jobs change: watchers by job, workers by service. Only a hint; the ledger is the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from onecontainer.errors import Draining
from onecontainer.jobs.ledger import Changed
from onecontainer.jobs.model import TERMINAL, State

Listener = Callable[[Changed], None]


class Bell:
    """Wakes whoever waits, as often as it rings; a ring is not lost while a waiter looks elsewhere."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits for a ring since the last wait. False: the time (in seconds) is over."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Roll:
    """Many jobs that somebody waits for: gathers which of them may have ended."""

    def __init__(self, jobs: Iterable[str]) -> None:
        self.left = set(jobs)
        """Those that are still waited for."""
        self.bell = Bell()
        self._touched: set[str] = set()

    def touch(self, job: str) -> None:
        self._touched.add(job)
        self.bell.ring()

    def touched(self) -> list[str]:
        """Those of the left ones that were touched since the last look."""
        touched, self._touched = self._touched, set()
        return list(touched & self.left)


class Changes:
    """Spreads committed changes inside this gateway."""

    def __init__(self) -> None:
        self._jobs: dict[str, set[Bell]] = {}
        self._rolls: dict[str, set[Roll]] = {}
        self._queues: dict[str, set[Bell]] = {}
        self._arrivals: dict[str, int] = {}
        self._listeners: list[Listener] = []
        self._on_work: list[Callable[[str], None]] = []
        self._closed = False

    def close(self) -> None:
        """The gateway stops: who watches a job is told to go on elsewhere."""
        self._closed = True
        for bells in self._jobs.values():
            for bell in bells:
                bell.ring()
        for rolls in self._rolls.values():
            for roll in rolls:
                roll.bell.ring()

    async def next_of(self, bell: Bell, timeout: float) -> bool:
        """Waits for a change of a job, at most ``timeout`` seconds; False: there was none. Raises Draining if the gateway stops."""
        rang = not self._closed and await bell.wait(timeout)
        if self._closed:
            raise Draining("the gateway is stopping; watch again from the last sequence", retry_after=2.0)
        return rang

    def listen(self, listener: Listener) -> None:
        """Calls ``listener`` with every change, in order; it must not block."""
        self._listeners.append(listener)

    def on_work(self, callback: Callable[[str], None]) -> None:
        """Calls ``callback`` with a service's uid when it may have a job to take; it must not block."""
        self._on_work.append(callback)

    def publish(self, changed: Iterable[Changed]) -> None:
        """Tells of changes that are committed."""
        for change in changed:
            self.touch(change.id, ended=change.state in TERMINAL)
            if change.state == State.QUEUED:
                self.work(change.service_uid)
            elif change.left_lease:
                # A slot became free; no job came.
                self.came(change.service_uid)
                self._ring(change.service_uid)
            for listener in self._listeners:
                listener(change)

    def touch(self, job: str, *, ended: bool = True) -> None:
        """Lets the watchers of a job look again, and those who wait for its end too if it may have ended."""
        for bell in self._jobs.get(job, ()):
            bell.ring()
        if ended:
            for roll in self._rolls.get(job, ()):
                roll.touch(job)

    def work(self, service_uid: str) -> None:
        """Tells the workers of a service to look."""
        self.came(service_uid)
        self.coming(service_uid)

    def coming(self, service_uid: str) -> None:
        """The same, for those who claim, while the job is on its way to the ledger: what they write comes behind it."""
        self._arrivals[service_uid] = self.arrivals(service_uid) + 1
        self._ring(service_uid)

    def _ring(self, service_uid: str) -> None:
        for bell in self._queues.get(service_uid, ()):
            bell.ring()

    def arrivals(self, service_uid: str) -> int:
        """How often a job may have come into the service's queue: while this stays, nothing that is known of has come."""
        return self._arrivals.get(service_uid, 0)

    def came(self, service_uid: str) -> None:
        """The same, for those who read: the job is committed, or a slot became free."""
        for callback in self._on_work:
            callback(service_uid)

    def watched(self) -> list[str]:
        """Jobs that somebody watches."""
        return list(self._jobs)

    def awaited(self) -> list[str]:
        """Jobs whose end somebody waits for, among many."""
        return [job for job, rolls in self._rolls.items() if any(job in roll.left for roll in rolls)]

    def waited_for(self) -> list[str]:
        """Services (uids) whose jobs somebody waits for."""
        return list(self._queues)

    @contextmanager
    def of_job(self, job: str) -> Iterator[Bell]:
        """Rings at each change of one job."""
        with _registered(self._jobs, job) as bell:
            yield bell

    @contextmanager
    def of_jobs(self, jobs: Iterable[str]) -> Iterator[Roll]:
        """Gathers the ends of many jobs."""
        roll = Roll(jobs)
        names = tuple(roll.left)
        for job in names:
            self._rolls.setdefault(job, set()).add(roll)
        try:
            yield roll
        finally:
            for job in names:
                self._rolls[job].discard(roll)
                if not self._rolls[job]:
                    del self._rolls[job]

    @contextmanager
    def of_queue(self, service_uid: str) -> Iterator[Bell]:
        """Rings when a service may have a job to take."""
        with _registered(self._queues, service_uid) as bell:
            yield bell


@contextmanager
def _registered(table: dict[str, set[Bell]], key: str) -> Iterator[Bell]:
    bell = Bell()
    table.setdefault(key, set()).add(bell)
    try:
        yield bell
    finally:
        table[key].discard(bell)
        if not table[key]:
            del table[key]
