"""A job's life on each dispatch: waited for, watched, in order, cancelled, timed out."""

from __future__ import annotations

import time
from itertools import islice, pairwise

import pytest

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.job.v1 import job_service_pb2 as pb
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.errors import LimitExceeded, NotFinishable, Reason
from onecontainer.rpc.status import from_status
from tests.contract.dispatch.scene import (
    CANCELLED,
    EXPIRED,
    FAILED,
    LONG,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Scene,
    begun,
    until,
)
from tests.fixtures.ledger_desk import options, seconds
from tests.fixtures.stalls import stalls

LOW, NORMAL, HIGH = job_options_pb2.PRIORITY_LOW, job_options_pb2.PRIORITY_NORMAL, job_options_pb2.PRIORITY_HIGH


@pytest.fixture(scope="module")
def single(scene: Scene) -> str:
    """A service that runs one job at a time."""
    return scene.service("single", max_running=1, max_queued=20)


def reason(job: job_pb2.Job) -> Reason:
    return from_status(job.error).reason


def updates(scene: Scene, job: str, from_sequence: int, most: int = 1000) -> list[job_pb2.JobUpdate]:
    """What WatchJob sends, up to so many."""
    call = scene.stub.WatchJob(pb.WatchJobRequest(name=job, from_sequence=from_sequence), timeout=180)
    found = [answer.update for answer in islice(call, most)]
    call.cancel()
    return found


def test_a_job_is_watched_from_its_beginning_to_its_end(scene: Scene) -> None:
    job = scene.job(steps=3, step_seconds=0.3)
    seen = list(job.watch(timeout=180))
    states = [record.state for record in seen]
    assert states == sorted(states)
    assert states[-1] == SUCCEEDED
    done = [record.progress.done for record in seen]
    assert done == sorted(done)
    assert done[-1] == 3
    assert job.result(scene.pb.WorkResult).steps == 3


def test_a_watch_goes_on_after_the_sequence_it_names(scene: Scene) -> None:
    job = scene.job(**LONG)
    first = updates(scene, job.name, 0, 3)
    assert [update.sequence for update in first] == sorted({update.sequence for update in first})
    job.cancel()
    rest = updates(scene, job.name, first[-1].sequence)
    assert rest[0].sequence > first[-1].sequence
    assert rest[-1].job.state == CANCELLED
    assert updates(scene, job.name, rest[-1].sequence) == []


def test_wait_answers_at_the_end_or_after_its_time(scene: Scene) -> None:
    job = scene.job(**LONG)
    early = scene.stub.WaitJob(pb.WaitJobRequest(name=job.name, timeout=seconds(0.2)), timeout=120)
    assert early.state in (QUEUED, RUNNING)
    job.cancel()
    assert scene.stub.WaitJob(pb.WaitJobRequest(name=job.name, timeout=seconds(120)), timeout=180).state == CANCELLED


def test_lanes_and_age_decide_who_is_next(scene: Scene, single: str) -> None:
    blocker, marks = scene.blocker(single), scene.marks()
    waiting = {
        (priority, number): scene.job(
            service=single, given=options(priority=priority), steps=1, step_seconds=0, mark_file=str(marks)
        )
        for number, priority in enumerate((LOW, NORMAL, LOW, HIGH, NORMAL, HIGH))
    }
    expected = [waiting[key].name for key in sorted(waiting, key=lambda key: (-key[0], key[1]))]
    places = {name: scene.client.jobs.get(name).queue_position for name in expected}
    assert [places[name] for name in expected] == list(range(6))
    blocker.cancel()
    for job in waiting.values():
        assert job.wait(timeout=180).state == SUCCEEDED
    assert [line.split()[1] for line in begun(marks)] == expected


def test_a_high_job_passes_what_has_been_brought_to_the_workers_already(scene: Scene) -> None:
    """All slots are busy, and more wait than a worker has read ahead: strict lanes are the ledger's, not the broker's."""
    slots, marks = 16, scene.marks()
    running = [scene.job(**LONG) for _ in range(slots)]
    for job in running:
        scene.wait_state(job, RUNNING)
    normal = [scene.job(steps=1, step_seconds=0.01, mark_file=str(marks)) for _ in range(40)]
    urgent = scene.job(given=options(priority=HIGH), steps=1, step_seconds=0.01, mark_file=str(marks))
    running.pop().cancel()
    assert urgent.wait(timeout=180).state == SUCCEEDED
    assert begun(marks)[0].split()[1] == urgent.name
    for job in (*running, *normal):
        job.cancel()
    for job in (*running, *normal):
        job.wait(timeout=180)


def test_a_service_runs_no_more_at_once_than_it_may(scene: Scene, single: str) -> None:
    jobs = [scene.job(service=single, steps=1, step_seconds=0.02) for _ in range(6)]
    spans = []
    for job in jobs:
        job.wait(timeout=180)
        attempt = job.refresh().attempts[-1]
        spans.append((attempt.start_time.ToMicroseconds(), attempt.end_time.ToMicroseconds()))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_full_queue_takes_no_more(scene: Scene) -> None:
    full = scene.service("full", max_running=1, max_queued=2)
    blocker = scene.blocker(full)
    taken = []
    with pytest.raises(LimitExceeded) as raised:
        for _ in range(10):
            taken.append(scene.job(service=full, steps=1))
    assert raised.value.metadata["limit"] == "2"
    assert raised.value.retry_after
    assert len(taken) == 2
    blocker.cancel()
    assert {job.wait(timeout=180).state for job in taken} == {SUCCEEDED}


