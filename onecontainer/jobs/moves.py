"""What each event does to a job's row: pure functions from a row to the columns that change.

The ledger reads a row in a write transaction, calls one of these, and writes what it says. All rules of retrying,
cancelling and timing out are here, so that every dispatch, sweep and report follows the same ones.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.rpc import error_details_pb2, status_pb2

from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.errors import (
    AttemptTimeout,
    Cancelled,
    Code,
    OneContainerError,
    OutcomeUnknown,
    QueueJobFailed,
    QueueTimeout,
    Stalled,
    TotalTimeout,
)
from onecontainer.jobs.model import (
    SECOND,
    TERMINAL,
    AttemptState,
    CancelMode,
    Event,
    RetryPolicy,
    State,
    may_rerun_lost,
    may_retry,
    next_state,
)
from onecontainer.jobs.options import policy_of
from onecontainer.rpc.status import MAX_JOB_STATUS_BYTES, bounded, brief, from_status, to_status

ABORT_GRACE = 30 * SECOND
"""How long an attempt may take to end after its abort for a total timeout; then it counts as ended."""
TIMEOUT_GRACE = 10 * SECOND
"""The worker enforces attempt and stall timeouts; the ledger does so itself when the worker is so late."""
FREE_RELEASES = 3
"""So many times a job is offered again at once after it was given back; then it waits a little."""
UNDELIVERED_TTL = 60 * SECOND
"""With result_ttl 0: how long a result waits to be fetched."""


class Row(Protocol):
    """The columns of ``jobs`` that decide."""

    position: int
    id: str
    service: str
    service_uid: str
    method: str
    principal: str
    state: int
    attempt: int
    fence: int
    releases: int
    idempotent: bool
    finishable: bool
    options: bytes
    instance: str
    attempt_start_time: int
    create_time: int
    attempt_deadline: int
    total_deadline: int
    progress_time: int
    lease_expiry: int
    cancel_mode: int
    sequence: int


DECIDING = (
    *("position", "id", "service", "service_uid", "method", "principal", "state", "attempt", "fence", "releases"),
    *("idempotent", "finishable", "options", "instance", "attempt_start_time", "create_time", "attempt_deadline"),
    *("total_deadline", "progress_time", "lease_expiry", "cancel_mode", "sequence"),
)


@dataclass(slots=True)
class Move:
    """What an event does: columns to set, the attempt that ended, whether a dead letter is written.

    ``lost`` is True if an attempt was given up without its worker's word: the worker, if it lives, is to stop. ``kept`` are
    artifacts of the attempt that stay although it failed.
    """

    row: Row
    values: dict[str, Any]
    attempt: dict[str, Any] | None = None
    dead_letter: bool = False
    lost: bool = False
    kept: tuple[str, ...] = ()
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = State(self.values["state"])

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL


def _options(row: Row) -> job_options_pb2.JobOptions:
    return job_options_pb2.JobOptions.FromString(row.options)


def _policy(row: Row) -> RetryPolicy:
    return policy_of(_options(row))


def _moved(row: Row, event: Event, now: int, **values: Any) -> dict[str, Any]:
    state = next_state(row.state, event)
    values |= {"state": int(state), "sequence": row.sequence + 1}
    if state in TERMINAL:
        expires = expire_time(_options(row), now)
        # Without a time at which the result goes, the record is looked at once, to set when it goes itself.
        tidy = expires or (0 if state == State.SUCCEEDED else now)
        values |= {"end_time": now, "lease_expiry": 0, "expire_time": expires, "tidy_time": tidy}
    return values


def expire_time(options: job_options_pb2.JobOptions, end_time: int) -> int:
    """When the result of a job that ends now goes; 0 = never."""
    if options.keep_result:
        return 0
    return end_time + (options.result_ttl.ToMicroseconds() or UNDELIVERED_TTL)


def _ended_attempt(row: Row, state: AttemptState, now: int, error: status_pb2.Status | None) -> dict[str, Any] | None:
    if not row.attempt_start_time:
        return None
    return {
        "job": row.id,
        "fence": row.fence,
        "number": row.attempt,
        "state": int(state),
        "instance": row.instance,
        "start_time": row.attempt_start_time,
        "end_time": now,
        "error": brief(error).SerializeToString() if error is not None else None,
    }


def _status(error: OneContainerError, row: Row) -> status_pb2.Status:
    return to_status(error, metadata=_facts(row))


def _facts(row: Row) -> dict[str, str]:
    facts = {"job": f"jobs/{row.id}", "service": row.service}
    if row.attempt_start_time:
        facts["attempt"] = str(row.attempt)
    return facts


def _reported(error: status_pb2.Status, row: Row) -> status_pb2.Status:
    """A worker's error as a job keeps it: bounded, with a code, and with an ErrorInfo even if the worker sent none."""
    kept = status_pb2.Status()
    kept.CopyFrom(error)
    if not 0 < kept.code <= max(Code):
        # A peer's report of a failure without a code is still a failure.
        kept.code = int(Code.UNKNOWN)
    if not any(detail.TypeName() == error_details_pb2.ErrorInfo.DESCRIPTOR.full_name for detail in kept.details):
        info = to_status(QueueJobFailed(hop="sidecar"), metadata=_facts(row)).details[0]
        others = list(kept.details)
        del kept.details[:]
        kept.details.extend([info, *others])
    return bounded(kept, MAX_JOB_STATUS_BYTES)


