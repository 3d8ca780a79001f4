"""make bench-jobs: no-op jobs from creation to the result in the caller's hands, on the embedded dispatch.

All of the ledger is on: SQLite with synchronous=FULL, leases, attempts. Three figures: jobs per second created in batches
and read back, the same created by one call each, and the latency of one job at a time.

    python -m tests.bench.jobs [ROUNDS [JOBS]]
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from google.protobuf import any_pb2

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.job.v1 import job_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import AsyncClient
from tests.bench import figures
from tests.drivers.build import build_driver
from tests.fixtures.processes import GatewayProcess, running

SERVICE = "services/echo"
METHOD = "onecontainer.test.echo.v1.EchoService/Echo"
BATCH = 500
READERS = 32
ONE_AT_A_TIME = 100


def no_op() -> pb.CreateJobRequest:
    """A job that echoes nothing."""
    from onecontainer_driver_echo import echo_pb2  # built at the start of this run

    packed = any_pb2.Any()
    packed.Pack(echo_pb2.EchoRequest())
    return pb.CreateJobRequest(service=SERVICE, method=METHOD, request=packed)


async def read_all(client: AsyncClient, names: Sequence[str]) -> None:
    """Waits for every job and takes its result."""
    waiting = iter(names)

    async def reader() -> None:
        for name in waiting:
            job = await client.jobs.stub.WaitJob(pb.WaitJobRequest(name=name), timeout=120)
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job
            assert job.HasField("result")

    await asyncio.gather(*(reader() for _ in range(READERS)))


async def in_batches(client: AsyncClient, jobs: int) -> float:
    """Jobs per second, created in batches."""
    begin = time.perf_counter()
    names: list[str] = []
    for start in range(0, jobs, BATCH):
        requests = [no_op()] * min(BATCH, jobs - start)
        answer = await client.jobs.stub.BatchCreateJobs(pb.BatchCreateJobsRequest(requests=requests), timeout=60)
        names += [result.job.name for result in answer.results]
    await read_all(client, names)
    return jobs / (time.perf_counter() - begin)


async def one_call_each(client: AsyncClient, jobs: int) -> float:
    """Jobs per second, each created by a call of its own, 16 at once."""
    begin = time.perf_counter()
    names: list[str] = []
    left = iter(range(jobs))

    async def creator() -> None:
        for _ in left:
            names.append((await client.jobs.stub.CreateJob(no_op(), timeout=60)).name)

    await asyncio.gather(*(creator() for _ in range(16)))
    await read_all(client, names)
    return jobs / (time.perf_counter() - begin)


async def one_at_a_time(client: AsyncClient, jobs: int) -> list[float]:
    """Seconds from creation to result, one job after the other."""
    latencies = []
    for _ in range(jobs):
        begin = time.perf_counter()
        job = await client.jobs.stub.CreateJob(no_op(), timeout=60)
        await read_all(client, [job.name])
        latencies.append(time.perf_counter() - begin)
    return latencies


async def run(address: str, rounds: int, jobs: int) -> dict[str, float]:
    async with AsyncClient(address) as client:
        await client.services.create("echo", app="echo", job_limits=resources_pb2.JobLimits(max_running=64))
        await client.services.wait_ready("echo", timeout=60)
        await in_batches(client, BATCH)  # warm up
        batched, single, p50s, p99s = [], [], [], []
        for _ in range(rounds):
            batched.append(await in_batches(client, jobs))
            single.append(await one_call_each(client, max(1, jobs // 4)))
            latencies = await one_at_a_time(client, ONE_AT_A_TIME)
            p50s.append(figures.percentile(latencies, 0.5))
            p99s.append(figures.percentile(latencies, 0.99))
    return {
        "embedded.jobs_per_s": statistics.median(batched),
        "embedded.unary_jobs_per_s": statistics.median(single),
        "embedded.p50_ms": statistics.median(p50s) * 1e3,
        "embedded.p99_ms": statistics.median(p99s) * 1e3,
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oc-bench-")))
        sys.path.insert(0, str(build_driver("echo", folder / "drivers")))
        gateway = GatewayProcess(folder / "data", [folder / "drivers"])
        stack.enter_context(running(gateway))
        out = asyncio.run(run(gateway.address, rounds, jobs))
    figures.show(
        f"No-op jobs, from creation to result (medians of {rounds} rounds)",
        ["figure", "value"],
        [[name, f"{value:,.1f}"] for name, value in out.items()],
        {},
    )
    print(f"figures in {figures.write('jobs', out)}")


if __name__ == "__main__":
    main()
