"""The audit of make faults finds what it is there for: each way in which a job can be lost or doubled, made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.errors import BackendUnreachable, OneContainerError, OutcomeUnknown
from onecontainer.rpc.status import to_status
from tests.faults.audit import DOUBLED, LOST, WRONG, Case, Marks, audit
from tests.faults.load import Order

NAME = "jobs/a"
QUEUED, RUNNING = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING
SUCCEEDED, FAILED, CANCELLED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED


def order(**fields: Any) -> Order:
    return Order(
        **{
            "request_id": "r",
            "idempotent": True,
            "steps": 2,
            "step_seconds": 0.1,
            "result_bytes": 3,
            "name": NAME,
            **fields,
        }
    )


@pytest.fixture(autouse=True)
def _stubs(echo_drivers: Path) -> None:
    """The results are messages of the test driver."""


def record(
    state: job_pb2.JobState, *attempts: job_pb2.AttemptState, error: OneContainerError | None = None
) -> job_pb2.Job:
    job = job_pb2.Job(name=NAME, state=state)
    for number, attempt in enumerate(attempts, 1):
        job.attempts.add(number=number, fence=number, state=attempt)
    if error is not None:
        job.error.CopyFrom(to_status(error))
    return job


def done(steps: int = 2, size: int = 3) -> job_pb2.Job:
    from onecontainer_driver_echo import echo_pb2

    job = record(SUCCEEDED, job_pb2.ATTEMPT_STATE_SUCCEEDED)
    job.result.Pack(echo_pb2.WorkResult(steps=steps, payload=bytes(size)))
    return job


def chain(*states: job_pb2.JobState) -> list[event_pb2.JobEvent]:
    before = [job_pb2.JOB_STATE_UNSPECIFIED, *states]
    return [
        event_pb2.JobEvent(job=NAME, sequence=number, old_state=old, new_state=new)
        for number, (old, new) in enumerate(zip(before, states, strict=False), 1)
    ]


def kinds(case: Case) -> set[str]:
    return {finding.kind for finding in audit(case)}


def test_a_job_that_went_well_is_nothing_to_speak_of() -> None:
    events = chain(QUEUED, RUNNING, SUCCEEDED)
    assert kinds(Case(order(), done(), [1], [1], events)) == set()
    # At least once: an event that is there twice is no second outcome.
    assert kinds(Case(order(), done(), [1], [1], [*events, events[-1]])) == set()


def test_an_unknown_outcome_is_a_reason_for_methods_that_are_not_repeated_only() -> None:
    lost = record(FAILED, job_pb2.ATTEMPT_STATE_LOST, error=OutcomeUnknown("who knows"))
    assert kinds(Case(order(idempotent=False), lost, [1])) == set()
    assert kinds(Case(order(), lost, [1])) == {LOST}


@pytest.mark.parametrize(
    "found",
    [
        None,
        record(QUEUED),
        record(RUNNING, job_pb2.ATTEMPT_STATE_RUNNING),
        record(FAILED, job_pb2.ATTEMPT_STATE_FAILED),
        record(FAILED, job_pb2.ATTEMPT_STATE_FAILED, error=BackendUnreachable("gone")),
    ],
    ids=["not there", "queued", "running", "failed without a reason", "failed"],
)
def test_lost(found: job_pb2.Job | None) -> None:
    assert kinds(Case(order(), found)) == {LOST}


def test_doubled_in_the_ledger() -> None:
    twice = done()
    twice.attempts.add(number=2, fence=2, state=job_pb2.ATTEMPT_STATE_SUCCEEDED)
    assert kinds(Case(order(), twice, [1, 2], [1, 2])) == {DOUBLED}
    undone = record(FAILED, job_pb2.ATTEMPT_STATE_SUCCEEDED, error=OutcomeUnknown("who knows"))
    assert kinds(Case(order(idempotent=False), undone, [1], [1])) == {DOUBLED}


@pytest.mark.parametrize(
    ("idempotent", "begun"),
    [(False, [1, 2]), (True, [1, 1]), (True, [1, 2])],
    ids=["not to be repeated", "one attempt twice", "an attempt that the ledger does not know"],
)
def test_doubled_in_the_driver(idempotent: bool, begun: list[int]) -> None:
    assert kinds(Case(order(idempotent=idempotent), done(), begun, [1])) == {DOUBLED}


def test_a_cancelled_job_that_never_had_an_attempt_must_not_have_begun() -> None:
    cancelled = record(CANCELLED, error=OutcomeUnknown("cancelled"))
    assert kinds(Case(order(cancel=True), cancelled)) == set()
    assert kinds(Case(order(cancel=True), cancelled, [1])) == {DOUBLED}
    assert kinds(Case(order(), cancelled)) == {WRONG}


def test_doubled_on_the_topic() -> None:
    changed = [*chain(QUEUED, RUNNING, FAILED), *chain(QUEUED, RUNNING, FAILED, SUCCEEDED)[3:]]
    assert DOUBLED in kinds(Case(order(), done(), [1], [1], changed))
    two_ends = [*chain(QUEUED, RUNNING, SUCCEEDED), *chain(QUEUED, RUNNING, FAILED)[2:]]
    assert DOUBLED in kinds(Case(order(), done(), [1], [1], two_ends))


@pytest.mark.parametrize(
    "events",
    [
        [],
        chain(QUEUED, RUNNING, SUCCEEDED)[1:],
        chain(QUEUED, RUNNING),
        chain(QUEUED, RUNNING, SUCCEEDED)[::2],
        chain(QUEUED, RUNNING, SUCCEEDED)[::-1],
    ],
    ids=["none", "no creation", "no end", "a hole", "out of order"],
)
def test_events_that_do_not_tell_the_story(events: list[event_pb2.JobEvent]) -> None:
    assert kinds(Case(order(), done(), [1], [1], events)) == {WRONG}


@pytest.mark.parametrize(("steps", "size"), [(1, 3), (2, 4)], ids=["steps", "payload"])
def test_the_result_of_another_job(steps: int, size: int) -> None:
    assert kinds(Case(order(), done(steps, size), [1], [1])) == {WRONG}


def test_a_success_that_the_driver_knows_nothing_of() -> None:
    assert kinds(Case(order(), done(), [1], [])) == {WRONG}


def test_marks_are_read_by_job_and_attempt() -> None:
    marks = Marks("begin jobs/a 1\nbegin jobs/b 1\nbegin jobs/a 2\nend jobs/a 2\n")
    assert marks.begun == {"jobs/a": [1, 2], "jobs/b": [1]}
    assert marks.ended == {"jobs/a": [2]}
