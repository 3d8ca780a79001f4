"""The outbox of work, and claims by the jobs that records name, on each database."""

from __future__ import annotations

import pytest
from google.protobuf import wrappers_pb2

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.database import Database
from onecontainer.errors import BackendUnreachable, DataInvalid
from onecontainer.jobs.ledger import Decision, Granted
from onecontainer.jobs.model import CancelMode
from onecontainer.jobs.sql_outbox import SqlOutbox
from onecontainer.rpc.status import MAX_JOB_STATUS_BYTES, from_status, to_status
from tests.fixtures.ledger_desk import OTHER, SERVICE, STRANGER, UID, WORKER, Desk

LOW, HIGH = job_options_pb2.PRIORITY_LOW, job_options_pb2.PRIORITY_HIGH


@pytest.fixture
def outbox(desk: Desk, database: Database) -> SqlOutbox:
    return SqlOutbox(database, desk.clock)


async def publish(outbox: SqlOutbox, window: int = 100, max_running: int = 0) -> list[str]:
    rows = await outbox.to_publish(UID, window, max_running)
    await outbox.published([(row.position, row.fence) for row in rows])
    return [row.id for row in rows]


async def test_the_best_go_first_and_each_goes_once(desk: Desk, outbox: SqlOutbox) -> None:
    low = await desk.create(priority=LOW)
    first, second = await desk.create(), await desk.create()
    high = await desk.create(priority=HIGH)
    assert await outbox.waiting_services() == [(SERVICE, UID)]
    assert await publish(outbox) == [high, first, second, low]
    assert await publish(outbox) == []
    assert await outbox.waiting_services() == []


async def test_at_most_a_window_is_there_unclaimed(desk: Desk, outbox: SqlOutbox) -> None:
    jobs = [await desk.create() for _ in range(5)]
    assert await publish(outbox, window=2) == jobs[:2]
    assert await publish(outbox, window=2) == []
    await desk.ledger.claim_records(WORKER, [(jobs[0], 1)], 100)
    # A better one that comes later overtakes what is not published yet.
    high = await desk.create(priority=HIGH)
    assert await publish(outbox, window=2) == [high]


async def test_no_more_than_may_run(desk: Desk, outbox: SqlOutbox) -> None:
    jobs = [await desk.create() for _ in range(4)]
    assert await publish(outbox, max_running=2) == jobs[:2]
    answers, _ = await desk.ledger.claim_records(WORKER, [(jobs[0], 1)], 2)
    assert await publish(outbox, max_running=2) == []
    assert isinstance(answers[0], Granted)
    await desk.succeed(answers[0])
    assert await publish(outbox, max_running=2) == [jobs[2]]


async def test_what_stays_unclaimed_is_published_again_with_the_same_fence(desk: Desk, outbox: SqlOutbox) -> None:
    unclaimed, claimed = await desk.create(), await desk.create()
    await publish(outbox)
    await desk.ledger.claim_records(WORKER, [(claimed, 1)], 100)
    desk.clock.advance(61)
    before = desk.clock.now() - 60_000_000
    assert await outbox.unclaimed_services(before) == [(SERVICE, UID)]
    assert await outbox.publish_again(UID, before, 2) == 1
    assert await outbox.unclaimed_services(before) == []
    (row,) = await outbox.to_publish(UID, 100, 0)
    assert (row.id, row.fence) == (unclaimed, 1)


async def test_what_waits_for_a_slot_is_not_published_again(desk: Desk, outbox: SqlOutbox) -> None:
    claimed, _ = await desk.create(), await desk.create()
    await publish(outbox)
    answers, _ = await desk.ledger.claim_records(WORKER, [(claimed, 1)], 100)
    desk.clock.advance(3600)
    before = desk.clock.now() - 60_000_000
    assert await outbox.publish_again(UID, before, 1) == 0
    assert await outbox.publish_again("uid-other", before, 1) == 0
    assert isinstance(answers[0], Granted)
    await desk.succeed(answers[0])
    assert await outbox.publish_again(UID, before, 1) == 1


async def test_one_that_was_claimed_before_its_record_is_noted_is_left_alone(desk: Desk, outbox: SqlOutbox) -> None:
    job = await desk.create()
    rows = await outbox.to_publish(UID, 100, 0)
    await desk.claim_one()
    await outbox.published([(row.position, row.fence) for row in rows])
    assert (await desk.row(job)).published_time == 0


