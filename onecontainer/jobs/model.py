"""The life of a job as pure data: states, the one transition table, and when a failure is tried again.

Nothing here knows a clock, a database or a wire. Times are microseconds since 1970-01-01 UTC, lengths of time are microseconds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from onecontainer.errors import Code, StateInvalid

SECOND = 1_000_000


class State(IntEnum):
    """States of a job; the numbers are those of ``job.v1.JobState``, but for EXPIRING, which is shown as CANCELLING."""

    QUEUED = 1
    RUNNING = 2
    RETRY_WAIT = 3
    CANCELLING = 4
    SUCCEEDED = 5
    FAILED = 6
    CANCELLED = 7
    EXPIRED = 8
    EXPIRING = 9
    """Its total timeout passed while an attempt ran; the attempt is being aborted."""


def shown(state: State) -> State:
    """The state as the contract has it."""
    return State.CANCELLING if state == State.EXPIRING else state


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED})
LEASED = frozenset({State.RUNNING, State.CANCELLING, State.EXPIRING})
"""States in which an attempt holds the lease."""


class Event(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL_RETRY = "fail-retry"
    """The attempt failed, and the policy allows another one."""
    FAIL_FINAL = "fail-final"
    """The attempt failed for good; or a queued job can never run (its method is gone)."""
    STOP = "stop"
    """The attempt ended because it was told to."""
    RELEASE = "release"
    """The worker gave it back unstarted, or aborted a repeatable one to drain: it does not count as an attempt."""
    RELEASE_WAIT = "release-wait"
    """It was given back so often that it has to wait a little before it is offered again."""
    LOSE_RETRY = "lose-retry"
    """The lease was lost, and the method may be run again."""
    LOSE_FINAL = "lose-final"
    """The lease was lost, and nobody knows whether the side effects happened."""
    CANCEL = "cancel"
    DUE = "due"
    """The wait before the next attempt is over."""
    QUEUE_TIMEOUT = "queue-timeout"
    TOTAL_TIMEOUT = "total-timeout"


_S, _E = State, Event
TRANSITIONS: dict[tuple[State, Event], State] = {
    (_S.QUEUED, _E.CLAIM): _S.RUNNING,
    (_S.QUEUED, _E.CANCEL): _S.CANCELLED,
    (_S.QUEUED, _E.FAIL_FINAL): _S.FAILED,
    (_S.QUEUED, _E.QUEUE_TIMEOUT): _S.EXPIRED,
    (_S.QUEUED, _E.TOTAL_TIMEOUT): _S.EXPIRED,
    (_S.RETRY_WAIT, _E.DUE): _S.QUEUED,
    (_S.RETRY_WAIT, _E.CANCEL): _S.CANCELLED,
    (_S.RETRY_WAIT, _E.FAIL_FINAL): _S.FAILED,
    (_S.RETRY_WAIT, _E.TOTAL_TIMEOUT): _S.EXPIRED,
    (_S.RUNNING, _E.SUCCEED): _S.SUCCEEDED,
    (_S.RUNNING, _E.FAIL_RETRY): _S.RETRY_WAIT,
    (_S.RUNNING, _E.FAIL_FINAL): _S.FAILED,
    (_S.RUNNING, _E.RELEASE): _S.QUEUED,
    (_S.RUNNING, _E.RELEASE_WAIT): _S.RETRY_WAIT,
    (_S.RUNNING, _E.LOSE_RETRY): _S.RETRY_WAIT,
    (_S.RUNNING, _E.LOSE_FINAL): _S.FAILED,
    (_S.RUNNING, _E.CANCEL): _S.CANCELLING,
    (_S.RUNNING, _E.TOTAL_TIMEOUT): _S.EXPIRING,
    (_S.CANCELLING, _E.SUCCEED): _S.SUCCEEDED,
    (_S.CANCELLING, _E.FAIL_RETRY): _S.CANCELLED,
    (_S.CANCELLING, _E.FAIL_FINAL): _S.CANCELLED,
    (_S.CANCELLING, _E.STOP): _S.CANCELLED,
    (_S.CANCELLING, _E.RELEASE): _S.CANCELLED,
    (_S.CANCELLING, _E.RELEASE_WAIT): _S.CANCELLED,
    (_S.CANCELLING, _E.LOSE_RETRY): _S.CANCELLED,
    (_S.CANCELLING, _E.LOSE_FINAL): _S.CANCELLED,
    (_S.CANCELLING, _E.CANCEL): _S.CANCELLING,
    (_S.CANCELLING, _E.TOTAL_TIMEOUT): _S.EXPIRING,
    (_S.EXPIRING, _E.SUCCEED): _S.SUCCEEDED,
    (_S.EXPIRING, _E.FAIL_RETRY): _S.EXPIRED,
    (_S.EXPIRING, _E.FAIL_FINAL): _S.EXPIRED,
    (_S.EXPIRING, _E.STOP): _S.EXPIRED,
    (_S.EXPIRING, _E.RELEASE): _S.EXPIRED,
    (_S.EXPIRING, _E.RELEASE_WAIT): _S.EXPIRED,
    (_S.EXPIRING, _E.LOSE_RETRY): _S.EXPIRED,
    (_S.EXPIRING, _E.LOSE_FINAL): _S.EXPIRED,
    (_S.EXPIRING, _E.CANCEL): _S.EXPIRING,
    (_S.EXPIRING, _E.TOTAL_TIMEOUT): _S.EXPIRED,  # the attempt did not end in its grace
}
"""Every move there is. What is not here cannot happen; a cancel of a terminal job is answered before it gets here."""


def next_state(state: int, event: Event) -> State:
    """The state after ``event``; ``state`` as the number it is in the ledger.

    Raises:
        StateInvalid: the event cannot happen in this state.
    """
    try:
        return TRANSITIONS[(state, event)]  # type: ignore[index] # a State is equal to its number
    except KeyError:
        raise StateInvalid(f"a job in state {State(state).name} does not take {event.value}") from None


class AttemptState(IntEnum):
    """How an attempt ended; numbered as ``job.v1.AttemptState``."""

    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4
    LOST = 5
    RELEASED = 6


class CancelMode(IntEnum):
    """Numbered as ``job.v1.CancelMode``."""

    NONE = 0
    ABORT = 1
    FINISH = 2


FINAL_CODES = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.DATA_LOSS,
    }
)
"""Codes of failures that the same request would meet again."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed attempt is tried again. Waits in microseconds."""

    max_attempts: int = 3
    initial_backoff: int = SECOND
    max_backoff: int = 60 * SECOND
    multiplier: float = 2.0
    retry_unsafe: bool = False

    def backoff(self, failed_attempts: int, rng: random.Random, least: int = 0) -> int:
        """Microseconds to wait after so many failed attempts: exponential, half of it drawn by chance, not below ``least``."""
        whole = min(float(self.max_backoff), self.initial_backoff * self.multiplier ** max(0, failed_attempts - 1))
        return max(least, int(whole * (0.5 + rng.random() / 2)))


