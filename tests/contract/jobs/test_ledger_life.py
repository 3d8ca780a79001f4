"""The ledger's contract: making jobs, claiming them, reporting, retrying."""

from __future__ import annotations

import pytest

from onecontainer.errors import (
    BackendUnreachable,
    FieldInvalid,
    OutcomeUnknown,
    Reason,
    RequestIdReused,
    ResourceNotFound,
    StateInvalid,
)
from onecontainer.jobs.model import SECOND, AttemptState, CancelMode, Limits, State
from onecontainer.rpc.status import to_status
from tests.fixtures.ledger_desk import LEASE, OTHER, STRANGER, UID, WORKER, Desk, new_job, refusals

HIGH, LOW = 3, 1


async def test_a_job_runs_from_request_to_result(desk: Desk) -> None:
    job = await desk.create(payload=b"question")
    assert await desk.state(job) == State.QUEUED
    grant = await desk.claim_one()
    assert (grant.id, grant.payload, grant.attempt, grant.fence) == (job, b"question", 1, 1)
    assert (grant.service, grant.method, grant.principal) == ("services/s", "test.Echo/Say", "ann")
    desk.clock.advance(5)
    outcome = await desk.succeed(grant, b"answer")
    assert [(c.id, c.state, c.left_lease) for c in outcome.changed] == [(job, State.SUCCEEDED, True)]
    row = await desk.row(job)
    assert (row.state, row.result, row.error) == (State.SUCCEEDED, b"answer", None)
    assert row.end_time == desk.clock.now()
    assert row.start_time == desk.clock.now() - 5 * SECOND
    assert await desk.claim() == []


async def test_every_change_raises_the_sequence(desk: Desk) -> None:
    job = await desk.create()
    seen = [(await desk.row(job)).sequence]
    grant = await desk.claim_one()
    seen.append((await desk.row(job)).sequence)
    for progress in (b"", b"1"):
        await desk.report(grant, "progress", progress)
        seen.append((await desk.row(job)).sequence)
    await desk.fail(grant, BackendUnreachable("away"))
    seen.append((await desk.row(job)).sequence)
    grant = await desk.next_attempt(job)
    seen.append((await desk.row(job)).sequence)
    await desk.succeed(grant)
    seen.append((await desk.row(job)).sequence)
    assert seen == sorted(set(seen))


async def test_unknown_jobs_are_not_found(desk: Desk) -> None:
    for call in (
        desk.ledger.get("nope"),
        desk.ledger.cancel("nope", CancelMode.ABORT),
        desk.ledger.delete("nope"),
        desk.ledger.payload("nope"),
    ):
        with pytest.raises(ResourceNotFound) as caught:
            await call
        assert caught.value.resource == ("onecontainer.dev/Job", "jobs/nope")


# --- request ids ------------------------------------------------------------------------------------------------------------


async def test_the_same_request_id_and_request_is_the_same_job(desk: Desk) -> None:
    job = await desk.create(request_id="r1", payload=b"a")
    (again,) = await desk.ledger.create([new_job(desk.clock, request_id="r1", payload=b"a")])
    assert (again.id, again.replayed) == (job, True)
    # Also inside one batch, and only there where it is the same.
    one, two, three = await desk.ledger.create(
        [
            new_job(desk.clock, request_id="r2", payload=b"a"),
            new_job(desk.clock, request_id="r2", payload=b"a"),
            new_job(desk.clock, request_id="r2", payload=b"b"),
        ]
    )
    assert one.id == two.id
    assert (one.replayed, two.replayed) == (False, True)
    assert isinstance(three.error, RequestIdReused)
    assert len(await desk.claim()) == 2


async def test_a_request_id_with_another_request_is_refused(desk: Desk) -> None:
    await desk.create(request_id="r1", payload=b"a")
    with pytest.raises(RequestIdReused):
        await desk.create(request_id="r1", payload=b"b")


@pytest.mark.parametrize("other", [{"principal": "bob"}, {"method": "test.Echo/Shout"}])
async def test_request_ids_belong_to_principal_and_method(desk: Desk, other: dict[str, str]) -> None:
    job = await desk.create(request_id="r1", payload=b"a")
    assert await desk.create(request_id="r1", payload=b"b", **other) != job


async def test_a_request_id_is_kept_for_seven_days(desk: Desk) -> None:
    job = await desk.create(request_id="r1", keep_result=True)
    await desk.succeed(await desk.claim_one())
    desk.clock.advance(7 * 86400 - 1)
    assert await desk.create(request_id="r1") == job
    desk.clock.advance(2)
    assert await desk.create(request_id="r1") != job
    # And whether or not a sweep has come by.
    await desk.sweep()