def succeed(row: Row, now: int, result: bytes | None, artifact: str, ended_early: bool) -> Move:
    """The attempt returned: SUCCEEDED whatever was asked meanwhile."""
    values = _moved(row, Event.SUCCEED, now, result=result, result_artifact=artifact, error=None)
    values["ended_early"] = ended_early and row.cancel_mode == CancelMode.FINISH
    return Move(row, values)


def fail(row: Row, now: int, error: status_pb2.Status, rng: random.Random, kept: tuple[str, ...] = ()) -> Move:
    """The attempt failed: again later if the policy allows, else FAILED; CANCELLED or EXPIRED if that was asked.

    When FAILED the artifacts ``kept`` stay, as a result would; and when CANCELLED by whoever wanted to keep what was done (FINISH).
    """
    error = _reported(error, row)
    typed = from_status(error)
    policy = _policy(row)
    again = may_retry(idempotent=row.idempotent, policy=policy, attempt=row.attempt, code=typed.code)
    if again and row.state == State.RUNNING:
        least = int((typed.retry_after or 0) * SECOND)
        return _again(row, Event.FAIL_RETRY, AttemptState.FAILED, now, error, policy.backoff(row.attempt, rng, least))
    move = _over(row, Event.FAIL_FINAL, AttemptState.FAILED, now, error)
    finished = move.state == State.CANCELLED and row.cancel_mode == CancelMode.FINISH
    if kept and finished:
        told = Cancelled(f"the job was finished early, and not all of it could be kept: {typed.message}")
        status = to_status(told.with_details(*typed.details), metadata=_facts(row), most=MAX_JOB_STATUS_BYTES)
        move.values["error"] = status.SerializeToString()
    if kept and (move.state == State.FAILED or finished):
        move.kept = kept
        if not move.values["expire_time"]:
            # `keep_result`: the record stays with what it names.
            move.values["tidy_time"] = 0
    return move


def stop(row: Row, now: int, error: status_pb2.Status) -> Move:
    """The attempt ended because it was told to: by a cancel, or by a drain of its sidecar."""
    error = _reported(error, row)
    if row.state != State.RUNNING:
        return _over(row, Event.STOP, AttemptState.CANCELLED, now, error)
    if row.idempotent or _policy(row).retry_unsafe:
        move = release(row, now, error)
        # It had begun, so that the time allowed for its begin is not asked for again.
        move.values["queue_deadline"] = 0
        return move
    unknown = OutcomeUnknown(
        "the attempt was aborted while it ran, not by a cancel of this job, and the method does not declare that it may be "
        "repeated: check the backend, then retry the job"
    )
    return _over(row, Event.FAIL_FINAL, AttemptState.FAILED, now, _status(unknown, row))


def release(row: Row, now: int, error: status_pb2.Status | None = None) -> Move:
    """The worker gave it back: offered again at once, at the same place in the queue, without counting."""
    if row.state != State.RUNNING:
        return _over(row, Event.RELEASE, AttemptState.RELEASED, now, error)
    wait = row.releases >= FREE_RELEASES
    values = _moved(row, Event.RELEASE_WAIT if wait else Event.RELEASE, now)
    values |= _freed(row, attempt=row.attempt) | {
        "releases": row.releases + 1,
        "due_time": now + SECOND if wait else 0,
    }
    return Move(row, values, _ended_attempt(row, AttemptState.RELEASED, now, error))


def lose(row: Row, now: int, rng: random.Random) -> Move:
    """The lease is lost: again if the method may be repeated, else nobody knows what happened, and it is said so."""
    policy = _policy(row)
    if not (row.idempotent or policy.retry_unsafe):
        text = (
            "the worker was lost while the attempt ran, and the method does not declare that it may be repeated: "
            "check the backend, then retry the job"
        )
    elif row.attempt >= policy.max_attempts:
        text = f"the worker was lost while attempt {row.attempt} of {policy.max_attempts} ran"
    else:
        text = "the worker was lost while the attempt ran"
    return _give_up(row, AttemptState.LOST, now, OutcomeUnknown(text), rng)