@dataclass(frozen=True, slots=True)
class Limits:
    """A service's limits for its jobs."""

    max_running: int = 1
    max_queued: int = 1_000_000
    default_max_attempts: int = 3


@dataclass(frozen=True, slots=True)
class Method:
    """What the ledger needs to know of a method."""

    full_name: str
    idempotent: bool
    finishable: bool
    result_type: str


@dataclass(slots=True)
class NewJob:
    """A job to be created; times in microseconds, 0 = none."""

    id: str
    service: str
    service_uid: str
    method: Method
    principal: str
    options: bytes
    """Serialised ``type.v1.JobOptions``, defaults filled in."""
    policy: RetryPolicy
    priority: int
    payload: bytes | None
    payload_artifact: str
    create_time: int
    queue_deadline: int
    total_deadline: int
    request_id: str = ""
    request_hash: bytes = b""
    traceparent: str = ""
    retry_of: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    """Ids of artifacts that the request names: they cannot be deleted while the job lives."""


def may_retry(*, idempotent: bool, policy: RetryPolicy, attempt: int, code: Code) -> bool:
    """Whether attempt number ``attempt``, which failed with ``code``, is followed by another one."""
    return (idempotent or policy.retry_unsafe) and attempt < policy.max_attempts and code not in FINAL_CODES


def may_rerun_lost(*, idempotent: bool, policy: RetryPolicy, attempt: int) -> bool:
    """Whether an attempt whose lease was lost is followed by another one."""
    return (idempotent or policy.retry_unsafe) and attempt < policy.max_attempts
