"""Two gateways on one PostgreSQL: what one of them does counts for the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from onecontainer.database import Database
from onecontainer.jobs.model import SECOND, CancelMode, State
from onecontainer.jobs.tables import jobs as job_rows
from tests.fixtures.ledger_desk import LEASE, OTHER, WORKER, Desk, create_tables, new_job

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
async def desks(database_url: str) -> AsyncIterator[tuple[Desk, Desk]]:
    async with Database(database_url) as one, Database(database_url) as two:
        create_tables(one)
        yield Desk(one), Desk(two)


async def test_a_job_is_granted_once_and_no_more_than_may_run(desks: tuple[Desk, Desk]) -> None:
    one, two = desks
    await one.ledger.create([new_job(one.clock) for _ in range(60)])
    claims = [
        (desk.claim(3, worker=worker, max_running=40), worker)
        for _ in range(10)
        for desk, worker in ((one, WORKER), (two, OTHER))
    ]
    granted = [grant.id for grants in await asyncio.gather(*(claim for claim, _ in claims)) for grant in grants]
    assert len(granted) == len(set(granted)) == 40


async def test_a_request_id_sent_to_both_makes_one_job(desks: tuple[Desk, Desk]) -> None:
    for number in range(10):
        made = await asyncio.gather(
            *(desk.ledger.create([new_job(desk.clock, request_id=f"r{number}")]) for desk in desks)
        )
        (first,), (second,) = made
        assert first.id == second.id
        assert {first.replayed, second.replayed} == {True, False}


async def test_both_sweep_and_each_job_moves_once(desks: tuple[Desk, Desk]) -> None:
    one, two = desks
    jobs = [await one.create(max_attempts=3) for _ in range(10)]
    await one.claim()
    await one.sweep()
    for desk in desks:
        desk.clock.advance(LEASE / 2)
    await one.sweep()
    for desk in desks:
        desk.clock.advance(LEASE / 2)
    outcomes = await asyncio.gather(*(desk.sweep() for desk in desks))
    changed = [change.id for outcome in outcomes for change in outcome.changed]
    assert sorted(changed) == sorted(jobs)
    assert {(await two.row(job)).attempt for job in jobs} == {2}


async def test_cancel_and_outcome_at_the_same_time_have_one_end(desks: tuple[Desk, Desk]) -> None:
    one, two = desks
    for _ in range(20):
        job = await one.create()
        grant = await one.claim_one()
        await asyncio.gather(one.succeed(grant), two.ledger.cancel(job, CancelMode.ABORT))
        assert await two.state(job) == State.SUCCEEDED


async def test_reports_of_one_worker_and_cancels_in_any_order_do_not_block_each_other(
    desks: tuple[Desk, Desk],
) -> None:
    one, two = desks
    jobs = [await one.create() for _ in range(30)]
    grants = await one.claim()
    reports = [one.reported(grant, "heartbeat") for grant in grants]
    work = [one.ledger.report(WORKER, reports[start:] + reports[:start]) for start in range(0, 30, 5)]
    cancels = [two.ledger.cancel(job, CancelMode.ABORT) for job in reversed(jobs)]
    await asyncio.gather(*work, *cancels)
    assert {await one.state(job) for job in jobs} == {State.CANCELLING}


async def test_a_group_that_is_given_up_for_a_deadlock_is_written_nevertheless(desks: tuple[Desk, Desk]) -> None:
    """Each of the gateways has a row that the other waits for, and once more when the writes of the group are tried again."""
    one, two = desks
    first, second = [await one.create() for _ in range(2)]
    both, held, queued, rounds = threading.Barrier(2), threading.Event(), threading.Event(), iter(range(2))

    def hold(_connection: sa.Connection) -> None:
        held.set()
        queued.wait(120)

    def meet(_connection: sa.Connection) -> None:
        if next(rounds, None) is not None:
            both.wait(120)

    def cross(connection: sa.Connection) -> None:
        """In the other order; whoever waits for longer than this is given up, so that it is never this one."""
        connection.execute(sa.text("SET LOCAL deadlock_timeout = '100s'"))
        for job in (second, first):
            connection.execute(sa.select(job_rows.c.id).where(job_rows.c.id == job).with_for_update())
            if job == second:
                both.wait(120)

    async def cross_twice() -> None:
        for _ in range(2):
            await two.database.write(cross)

    writes = [asyncio.create_task(one.database.write(hold))]
    await asyncio.to_thread(held.wait)
    # What comes while a transaction is under way goes into one.
    for write in (
        one.ledger.cancel(first, CancelMode.ABORT),
        one.database.write(meet),
        one.ledger.cancel(second, CancelMode.ABORT),
    ):
        writes.append(asyncio.ensure_future(write))
        await asyncio.sleep(0)
    queued.set()
    await asyncio.gather(*writes, cross_twice())
    assert {await one.state(job) for job in (first, second)} == {State.CANCELLED}


async def test_the_databases_clock_judges_leases(database_url: str) -> None:
    async with Database(database_url) as database:
        create_tables(database)
        desk = Desk(database)
        desk.ledger._database_clock = True
        # This gateway's own clock is far behind; nobody's lease depends on it.
        job = await desk.create(total_timeout=10_000_000_000)
        await desk.claim_one()
        expiry = (await desk.row(job)).lease_expiry
        assert expiry > desk.clock.now() + 86400 * SECOND
        assert not (await desk.sweep()).changed
