"""The jobs of a fault run: what each is asked to do, drawn from the seed, and how it gets in whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import any_pb2

from onecontainer.api.job.v1 import job_service_pb2 as pb
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.errors import OneContainerError
from tests.faults.stage import Stage, answered

ECHO = "onecontainer.test.echo.v1.EchoService"
TRIGGER_SECONDS = 0.8
"""A job whose point is waited for takes so long that the point can be met."""
CREATORS = 4


@dataclass(slots=True)
class Order:
    """What one job is asked to do; ``name`` is there once it was accepted."""

    request_id: str
    idempotent: bool
    steps: int
    step_seconds: float
    result_bytes: int
    last: bool = False
    """Behind all others in the queue."""
    cancel: bool = False
    name: str = ""

    @property
    def method(self) -> str:
        return f"{ECHO}/{'Work' if self.idempotent else 'WorkOnce'}"

    def request(self, service: str, marks: Path) -> pb.CreateJobRequest:
        """Its CreateJob. Made again it is the same, so that one whose answer was lost can be made again."""
        from onecontainer_driver_echo import echo_pb2  # built for this run

        work = echo_pb2.WorkRequest(
            steps=self.steps,
            step_seconds=self.step_seconds,
            mark_file=str(marks),
            result_bytes=self.result_bytes,
        )
        packed = any_pb2.Any()
        packed.Pack(work)
        options = job_options_pb2.JobOptions(
            request_id=self.request_id,
            priority=job_options_pb2.PRIORITY_LOW if self.last else job_options_pb2.PRIORITY_NORMAL,
        )
        # A job may meet every kill of its cell; how often the system may try is not what is tested here.
        options.retry_policy.max_attempts = 20
        options.retry_policy.initial_backoff.FromMilliseconds(10)
        options.retry_policy.max_backoff.FromMilliseconds(200)
        return pb.CreateJobRequest(service=service, method=self.method, request=packed, options=options)


@dataclass(slots=True)
class Wave:
    """Jobs around one kill: some are there before it, the others come in while it happens."""

    before: list[Order] = field(default_factory=list)
    meanwhile: list[Order] = field(default_factory=list)
    trigger: Order = field(init=False)
    """The job whose point is waited for."""

    @property
    def orders(self) -> list[Order]:
        return self.before + self.meanwhile


def draw(rng: random.Random, cell: str, number: int, jobs: int, *, wait_in_queue: bool) -> Wave:
    """A wave of so many jobs. Its trigger is the last in the queue if it is to wait there, else one of the first."""
    orders = [
        Order(
            request_id=f"{cell}-{number}-{index}-{rng.getrandbits(32):08x}",
            idempotent=rng.random() < 0.5,
            steps=rng.randint(1, 4),
            step_seconds=rng.uniform(0.02, 0.1),
            result_bytes=number * 1000 + index,  # no two jobs of a cell have the same result
        )
        for index in range(jobs)
    ]
    wave = Wave(orders[: jobs * 2 // 3], orders[jobs * 2 // 3 :])
    wave.trigger = wave.before[-1] if wait_in_queue else wave.before[rng.randrange(min(8, len(wave.before)))]
    wave.trigger.last = wait_in_queue
    wave.trigger.steps, wave.trigger.step_seconds = 4, TRIGGER_SECONDS / 4
    others = [order for order in wave.before if order is not wave.trigger]
    for order in rng.sample(others, min(len(others), max(1, jobs // 16))):
        order.cancel = True
    return wave


async def submit(stage: Stage, service: str, marks: Path, orders: Sequence[Order]) -> None:
    """Creates jobs in one call."""
    requests = [order.request(service, marks) for order in orders]
    created = await answered(lambda: stage.client.jobs.create_many(requests))
    for order, job in zip(orders, created, strict=True):
        if isinstance(job, OneContainerError):
            raise job
        order.name = job.name


async def submit_each(stage: Stage, service: str, marks: Path, orders: Sequence[Order]) -> None:
    """Creates jobs by one call each, a few at once. A call whose answer is lost is made again with its request_id."""
    waiting = iter(orders)

    async def creator() -> None:
        for order in waiting:
            request = order.request(service, marks)

            async def call(request: pb.CreateJobRequest = request) -> str:
                return (await stage.client.caller.unary(stage.client.jobs.stub.CreateJob, request)).name

            order.name = await answered(call)

    async with asyncio.TaskGroup() as group:
        for _ in range(CREATORS):
            group.create_task(creator())


async def cancel(stage: Stage, orders: Sequence[Order]) -> None:
    """Cancels what is to be cancelled, wherever it is by now."""
    for order in orders:
        if order.cancel:
            await answered(lambda name=order.name: stage.client.jobs.cancel(name))  # type: ignore[misc]
