"""Attempts on each dispatch: tried again or not, from where they stopped, lost with their worker, dead, redriven."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from onecontainer.api.job.v1 import job_pb2
from onecontainer.client.sync import Job
from onecontainer.errors import BackendUnreachable, Code, Reason, ResourceNotFound
from onecontainer.rpc.status import from_status
from tests.contract.dispatch.scene import FAILED, LEASE, LONG, RUNNING, SUCCEEDED, WAITING, Scene, begun
from tests.fixtures.ledger_desk import options
from tests.fixtures.waiting import until

QUICK = {"initial_backoff": 0.01}


def reasons(job: Job) -> list[Reason]:
    """How a job's attempts ended, those that failed."""
    attempts = job.refresh().attempts
    return [from_status(attempt.error).reason for attempt in attempts if attempt.HasField("error")]


def failed_with(job: job_pb2.Job) -> tuple[int, Reason, int]:
    return job.state, from_status(job.error).reason, job.attempt_count


def test_a_failure_that_may_pass_is_tried_again_if_the_method_may_be_repeated(scene: Scene) -> None:
    again = scene.job(given=options(**QUICK), steps=1, failing_attempts=2)
    ended = again.wait(timeout=180)
    assert (ended.state, ended.attempt_count) == (SUCCEEDED, 3)
    assert reasons(again) == [Reason.BACKEND_UNREACHABLE] * 2
    once = scene.job("WorkOnce", given=options(**QUICK), steps=1, failing_attempts=2)
    assert failed_with(once.wait(timeout=180)) == (FAILED, Reason.BACKEND_UNREACHABLE, 1)
    widened = scene.job("WorkOnce", given=options(retry_unsafe=True, **QUICK), steps=1, failing_attempts=2)
    assert widened.wait(timeout=180).state == SUCCEEDED


def test_what_a_failed_job_is_told_to_keep_stays_as_a_result_would(scene: Scene) -> None:
    kept = scene.job(given=options(max_attempts=2, **QUICK), behaviour="partial", result_bytes=20_000)
    with pytest.raises(BackendUnreachable) as caught:
        kept.result(scene.pb.WorkResult, timeout=180)
    told = caught.value.detail(scene.pb.WorkResult)
    assert told is not None
    assert (told.steps, len(told.payload)) == (2, 20_000), (
        "the last attempt's, and more than a call's error could carry"
    )
    record = kept.refresh()
    assert (record.state, list(record.artifacts)) == (FAILED, [told.artifact])
    assert scene.client.artifacts.read_all(told.artifact) == b"made"
    of_job = [one.name for one in scene.client.artifacts.list() if one.job == kept.name]
    assert of_job == [told.artifact], "what the first attempt made has gone, and what the last one did not name"

    brief = scene.job("WorkOnce", given=options(result_ttl=0.5), behaviour="partial")
    record = brief.wait(timeout=180)
    lost = from_status(record.error).detail(scene.pb.WorkResult)
    assert lost is not None
    until(lambda: not brief.refresh().artifacts, "artifacts expired")
    with pytest.raises(ResourceNotFound):
        scene.client.artifacts.get(lost.artifact)


def test_attempts_are_bounded(scene: Scene) -> None:
    job = scene.job(given=options(max_attempts=2, **QUICK), steps=1, failing_attempts=9)
    assert failed_with(job.wait(timeout=180)) == (FAILED, Reason.BACKEND_UNREACHABLE, 2)


@pytest.mark.parametrize(
    ("kind", "code", "again"),
    [
        (Reason.DATA_INVALID, 0, False),
        (Reason.RESOURCE_NOT_FOUND, 0, False),
        (Reason.BACKEND_EXECUTION_FAILED, int(Code.FAILED_PRECONDITION), False),
        (Reason.BACKEND_EXECUTION_FAILED, int(Code.ABORTED), True),
        (Reason.LIMIT_EXCEEDED, 0, True),
    ],
)
def test_the_typed_failure_decides(scene: Scene, kind: Reason, code: int, again: bool) -> None:
    job = scene.job(given=options(**QUICK), steps=1, failing_attempts=1, fail_reason=kind.value, fail_code=code)
    ended = job.wait(timeout=180)
    assert ended.attempt_count == (2 if again else 1)
    assert reasons(job) == [kind]


def test_backoff_is_drawn_between_half_and_the_whole_and_grows(scene: Scene) -> None:
    # So long that it is met while it waits, however busy the machine is.
    long = scene.job(given=options(initial_backoff=600, max_backoff=600), steps=1, failing_attempts=1)
    waiting = scene.wait_state(long, WAITING)
    wait = waiting.next_attempt_time.ToMicroseconds() - waiting.attempts[0].end_time.ToMicroseconds()
    assert 300_000_000 <= wait <= 600_000_000
    long.cancel()
    job = scene.job(given=options(initial_backoff=1.0, backoff_multiplier=2.0), steps=1, failing_attempts=2)
    assert job.wait(timeout=180).state == SUCCEEDED
    first, second, third = job.refresh().attempts
    assert first.end_time.ToMicroseconds() + 500_000 <= second.start_time.ToMicroseconds()
    assert second.end_time.ToMicroseconds() + 1_000_000 <= third.start_time.ToMicroseconds()


