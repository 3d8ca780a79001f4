"""How fast a way of submitting jobs is."""

from __future__ import annotations

import gc
import time

from tests.bench.jobs.system import Way

FIRST_JOBS = 200
MOST_JOBS = 20_000


async def rate(way: Way, jobs: int) -> float:
    """Jobs per second."""
    gc.collect()  # what others left behind is not this one's to sweep
    begin = time.perf_counter()
    await way(jobs)
    return jobs / (time.perf_counter() - begin)


async def fitting(way: Way, seconds: float) -> int:
    """How many jobs take about so many seconds. Warms up as well."""
    await rate(way, FIRST_JOBS)
    for _ in range(2):  # the second guess is made at about the right size
        jobs = min(MOST_JOBS, max(FIRST_JOBS, int(await rate(way, FIRST_JOBS) * seconds)))
    return min(MOST_JOBS, max(FIRST_JOBS, int(await rate(way, jobs) * seconds)))
