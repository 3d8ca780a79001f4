"""Ours, on Kafka and embedded: a real gateway with all of the ledger on (SQLite with synchronous=FULL, leases, attempts)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from google.protobuf import any_pb2

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.job.v1 import job_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import AsyncClient
from tests.bench.jobs.system import CALLERS, TIMEOUT, check
from tests.fixtures.kafka import KafkaBroker
from tests.fixtures.processes import GatewayProcess, running

METHOD = "onecontainer.test.echo.v1.EchoService/Echo"
BATCH = 500
MAX_RUNNING = 128
"""Of each service, and so slots of its sidecar: about what an asynchronous worker of Taskiq takes at once (100)."""


def no_op(service: str, value: int) -> pb.CreateJobRequest:
    """A job that echoes a number."""
    from onecontainer_driver_echo import echo_pb2  # built at the start of this run

    packed = any_pb2.Any()
    packed.Pack(echo_pb2.EchoRequest(payload=b"%d" % value))
    return pb.CreateJobRequest(service=service, method=METHOD, request=packed)


def value_of(job: job_pb2.Job) -> int:
    """The number that a job echoed. Raises RuntimeError if it did not succeed."""
    from onecontainer_driver_echo import echo_pb2

    check(job.state, job_pb2.JOB_STATE_SUCCEEDED)
    echoed = echo_pb2.EchoResponse()
    check(job.result.Unpack(echoed), True)
    return int(echoed.payload)


async def submit_batches(client: AsyncClient, requests: Sequence[pb.CreateJobRequest], size: int = BATCH) -> list[str]:
    """Names of the jobs, in the order of the requests."""
    names: list[str] = []
    for start in range(0, len(requests), size):
        batch = pb.BatchCreateJobsRequest(requests=requests[start : start + size])
        answer = await client.jobs.stub.BatchCreateJobs(batch, timeout=TIMEOUT)
        names += [result.job.name for result in answer.results]
    return names


async def submit_each(client: AsyncClient, requests: Iterable[pb.CreateJobRequest]) -> list[str]:
    """The same by a call for each."""
    waiting = enumerate(requests)
    names: dict[int, str] = {}

    async def create() -> None:
        for index, request in waiting:
            names[index] = (await client.jobs.stub.CreateJob(request, timeout=TIMEOUT)).name

    await asyncio.gather(*(create() for _ in range(CALLERS)))
    return [names[index] for index in range(len(names))]


async def read_all(client: AsyncClient, names: Sequence[str]) -> list[job_pb2.Job]:
    """The jobs with their results, once all have ended."""
    jobs: dict[str, job_pb2.Job] = {}

    async def read(some: Sequence[str]) -> None:
        async for response in client.jobs.stub.WaitJobs(pb.WaitJobsRequest(names=some), timeout=TIMEOUT):
            for result in response.results:
                check(result.WhichOneof("result"), "job")
                jobs[result.name] = result.job

    await asyncio.gather(*(read(names[start : start + BATCH]) for start in range(0, len(names), BATCH)))
    return [jobs[name] for name in names]


class Ours:
    """A service has one sidecar, which is one worker process: for several workers there are as many services, jobs go round."""

    def __init__(self, folder: Path, drivers: Path, kafka: KafkaBroker | None) -> None:
        self.name = "kafka" if kafka else "embedded"
        self.ways = {"jobs_per_s": self.submit_and_read, "unary_jobs_per_s": self.submit_each_and_read}
        self._kafka = kafka
        settings = {"dispatch_url": f"kafka://{kafka.address}"} if kafka else {}
        self._gateway = GatewayProcess(folder / self.name, [drivers], **settings)
        self._stack = AsyncExitStack()
        self._services: list[str] = []

    async def start(self, workers: int) -> None:
        self._stack.enter_context(running(self._gateway))
        self._client = await self._stack.enter_async_context(AsyncClient(self._gateway.address))
        limits = resources_pb2.JobLimits(max_running=MAX_RUNNING)
        for number in range(workers):
            service = await self._client.services.create(f"echo-{number}", app="echo", job_limits=limits)
            await self._client.services.wait_ready(service.name, timeout=60)
            self._services.append(service.name)

    def _requests(self, jobs: int) -> list[pb.CreateJobRequest]:
        return [no_op(self._services[value % len(self._services)], value) for value in range(jobs)]

    async def submit_and_read(self, jobs: int) -> None:
        names = await submit_batches(self._client, self._requests(jobs))
        await self._read(names)

    async def submit_each_and_read(self, jobs: int) -> None:
        names = await submit_each(self._client, self._requests(jobs))
        await self._read(names)

    async def _read(self, names: Sequence[str]) -> None:
        for value, job in enumerate(await read_all(self._client, names)):
            check(value_of(job), value)

    async def one_at_a_time(self, jobs: int) -> list[float]:
        latencies = []
        for value, request in enumerate(self._requests(jobs)):
            begin = time.perf_counter()
            created = await self._client.jobs.stub.CreateJob(request, timeout=TIMEOUT)
            ended = await self._client.jobs.stub.WaitJob(pb.WaitJobRequest(name=created.name), timeout=TIMEOUT)
            latencies.append(time.perf_counter() - begin)
            check(value_of(ended), value)
        return latencies

    def processes(self) -> list[int]:
        return [self._gateway.pid]

    def broker(self) -> list[int]:
        return [self._kafka.pid] if self._kafka else []

    async def stop(self) -> None:
        await self._stack.aclose()