def overdue(row: Row, now: int, rng: random.Random) -> Move | None:
    """An attempt that its worker should have ended by its own timeouts. None: it is not (yet) overdue."""
    if row.state not in (State.RUNNING, State.CANCELLING):
        return None
    if row.attempt_deadline and now > row.attempt_deadline + TIMEOUT_GRACE:
        cause: OneContainerError = AttemptTimeout("the attempt ran longer than its attempt_timeout")
        return _give_up(row, AttemptState.FAILED, now, cause, rng)
    stall = _options(row).stall_timeout.ToMicroseconds()
    if stall and now > max(row.progress_time, row.attempt_start_time) + stall + TIMEOUT_GRACE:
        cause = Stalled("the attempt reported no progress for its stall_timeout")
        return _give_up(row, AttemptState.FAILED, now, cause, rng)
    return None


def _give_up(row: Row, ended: AttemptState, now: int, cause: OneContainerError, rng: random.Random) -> Move:
    """Ends an attempt without its worker's word. The raised fence shuts out whatever the worker still reports."""
    policy = _policy(row)
    error = _status(cause, row)
    if row.state == State.RUNNING and may_rerun_lost(idempotent=row.idempotent, policy=policy, attempt=row.attempt):
        move = _again(row, Event.LOSE_RETRY, ended, now, error, policy.backoff(row.attempt, rng))
    else:
        move = _over(row, Event.LOSE_FINAL, ended, now, error)
        move.values["fence"] = row.fence + 1
    move.lost = True
    return move


def cancel(row: Row, now: int, mode: CancelMode, cause: str = "the job was cancelled") -> Move:
    """The caller wants it to end. A row that is terminal must not come here."""
    state = next_state(row.state, Event.CANCEL)
    # ABORT may follow FINISH, not the other way round.
    mode = CancelMode.ABORT if row.cancel_mode == CancelMode.ABORT else mode
    values = _moved(row, Event.CANCEL, now, cancel_mode=int(mode))
    if state in TERMINAL:
        values["error"] = _status(Cancelled(cause), row).SerializeToString()
    return Move(row, values)


def due(row: Row, now: int) -> Move:
    """The wait before the next attempt is over."""
    return Move(row, _moved(row, Event.DUE, now, due_time=0))


def queue_timeout(row: Row, now: int) -> Move:
    """No attempt started in time."""
    error = _status(QueueTimeout("no attempt started within queue_timeout"), row)
    return Move(row, _moved(row, Event.QUEUE_TIMEOUT, now, error=error.SerializeToString()))


def total_timeout(row: Row, now: int) -> Move | None:
    """Its time is over: EXPIRED, after the running attempt, if any, has been aborted. None: its grace still runs."""
    state = State(row.state)
    error = _status(TotalTimeout("the job did not end within total_timeout"), row)
    if state == State.EXPIRING:
        if now <= row.total_deadline + ABORT_GRACE:
            return None
        values = _moved(row, Event.TOTAL_TIMEOUT, now, fence=row.fence + 1, error=error.SerializeToString())
        return Move(row, values, _ended_attempt(row, AttemptState.LOST, now, error), lost=True)
    values = _moved(row, Event.TOTAL_TIMEOUT, now, error=error.SerializeToString())
    if values["state"] == State.EXPIRING:
        # The grace counts from the abort, which comes late if the gateway was away at the deadline.
        values["total_deadline"] = now
    return Move(row, values)


def refuse(row: Row, now: int, error: OneContainerError) -> Move:
    """A queued job that can never run: its method is gone with its driver."""
    status = _status(error, row)
    return Move(row, _moved(row, Event.FAIL_FINAL, now, error=status.SerializeToString()), dead_letter=True)


def _freed(row: Row, *, attempt: int) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "fence": row.fence + 1,
        "instance": "",
        "gateway": "",
        "attempt_start_time": 0,
        "attempt_deadline": 0,
        "lease_expiry": 0,
        "progress_time": 0,
        "published_time": 0,
    }


def _again(row: Row, event: Event, ended: AttemptState, now: int, error: status_pb2.Status, wait: int) -> Move:
    # What a failure leaves goes when it is tried again, so that its error must not promise it.
    values = _moved(row, event, now, due_time=now + wait, error=brief(error).SerializeToString())
    # The queue timeout is for the first attempt.
    values |= _freed(row, attempt=row.attempt + 1) | {"queue_deadline": 0}
    return Move(row, values, _ended_attempt(row, ended, now, error))


def _over(row: Row, event: Event, ended: AttemptState, now: int, error: status_pb2.Status | None) -> Move:
    """The last attempt ended without success; what was asked meanwhile decides the job's end."""
    state = next_state(row.state, event)
    if state == State.CANCELLED:
        ended = AttemptState.CANCELLED
        told = _status(Cancelled("the job was cancelled while it ran"), row)
    elif state == State.EXPIRED:
        told = _status(TotalTimeout("the job did not end within total_timeout; its attempt was aborted"), row)
    else:
        told = error or _status(OutcomeUnknown(), row)
    values = _moved(row, event, now, error=told.SerializeToString())
    return Move(row, values, _ended_attempt(row, ended, now, error), dead_letter=state == State.FAILED)
