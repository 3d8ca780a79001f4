"""Jobs on a real broker: carried, run once, cancelled, retried, kept while the broker is away; and records that are no jobs."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import Client
from onecontainer.errors import Reason
from onecontainer.jobs.dispatch.kafka import EVENTS_TOPIC, topic_of
from onecontainer.rpc.status import from_status
from tests.drivers.build import build_driver
from tests.fixtures import kafka
from tests.fixtures.processes import GatewayProcess, running

ECHO = "onecontainer.test.echo.v1.EchoService"


class Scene:
    """A broker, a gateway that dispatches over it, and the test driver's service."""

    def __init__(self, broker: kafka.KafkaBroker, gateway: GatewayProcess, client: Client) -> None:
        from onecontainer_driver_echo import echo_pb2  # built for this session

        self.pb = echo_pb2
        self.broker = broker
        self.gateway = gateway
        self.client = client
        self.topic = topic_of(client.services.get("echo").uid)

    def job(self, method: str = "Echo", **fields: Any) -> Any:
        kind = self.pb.EchoRequest if method.startswith("Echo") else self.pb.WorkRequest
        return self.client.jobs.create("services/echo", f"{ECHO}/{method}", kind(**fields))

    def produce(self, *records: tuple[bytes, list[tuple[str, bytes]]]) -> None:
        async def send() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=self.broker.address, max_request_size=20_000_000)
            await producer.start()
            try:
                for value, headers in records:
                    await producer.send_and_wait(self.topic, value=value, key=b"foreign", headers=headers)
            finally:
                await producer.stop()

        asyncio.run(send())

    def events(self, job: str, until: int) -> list[tuple[event_pb2.JobEvent, dict[str, bytes]]]:
        """The events of a job, up to the one with the state ``until``."""

        async def read() -> list[tuple[event_pb2.JobEvent, dict[str, bytes]]]:
            found: list[tuple[event_pb2.JobEvent, dict[str, bytes]]] = []
            consumer = AIOKafkaConsumer(
                EVENTS_TOPIC, bootstrap_servers=self.broker.address, auto_offset_reset="earliest"
            )
            await consumer.start()
            try:
                async with asyncio.timeout(60):
                    async for record in consumer:
                        event = event_pb2.JobEvent.FromString(record.value or b"")
                        if event.job == job:
                            found.append((event, dict(record.headers)))
                            if event.new_state == until:
                                return found
            finally:
                await consumer.stop()
            return found

        return asyncio.run(read())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    if not kafka.available():
        pytest.skip("a real broker needs java and mvn; .ci/run installs them")
    folder = tmp_path_factory.mktemp("kafka")
    sys.path.insert(0, str(build_driver("echo", folder / "drivers")))
    broker = kafka.KafkaBroker(folder / "broker")
    with running(broker):
        gateway = GatewayProcess(
            folder / "data",
            [folder / "drivers"],
            dispatch_url=f"kafka://{broker.address}",
            job_sweep_interval="0.2",
            lease_duration="5",
        )
        with running(gateway), Client(gateway.address) as client:
            client.services.create("echo", app="echo")
            client.services.wait_ready("echo", timeout=60)
            yield Scene(broker, gateway, client)


def until(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"in {timeout:g} s: not {what}")


