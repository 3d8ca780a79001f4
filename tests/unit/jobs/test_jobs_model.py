"""The transition table, and the rules of retrying."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecontainer.api.job.v1 import job_pb2
from onecontainer.errors import Code, StateInvalid
from onecontainer.jobs.model import (
    FINAL_CODES,
    LEASED,
    SECOND,
    TERMINAL,
    TRANSITIONS,
    AttemptState,
    CancelMode,
    Event,
    RetryPolicy,
    State,
    may_rerun_lost,
    may_retry,
    next_state,
)

S, E = State, Event
# Once more, by hand and by event, so that a slip in the table is seen.
EXPECTED = {
    E.CLAIM: {S.QUEUED: S.RUNNING},
    E.SUCCEED: {S.RUNNING: S.SUCCEEDED, S.CANCELLING: S.SUCCEEDED, S.EXPIRING: S.SUCCEEDED},
    E.FAIL_RETRY: {S.RUNNING: S.RETRY_WAIT, S.CANCELLING: S.CANCELLED, S.EXPIRING: S.EXPIRED},
    E.FAIL_FINAL: {
        S.QUEUED: S.FAILED,
        S.RETRY_WAIT: S.FAILED,
        S.RUNNING: S.FAILED,
        S.CANCELLING: S.CANCELLED,
        S.EXPIRING: S.EXPIRED,
    },
    E.STOP: {S.CANCELLING: S.CANCELLED, S.EXPIRING: S.EXPIRED},
    E.RELEASE: {S.RUNNING: S.QUEUED, S.CANCELLING: S.CANCELLED, S.EXPIRING: S.EXPIRED},
    E.RELEASE_WAIT: {S.RUNNING: S.RETRY_WAIT, S.CANCELLING: S.CANCELLED, S.EXPIRING: S.EXPIRED},
    E.LOSE_RETRY: {S.RUNNING: S.RETRY_WAIT, S.CANCELLING: S.CANCELLED, S.EXPIRING: S.EXPIRED},
    E.LOSE_FINAL: {S.RUNNING: S.FAILED, S.CANCELLING: S.CANCELLED, S.EXPIRING: S.EXPIRED},
    E.CANCEL: {
        S.QUEUED: S.CANCELLED,
        S.RETRY_WAIT: S.CANCELLED,
        S.RUNNING: S.CANCELLING,
        S.CANCELLING: S.CANCELLING,
        S.EXPIRING: S.EXPIRING,
    },
    E.DUE: {S.RETRY_WAIT: S.QUEUED},
    E.QUEUE_TIMEOUT: {S.QUEUED: S.EXPIRED},
    E.TOTAL_TIMEOUT: {
        S.QUEUED: S.EXPIRED,
        S.RETRY_WAIT: S.EXPIRED,
        S.RUNNING: S.EXPIRING,
        S.CANCELLING: S.EXPIRING,
        S.EXPIRING: S.EXPIRED,
    },
}


@pytest.mark.parametrize("event", list(Event))
@pytest.mark.parametrize("state", list(State))
def test_every_pair_is_in_the_table_or_refused(state: State, event: Event) -> None:
    expected = EXPECTED[event].get(state)
    if expected is None:
        with pytest.raises(StateInvalid):
            next_state(state, event)
    else:
        assert next_state(state, event) is expected


def test_terminal_states_have_no_way_out() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] in TERMINAL]
    assert {S.SUCCEEDED, S.FAILED, S.CANCELLED, S.EXPIRED} == TERMINAL


def test_every_state_leads_to_an_end() -> None:
    reached = set(TERMINAL)
    while more := {state for (state, _), after in TRANSITIONS.items() if after in reached} - reached:
        reached |= more
    assert reached == set(State)


def test_after_a_cancel_or_at_its_timeout_a_job_never_runs_again() -> None:
    for (state, _), after in TRANSITIONS.items():
        if state in (S.CANCELLING, S.EXPIRING):
            assert after in TERMINAL | {S.CANCELLING, S.EXPIRING}
    assert {S.RUNNING, S.CANCELLING, S.EXPIRING} == LEASED


def test_numbers_are_those_of_the_contract() -> None:
    for state in set(State) - {S.EXPIRING}:
        assert job_pb2.JobState.Name(state) == f"JOB_STATE_{state.name}"
    assert S.EXPIRING not in job_pb2.JobState.values()
    for attempt in AttemptState:
        assert job_pb2.AttemptState.Name(attempt) == f"ATTEMPT_STATE_{attempt.name}"
    assert len(AttemptState) == len(job_pb2.AttemptState.values()) - 1
    for mode in (CancelMode.ABORT, CancelMode.FINISH):
        assert job_pb2.CancelMode.Name(mode) == f"CANCEL_MODE_{mode.name}"


@given(
    idempotent=st.booleans(),
    unsafe=st.booleans(),
    most=st.integers(1, 100),
    attempt=st.integers(1, 100),
    code=st.sampled_from(list(Code)),
)
def test_who_is_retried(idempotent: bool, unsafe: bool, most: int, attempt: int, code: Code) -> None:
    policy = RetryPolicy(max_attempts=most, retry_unsafe=unsafe)
    allowed = (idempotent or unsafe) and attempt < most
    assert may_rerun_lost(idempotent=idempotent, policy=policy, attempt=attempt) is allowed
    expected = allowed and code not in FINAL_CODES
    assert may_retry(idempotent=idempotent, policy=policy, attempt=attempt, code=code) is expected


@given(
    initial=st.integers(1, 3600 * SECOND),
    longest=st.integers(1, 86400 * SECOND),
    multiplier=st.floats(1.0, 10.0),
    failed=st.integers(1, 100),
    least=st.integers(0, 86400 * SECOND),
    seed=st.integers(0, 1000),
)
def test_the_wait_is_between_half_and_the_whole_and_bounded(
    initial: int, longest: int, multiplier: float, failed: int, least: int, seed: int
) -> None:
    policy = RetryPolicy(100, initial, longest, multiplier)
    whole = min(longest, initial * multiplier ** (failed - 1))
    wait = policy.backoff(failed, random.Random(seed), least)
    assert wait >= least
    assert wait == least or whole * 0.5 - 1 <= wait <= whole
