"""The ledger's contract: cancel, lost leases, timeouts, and what stays of a job after its end."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from google.protobuf import wrappers_pb2
from google.rpc import status_pb2

from onecontainer.artifacts import sql as artifact_rows
from onecontainer.artifacts.model import Artifact, Attempt
from onecontainer.artifacts.model import State as ArtifactState
from onecontainer.errors import (
    BackendExecutionFailed,
    BackendUnreachable,
    Cancelled,
    CapabilityMissing,
    Code,
    FieldInvalid,
    Reason,
    RecordInvalid,
    ResourceNotFound,
)
from onecontainer.ids import new_id
from onecontainer.jobs import mapping
from onecontainer.jobs.ledger import Granted
from onecontainer.jobs.model import SECOND, AttemptState, CancelMode, State
from onecontainer.jobs.moves import ABORT_GRACE, TIMEOUT_GRACE
from onecontainer.rpc.status import MAX_JOB_STATUS_BYTES, from_status, to_status
from tests.fixtures.ledger_desk import LEASE, OTHER, UID, WORKER, Desk, new_job, refusals

ABORT, FINISH = CancelMode.ABORT, CancelMode.FINISH
GRACE = ABORT_GRACE / SECOND
STOPPED = to_status(Cancelled("told to"), hop="sidecar")


# --- cancel -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [ABORT, FINISH])
async def test_a_cancelled_queued_job_never_starts(desk: Desk, mode: CancelMode) -> None:
    job = await desk.create()
    outcome = await desk.ledger.cancel(job, mode)
    assert [(c.state, c.orders) for c in outcome.changed] == [(State.CANCELLED, False)]
    assert await desk.claim() == []
    assert (await desk.error(job)).reason is Reason.CANCELLED


@pytest.mark.parametrize("mode", [ABORT, FINISH])
async def test_a_job_that_waits_for_its_next_attempt_is_cancelled_at_once(desk: Desk, mode: CancelMode) -> None:
    job = await desk.create()
    await desk.fail(await desk.claim_one(), BackendUnreachable("away"))
    await desk.ledger.cancel(job, mode)
    assert await desk.state(job) == State.CANCELLED
    await desk.pass_time(120)
    assert await desk.claim() == []


@pytest.mark.parametrize("mode", [ABORT, FINISH])
async def test_the_worker_is_told_of_a_cancel(desk: Desk, mode: CancelMode) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    (change,) = (await desk.ledger.cancel(job, mode)).changed
    assert (change.state, change.orders, change.cancel_mode) == (State.CANCELLING, True, mode)
    assert (change.instance, change.attempt, change.fence) == (WORKER.instance, grant.attempt, grant.fence)
    # And when it connects again.
    (told,) = await desk.ledger.ending(WORKER.instance)
    assert (told.id, told.fence, told.cancel_mode) == (job, grant.fence, mode)
    assert await desk.ledger.ending(OTHER.instance) == []
    # Progress on the way is not another order.
    (change,) = (await desk.report(grant, "progress", b"9")).changed
    assert (change.orders, change.cancel_mode) == (False, mode)


async def test_the_same_cancel_again_changes_nothing(desk: Desk) -> None:
    job = await desk.create()
    await desk.claim_one()
    await desk.ledger.cancel(job, ABORT)
    before = await desk.row(job)
    for mode in (ABORT, FINISH):
        assert not (await desk.ledger.cancel(job, mode)).changed
    assert await desk.row(job) == before


async def test_abort_may_follow_finish(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    await desk.ledger.cancel(job, FINISH)
    (change,) = (await desk.ledger.cancel(job, ABORT)).changed
    assert (change.orders, change.cancel_mode) == (True, ABORT)
    await desk.succeed(grant, ended_early=True)
    row = await desk.row(job)
    assert (row.state, row.ended_early) == (State.SUCCEEDED, False)


async def test_finish_keeps_what_is_done(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    await desk.ledger.cancel(job, FINISH)
    await desk.succeed(grant, b"half", ended_early=True)
    row = await desk.row(job)
    assert (row.state, row.result, row.ended_early) == (State.SUCCEEDED, b"half", True)


async def test_a_job_does_not_end_early_unasked(desk: Desk) -> None:
    job = await desk.create()
    await desk.succeed(await desk.claim_one(), ended_early=True)
    assert (await desk.row(job)).ended_early is False


@pytest.mark.parametrize("end", ["failed", "stopped", "released", "lost"])
async def test_after_a_cancel_there_is_no_retry(desk: Desk, end: str) -> None:
    job = await desk.create(max_attempts=10)
    grant = await desk.claim_one()
    await desk.ledger.cancel(job, ABORT)
    if end == "failed":
        await desk.fail(grant, BackendUnreachable("away"))
    elif end == "lost":
        await desk.pass_time(LEASE + 1)
        assert refusals(await desk.succeed(grant)) == ["LEASE_LOST"]
    else:
        await desk.report(grant, end, STOPPED)
    assert await desk.state(job) == State.CANCELLED
    assert (await desk.error(job)).reason is Reason.CANCELLED
    view = await desk.get(job)
    assert [attempt.state for attempt in view.attempts] == [AttemptState.CANCELLED]


@pytest.mark.parametrize("terminal", [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED])
async def test_terminal_is_terminal(desk: Desk, terminal: State) -> None:
    job = await desk.create(idempotent=False, total_timeout=1000)
    if terminal is State.CANCELLED:
        await desk.ledger.cancel(job, ABORT)
    elif terminal is State.EXPIRED:
        desk.clock.advance(1000)
        await desk.sweep()
    elif terminal is State.SUCCEEDED:
        await desk.succeed(await desk.claim_one())
    else:
        await desk.fail(await desk.claim_one(), BackendUnreachable("away"))
    before = await desk.row(job)
    assert before.state == terminal
    assert not (await desk.ledger.cancel(job, ABORT)).changed
    assert not (await desk.ledger.cancel_service(UID)).changed
    assert not (await desk.ledger.lose(instance=WORKER.instance)).changed
    assert not (await desk.ledger.refuse_methods(UID, [], CapabilityMissing("gone"))).changed
    assert not (await desk.sweep()).changed
    assert await desk.row(job) == before


async def test_a_deleted_service_takes_its_jobs_along(desk: Desk) -> None:
    running, done = await desk.create(), await desk.create()
    grants = await desk.claim()
    await desk.succeed(grants[1])
    waiting, elsewhere = await desk.create(), await desk.create(uid="uid-other")
    assert await desk.ledger.live(UID) == 2
    await desk.ledger.cancel_service(UID)
    states = [await desk.state(job) for job in (running, done, waiting, elsewhere)]
    assert states == [State.CANCELLING, State.SUCCEEDED, State.CANCELLED, State.QUEUED]


async def test_methods_that_are_gone_fail_what_waits_for_them(desk: Desk) -> None:
    running = await desk.create(method="test.Echo/Gone")
    await desk.claim_one()
    kept, gone = await desk.create(), await desk.create(method="test.Echo/Gone")
    outcome = await desk.ledger.refuse_methods(UID, ["test.Echo/Say"], CapabilityMissing("gone"))
    assert [change.id for change in outcome.changed] == [gone]
    assert [await desk.state(job) for job in (running, kept, gone)] == [State.RUNNING, State.QUEUED, State.FAILED]
    assert (await desk.error(gone)).reason is Reason.CAPABILITY_MISSING


# --- lost leases ------------------------------------------------------------------------------------------------------------


async def test_a_lease_ends_only_at_its_end(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    await desk.pass_time(LEASE - 1)
    await desk.report(grant, "heartbeat")
    await desk.pass_time(LEASE - 1)
    assert await desk.state(job) == State.RUNNING
    await desk.pass_time(1)
    assert await desk.state(job) == State.RETRY_WAIT
    view = await desk.get(job)
    assert [(a.state, a.instance) for a in view.attempts] == [(AttemptState.LOST, WORKER.instance)]


async def test_a_lost_worker_is_told_by_the_fence_it_has(desk: Desk) -> None:
    await desk.create()
    grant = await desk.claim_one()
    await desk.sweep()
    desk.clock.advance(LEASE / 2)
    await desk.sweep()
    desk.clock.advance(LEASE / 2)
    (change,) = (await desk.sweep()).changed
    assert (change.lost, change.left_lease, change.attempt, change.fence) == (True, True, grant.attempt, grant.fence)


async def test_nobody_knows_what_a_lost_worker_has_done(desk: Desk) -> None:
    job = await desk.create(idempotent=False)
    grant = await desk.claim_one()
    await desk.pass_time(LEASE + 1)
    assert await desk.state(job) == State.FAILED
    error = await desk.error(job)
    assert error.reason is Reason.OUTCOME_UNKNOWN
    assert error.metadata["attempt"] == "1"
    assert refusals(await desk.succeed(grant)) == ["LEASE_LOST"]
    assert (await desk.row(job)).result is None


async def test_narrowed_in_started_counts_for_a_lost_worker_too(desk: Desk) -> None:
    job = await desk.create()
    await desk.report(await desk.claim_one(), "started", False)
    await desk.pass_time(LEASE + 1)
    assert (await desk.error(job)).reason is Reason.OUTCOME_UNKNOWN


async def test_lost_attempts_count(desk: Desk) -> None:
    job = await desk.create(max_attempts=2)
    await desk.claim_one()
    await desk.pass_time(LEASE)
    await desk.next_attempt(job)
    await desk.pass_time(LEASE)
    assert await desk.state(job) == State.FAILED
    assert (await desk.error(job)).reason is Reason.OUTCOME_UNKNOWN
    assert [a.state for a in (await desk.get(job)).attempts] == [AttemptState.LOST] * 2


async def test_after_a_gap_every_lease_gets_a_full_new_term(desk: Desk) -> None:
    job = await desk.create(stall_timeout=5, attempt_timeout=60)
    grant = await desk.claim_one()
    await desk.sweep()
    desk.clock.advance(3600)  # the gateway was away
    assert not (await desk.sweep()).changed
    assert await desk.state(job) == State.RUNNING
    assert (await desk.row(job)).lease_expiry == desk.clock.now() + LEASE * SECOND
    await desk.succeed(grant)
    assert await desk.state(job) == State.SUCCEEDED


async def test_a_worker_that_stays_away_after_the_gap_is_lost(desk: Desk) -> None:
    job = await desk.create()
    await desk.claim_one()
    await desk.sweep()
    desk.clock.advance(3600)
    await desk.sweep()
    await desk.pass_time(LEASE)
    assert await desk.state(job) == State.RETRY_WAIT


async def test_a_short_gap_is_none(desk: Desk) -> None:
    job = await desk.create()
    await desk.sweep()
    desk.clock.advance(LEASE / 2)
    await desk.claim_one()
    await desk.sweep()
    desk.clock.advance(LEASE / 2)
    await desk.sweep()
    desk.clock.advance(LEASE / 2)
    await desk.sweep()
    assert await desk.state(job) == State.RETRY_WAIT


async def test_an_instance_that_ended_loses_its_attempts_at_once(desk: Desk) -> None:
    mine = await desk.create()
    await desk.claim_one()
    other = await desk.create()
    await desk.claim_one(OTHER)
    (change,) = (await desk.ledger.lose(instance=WORKER.instance)).changed
    assert (change.id, change.lost) == (mine, True)
    assert await desk.state(other) == State.RUNNING


async def test_a_new_gateway_gives_up_what_ended_with_the_old_one(desk: Desk) -> None:
    bound = await desk.create()
    await desk.claim_one(WORKER)
    free = await desk.create()
    await desk.claim_one(OTHER)
    assert not (await desk.ledger.lose(other_gateways_than=WORKER.gateway)).changed
    await desk.ledger.lose(other_gateways_than="gateways/new")
    assert await desk.state(bound) == State.RETRY_WAIT
    assert await desk.state(free) == State.RUNNING


# --- timeouts ---------------------------------------------------------------------------------------------------------------


async def test_the_queue_timeout_is_for_the_first_attempt(desk: Desk) -> None:
    late = await desk.create(queue_timeout=10)
    desk.clock.advance(9.9)
    await desk.sweep()
    assert await desk.state(late) == State.QUEUED
    desk.clock.advance(0.1)
    await desk.sweep()
    assert await desk.state(late) == State.EXPIRED
    assert (await desk.error(late)).reason is Reason.QUEUE_TIMEOUT

    retried = await desk.create(queue_timeout=10, initial_backoff=20)
    await desk.fail(await desk.claim_one(), BackendUnreachable("away"))
    await desk.next_attempt(retried)
    given_back = await desk.create(queue_timeout=10)
    await desk.report(await desk.claim_one(), "released")
    desk.clock.advance(10)
    await desk.sweep()
    assert await desk.state(retried) == State.RUNNING
    assert await desk.state(given_back) == State.EXPIRED, "it has not been started yet"


@pytest.mark.parametrize("state", ["queued", "waiting"])
async def test_the_total_timeout_ends_what_does_not_run(desk: Desk, state: str) -> None:
    job = await desk.create(total_timeout=10, initial_backoff=60)
    if state == "waiting":
        await desk.fail(await desk.claim_one(), BackendUnreachable("away"))
    desk.clock.advance(10)
    await desk.sweep()
    assert await desk.state(job) == State.EXPIRED
    assert (await desk.error(job)).reason is Reason.TOTAL_TIMEOUT


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_running_attempt_is_aborted_first(desk: Desk, cancelled: bool) -> None:
    job = await desk.create(total_timeout=10)
    grant = await desk.claim_one()
    if cancelled:
        await desk.ledger.cancel(job, FINISH)
    desk.clock.advance(10)
    (change,) = (await desk.sweep()).changed
    assert (change.state, change.orders, change.fence) == (State.EXPIRING, True, grant.fence)
    await desk.report(grant, "stopped", STOPPED)
    assert await desk.state(job) == State.EXPIRED
    assert (await desk.error(job)).reason is Reason.TOTAL_TIMEOUT


async def test_an_attempt_that_does_not_end_in_its_grace_is_left_behind(desk: Desk) -> None:
    job = await desk.create(total_timeout=10)
    grant = await desk.claim_one()
    desk.clock.advance(10)
    await desk.sweep()
    for _ in range(int(GRACE)):
        desk.clock.advance(1)
        await desk.report(grant, "heartbeat")
        await desk.sweep()
    assert await desk.state(job) == State.EXPIRING
    desk.clock.advance(0.1)
    (change,) = (await desk.sweep()).changed
    assert (change.state, change.lost) == (State.EXPIRED, True)
    assert refusals(await desk.succeed(grant)) == ["LEASE_LOST"]
    assert [attempt.state for attempt in (await desk.get(job)).attempts] == [AttemptState.LOST]


async def test_the_grace_counts_from_the_abort(desk: Desk) -> None:
    """The gateway was away at the deadline: the worker hears of it only now."""
    job = await desk.create(total_timeout=10)
    await desk.claim_one()
    await desk.sweep()
    desk.clock.advance(3600)
    await desk.sweep()
    await desk.sweep()
    assert await desk.state(job) == State.EXPIRING


async def test_a_result_that_comes_in_the_grace_is_not_thrown_away(desk: Desk) -> None:
    job = await desk.create(total_timeout=10)
    grant = await desk.claim_one()
    desk.clock.advance(10)
    await desk.sweep()
    await desk.succeed(grant)
    assert await desk.state(job) == State.SUCCEEDED


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"attempt_timeout": 60}, Reason.ATTEMPT_TIMEOUT), ({"stall_timeout": 60}, Reason.STALLED)],
)
@pytest.mark.parametrize("idempotent", [True, False])
async def test_the_ledger_sees_timeouts_that_the_worker_misses(
    desk: Desk, limits: dict[str, float], reason: Reason, idempotent: bool
) -> None:
    job = await desk.create(idempotent=idempotent, **limits)
    grant = await desk.claim_one()

    async def live(length: float) -> None:
        for _ in range(int(length / 5)):
            desk.clock.advance(5)
            await desk.report(grant, "heartbeat")
            await desk.sweep()

    await live(60 + TIMEOUT_GRACE / SECOND)
    assert await desk.state(job) == State.RUNNING
    await live(5)
    assert await desk.state(job) == (State.RETRY_WAIT if idempotent else State.FAILED)
    assert (await desk.error(job)).reason is reason
    assert [attempt.state for attempt in (await desk.get(job)).attempts] == [AttemptState.FAILED]


async def test_progress_is_no_stall(desk: Desk) -> None:
    job = await desk.create(stall_timeout=20)
    grant = await desk.claim_one()
    for _ in range(20):
        desk.clock.advance(10)
        await desk.report(grant, "progress", b"x")
        await desk.sweep()
    assert await desk.state(job) == State.RUNNING


async def test_a_sweep_is_bounded_and_the_next_one_goes_on(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onecontainer.jobs.sql.SWEEP_MOVES", 3)
    jobs = [await desk.create(total_timeout=10) for _ in range(4)]
    running = [grant.id for grant in await desk.claim(4)]
    jobs += [await desk.create(total_timeout=10) for _ in range(4)]
    desk.clock.advance(10)
    moved = [change.id for _ in range(3) for change in (await desk.sweep()).changed]
    assert sorted(moved) == sorted(jobs), "those that wait for their grace hold up nobody"
    assert {await desk.state(job) for job in running} == {State.EXPIRING}


# --- after the end ----------------------------------------------------------------------------------------------------------


async def made(desk: Desk, grant: Granted) -> str:
    """What a worker uploads during its attempt."""
    artifact = Artifact(
        id=new_id().ljust(32, "0"),
        filename="a.bin",
        media_type="application/octet-stream",
        size_bytes=1,
        sha256=bytes(32),
        state=ArtifactState.STAGED,
        labels={},
        principal="ann",
        attempt=Attempt(f"jobs/{grant.id}", grant.attempt, grant.fence),
        create_time=desk.clock.now(),
        expire_time=None,
    )
    await desk.database.write(lambda c: artifact_rows.insert(c, artifact, None, None))
    return artifact.name


async def artifact_states(desk: Desk) -> dict[str, str]:
    def read(connection: sa.Connection) -> dict[str, str]:
        rows = connection.execute(sa.select(artifact_rows.artifacts.c.id, artifact_rows.artifacts.c.state))
        return {f"artifacts/{row.id}": row.state for row in rows}

    return await desk.database.read(read)


async def test_the_accepted_attempts_artifacts_become_ready_and_no_others(desk: Desk) -> None:
    job = await desk.create()
    lost = await desk.claim_one()
    await made(desk, lost)
    await desk.pass_time(LEASE)
    assert await artifact_states(desk) == {}
    grant = await desk.next_attempt(job)
    name = await made(desk, grant)
    assert (await desk.get(job)).artifacts == ()
    await desk.succeed(grant)
    assert await artifact_states(desk) == {name: ArtifactState.READY}
    assert (await desk.get(job)).artifacts == (name,)


async def test_a_cancelled_attempts_artifacts_go_when_it_has_ended(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    name = await made(desk, grant)
    await desk.ledger.cancel(job, FINISH)
    assert set(await artifact_states(desk)) == {name}
    await desk.report(grant, "stopped", STOPPED)
    assert await artifact_states(desk) == {}


OWN = wrappers_pb2.StringValue(value="one of two was made")


def partial_failure(code: Code = Code.INVALID_ARGUMENT) -> status_pb2.Status:
    """What a handler says that has made some of what it was to make."""
    return to_status(BackendExecutionFailed("one of two", code=code).with_details(OWN), most=MAX_JOB_STATUS_BYTES)


async def test_a_failed_job_keeps_what_its_last_attempt_names(desk: Desk) -> None:
    job = await desk.create(max_attempts=2)
    first = await desk.claim_one()
    made_first = await made(desk, first)
    await desk.report(first, "failed", partial_failure(Code.UNAVAILABLE), kept_artifacts=(made_first,))
    row = await desk.row(job)
    assert (row.state, await artifact_states(desk)) == (State.RETRY_WAIT, {}), "tried again: all goes"
    assert own_detail(row.error) is None, "and nothing promises it"

    grant = await desk.next_attempt(job)
    good, bad = await made(desk, grant), await made(desk, grant)
    other = await desk.claim_one() if await desk.create() else grant
    foreign = await made(desk, other)
    for _ in range(2):  # again, since its acknowledgement got lost
        await desk.report(grant, "failed", partial_failure(), kept_artifacts=(good, foreign, "artifacts/none"))
    view = await desk.get(job)
    assert (view.row.state, view.artifacts) == (State.FAILED, (good,))
    assert await artifact_states(desk) == {good: ArtifactState.READY, foreign: ArtifactState.STAGED}
    assert bad not in await artifact_states(desk)
    assert own_detail(view.row.error) == OWN
    assert all(own_detail(attempt.error) is None for attempt in view.attempts), "it is kept once"
    (letter,) = (await desk.ledger.dead_letters([], 10, 0)).rows
    assert own_detail(letter.error) is None
    page = mapping.job_to_proto(view, summary=True)
    assert (page.error.message, len(page.error.details)) == ("one of two", 1), "nor is it in lists"

    desk.clock.advance(3599)
    await desk.sweep()
    assert (await desk.get(job)).artifacts == (good,)
    desk.clock.advance(1)
    await desk.sweep()
    view = await desk.get(job)
    assert (view.row.state, view.artifacts, view.row.result_expired) == (State.FAILED, (), False)


async def test_who_finishes_a_job_keeps_what_it_names_though_some_of_it_failed(desk: Desk) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    name, bad = await made(desk, grant), await made(desk, grant)
    await desk.ledger.cancel(job, FINISH)
    await desk.report(grant, "failed", partial_failure(), kept_artifacts=(name,))
    view = await desk.get(job)
    assert (view.row.state, view.artifacts) == (State.CANCELLED, (name,))
    assert bad not in await artifact_states(desk)
    assert own_detail(view.row.error) == OWN


async def test_what_is_aborted_or_expired_keeps_nothing_of_a_failure(desk: Desk) -> None:
    for end in (State.CANCELLED, State.EXPIRED):
        job = await desk.create(total_timeout=10)
        grant = await desk.claim_one()
        name = await made(desk, grant)
        if end == State.CANCELLED:
            await desk.ledger.cancel(job, ABORT)
        else:
            desk.clock.advance(10)
            await desk.sweep()
        await desk.report(grant, "failed", partial_failure(), kept_artifacts=(name,))
        assert (await desk.state(job), await artifact_states(desk)) == (end, {})


@pytest.mark.parametrize(("ttl", "kept"), [({"result_ttl": 0}, 60), ({"result_ttl": 20}, 20)])
async def test_what_a_failed_job_keeps_goes_after_its_time(desk: Desk, ttl: dict[str, float], kept: float) -> None:
    job = await desk.create(**ttl)
    grant = await desk.claim_one()
    name = await made(desk, grant)
    await desk.report(grant, "failed", partial_failure(), kept_artifacts=(name,))
    desk.clock.advance(kept - 1)
    await desk.sweep()
    assert (await desk.get(job)).artifacts == (name,)
    desk.clock.advance(1)
    await desk.sweep()
    assert await artifact_states(desk) == {}


async def test_what_a_failed_job_keeps_may_be_kept_for_ever(desk: Desk) -> None:
    job = await desk.create(keep_result=True)
    grant = await desk.claim_one()
    name = await made(desk, grant)
    await desk.report(grant, "failed", partial_failure(), kept_artifacts=(name,))
    desk.clock.advance(30 * 86400)
    await desk.sweep()
    assert (await desk.get(job)).artifacts == (name,)


def own_detail(error: bytes) -> wrappers_pb2.StringValue | None:
    return from_status(status_pb2.Status.FromString(error)).detail(wrappers_pb2.StringValue)


@pytest.mark.parametrize(("ttl", "kept"), [({}, 3600), ({"result_ttl": 0}, 60), ({"result_ttl": 20}, 20)])
async def test_results_go_after_their_time(desk: Desk, ttl: dict[str, float], kept: float) -> None:
    job = await desk.create(**ttl)
    grant = await desk.claim_one()
    name = await made(desk, grant)
    await desk.succeed(grant)
    desk.clock.advance(kept - 1)
    await desk.sweep()
    row = await desk.row(job)
    assert (row.result, row.expire_time) == (b"done", desk.clock.now() + SECOND)
    assert set(await artifact_states(desk)) == {name}
    desk.clock.advance(1)
    await desk.sweep()
    row = await desk.row(job)
    assert (row.state, row.result, row.result_expired) == (State.SUCCEEDED, None, True)
    assert await artifact_states(desk) == {}


async def test_a_result_may_be_kept_for_ever(desk: Desk) -> None:
    job = await desk.create(keep_result=True)
    await desk.succeed(await desk.claim_one())
    gone = await desk.create(keep_result=True)
    await desk.ledger.cancel(gone, ABORT)
    desk.clock.advance(400 * 86400)
    await desk.sweep()
    row = await desk.row(job)
    assert (row.result, row.result_expired, row.expire_time) == (b"done", False, 0)
    with pytest.raises(ResourceNotFound):
        await desk.get(gone)


async def test_a_job_without_a_result_has_none_that_expires(desk: Desk) -> None:
    job = await desk.create()
    await desk.ledger.cancel(job, ABORT)
    desk.clock.advance(3601)
    await desk.sweep()
    assert (await desk.row(job)).result_expired is False


async def test_a_delivered_result_goes_once(desk: Desk) -> None:
    job = await desk.create(result_ttl=0)
    await desk.succeed(await desk.claim_one())
    await desk.ledger.expire(job)
    first = await desk.row(job)
    assert (first.result, first.result_expired) == (None, True)
    await desk.ledger.expire(job)
    assert (await desk.row(job)).sequence == first.sequence


async def test_the_record_stays_for_seven_days(desk: Desk) -> None:
    job = await desk.create()
    await desk.succeed(await desk.claim_one())
    desk.clock.advance(7 * 86400 - 1)
    await desk.sweep()
    assert (await desk.row(job)).result_expired
    desk.clock.advance(1)
    await desk.sweep()
    with pytest.raises(ResourceNotFound):
        await desk.get(job)


async def test_an_input_is_in_use_while_its_job_lives(desk: Desk) -> None:
    name = "artifacts/" + "a" * 32
    job = await desk.create(inputs=[name])
    assert await desk.ledger.user_of(name) == job
    await desk.succeed(await desk.claim_one())
    assert await desk.ledger.user_of(name) is None


async def test_a_large_request_goes_with_its_job_and_not_before(desk: Desk) -> None:
    async def upload(name: str) -> None:
        artifact = Artifact(
            *(name, "r", "application/x-protobuf", 1, bytes(32), ArtifactState.READY, {}, "ann"),
            attempt=None,
            create_time=desk.clock.now(),
            expire_time=None,
        )
        await desk.database.write(lambda c: artifact_rows.insert(c, artifact, None, None))

    first, second = "1" * 32, "2" * 32
    await upload(first)
    job = await desk.create(payload_artifact=f"artifacts/{first}", request_id="r")
    await upload(second)
    (replay,) = await desk.ledger.create([new_job(desk.clock, payload_artifact=f"artifacts/{second}", request_id="r")])
    assert replay.id == job
    assert set(await artifact_states(desk)) == {f"artifacts/{first}"}, "a replay's request is not needed"
    await desk.succeed(await desk.claim_one())
    desk.clock.advance(3601)
    await desk.sweep()
    assert set(await artifact_states(desk)) == {f"artifacts/{first}"}, "the job can still be run again"
    await desk.ledger.delete(job)
    assert await artifact_states(desk) == {}


# --- dead letters -----------------------------------------------------------------------------------------------------------


async def test_what_failed_for_good_is_a_dead_letter(desk: Desk) -> None:
    failed = await desk.create(idempotent=False)
    await desk.fail(await desk.claim_one(), BackendUnreachable("away"))
    lost = await desk.create(idempotent=False)
    await desk.claim_one()
    await desk.pass_time(LEASE)
    cancelled = await desk.create()
    await desk.ledger.cancel(cancelled, ABORT)
    page = await desk.ledger.dead_letters([], 10, 0)
    assert [row.job for row in page.rows] == [lost, failed]
    reasons = [from_status(status_pb2.Status.FromString(row.error)).reason for row in page.rows]
    assert reasons == [Reason.OUTCOME_UNKNOWN, Reason.BACKEND_UNREACHABLE]
    (only,) = (await desk.ledger.dead_letters([("job", "=", f"jobs/{lost}")], 10, 0)).rows
    assert only.job == lost
    assert (await desk.ledger.dead_letters([("service", "=", "other")], 10, 0)).rows == ()


async def test_a_letter_knows_the_job_that_was_made_of_it(desk: Desk) -> None:
    job = await desk.create(idempotent=False)
    await desk.fail(await desk.claim_one(), BackendUnreachable("away"))
    (row,) = (await desk.ledger.dead_letters([], 10, 0)).rows
    await desk.ledger.redriven(row.id, "another")
    assert (await desk.ledger.dead_letter(row.id)).redriven_as == "another"
    with pytest.raises(ResourceNotFound):
        await desk.ledger.dead_letter("nope")
    await desk.ledger.delete(job)
    assert (await desk.ledger.dead_letters([], 10, 0)).rows == ()


async def test_records_that_are_no_jobs_are_dead_letters_and_go_after_seven_days(desk: Desk) -> None:
    await desk.ledger.reject("services/s", to_status(RecordInvalid("garbage")), b"origin")
    (row,) = (await desk.ledger.dead_letters([], 10, 0)).rows
    assert (row.job, row.origin, row.service) == ("", b"origin", "services/s")
    desk.clock.advance(7 * 86400)
    await desk.sweep()
    assert (await desk.ledger.dead_letters([], 10, 0)).rows == ()


# --- lists ------------------------------------------------------------------------------------------------------------------


async def test_pages_are_newest_first_and_complete(desk: Desk) -> None:
    made = [await desk.create() for _ in range(7)]
    seen, before = [], 0
    while True:
        page = await desk.ledger.page([], 3, before)
        seen += [row.id for row in page.rows]
        before = page.next_position
        if not before:
            break
    assert seen == made[::-1]


async def test_filters(desk: Desk) -> None:
    first = await desk.create(labels={"team": "red", "tier": "1"}, principal="bob", method="test.Echo/Shout")
    desk.clock.advance(10)
    second = await desk.create(labels={"team": "blue"}, retry_of=first, service="services/t")
    await desk.claim_one()
    await desk.ledger.cancel(first, ABORT)

    async def found(*terms: tuple[str, str, str]) -> list[str]:
        return [row.id for row in (await desk.ledger.page(terms, 10, 0)).rows]

    assert await found(("labels.team", "=", "red")) == [first]
    assert await found(("labels.team", "=", "red"), ("labels.tier", "=", "2")) == []
    assert await found(("principal", "=", "ann")) == [second]
    assert await found(("method", "=", "test.Echo/Shout")) == [first]
    assert await found(("service", "=", "services/t")) == await found(("service", "=", "t")) == [second]
    assert await found(("retry_of", "=", f"jobs/{first}")) == [second]
    assert await found(("state", "=", "QUEUED")) == [second]
    assert await found(("state", "=", "CANCELLING")) == [first]
    assert await found(("create_time", ">", "2023-11-14T22:13:25Z")) == [second]
    assert await found(("create_time", "<", "2023-11-14T22:13:25Z")) == [first]
    for unknown in ("ALIVE", "EXPIRING"):
        with pytest.raises(FieldInvalid):
            await found(("state", "=", unknown))


async def test_an_expiring_job_is_listed_as_cancelling(desk: Desk) -> None:
    job = await desk.create(total_timeout=1)
    await desk.claim_one()
    desk.clock.advance(1)
    await desk.sweep()
    assert [row.id for row in (await desk.ledger.page([("state", "=", "CANCELLING")], 10, 0)).rows] == [job]


async def test_the_place_in_the_queue(desk: Desk) -> None:
    first, second = await desk.create(), await desk.create()
    urgent = await desk.create(priority=3)
    await desk.create(uid="uid-other", priority=3)
    places = [(await desk.get(job)).queue_position for job in (urgent, first, second)]
    assert places == [0, 1, 2]
    assert await desk.ledger.queued(UID) == 3
    await desk.claim(1)
    assert (await desk.get(urgent)).queue_position is None
