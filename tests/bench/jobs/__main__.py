"""make bench-jobs: no-op jobs from submission to the result in the caller's hands; ours beside the usual queues and Kafka's own limit.

All run on this machine at the same time, each with as many worker processes, and take turns in every round, so that a noisy
machine disturbs all alike; ratios are medians over the rounds' own ratios. Each measurement has as many jobs as the system does in
a few seconds. Ours keeps all that it promises: synchronous=FULL, acks=all, attempts, fenced leases; Redis keeps nothing on disk.

    python -m tests.bench.jobs [--rounds N] [--seconds S] [--samples N] [--workers N] [--systems NAME,…] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from tests.bench import figures
from tests.bench.jobs import redis, report
from tests.bench.jobs.celery import CelerySystem
from tests.bench.jobs.dramatiq import DramatiqSystem
from tests.bench.jobs.ours import Ours
from tests.bench.jobs.raw import Raw
from tests.bench.jobs.rq import Rq
from tests.bench.jobs.system import System
from tests.bench.jobs.taskiq import TaskiqSystem
from tests.bench.jobs.timing import fitting, rate
from tests.bench.trees import memory_mib
from tests.drivers.build import build_driver
from tests.fixtures import kafka
from tests.fixtures.processes import running

ON_KAFKA = ("kafka", "raw")
ON_REDIS = ("rq_simple", "rq_fork", "celery", "dramatiq", "taskiq")
NAMES = ("kafka", "embedded", *ON_REDIS, "raw")


async def measure(systems: Sequence[System], rounds: int, seconds: float, samples: int) -> dict[str, report.Measured]:
    measured = {system.name: report.Measured() for system in systems}
    sizes: dict[tuple[str, str], int] = {}
    for system in systems:
        for figure, way in system.ways.items():
            sizes[system.name, figure] = await fitting(way, seconds)
        await system.one_at_a_time(samples // 10)
        print(f"  {system.name}: warm, {sizes[system.name, report.BATCHED]} jobs a turn", flush=True)
    gc.freeze()
    for turn in range(rounds):
        for system in systems if turn % 2 else systems[::-1]:
            found = measured[system.name]
            for figure, way in system.ways.items():
                found.add_rate(figure, await rate(way, sizes[system.name, figure]))
            found.add_latencies(await system.one_at_a_time(samples))
        print(f"  round {turn + 1} of {rounds}", flush=True)
    for system in systems:
        found = measured[system.name]
        found.rss_mib, found.pss_mib = memory_mib(system.processes())
        found.broker_rss_mib, _ = memory_mib(system.broker())
    return measured


def build(names: Sequence[str], folder: Path, stack: ExitStack) -> list[System]:
    """The systems, with the brokers and drivers that they need; brokers end with the stack."""
    systems: list[System] = []
    drivers = folder / "drivers"
    if set(names) & set(report.OURS):
        sys.path.insert(0, str(build_driver("echo", drivers)))
    if set(names) & set(ON_KAFKA):
        broker = kafka.KafkaBroker(folder / "broker", quick_start=False)
        stack.enter_context(running(broker))
        systems += [Ours(folder, drivers, broker), Raw(broker)]
    if set(names) & set(ON_REDIS):
        server = redis.RedisServer(folder / "redis")
        stack.enter_context(running(server))
        systems += [
            *(Rq(server, "simple", 0), Rq(server, "fork", 1), CelerySystem(server, 2)),
            *(DramatiqSystem(server, 3), TaskiqSystem(server, 4)),
        ]
    systems.append(Ours(folder, drivers, None))
    wanted = {system.name: system for system in systems}
    return [wanted[name] for name in NAMES if name in names]


async def run(systems: Sequence[System], given: argparse.Namespace) -> dict[str, report.Measured]:
    async with AsyncExitStack() as stack:
        for system in systems:
            stack.push_async_callback(system.stop)
            await system.start(given.workers)
        return await measure(systems, given.rounds, given.seconds, given.samples)


def missing(names: Sequence[str]) -> list[str]:
    """What this machine lacks, each with how to get it."""
    found = []
    if set(names) & set(ON_REDIS) and not redis.available():
        found.append("redis-server is not installed (Debian: apt-get install --no-install-recommends redis-server)")
    if set(names) & set(ON_KAFKA) and not kafka.available():
        found.append(
            "Kafka needs java and mvn (Debian: apt-get install --no-install-recommends default-jre-headless maven)"
        )
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.jobs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about so long is each measurement of throughput")
    parser.add_argument("--samples", type=int, default=300, help="jobs one at a time, in each round")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each system")
    parser.add_argument("--systems", default=",".join(NAMES), help="which of them, separated by commas")
    parser.add_argument(
        "--quick", action="store_true", help="one short round: shows that all works, not how fast it is"
    )
    given = parser.parse_args()
    given.names = given.systems.split(",")
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    if given.quick:
        given.rounds, given.seconds, given.samples = 1, 0.5, 30
    return given


def main() -> None:
    given = arguments()
    if lacks := missing(given.names):
        sys.exit("\n".join(lacks))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oc-bench-")))
        systems = build(given.names, folder, stack)
        measured = asyncio.run(run(systems, given))
    out = report.summary(measured)
    figures.show(
        f"No-op jobs, from submission to result, {given.workers} worker processes (medians of {given.rounds} rounds)",
        report.COLUMNS,
        report.table(out, [system.name for system in systems]),
        report.goals(out),
    )
    print(f"figures in {figures.write('jobs-quick' if given.quick else 'jobs', out)}")


if __name__ == "__main__":
    main()
