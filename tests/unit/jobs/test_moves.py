"""What each event does to a job's row, whatever the row: properties of the pure moves."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields
from typing import Any

from google.rpc import error_details_pb2, status_pb2
from hypothesis import assume, given
from hypothesis import strategies as st

from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.errors import BackendUnreachable, Cancelled, Code, FieldInvalid, Reason, StateInvalid
from onecontainer.jobs import moves
from onecontainer.jobs.model import LEASED, SECOND, TERMINAL, AttemptState, CancelMode, State
from onecontainer.rpc.status import MAX_STATUS_BYTES, from_status, to_status

NOW = 1_700_000_000 * SECOND


@dataclass
class Row:
    position: int = 1
    id: str = "j"
    service: str = "services/s"
    service_uid: str = "uid"
    method: str = "test.Echo/Say"
    principal: str = "ann"
    state: int = int(State.RUNNING)
    attempt: int = 1
    fence: int = 1
    releases: int = 0
    idempotent: bool = True
    finishable: bool = True
    options: bytes = field(default_factory=lambda: options())
    instance: str = "sidecars/one"
    attempt_start_time: int = NOW - SECOND
    create_time: int = NOW - 10 * SECOND
    attempt_deadline: int = 0
    total_deadline: int = NOW + 86400 * SECOND
    progress_time: int = NOW - SECOND
    lease_expiry: int = NOW + SECOND
    cancel_mode: int = 0
    sequence: int = 5


def options(**changes: Any) -> bytes:
    message = job_options_pb2.JobOptions(**changes)
    message.retry_policy.max_attempts = message.retry_policy.max_attempts or 3
    message.retry_policy.initial_backoff.seconds = 1
    message.retry_policy.max_backoff.seconds = 60
    message.retry_policy.backoff_multiplier = 2.0
    return message.SerializeToString()


def test_the_row_has_what_decides() -> None:
    assert {one.name for one in fields(Row)} == set(moves.DECIDING)


statuses = st.builds(
    status_pb2.Status, code=st.sampled_from([-1, *range(17), 99]), message=st.text(max_size=5000)
) | st.sampled_from([to_status(FieldInvalid("x", "bad")), to_status(BackendUnreachable("away", retry_after=3.0))])
policies = st.builds(
    lambda attempts, unsafe: options(
        retry_policy=job_options_pb2.RetryPolicy(max_attempts=attempts, retry_unsafe=unsafe)
    ),
    st.integers(1, 5),
    st.booleans(),
)
rows = st.builds(
    Row,
    state=st.sampled_from([int(state) for state in LEASED]),
    attempt=st.integers(1, 6),
    fence=st.integers(1, 100),
    releases=st.integers(0, 5),
    idempotent=st.booleans(),
    options=policies,
    cancel_mode=st.sampled_from([int(mode) for mode in CancelMode]),
)
ends = st.sampled_from(["succeed", "fail", "stop", "release", "lose"])


def end(kind: str, row: Row, status: status_pb2.Status) -> moves.Move:
    rng = random.Random(1)
    if kind == "succeed":
        return moves.succeed(row, NOW, b"result", "", True)
    if kind == "fail":
        return moves.fail(row, NOW, status, rng)
    if kind == "stop":
        return moves.stop(row, NOW, status)
    return moves.release(row, NOW) if kind == "release" else moves.lose(row, NOW, rng)


@given(row=rows, kind=ends, status=statuses)
def test_an_attempt_that_ends_gives_its_lease_back(row: Row, kind: str, status: status_pb2.Status) -> None:
    move = end(kind, row, status)
    assert move.values["lease_expiry"] == 0
    assert move.values["sequence"] == row.sequence + 1
    assert move.state not in LEASED
    fence = move.values.get("fence", row.fence)
    assert fence >= row.fence
    # Whatever runs next, or was lost, has another fence.
    assert (fence > row.fence) is (not move.ended or kind == "lose")
    assert move.lost is (kind == "lose")


@given(row=rows, kind=ends, status=statuses)
def test_a_terminal_job_has_an_end_and_a_typed_reason(row: Row, kind: str, status: status_pb2.Status) -> None:
    move = end(kind, row, status)
    assume(move.ended)
    assert move.values["end_time"] == NOW
    assert move.values["expire_time"] == NOW + 60 * SECOND
    assert move.dead_letter is (move.state == State.FAILED)
    if move.state == State.SUCCEEDED:
        assert move.values["error"] is None
        return
    error = status_pb2.Status.FromString(move.values["error"])
    assert 0 < error.code <= 16
    assert error.ByteSize() <= MAX_STATUS_BYTES
    assert [d for d in error.details if d.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]


@given(row=rows, kind=ends, status=statuses)
def test_what_was_asked_decides_the_end(row: Row, kind: str, status: status_pb2.Status) -> None:
    state = end(kind, row, status).state
    if kind == "succeed":
        assert state == State.SUCCEEDED
    elif row.state == State.CANCELLING:
        assert state == State.CANCELLED
    elif row.state == State.EXPIRING:
        assert state == State.EXPIRED
    else:
        assert state in (State.RETRY_WAIT, State.QUEUED, State.FAILED)


@given(row=rows, kind=ends, status=statuses)
def test_only_what_may_be_repeated_is_run_again(row: Row, kind: str, status: status_pb2.Status) -> None:
    move = end(kind, row, status)
    policy = job_options_pb2.JobOptions.FromString(row.options).retry_policy
    if move.ended or kind == "release":
        return
    assert row.idempotent or policy.retry_unsafe
    counted = kind != "stop"
    assert move.values["attempt"] == row.attempt + counted
    assert not counted or row.attempt < policy.max_attempts
    assert move.values["queue_deadline"] == 0


@given(row=rows, kind=ends, status=statuses)
def test_the_ended_attempt_is_kept_as_it_was(row: Row, kind: str, status: status_pb2.Status) -> None:
    attempt = end(kind, row, status).attempt
    if kind == "succeed":
        assert attempt is None, "it is in the job's own row"
        return
    assert attempt is not None
    kept = (attempt["job"], attempt["number"], attempt["fence"], attempt["instance"], attempt["start_time"])
    assert kept == (row.id, row.attempt, row.fence, row.instance, row.attempt_start_time)
    assert attempt["end_time"] == NOW
    assert attempt["state"] != AttemptState.RUNNING


@given(row=rows, early=st.booleans())
def test_ended_early_needs_a_finish(row: Row, early: bool) -> None:
    move = moves.succeed(row, NOW, b"", "", early)
    assert move.values["ended_early"] is (early and row.cancel_mode == CancelMode.FINISH)


@given(
    state=st.sampled_from([state for state in State if state not in TERMINAL]),
    before=st.sampled_from(list(CancelMode)),
    mode=st.sampled_from([CancelMode.ABORT, CancelMode.FINISH]),
)
def test_a_cancel_never_weakens(state: State, before: CancelMode, mode: CancelMode) -> None:
    row = Row(state=int(state), cancel_mode=int(before))
    move = moves.cancel(row, NOW, mode)
    assert move.values["cancel_mode"] == (CancelMode.ABORT if CancelMode.ABORT in (before, mode) else mode)
    assert move.ended is (state in (State.QUEUED, State.RETRY_WAIT))
    assert move.attempt is None
    assert "fence" not in move.values, "the attempt goes on until it says that it has ended"


@given(state=st.sampled_from(sorted(TERMINAL)), kind=ends)
def test_nothing_moves_a_terminal_job(state: State, kind: str) -> None:
    row = Row(state=int(state))
    try:
        move = end(kind, row, to_status(Cancelled()))
    except StateInvalid:
        return
    raise AssertionError(f"{kind} made {move.values} of a job that is {state.name}")


def test_a_failure_without_a_reason_of_its_own_gets_one_and_keeps_what_it_says() -> None:
    foreign = status_pb2.Status(code=13, message="boom")
    foreign.details.add().Pack(error_details_pb2.DebugInfo(detail="line 3"))
    move = moves.fail(Row(attempt=3), NOW, foreign, random.Random(1))
    status = status_pb2.Status.FromString(move.values["error"])
    error = from_status(status)
    assert (error.reason, error.code, error.message) == (Reason.QUEUE_JOB_FAILED, Code.INTERNAL, "boom")
    assert error.metadata["job"] == "jobs/j"
    assert error.metadata["attempt"] == "3"
    assert [d.Is(error_details_pb2.DebugInfo.DESCRIPTOR) for d in status.details] == [False, True]


def test_results_are_kept_as_long_as_asked() -> None:
    def kept(**changes: Any) -> int:
        message = job_options_pb2.JobOptions.FromString(options(**changes))
        return moves.expire_time(message, NOW)

    message = job_options_pb2.JobOptions()
    message.result_ttl.seconds = 20
    assert kept(result_ttl=message.result_ttl) == NOW + 20 * SECOND
    assert kept() == NOW + moves.UNDELIVERED_TTL
    assert kept(keep_result=True) == 0