def test_jobs_are_carried_and_run_once(scene: Scene, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    jobs = [scene.job("WorkOnce", steps=1, mark_file=str(marks)) for _ in range(50)]
    assert {job.wait(timeout=60).state for job in jobs} == {job_pb2.JOB_STATE_SUCCEEDED}
    begun = [line for line in marks.read_text().splitlines() if line.startswith("begin")]
    assert sorted(begun) == sorted(f"begin {job.name} 1" for job in jobs)


def test_events_tell_each_transition_in_order(scene: Scene) -> None:
    job = scene.job(payload=b"x")
    assert job.wait(timeout=60).state == job_pb2.JOB_STATE_SUCCEEDED
    events = scene.events(job.name, job_pb2.JOB_STATE_SUCCEEDED)
    states = [(event.old_state, event.new_state) for event, _ in events]
    queued, running_, done = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED
    assert states == [(0, queued), (queued, running_), (running_, done)]
    assert [event.sequence for event, _ in events] == sorted({event.sequence for event, _ in events})
    headers = events[0][1]
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_type"] == b"dev.onecontainer.job.event.v1"
    assert headers["ce_source"] == b"services/echo"


def test_records_that_are_no_jobs_become_dead_letters_and_the_consumer_goes_on(scene: Scene) -> None:
    scene.job().wait(timeout=60)  # the topic is there
    foreign = event_pb2.JobDispatch(job="jobs/abc", attempt=1, fence=1, service="services/other").SerializeToString()
    scene.produce(
        (b"\xff\xfe no protobuf", []),
        (foreign, []),
        (b"", [("ce_type", b"com.example.other")]),
        (bytes(10_000_000), []),
    )
    letters = until(
        lambda: len(found := [one for one in scene.client.jobs.dead_letters() if not one.job]) >= 4 and found,
        "four dead letters",
    )
    assert {from_status(letter.error).reason for letter in letters} == {Reason.RECORD_INVALID}
    assert all(letter.origin.topic == scene.topic and len(letter.origin.sha256) == 32 for letter in letters)
    assert max(letter.origin.size_bytes for letter in letters) == 10_000_000
    assert max(len(letter.origin.head) for letter in letters) == 4096
    assert scene.job().wait(timeout=60).state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_record_that_is_read_twice_runs_nothing_twice(scene: Scene, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    job = scene.job("Work", steps=5, step_seconds=0.1, mark_file=str(marks))
    record = event_pb2.JobDispatch(job=job.name, attempt=1, fence=1, service="services/echo", method=f"{ECHO}/Work")
    scene.produce(*[(record.SerializeToString(), [])] * 5)
    assert job.wait(timeout=60).state == job_pb2.JOB_STATE_SUCCEEDED
    after = scene.job()
    assert after.wait(timeout=60).state == job_pb2.JOB_STATE_SUCCEEDED
    assert len([line for line in marks.read_text().splitlines() if line.startswith("begin")]) == 1


def test_cancel_of_running_and_queued_jobs(scene: Scene, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    work = {"steps": 600, "step_seconds": 0.1, "mark_file": str(marks)}
    jobs = [scene.job("Work", **work) for _ in range(20)]  # 16 slots: the last ones wait
    until(lambda: marks.exists() and len(marks.read_text().splitlines()) >= 16, "all slots busy")
    queued = [job for job in jobs if scene.client.jobs.get(job.name).state == job_pb2.JOB_STATE_QUEUED]
    assert len(queued) == 4
    for job in [*queued, *jobs]:
        job.cancel()
    assert {job.wait(timeout=60).state for job in jobs} == {job_pb2.JOB_STATE_CANCELLED}
    begun = marks.read_text()
    assert not [job for job in queued if job.name in begun]


def test_a_failure_that_may_pass_is_retried(scene: Scene) -> None:
    request = scene.pb.WorkRequest(steps=1, failing_attempts=1)
    request.job_options.retry_policy.initial_backoff.FromMilliseconds(10)
    ended = scene.client.jobs.create("services/echo", f"{ECHO}/Work", request).wait(timeout=60)
    assert (ended.state, ended.attempt_count) == (job_pb2.JOB_STATE_SUCCEEDED, 2)


def test_a_service_of_few_runs_no_more_at_once(scene: Scene) -> None:
    client = scene.client
    client.services.create("one", app="echo", job_limits=resources_pb2.JobLimits(max_running=1))
    client.services.wait_ready("one", timeout=60)
    request = scene.pb.WorkRequest(steps=1, step_seconds=0.05)
    jobs = [client.jobs.create("services/one", f"{ECHO}/Work", request) for _ in range(6)]
    spans = []
    for job in jobs:
        attempt = (ended := job.wait(timeout=60)) and client.jobs.get(ended.name).attempts[-1]
        spans.append((attempt.start_time.ToMicroseconds(), attempt.end_time.ToMicroseconds()))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_jobs_are_accepted_while_the_broker_is_away_and_run_when_it_is_back(scene: Scene) -> None:
    scene.broker.kill()
    jobs = [scene.job(payload=b"x") for _ in range(5)]
    assert scene.client.services.get("echo").state == resources_pb2.SERVICE_STATE_READY
    scene.broker.start()
    assert {job.wait(timeout=90).state for job in jobs} == {job_pb2.JOB_STATE_SUCCEEDED}
