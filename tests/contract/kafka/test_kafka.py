"""Jobs on a real broker: carried, run once, cancelled, retried; and what happens to them told to the world."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from tests.contract.dispatch.scene import ECHO
from tests.contract.kafka.scene import Scene, headers
from tests.fixtures.waiting import until


def test_jobs_are_carried_and_run_once(scene: Scene, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    jobs = [scene.job("WorkOnce", steps=1, mark_file=str(marks)) for _ in range(50)]
    assert {job.wait(timeout=180).state for job in jobs} == {job_pb2.JOB_STATE_SUCCEEDED}
    begun = [line for line in marks.read_text().splitlines() if line.startswith("begin")]
    assert sorted(begun) == sorted(f"begin {job.name} 1" for job in jobs)


def test_events_tell_each_transition_in_order(scene: Scene) -> None:
    job = scene.job(payload=b"x")
    assert job.wait(timeout=180).state == job_pb2.JOB_STATE_SUCCEEDED
    events = scene.events(job.name, job_pb2.JOB_STATE_SUCCEEDED)
    states = [(event.old_state, event.new_state) for event, _ in events]
    queued, running_, done = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED
    assert states == [(0, queued), (queued, running_), (running_, done)]
    assert [event.sequence for event, _ in events] == sorted({event.sequence for event, _ in events})
    headers = events[0][1]
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_type"] == b"dev.onecontainer.job.event.v1"
    assert headers["ce_source"] == b"services/echo"


def test_a_record_that_is_read_twice_runs_nothing_twice(scene: Scene, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    job = scene.job("Work", steps=5, step_seconds=0.1, mark_file=str(marks))
    record = event_pb2.JobDispatch(job=job.name, attempt=1, fence=1, service="services/echo", method=f"{ECHO}/Work")
    key = job.name.removeprefix("jobs/").encode()
    scene.produce(*[(record.SerializeToString(), headers(job.name))] * 5, key=key)
    assert job.wait(timeout=180).state == job_pb2.JOB_STATE_SUCCEEDED
    after = scene.job()
    assert after.wait(timeout=180).state == job_pb2.JOB_STATE_SUCCEEDED
    assert not scene.client.jobs.dead_letters()
    assert len([line for line in marks.read_text().splitlines() if line.startswith("begin")]) == 1


def test_cancel_of_running_and_queued_jobs(scene: Scene, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    work = {"steps": 6000, "step_seconds": 0.1, "mark_file": str(marks)}
    jobs = [scene.job("Work", **work) for _ in range(20)]  # 16 slots: the last ones wait
    until(lambda: marks.exists() and len(marks.read_text().splitlines()) >= 16, "all slots busy")
    queued = [job for job in jobs if scene.client.jobs.get(job.name).state == job_pb2.JOB_STATE_QUEUED]
    assert len(queued) == 4
    for job in [*queued, *jobs]:
        job.cancel()
    assert {job.wait(timeout=180).state for job in jobs} == {job_pb2.JOB_STATE_CANCELLED}
    begun = marks.read_text()
    assert not [job for job in queued if job.name in begun]


def test_a_failure_that_may_pass_is_retried(scene: Scene) -> None:
    request = scene.pb.WorkRequest(steps=1, failing_attempts=1)
    request.job_options.retry_policy.initial_backoff.FromMilliseconds(10)
    ended = scene.client.jobs.create("services/echo", f"{ECHO}/Work", request).wait(timeout=180)
    assert (ended.state, ended.attempt_count) == (job_pb2.JOB_STATE_SUCCEEDED, 2)


def test_a_service_of_few_runs_no_more_at_once(scene: Scene) -> None:
    client = scene.client
    client.services.create("one", app="echo", job_limits=resources_pb2.JobLimits(max_running=1))
    client.services.wait_ready("one", timeout=180)
    request = scene.pb.WorkRequest(steps=1, step_seconds=0.05)
    jobs = [client.jobs.create("services/one", f"{ECHO}/Work", request) for _ in range(6)]
    spans = []
    for job in jobs:
        attempt = (ended := job.wait(timeout=180)) and client.jobs.get(ended.name).attempts[-1]
        spans.append((attempt.start_time.ToMicroseconds(), attempt.end_time.ToMicroseconds()))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