def test_what_the_backend_says_of_when_to_come_again_is_the_least_wait(scene: Scene) -> None:
    job = scene.job(given=options(**QUICK), steps=1, failing_attempts=1, fail_retry_after=1.2)
    assert job.wait(timeout=180).state == SUCCEEDED
    first, second = job.refresh().attempts
    assert second.start_time.ToMicroseconds() - first.end_time.ToMicroseconds() >= 1_200_000


def test_a_checkpoint_is_given_to_the_next_attempt(scene: Scene) -> None:
    job = scene.job(given=options(**QUICK), steps=1, failing_attempts=1, checkpoint=True)
    assert job.result(scene.pb.WorkResult, timeout=180).resumed_from == 1
    fresh = scene.job(steps=1, checkpoint=True)
    assert fresh.result(scene.pb.WorkResult, timeout=180).resumed_from == 0


# --- a worker that is lost ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frail(scene: Scene) -> str:
    """A service whose sidecar may be hurt."""
    return scene.service("frail")


@pytest.fixture
def frozen(scene: Scene, frail: str) -> Iterator[tuple[Job, Job]]:
    """A job that may be repeated and one that may not, whose worker has frozen in the middle of both. Awake, it ends them."""
    go = scene.marks()
    jobs = (
        scene.job(service=frail, given=options(**QUICK), steps=1, wait_file=str(go), checkpoint=True),
        scene.job("WorkOnce", service=frail, steps=1, wait_file=str(go)),
    )
    for job in jobs:
        scene.wait_progress(job)
    pid = scene.sidecar_pid(frail)
    os.kill(pid, signal.SIGSTOP)
    go.touch()
    try:
        yield jobs
    finally:
        os.kill(pid, signal.SIGCONT)


def test_without_a_heartbeat_the_lease_is_lost(scene: Scene, frozen: tuple[Job, Job], frail: str) -> None:
    again, once = frozen
    assert failed_with(once.wait(timeout=LEASE + 180)) == (FAILED, Reason.OUTCOME_UNKNOWN, 1)
    until(lambda: again.refresh().attempts[0].state == job_pb2.ATTEMPT_STATE_LOST, "the first attempt LOST")
    os.kill(scene.sidecar_pid(frail), signal.SIGCONT)
    # It wakes, and reports for the attempts that it has lost: they are refused, and the next attempt counts.
    ended = again.wait(timeout=180)
    assert (ended.state, ended.attempt_count) == (SUCCEEDED, 2)
    assert again.result(scene.pb.WorkResult).resumed_from == 1
    assert once.refresh().state == FAILED


def test_a_worker_that_dies_gives_its_attempts_up_at_once(scene: Scene, frail: str) -> None:
    scene.client.services.wait_ready(frail, timeout=180)
    marks, go = scene.marks(), scene.marks()
    work = {"steps": 1, "mark_file": str(marks), "wait_file": str(go)}
    job = scene.job(service=frail, given=options(**QUICK), **work)
    scene.wait_progress(job)
    os.kill(scene.sidecar_pid(frail), signal.SIGKILL)
    go.touch()
    assert job.wait(timeout=180).state == SUCCEEDED
    assert [line.split()[2] for line in begun(marks)] == ["1", "2"]


# --- run again by hand -------------------------------------------------------------------------------------------------


def test_retry_makes_a_new_job_of_an_ended_one(scene: Scene) -> None:
    first = scene.job(given=options(labels={"who": "me"}), steps=1)
    first.wait(timeout=180)
    second = first.retry()
    assert second.name != first.name
    ended = second.wait(timeout=180)
    assert (ended.state, ended.retry_of) == (SUCCEEDED, first.name)
    assert dict(ended.options.labels) == {"who": "me"}


def test_a_job_that_failed_for_good_is_a_dead_letter_and_can_be_redriven_once(scene: Scene) -> None:
    # Fails in its first attempt; the job that is made of its letter is a first attempt too, so that it fails as well.
    job = scene.job("WorkOnce", steps=1, failing_attempts=1)
    job.wait(timeout=180)
    (letter,) = scene.client.jobs.dead_letters(filter=f'job = "{job.name}"')
    assert from_status(letter.error).reason is Reason.BACKEND_UNREACHABLE
    assert (letter.service, letter.redriven_as) == ("services/echo", "")
    (again,) = scene.client.jobs.redrive([letter.name])
    (same,) = scene.client.jobs.redrive([letter.name])
    assert isinstance(again, Job)
    assert isinstance(same, Job)
    assert again.name == same.name
    assert again.wait(timeout=180).retry_of == job.name
    (letter,) = scene.client.jobs.dead_letters(filter=f'job = "{job.name}"')
    assert letter.redriven_as == again.name
    (error,) = scene.client.jobs.redrive(["deadLetters/0123456789"])
    assert isinstance(error, ResourceNotFound)


def test_a_job_that_is_cancelled_or_succeeds_leaves_no_dead_letter(scene: Scene) -> None:
    good, stopped = scene.job(steps=1), scene.job(**LONG)
    scene.wait_state(stopped, RUNNING)
    stopped.cancel()
    for job in (good, stopped):
        job.wait(timeout=180)
        assert not scene.client.jobs.dead_letters(filter=f'job = "{job.name}"')