async def test_the_next_attempt_is_published_with_its_own_fence(desk: Desk, outbox: SqlOutbox) -> None:
    job = await desk.create()
    await publish(outbox)
    grant = await desk.claim_one()
    await desk.fail(grant, BackendUnreachable("not yet"))
    desk.clock.advance(120)
    await desk.sweep()
    (row,) = await outbox.to_publish(UID, 100, 0)
    assert (row.id, row.attempt, row.fence) == (job, 2, grant.fence + 1)


async def test_a_cancelled_job_is_not_published(desk: Desk, outbox: SqlOutbox) -> None:
    job = await desk.create()
    await desk.ledger.cancel(job, CancelMode.ABORT)
    assert await publish(outbox) == []


async def test_claims_by_record(desk: Desk) -> None:
    jobs = [await desk.create() for _ in range(3)]
    taken = await desk.claim_one(OTHER)
    wanted = [(taken.id, 1), (jobs[1], 1), (jobs[1], 1), (jobs[2], 7), ("unknown", 1)]
    answers, outcome = await desk.ledger.claim_records(WORKER, wanted, 100)
    assert answers[0] is Decision.SKIP  # another's
    assert isinstance(answers[1], Granted)
    assert answers[2:] == [Decision.SKIP] * 3  # twice, of another fence, nobody's
    assert [change.id for change in outcome.changed] == [jobs[1]]
    again, nothing = await desk.ledger.claim_records(WORKER, [(jobs[1], 1)], 100)
    assert again == [answers[1]]
    assert nothing.changed == []
    assert (await desk.ledger.claim_records(STRANGER, [(jobs[2], 1)], 100))[0] == [Decision.SKIP]


async def test_a_full_service_is_asked_later(desk: Desk) -> None:
    jobs = [await desk.create() for _ in range(3)]
    answers, _ = await desk.ledger.claim_records(WORKER, [(job, 1) for job in jobs], 2)
    assert [isinstance(answer, Granted) for answer in answers] == [True, True, False]
    assert answers[2] is Decision.RETRY_LATER


async def test_a_higher_lane_goes_before_what_the_records_name(desk: Desk) -> None:
    jobs = [await desk.create() for _ in range(3)]
    high = await desk.create(priority=HIGH)
    answers, outcome = await desk.ledger.claim_records(WORKER, [(job, 1) for job in jobs[:2]], 100)
    # As many as asked for: the oldest record's job, and the better one that nobody has read of.
    assert [answer.id for answer in answers if isinstance(answer, Granted)] == [jobs[0], high]
    assert answers[1] is Decision.RETRY_LATER
    assert {change.id for change in outcome.changed} == {high, jobs[0]}
    # The record that had to wait is asked for again; its lane has nobody better any more.
    again, _ = await desk.ledger.claim_records(WORKER, [(jobs[1], 1)], 100)
    assert [isinstance(answer, Granted) for answer in again] == [True]


async def test_events_are_written_with_what_they_tell_of(database: Database) -> None:
    desk = Desk(database, record_events=True)
    outbox = SqlOutbox(database, desk.clock)
    job = await desk.create()
    grant = await desk.claim_one()
    await desk.report(grant, "heartbeat")
    await desk.succeed(grant)
    rows = await outbox.oldest_events(10)
    events = [event for row in rows for event in event_pb2.JobEvents.FromString(row.events).events]
    assert [event.new_state for event in events] == [
        job_pb2.JOB_STATE_QUEUED,
        job_pb2.JOB_STATE_RUNNING,
        job_pb2.JOB_STATE_SUCCEEDED,
    ]
    assert {event.job for event in events} == {f"jobs/{job}"}
    await outbox.events_sent([row.position for row in rows[:2]])
    assert [row.position for row in await outbox.oldest_events(10)] == [rows[2].position]


async def test_an_events_error_has_nothing_of_the_methods_own(database: Database) -> None:
    desk = Desk(database, record_events=True)
    await desk.create()
    error = DataInvalid("a", "is wrong").with_details(wrappers_pb2.StringValue(value="x" * 20_000))
    await desk.report(await desk.claim_one(), "failed", to_status(error, most=MAX_JOB_STATUS_BYTES))
    rows = await SqlOutbox(database, desk.clock).oldest_events(10)
    told = event_pb2.JobEvents.FromString(rows[-1].events).events[-1]
    assert told.new_state == job_pb2.JOB_STATE_FAILED
    assert (from_status(told.error).details, from_status(told.error).violations) == ((), error.violations)
