"""How many jobs a second the ledger takes alone, on SQLite with synchronous=FULL: create, claim, report, in batches and from many callers.

`python -m tests.bench.ledger [--jobs N] [--queued N] [--profile]`
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from onecontainer.artifacts import sql as artifact_tables
from onecontainer.clock import ManualClock
from onecontainer.database import Database
from onecontainer.jobs import tables
from onecontainer.jobs.ledger import Granted, Reported
from onecontainer.jobs.model import NewJob
from tests.fixtures.ledger_desk import WORKER, Desk, new_job

T = TypeVar("T")
ROUNDS = ((1, 1), (1, 16), (10, 1), (100, 1), (100, 4))
"""(jobs in a batch, callers at a time)."""


async def shared_out(
    batches: Sequence[Sequence[object]], callers: int, work: Callable[..., Awaitable[object]]
) -> float:
    """Seconds that it takes so many callers to do all batches."""
    waiting = iter(batches)

    async def caller() -> None:
        for batch in waiting:
            await work(batch)

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return time.perf_counter() - begin


def batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


async def measure(desk: Desk, count: int, size: int, callers: int) -> tuple[float, float, float, float]:
    """Jobs a second: created, claimed, reported, and all three."""
    clock = ManualClock(desk.clock.now())
    new: list[NewJob] = [new_job(clock) for _ in range(count)]
    create = await shared_out(batches(new, size), callers, desk.ledger.create)
    granted: list[Granted] = []

    async def claim(batch: Sequence[object]) -> None:
        grants, _ = await desk.ledger.claim(WORKER, len(batch), 1_000_000)
        granted.extend(grants)

    claimed = await shared_out(batches(new, size), callers, claim)
    reports = [
        Reported(n, grant.id, grant.attempt, grant.fence, "succeeded", result=b"") for n, grant in enumerate(granted)
    ]

    async def report(batch: Sequence[Reported]) -> None:
        await desk.ledger.report(WORKER, batch)

    reported = await shared_out(batches(reports, size), callers, report)
    return count / create, count / claimed, count / reported, count / (create + claimed + reported)


async def main(jobs: int, queued: int, profile: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Database(f"sqlite:///{folder}/ledger.db") as database:
            tables.metadata.create_all(database.engine)
            artifact_tables.metadata.create_all(database.engine)
            desk = Desk(database)
            if queued:
                for batch in batches([new_job(desk.clock, priority=1) for _ in range(queued)], 1000):
                    await desk.ledger.create(batch)
            await measure(desk, 50, 10, 1)
            print(f"{'batch':>6} {'callers':>8} {'create/s':>10} {'claim/s':>10} {'report/s':>10} {'all/s':>10}")
            for size, callers in ROUNDS:
                count = jobs if size > 1 or callers > 1 else max(50, jobs // 10)
                rates = await measure(desk, count, size, callers)
                print(f"{size:>6} {callers:>8} " + " ".join(f"{rate:>10,.0f}" for rate in rates))


def profiled(jobs: int, queued: int) -> None:
    """The writer thread's time by function."""
    profiler = cProfile.Profile()
    original = Database._write_loop

    def loop(database: Database) -> None:
        profiler.enable()
        original(database)
        profiler.disable()

    Database._write_loop = loop  # type: ignore[method-assign]
    asyncio.run(main(jobs, queued, True))
    pstats.Stats(profiler).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--queued", type=int, default=0, help="so many others wait in the queue")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.profile:
        profiled(given.jobs, given.queued)
    else:
        asyncio.run(main(given.jobs, given.queued, False))
