"""make bench-growth: does it stay as fast when the queue grows, and does it get faster with more workers?

For each depth a real gateway whose slots are all taken by jobs that hang, with so many no-op jobs behind them. Calls are made to
all of the gateways in turn. Then one slot is given up, so that the queue is worked off one job at a time: what lies between the
end of one and the start of the next is the claim, by the ledger's own clock. In the end all slots are given up.

    python -m tests.bench.growth [--dispatch embedded|kafka] [--depths N,…] [--workers N,…] [--samples N] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, timestamp_pb2

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.job.v1 import job_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import AsyncClient
from tests.bench import figures
from tests.bench.jobs.ours import METHOD, Ours, no_op, read_all, submit_batches
from tests.bench.jobs.report import BATCHED
from tests.bench.jobs.system import TIMEOUT
from tests.bench.jobs.timing import fitting, rate
from tests.drivers.build import build_driver
from tests.fixtures import kafka
from tests.fixtures.processes import GatewayProcess, running

SERVICE = "services/echo"
SLOTS = 16
"""Few, so that they are given up at once: a short queue would be gone before the last one is free."""
SERIAL = 250
"""Jobs that are claimed one at a time."""
DRAINED = 5000
"""At most so many are worked off by all slots."""
MAX_BATCH = 1000
PAGE = f'service = "{SERVICE}" AND state = "QUEUED"'
Call = Callable[[], Awaitable[Any]]


def hanging() -> pb.CreateJobRequest:
    """A job that takes a slot until it is cancelled."""
    from onecontainer_driver_echo import echo_pb2  # built at the start of this run

    packed = any_pb2.Any()
    packed.Pack(echo_pb2.EchoRequest(behaviour="hang"))
    return pb.CreateJobRequest(service=SERVICE, method=METHOD, request=packed)


class Queue:
    """A gateway with so many jobs queued behind slots that are all taken. Use as an async context manager."""

    def __init__(self, folder: Path, drivers: Path, depth: int, settings: dict[str, str]) -> None:
        self.depth = depth
        self._gateway = GatewayProcess(folder / f"queue-{depth}", [drivers], **settings)
        self._stack = AsyncExitStack()
        self._random = random.Random(depth)
        self.names: list[str] = []
        self._hanging: list[str] = []

    async def __aenter__(self) -> Queue:
        async with AsyncExitStack() as stack:
            stack.enter_context(running(self._gateway))
            self._client = await stack.enter_async_context(AsyncClient(self._gateway.address))
            self._stub = self._client.jobs.stub
            limits = resources_pb2.JobLimits(max_running=SLOTS)
            await self._client.services.create("echo", app="echo", job_limits=limits)
            await self._client.services.wait_ready(SERVICE, timeout=60)
            self._hanging = await submit_batches(self._client, [hanging()] * SLOTS)
            for name in self._hanging:
                async for response in self._stub.WatchJob(pb.WatchJobRequest(name=name), timeout=TIMEOUT):
                    if response.update.job.state == job_pb2.JOB_STATE_RUNNING:
                        break
            requests = [no_op(SERVICE, value) for value in range(self.depth)]
            self.names = await submit_batches(self._client, requests, MAX_BATCH)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the gateway; what is queued is not worked off."""
        await self._stack.aclose()

    def calls(self) -> dict[str, Call]:
        """What callers do while jobs wait, by the name of its figure."""
        return {
            "get_ms": lambda: self._stub.GetJob(
                pb.GetJobRequest(name=self._random.choice(self.names)), timeout=TIMEOUT
            ),
            "list_ms": lambda: self._stub.ListJobs(pb.ListJobsRequest(), timeout=TIMEOUT),
            "list_queued_ms": lambda: self._stub.ListJobs(pb.ListJobsRequest(filter=PAGE), timeout=TIMEOUT),
            "create_ms": lambda: self._stub.CreateJob(no_op(SERVICE, 0), timeout=TIMEOUT),
        }

    async def claims(self) -> list[float]:
        """Seconds from a job's end to the start of the next one in the only free slot."""
        await self._give_up(self._hanging[:1])
        jobs = sorted(await read_all(self._client, self.names[:SERIAL]), key=lambda job: job.start_time.ToNanoseconds())
        return [seconds(after.start_time) - seconds(before.end_time) for before, after in pairwise(jobs)]

    async def drain(self) -> float:
        """Jobs per second with all slots free."""
        last = min(len(self.names), SERIAL + DRAINED)
        await self._give_up(self._hanging[1:])
        free = time.time()  # this machine's clock is the gateway's as well
        await read_all(self._client, self.names[last - 1 : last])
        jobs = await read_all(self._client, self.names[SERIAL:last])
        ends = sorted(end for job in jobs if (end := seconds(job.end_time)) > free)
        if len(ends) < 2:
            raise RuntimeError(f"{last} jobs were worked off before all slots were free: more have to be queued")
        return (len(ends) - 1) / (ends[-1] - ends[0])

    async def _give_up(self, names: Sequence[str]) -> None:
        async def end(name: str) -> None:
            await self._stub.CancelJob(pb.CancelJobRequest(name=name), timeout=TIMEOUT)
            await self._stub.WaitJob(pb.WaitJobRequest(name=name), timeout=TIMEOUT)

        await asyncio.gather(*(end(name) for name in names))


