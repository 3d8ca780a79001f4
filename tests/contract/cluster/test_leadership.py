"""Leadership by an advisory lock: one at a time, and another one when its session has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress

import pytest
import sqlalchemy as sa

from onecontainer.cluster.advisory_lock import AdvisoryLeadership
from onecontainer.cluster.leadership import Alone
from onecontainer.database import Database


class Candidate:
    """One that wants to lead, and works while it does."""

    def __init__(self, database: Database) -> None:
        self.leadership = AdvisoryLeadership(database.engine)
        self.working = asyncio.Event()
        self.stopped = asyncio.Event()

    async def work(self) -> None:
        self.working.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.working.clear()
            self.stopped.set()


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def start(databases: tuple[Database, Database]) -> AsyncIterator[Callable[[Candidate], asyncio.Task[None]]]:
    async with AsyncExitStack() as stack:

        def begin(candidate: Candidate) -> asyncio.Task[None]:
            running = asyncio.create_task(candidate.leadership.run())
            stack.push_async_callback(end, running)
            stack.push_async_callback(end, asyncio.create_task(candidate.leadership.lead(candidate.work)))
            return running

        yield begin


async def test_one_leads_and_the_other_takes_over_when_it_has_gone(
    databases: tuple[Database, Database], start: Callable[[Candidate], asyncio.Task[None]]
) -> None:
    first, second = (Candidate(database) for database in databases)
    async with asyncio.timeout(180):
        running = start(first)
        await first.working.wait()
        start(second)
        assert first.leadership.held
        assert not second.leadership.held
        await end(running)
        await second.working.wait()
        await first.stopped.wait()
        assert second.leadership.held
        assert not first.leadership.held


async def test_who_loses_the_connection_stops_to_work_and_somebody_goes_on(
    databases: tuple[Database, Database], start: Callable[[Candidate], asyncio.Task[None]]
) -> None:
    first, second = (Candidate(database) for database in databases)
    async with asyncio.timeout(180):
        start(first)
        await first.working.wait()
        start(second)
        kill = sa.text("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        await databases[1].write(lambda c: c.execute(kill))
        await first.stopped.wait()
        working = [asyncio.create_task(candidate.working.wait()) for candidate in (first, second)]
        await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        assert first.leadership.held != second.leadership.held
        for task in working:
            task.cancel()


async def test_whoever_is_alone_leads() -> None:
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    assert Alone().held
    await Alone().lead(work)
    assert done.is_set()
