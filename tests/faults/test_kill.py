"""kill -9 of the gateway and of a driver at five points of a job's life: nothing is lost, and no job has two effective outcomes.

What is proved for each of victim × point × kind of method:
- the job reaches a terminal state, with its result or with a typed reason;
- a method that declares idempotency ends SUCCEEDED, run again if need be;
- one that does not is begun at most once, and is FAILED / OUTCOME_UNKNOWN if nobody can know how it ended;
- exactly one attempt of a job is SUCCEEDED, and never after a terminal state another.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import Client
from onecontainer.errors import Reason
from onecontainer.rpc.status import from_status
from tests.fixtures.cancels import is_there
from tests.fixtures.processes import GatewayProcess
from tests.fixtures.stalls import stalls
from tests.fixtures.waiting import until

SERVICE = "services/echo"
POINTS = ("before_claim", "after_claim", "mid_run", "before_report", "after_report")
STEP = 0.2


@dataclass
class Scene:
    """A gateway with the test driver, and the file in which attempts leave their marks."""

    gateway: GatewayProcess
    marks: Path
    go: Path
    """What jobs that are met in their middle wait for: however long it takes to get there, they have not ended before."""

    def lines(self, job: str, kind: str) -> list[str]:
        text = self.marks.read_text() if self.marks.exists() else ""
        return [line for line in text.splitlines() if line.startswith(f"{kind} {job} ")]

    def client(self) -> Client:
        return Client(self.gateway.address)

    def sidecar_pid(self) -> int:
        def ready() -> int:
            found = client.sidecars.list(service=SERVICE)
            pids = (int(one.runtime_id) for one in found if one.state == resources_pb2.SIDECAR_STATE_READY)
            return next(pids, 0)

        with self.client() as client:
            return until(ready, "a sidecar that is ready")

    def submit(self, method: str, *, steps: int, waits: bool = False) -> str:
        """Makes a job, and returns its name. One that waits ends no sooner than there is the file ``go``."""
        from onecontainer_driver_echo import echo_pb2  # built for this session

        request = echo_pb2.WorkRequest(steps=steps, step_seconds=STEP, mark_file=str(self.marks))
        if waits:
            request.wait_file = str(self.go)
        request.job_options.retry_policy.initial_backoff.FromMilliseconds(10)
        with self.client() as client:
            return client.jobs.create(SERVICE, f"onecontainer.test.echo.v1.EchoService/{method}", request).name

    def job(self, name: str) -> job_pb2.Job:
        with self.client() as client:
            return client.jobs.get(name)

    def state(self, name: str) -> int:
        return self.job(name).state

    def stop_all(self) -> None:
        self.gateway.kill()


@pytest.fixture
def scene(tmp_path: Path, echo_drivers: Path) -> Any:
    gateway = GatewayProcess(
        tmp_path / "data",
        [echo_drivers],
        lease_duration="4",
        job_sweep_interval="0.1",
        probe_interval="1",
        restart_backoff_initial="0.1",
    )
    gateway.start()
    scene = Scene(gateway, tmp_path / "marks", tmp_path / "go")
    try:
        with scene.client() as client:
            client.services.create("echo", app="echo", job_limits=resources_pb2.JobLimits(max_running=1))
            client.services.wait_ready("echo", timeout=180)
        yield scene
    finally:
        scene.stop_all()


def reach(scene: Scene, point: str, method: str) -> str:
    """Brings a job to this point of its life, and returns its name."""
    if point == "before_claim":
        # The only slot is taken: the next job waits.
        blocker = scene.submit("Work", steps=1, waits=True)
        until(lambda: scene.lines(blocker, "begin"), "begun")
        job = scene.submit(method, steps=1)
        assert scene.state(job) == job_pb2.JOB_STATE_QUEUED
        return job
    job = scene.submit(method, steps=2, waits=point != "after_report")
    if point == "after_claim":
        until(lambda: scene.state(job) == job_pb2.JOB_STATE_RUNNING, "running")
    elif point == "mid_run":
        until(lambda: scene.lines(job, "begin"), "begun")
        until(lambda: scene.job(job).progress.done >= 1, "on its way")
    elif point == "before_report":
        # A gateway that stands still takes no report; the attempt ends meanwhile.
        until(lambda: scene.lines(job, "begin"), "begun")
        os.kill(scene.gateway.pid, signal.SIGSTOP)
        scene.go.touch()
        until(lambda: scene.lines(job, "end"), "ended")
    else:
        until(lambda: scene.state(job) == job_pb2.JOB_STATE_SUCCEEDED, "succeeded")
    return job


def kill_gateway(scene: Scene, _point: str, _pid: int) -> None:
    scene.gateway.kill()
    scene.go.touch()
    scene.gateway.start()


def kill_driver(scene: Scene, point: str, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    scene.go.touch()
    if point == "before_report":
        os.kill(scene.gateway.pid, signal.SIGCONT)


@pytest.mark.parametrize("method", ["Work", "WorkOnce"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kill", [kill_gateway, kill_driver], ids=["gateway", "driver"])
def test_kill(scene: Scene, kill: Callable[[Scene, str, int], None], point: str, method: str) -> None:
    pid = scene.sidecar_pid()
    job = reach(scene, point, method)
    kill(scene, point, pid)
    with scene.client() as client:
        ended = client.jobs.handle(job).wait(timeout=180)
        record = client.jobs.get(job)
    assert ended.state == record.state
    begun = scene.lines(job, "begin")
    succeeded = [attempt for attempt in record.attempts if attempt.state == job_pb2.ATTEMPT_STATE_SUCCEEDED]
    if record.state == job_pb2.JOB_STATE_SUCCEEDED:
        assert len(succeeded) == 1
        assert record.HasField("result")
        # The attempt that counts has run to its end.
        assert scene.lines(job, "end")[-1] == f"end {job} {succeeded[0].number}"
    else:
        assert record.state == job_pb2.JOB_STATE_FAILED
        assert not succeeded
        assert from_status(record.error).reason == Reason.OUTCOME_UNKNOWN
    if method == "Work" or point in ("before_claim", "after_report"):
        assert record.state == job_pb2.JOB_STATE_SUCCEEDED
    if method == "WorkOnce":
        assert len(begun) <= 1
    if point == "after_report":
        assert len(begun) == 1


def test_the_killed_gateway_leaves_no_sidecar_behind(scene: Scene) -> None:
    pid = scene.sidecar_pid()
    scene.gateway.kill()
    until(lambda: not is_there(pid), "the sidecar gone with its gateway")


def test_a_second_start_on_the_same_folder_is_refused(scene: Scene) -> None:
    second = GatewayProcess(scene.gateway.data_dir)
    with pytest.raises(RuntimeError, match="another gateway") as raised:
        second.start()
    assert str(scene.gateway.pid) in str(raised.value)
    assert scene.gateway.address in str(raised.value)


def test_sigterm_drains_a_running_job_or_gives_it_back(scene: Scene) -> None:
    job = scene.submit("Work", steps=5)
    until(lambda: scene.lines(job, "begin"), "begun")
    assert scene.gateway.stop() == 0
    scene.gateway.start()
    with scene.client() as client:
        assert client.jobs.handle(job).wait(timeout=180).state == job_pb2.JOB_STATE_SUCCEEDED


def test_watches_end_at_once_when_the_gateway_stops(scene: Scene) -> None:
    """They never end by themselves, and must not hold the drain up; whoever waits goes on at the next gateway."""
    job = scene.submit("Work", steps=20)
    until(lambda: scene.lines(job, "begin"), "begun")
    with scene.client() as client, ThreadPoolExecutor(1) as threads, stalls() as still:
        waiting = threads.submit(lambda: client.jobs.handle(job).wait(timeout=180))
        begin = time.monotonic()
        assert scene.gateway.stop() == 0
        # The drain alone would wait 30 s for a stream that is open.
        assert time.monotonic() - begin - still.seconds < 25
        scene.gateway.start()
        assert waiting.result().state == job_pb2.JOB_STATE_SUCCEEDED
