"""What the suite of both dispatches works with: a gateway, its test driver's service, and short ways to make jobs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from onecontainer.api.job.v1 import job_pb2, job_service_pb2_grpc
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.client import Client
from onecontainer.client.sync import Job
from onecontainer.rpc.channel import channel_options
from tests.drivers.build import build_driver
from tests.fixtures.processes import GatewayProcess
from tests.fixtures.waiting import until

ECHO = "onecontainer.test.echo.v1.EchoService"
QUEUED, RUNNING, WAITING = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_RETRY_WAIT
SUCCEEDED, FAILED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED
CANCELLED, EXPIRED = job_pb2.JOB_STATE_CANCELLED, job_pb2.JOB_STATE_EXPIRED
LEASE = 6.0
LONG: dict[str, Any] = {"steps": 12000, "step_seconds": 0.05}
"""Ten minutes' work, for what is ended before."""

T = TypeVar("T")


def build_drivers(folder: Path) -> Path:
    """The folder of the test driver, and of an older one that has fewer methods."""
    built = build_driver("echo", folder)
    lesser = folder / "lesser"
    shutil.copytree(built, lesser)
    manifest = json.loads((lesser / "metadata.json").read_text())
    manifest |= {"name": "lesser", "version": "0.9.0", "entry_point": "onecontainer_driver_echo:LesserDriver"}
    (lesser / "metadata.json").write_text(json.dumps(manifest))
    if str(built) not in sys.path:
        sys.path.insert(0, str(built))
    return folder


class Scene:
    """A gateway with one of the dispatches, and `services/echo` READY on it."""

    def __init__(self, dispatch: str, gateway: GatewayProcess, client: Client, folder: Path) -> None:
        from onecontainer_driver_echo import echo_pb2  # built for this session

        self.dispatch = dispatch
        self.gateway = gateway
        self.client = client
        self.folder = folder
        self.pb = echo_pb2
        self.channel = grpc.insecure_channel(gateway.address, options=channel_options())
        self.stub: Any = job_service_pb2_grpc.JobServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self._marks = 0

    def service(self, name: str, **limits: int) -> str:
        """A further service of the test driver, READY."""
        self.client.services.create(name, app="echo", job_limits=resources_pb2.JobLimits(**limits))
        self.client.services.wait_ready(name, timeout=180)
        return f"services/{name}"

    def request(self, method: str = "Work", **fields: Any) -> Message:
        kind: type[Message] = self.pb.WorkRequest if method.startswith("Work") else self.pb.EchoRequest
        return kind(**fields)

    def job(
        self,
        method: str = "Work",
        service: str = "services/echo",
        given: job_options_pb2.JobOptions | None = None,
        **fields: Any,
    ) -> Job:
        """A job of the test driver, with JobOptions if there are some."""
        return self.client.jobs.create(service, f"{ECHO}/{method}", self.request(method, **fields), options=given)

    def marks(self) -> Path:
        """A file for the driver to tell of its attempts in."""
        self._marks += 1
        return self.folder / f"marks-{self._marks}"

    def blocker(self, service: str) -> Job:
        """A job that runs, and takes the only place of a service until it is cancelled."""
        job = self.job(service=service, **LONG)
        self.wait_state(job, RUNNING)
        return job

    def wait_state(self, job: Job, *states: int) -> job_pb2.Job:
        """The job's record once it is in one of the states."""
        return until(
            lambda: record if (record := self.client.jobs.get(job.name)).state in states else None,
            f"{job.name} in {[job_pb2.JobState.Name(state) for state in states]}",  # type: ignore[arg-type]
        )

    def wait_progress(self, job: Job) -> job_pb2.Job:
        """The job's record once its handler has told of progress."""
        return until(
            lambda: record if (record := self.client.jobs.get(job.name)).progress.done >= 1 else None, "progress"
        )

    def sidecar_pid(self, service: str) -> int:
        """The process that serves a service."""
        (name,) = self.client.services.get(service).sidecars[:1]
        return int(self.client.sidecars.get(name).runtime_id)


def begun(marks: Path) -> list[str]:
    """The attempts that a mark file tells of: `begin JOB ATTEMPT`."""
    lines = marks.read_text().splitlines() if marks.exists() else []
    return [line for line in lines if line.startswith("begin")]