def seconds(moment: timestamp_pb2.Timestamp) -> float:
    return moment.ToMicroseconds() / 1e6


async def in_turn(queues: Sequence[Queue], samples: int) -> dict[str, list[float]]:
    """Seconds of each call to each queue, by `qDEPTH.FIGURE`."""
    found: dict[str, list[float]] = {}
    for _ in range(samples):
        for queue in queues:
            for figure, call in queue.calls().items():
                begin = time.perf_counter()
                await call()
                found.setdefault(f"q{queue.depth}.{figure}", []).append(time.perf_counter() - begin)
    return found


async def by_depth(
    folder: Path, drivers: Path, given: argparse.Namespace, settings: dict[str, str]
) -> dict[str, float]:
    out: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        queues = []
        for depth in given.depths:
            queues.append(await stack.enter_async_context(Queue(folder, drivers, depth, settings)))
            print(f"  {depth:,} jobs are queued", flush=True)
        await in_turn(queues, 5)  # warm up
        for figure, latencies in (await in_turn(queues, given.samples)).items():
            out[figure] = statistics.median(latencies) * 1e3
            out[figure.replace("_ms", "_p99_ms")] = figures.percentile(latencies, 0.99) * 1e3
        for queue in queues:
            claims = await queue.claims()
            out[f"q{queue.depth}.claim_ms"] = statistics.median(claims) * 1e3
            out[f"q{queue.depth}.claim_p99_ms"] = figures.percentile(claims, 0.99) * 1e3
            out[f"q{queue.depth}.jobs_per_s"] = await queue.drain()
            await queue.close()  # it would go on working off what is left, beside the next one's measurement
            print(f"  {queue.depth:,} queued: measured", flush=True)
    return out


async def by_workers(
    folder: Path, drivers: Path, given: argparse.Namespace, broker: kafka.KafkaBroker | None
) -> dict[str, float]:
    rates: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        systems = {}
        for workers in given.workers:
            ours = Ours(folder / f"workers-{workers}", drivers, broker)
            stack.push_async_callback(ours.stop)
            await ours.start(workers)
            systems[f"workers_{workers}.{BATCHED}"] = (
                ours.submit_and_read,
                await fitting(ours.submit_and_read, given.seconds),
            )
        for _ in range(given.rounds):
            for figure, (way, jobs) in systems.items():
                rates.setdefault(figure, []).append(await rate(way, jobs))
    return {figure: statistics.median(values) for figure, values in rates.items()}


def ratios(out: dict[str, float], depths: Sequence[int]) -> dict[str, float]:
    """Of each figure, the deepest queue's over the shallowest one's: 1 is flat."""
    least, most = min(depths), max(depths)
    shallow = {key.partition(".")[2]: value for key, value in out.items() if key.startswith(f"q{least}.")}
    return {
        f"{figure.removesuffix('_ms')}_{most}_over_{least}": out[f"q{most}.{figure}"] / shallow[figure]
        for figure in shallow
    }


def report(out: dict[str, float], given: argparse.Namespace) -> None:
    flat = ratios(out, given.depths)
    figures_of_depth = list(dict.fromkeys(key.partition(".")[2] for key in out if key.startswith("q")))
    rows = [[figure, *(f"{out[f'q{depth}.{figure}']:,.2f}" for depth in given.depths)] for figure in figures_of_depth]
    goals = {key: (value, "about 1") for key, value in flat.items() if "p99" not in key}
    title = f"With jobs queued ({given.dispatch})"
    figures.show(title, ["figure", *(f"{depth:,}" for depth in given.depths)], rows, goals)
    rows = [[str(workers), f"{out[f'workers_{workers}.{BATCHED}']:,.0f}"] for workers in given.workers]
    figures.show(f"By workers ({given.dispatch})", ["workers", "jobs/s"], rows, {})
    prefix = "growth" if given.dispatch == "embedded" else f"growth_{given.dispatch}"
    written = figures.write(prefix, {f"{prefix}.{key}": value for key, value in (out | flat).items()})
    print(f"figures in {written}")


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth")
    parser.add_argument("--dispatch", choices=("embedded", "kafka"), default="embedded")
    parser.add_argument("--depths", type=numbers, default=[1000, 10_000, 100_000])
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4])
    parser.add_argument("--samples", type=int, default=200, help="calls of each kind to each queue")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput by workers")
    parser.add_argument("--seconds", type=float, default=3.0, help="about so long is each of them")
    given = parser.parse_args()
    if min(given.depths) < 2 * SERIAL:
        parser.error(f"a queue of less than {2 * SERIAL} jobs is gone before it is measured")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oc-bench-")))
        sys.path.insert(0, str(build_driver("echo", folder / "drivers")))
        broker = kafka.KafkaBroker(folder / "broker", quick_start=False) if given.dispatch == "kafka" else None
        if broker is not None:
            stack.enter_context(running(broker))
        settings = {"dispatch_url": f"kafka://{broker.address}"} if broker is not None else {}
        out = asyncio.run(by_depth(folder, folder / "drivers", given, settings))
        out |= asyncio.run(by_workers(folder, folder / "drivers", given, broker))
    report(out, given)


if __name__ == "__main__":
    main()
