"""The broker goes away: jobs are accepted up to the documented bound, calls are not touched, and all runs when it is back."""

from __future__ import annotations

import os
import signal
import time

import pytest

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client.sync import Job
from onecontainer.errors import LimitExceeded, QueueUnreachable
from tests.contract.dispatch.scene import ECHO
from tests.contract.kafka.scene import Scene
from tests.fixtures.waiting import until

DEADLINE = 60.0
"""Seconds for a call, on a machine that is busy."""


def call(scene: Scene, payload: bytes) -> bytes:
    """A direct call of the driver."""
    import grpc

    with grpc.insecure_channel(scene.gateway.address) as channel:
        echo = channel.unary_unary(
            f"/{ECHO}/Echo",
            request_serializer=scene.pb.EchoRequest.SerializeToString,
            response_deserializer=scene.pb.EchoResponse.FromString,
        )
        answer: bytes = echo(scene.pb.EchoRequest(service="services/echo", payload=payload), timeout=DEADLINE).payload
        return answer


def create(scene: Scene, service: str, **fields: int) -> Job:
    request = scene.pb.WorkRequest(**fields)
    return scene.client.jobs.create(service, f"{ECHO}/Work", request, timeout=DEADLINE)


def succeed(*jobs: Job) -> bool:
    return {job.wait(timeout=240).state for job in jobs} == {job_pb2.JOB_STATE_SUCCEEDED}


def test_a_broker_that_hangs(scene: Scene) -> None:
    assert succeed(create(scene, "echo", steps=1))
    os.kill(scene.broker.pid, signal.SIGSTOP)
    try:
        jobs = [create(scene, "echo", steps=1) for _ in range(5)]
        assert call(scene, b"untouched") == b"untouched"
    finally:
        os.kill(scene.broker.pid, signal.SIGCONT)
    assert succeed(*jobs)


def test_a_broker_that_is_killed(scene: Scene) -> None:
    client = scene.client
    limits = resources_pb2.JobLimits(max_running=1, max_queued=3)
    client.services.create("narrow", app="echo", job_limits=limits)
    client.services.wait_ready("narrow", timeout=180)
    blocker = create(scene, "narrow", steps=6000, step_seconds=1)
    until(lambda: client.jobs.get(blocker.name).state == job_pb2.JOB_STATE_RUNNING, "the place is taken")
    scene.broker.kill()
    accepted: list[Job] = []

    def refused() -> Exception | None:
        try:
            accepted.append(create(scene, "narrow", steps=1))
        except (LimitExceeded, QueueUnreachable) as error:
            return error
        return None

    # The bound, and once the gateway has found out, why it is reached.
    first = until(refused, "the queue is full")
    assert len(accepted) == 3
    assert getattr(first, "retry_after", None)
    until(lambda: isinstance(refused(), QueueUnreachable), "UNAVAILABLE / QUEUE_UNREACHABLE")
    begin = time.monotonic()
    assert call(scene, b"untouched") == b"untouched"
    with pytest.raises(QueueUnreachable):
        create(scene, "narrow", steps=1)
    assert time.monotonic() - begin < 2 * DEADLINE
    more = [create(scene, "echo", steps=1) for _ in range(5)]
    client.jobs.cancel(blocker.name)
    scene.broker.start()
    assert succeed(*accepted, *more)


def test_a_gateway_that_starts_while_the_broker_is_away(scene: Scene) -> None:
    scene.broker.kill()
    scene.gateway.stop()
    scene.gateway.start()
    scene.client.services.wait_ready("echo", timeout=180)
    jobs = [create(scene, "echo", steps=1) for _ in range(5)]
    assert call(scene, b"untouched") == b"untouched"
    scene.broker.start()
    assert succeed(*jobs)
    until(lambda: scene.events(jobs[0].name, job_pb2.JOB_STATE_SUCCEEDED), "its events")