async def test_a_request_id_of_a_deleted_job_is_free(desk: Desk) -> None:
    job = await desk.create(request_id="r1")
    await desk.ledger.cancel(job, CancelMode.ABORT)
    await desk.ledger.delete(job)
    assert await desk.create(request_id="r1") != job


# --- claims -----------------------------------------------------------------------------------------------------------------


async def test_lanes_come_first_and_age_second(desk: Desk) -> None:
    low = await desk.create(priority=LOW)
    first = await desk.create()
    urgent = await desk.create(priority=HIGH)
    second = await desk.create()
    assert [grant.id for grant in await desk.claim()] == [urgent, first, second, low]


async def test_a_retried_job_keeps_its_place(desk: Desk) -> None:
    old = await desk.create(max_attempts=2)
    young = await desk.create()
    (grant,) = await desk.claim(1)
    await desk.fail(grant, BackendUnreachable("away"))
    desk.clock.advance(2)
    await desk.sweep()
    assert [grant.id for grant in await desk.claim()] == [old, young]


async def test_no_more_run_than_the_service_allows(desk: Desk) -> None:
    for _ in range(4):
        await desk.create()
    grants = await desk.claim(max_running=3)
    assert len(grants) == 3
    assert await desk.claim(max_running=3) == []
    await desk.ledger.cancel(grants[0].id, CancelMode.ABORT)
    assert await desk.claim(max_running=3) == [], "a job that is being cancelled still has its slot"
    await desk.report(grants[0], "stopped", to_status(OutcomeUnknown()))
    assert len(await desk.claim(max_running=3)) == 1


async def test_a_claim_that_could_have_taken_more_tells_that_the_queue_is_empty(desk: Desk) -> None:
    async def emptied(limit: int, max_running: int) -> bool:
        _, outcome = await desk.ledger.claim(WORKER, limit, max_running)
        return outcome.emptied

    for _ in range(3):
        await desk.create()
    assert not await emptied(1, 100)
    # Without room nothing is known of the queue, nor with just enough of it.
    assert not await emptied(5, 1)
    assert not await emptied(2, 100)
    assert await emptied(1, 100)
    await desk.create()
    assert await emptied(2, 100)


async def test_a_worker_gets_jobs_of_its_service_only(desk: Desk) -> None:
    await desk.create()
    assert await desk.claim(worker=STRANGER) == []
    assert Limits().max_running == 1


async def test_what_is_past_its_time_is_not_started_even_before_the_sweep(desk: Desk) -> None:
    await desk.create(queue_timeout=5)
    await desk.create(total_timeout=5)
    desk.clock.advance(5)
    assert await desk.claim() == []


async def test_a_lost_answer_is_granted_again_to_the_same_instance_only(desk: Desk) -> None:
    await desk.create(attempt_timeout=60)
    grant = await desk.claim_one()
    assert grant.run_timeout == 60 * SECOND
    desk.clock.advance(10)
    key = [(grant.id, grant.fence)]
    assert await desk.ledger.regrant(OTHER, key) == []
    assert await desk.ledger.regrant(WORKER, [(grant.id, grant.fence + 1)]) == []
    (again,) = await desk.ledger.regrant(WORKER, key)
    assert (again.id, again.attempt, again.fence, again.payload) == (grant.id, 1, 1, grant.payload)
    assert again.run_timeout == 50 * SECOND, "its time runs from the first grant"
    # The lease is new.
    await desk.sweep()
    desk.clock.advance(LEASE - 1)
    await desk.sweep()
    assert await desk.state(grant.id) == State.RUNNING


async def test_what_is_granted_again_after_a_cancel_says_so(desk: Desk) -> None:
    job = await desk.create(total_timeout=100)
    grant = await desk.claim_one()
    await desk.ledger.cancel(job, CancelMode.FINISH)
    (again,) = await desk.ledger.regrant(WORKER, [(job, grant.fence)])
    assert again.cancel_mode == CancelMode.FINISH
    await desk.ledger.cancel(job, CancelMode.ABORT)
    (again,) = await desk.ledger.regrant(WORKER, [(job, grant.fence)])
    assert again.cancel_mode == CancelMode.ABORT
    await desk.report(grant, "stopped", to_status(OutcomeUnknown()))
    assert await desk.ledger.regrant(WORKER, [(job, grant.fence)]) == []


async def test_an_expiring_job_is_not_granted_again_as_if_nothing_was(desk: Desk) -> None:
    job = await desk.create(total_timeout=10)
    grant = await desk.claim_one()
    desk.clock.advance(10)
    await desk.sweep()
    assert await desk.state(job) == State.EXPIRING
    (again,) = await desk.ledger.regrant(WORKER, [(job, grant.fence)])
    assert again.cancel_mode == CancelMode.ABORT