def test_a_queued_job_that_is_cancelled_never_starts(scene: Scene, single: str) -> None:
    blocker, marks = scene.blocker(single), scene.marks()
    queued = scene.job(service=single, steps=1, mark_file=str(marks))
    assert queued.cancel().state == CANCELLED
    blocker.cancel()
    later = scene.job(service=single, steps=1, mark_file=str(marks))
    assert later.wait(timeout=180).state == SUCCEEDED
    assert [line.split()[1] for line in begun(marks)] == [later.name]
    assert scene.client.jobs.get(queued.name).attempt_count == 0


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "thread"])
def test_abort_reaches_a_running_job(scene: Scene, blocking: bool) -> None:
    job = scene.job(blocking=blocking, **LONG)
    scene.wait_progress(job)
    with stalls() as still:
        begin = time.monotonic()
        job.cancel()
        ended = job.wait(timeout=180)
        took = time.monotonic() - begin - still.seconds
    assert (ended.state, reason(ended)) == (CANCELLED, Reason.CANCELLED)
    # Far more than a second, for a machine that is busy; `make faults` measures the latency.
    assert took < 15


def test_finish_keeps_what_is_done_where_the_method_can(scene: Scene) -> None:
    job = scene.job(**LONG)
    scene.wait_progress(job)
    job.cancel(finish=True)
    ended = job.wait(timeout=180)
    assert (ended.state, ended.ended_early) == (SUCCEEDED, True)
    assert 1 <= job.result(scene.pb.WorkResult).steps < LONG["steps"]
    once = scene.job("WorkOnce", **LONG)
    with pytest.raises(NotFinishable):
        once.cancel(finish=True)
    once.cancel()
    assert once.wait(timeout=180).state == CANCELLED


def test_queue_timeout(scene: Scene, single: str) -> None:
    blocker, marks = scene.blocker(single), scene.marks()
    late = scene.job(service=single, given=options(queue_timeout=0.3), steps=1, mark_file=str(marks))
    ended = late.wait(timeout=180)
    assert (ended.state, reason(ended)) == (EXPIRED, Reason.QUEUE_TIMEOUT)
    blocker.cancel()
    blocker.wait(timeout=180)
    assert not begun(marks)


def test_total_timeout_of_a_job_that_waits_and_of_one_that_runs(scene: Scene, single: str) -> None:
    blocker = scene.blocker(single)
    waits = scene.job(service=single, given=options(total_timeout=0.3), steps=1)
    for total in (5, 20, 60):  # as long as it takes this machine to begin with it
        marks = scene.marks()
        runs = scene.job(given=options(total_timeout=total), mark_file=str(marks), **LONG)
        for job in (waits, runs):
            ended = job.wait(timeout=180)
            assert (ended.state, reason(ended)) == (EXPIRED, Reason.TOTAL_TIMEOUT)
        if begun(marks):
            break
    blocker.cancel()
    blocker.wait(timeout=180)
    # Its attempt was aborted, and none followed.
    assert len(begun(marks)) == 1
    assert "end" not in marks.read_text()


def test_attempt_timeout_is_a_failure_that_is_retried(scene: Scene) -> None:
    given = options(attempt_timeout=0.5, max_attempts=2, initial_backoff=0.01)
    job = scene.job(given=given, **LONG)
    ended = job.wait(timeout=180)
    assert (ended.state, reason(ended), ended.attempt_count) == (FAILED, Reason.ATTEMPT_TIMEOUT, 2)
    assert [from_status(one.error).reason for one in job.refresh().attempts] == [Reason.ATTEMPT_TIMEOUT] * 2


def test_stall_timeout_counts_from_the_last_progress(scene: Scene) -> None:
    # Longer than a machine may stand still between two steps.
    given = options(stall_timeout=10, max_attempts=1)
    lively = scene.job(given=given, steps=46, step_seconds=0.25)
    hung = scene.job(given=given, behaviour="hang")
    ended = hung.wait(timeout=180)
    assert (ended.state, reason(ended)) == (FAILED, Reason.STALLED)
    assert lively.wait(timeout=180).state == SUCCEEDED


def test_a_job_that_is_made_while_the_sidecar_starts(scene: Scene) -> None:
    scene.client.services.create("starting", app="echo")
    job = scene.job(service="services/starting", steps=1)
    assert job.wait(timeout=180).state == SUCCEEDED


def test_nothing_is_left_running(scene: Scene) -> None:
    """The tests of this module end what they begin: a slot that stays taken would be a leak of the product."""
    live = [*scene.client.jobs.list(filter='state = "RUNNING"'), *scene.client.jobs.list(filter='state = "CANCELLING"')]
    for job in live:
        scene.client.jobs.cancel(job.name)
    until(lambda: not scene.client.jobs.list(filter='state = "CANCELLING"'), "all attempts have ended")