# --- fences -----------------------------------------------------------------------------------------------------------------


async def test_an_old_fence_is_refused(desk: Desk) -> None:
    job = await desk.create(max_attempts=2)
    old = await desk.claim_one()
    await desk.pass_time(LEASE + 1)
    new = await desk.next_attempt(job)
    assert new.fence > old.fence
    for kind, value in (("heartbeat", None), ("progress", b""), ("succeeded", None)):
        assert refusals(await desk.report(old, kind, value, result=b"old")) == ["LEASE_LOST"]
    assert await desk.state(job) == State.RUNNING
    await desk.succeed(new, b"new")
    assert refusals(await desk.succeed(old, b"old")) == ["LEASE_LOST"]
    assert (await desk.row(job)).result == b"new"


async def test_a_current_fence_counts_after_the_lease_ran_out(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    desk.clock.advance(LEASE * 3)
    outcome = await desk.succeed(grant)
    assert not outcome.refused
    assert await desk.state(job) == State.SUCCEEDED


async def test_reports_of_another_instance_or_service_are_refused(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    for worker in (OTHER, STRANGER):
        assert refusals(await desk.succeed(grant, worker=worker)) == ["LEASE_LOST"]
    assert await desk.state(job) == State.RUNNING
    await desk.succeed(grant)
    assert refusals(await desk.succeed(grant, worker=OTHER)) == ["LEASE_LOST"]


async def test_a_report_on_a_job_that_is_not_there_is_refused(desk: Desk) -> None:
    await desk.create()
    grant = await desk.claim_one()
    await desk.succeed(grant)
    await desk.ledger.delete(grant.id)
    assert refusals(await desk.succeed(grant)) == ["LEASE_LOST"]


async def test_the_same_outcome_again_changes_nothing(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    await desk.succeed(grant, b"first")
    before = await desk.row(job)
    for outcome in (await desk.succeed(grant, b"second"), await desk.fail(grant, BackendUnreachable("late"))):
        assert not outcome.changed
        assert not outcome.refused
    assert await desk.row(job) == before


async def test_a_resent_failure_does_not_count_twice(desk: Desk) -> None:
    job = await desk.create(max_attempts=3)
    grant = await desk.claim_one()
    await desk.fail(grant, BackendUnreachable("away"))
    before = await desk.row(job)
    assert refusals(await desk.fail(grant, BackendUnreachable("away"))) == ["LEASE_LOST"]
    assert await desk.row(job) == before
    assert before.attempt == 2


# --- retries ----------------------------------------------------------------------------------------------------------------


async def test_a_failure_waits_ever_longer_and_then_is_final(desk: Desk) -> None:
    job = await desk.create(max_attempts=3, initial_backoff=4, backoff_multiplier=2.0)
    for attempt, (least, most) in enumerate([(2, 4), (4, 8)], start=1):
        grant = await desk.claim_one()
        assert grant.attempt == attempt
        await desk.fail(grant, BackendUnreachable(f"no {attempt}"))
        row = await desk.row(job)
        assert row.state == State.RETRY_WAIT
        assert least * SECOND <= row.due_time - desk.clock.now() <= most * SECOND
        desk.clock.advance((row.due_time - desk.clock.now() - 1) / 1e6)
        await desk.sweep()
        assert await desk.claim() == [], "not before its time"
        desk.clock.advance(0.001)
        await desk.sweep()
    await desk.fail(await desk.claim_one(), BackendUnreachable("no 3"))
    assert await desk.state(job) == State.FAILED
    error = await desk.error(job)
    assert (error.reason, error.message) == (Reason.BACKEND_UNREACHABLE, "no 3")
    view = await desk.get(job)
    assert [(a.number, a.state) for a in view.attempts] == [(n, AttemptState.FAILED) for n in (1, 2, 3)]
    assert [a.fence for a in view.attempts] == [1, 2, 3]


async def test_retry_info_is_the_least_wait(desk: Desk) -> None:
    job = await desk.create(max_attempts=2)
    await desk.fail(await desk.claim_one(), BackendUnreachable("away", retry_after=90.0))
    assert (await desk.row(job)).due_time == desk.clock.now() + 90 * SECOND


async def test_what_would_fail_again_is_not_tried_again(desk: Desk) -> None:
    job = await desk.create(max_attempts=5)
    await desk.fail(await desk.claim_one(), FieldInvalid("size", "is too small"))
    assert await desk.state(job) == State.FAILED
    error = await desk.error(job)
    assert [violation.field for violation in error.violations] == ["size"]


async def test_a_method_that_is_not_idempotent_is_run_once(desk: Desk) -> None:
    job = await desk.create(idempotent=False)
    await desk.fail(await desk.claim_one(), BackendUnreachable("away"))
    assert await desk.state(job) == State.FAILED


async def test_the_caller_may_widen_that(desk: Desk) -> None:
    job = await desk.create(idempotent=False, retry_unsafe=True)
    await desk.fail(await desk.claim_one(), BackendUnreachable("away"))
    assert await desk.state(job) == State.RETRY_WAIT


async def test_the_driver_may_narrow_it_before_its_side_effects(desk: Desk) -> None:
    job = await desk.create(max_attempts=5)
    grant = await desk.claim_one()
    await desk.report(grant, "started", False)
    await desk.fail(grant, BackendUnreachable("away"))
    assert await desk.state(job) == State.FAILED


async def test_it_counts_also_if_the_failure_comes_in_the_same_message(desk: Desk) -> None:
    job = await desk.create(max_attempts=5)
    grant = await desk.claim_one()
    reports = [
        desk.reported(grant, "started", False),
        desk.reported(grant, "checkpoint", b"half"),
        desk.reported(grant, "progress", b"fifty"),
        desk.reported(grant, "failed", to_status(BackendUnreachable("away"))),
    ]
    await desk.ledger.report(WORKER, reports)
    row = await desk.row(job)
    assert row.state == State.FAILED
    assert row.progress == b"fifty"
    assert (await desk.ledger.payload(job)).resume == b"half"


async def test_started_without_a_word_on_it_leaves_it_as_declared(desk: Desk) -> None:
    job = await desk.create(max_attempts=5)
    grant = await desk.claim_one()
    await desk.report(grant, "started", None)
    await desk.fail(grant, BackendUnreachable("away"))
    assert await desk.state(job) == State.RETRY_WAIT


async def test_the_next_attempt_starts_from_the_last_checkpoint(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    assert grant.resume is None
    await desk.ledger.report(
        WORKER, [desk.reported(grant, "checkpoint", b"one"), desk.reported(grant, "checkpoint", b"two")]
    )
    await desk.fail(grant, BackendUnreachable("away"))
    assert (await desk.next_attempt(job)).resume == b"two"


async def test_only_the_latest_progress_is_kept(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    outcome = await desk.ledger.report(
        WORKER, [desk.reported(grant, "progress", b"1"), desk.reported(grant, "progress", b"2")]
    )
    assert len(outcome.changed) == 1
    assert not outcome.changed[0].orders
    assert (await desk.row(job)).progress == b"2"


async def test_an_unstarted_attempt_is_given_back_without_counting(desk: Desk) -> None:
    job = await desk.create(idempotent=False)
    for fence in (1, 2, 3):
        grant = await desk.claim_one()
        assert (grant.attempt, grant.fence) == (1, fence)
        await desk.report(grant, "released")
        assert await desk.state(job) == State.QUEUED
    # Given back again and again, it waits a little.
    await desk.report(await desk.claim_one(), "released")
    assert await desk.state(job) == State.RETRY_WAIT
    assert (await desk.next_attempt(job)).attempt == 1


async def test_an_attempt_that_a_drain_aborted_is_queued_again_if_it_may(desk: Desk) -> None:
    job = await desk.create(queue_timeout=10)
    grant = await desk.claim_one()
    desk.clock.advance(20)
    await desk.report(grant, "stopped", to_status(OutcomeUnknown("draining")))
    assert await desk.state(job) == State.QUEUED
    await desk.sweep()
    assert (await desk.claim_one()).attempt == 1, "its queue timeout was for the first start"

    once = await desk.create(idempotent=False)
    await desk.report(await desk.claim_one(), "stopped", to_status(OutcomeUnknown("draining")))
    assert await desk.state(once) == State.FAILED
    assert (await desk.error(once)).reason is Reason.OUTCOME_UNKNOWN


async def test_the_last_twenty_attempts_are_kept(desk: Desk) -> None:
    job = await desk.create(max_attempts=30, initial_backoff=0.001, max_backoff=0.001)
    grant = await desk.claim_one()
    for _ in range(25):
        await desk.fail(grant, BackendUnreachable("away"))
        grant = await desk.next_attempt(job)
    await desk.succeed(grant)
    view = await desk.get(job)
    assert [attempt.number for attempt in view.attempts] == list(range(6, 26))


async def test_only_terminal_jobs_are_deleted(desk: Desk) -> None:
    job = await desk.create(labels={"a": "1"}, inputs=["artifacts/" + "0" * 32])
    with pytest.raises(StateInvalid):
        await desk.ledger.delete(job)
    await desk.ledger.cancel(job, CancelMode.ABORT)
    await desk.ledger.delete(job)
    with pytest.raises(ResourceNotFound):
        await desk.get(job)
    assert await desk.ledger.live(UID) == 0
