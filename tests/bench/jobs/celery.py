"""Celery, with its default pool of forked processes."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack

from tests.bench.jobs.redis import RedisServer
from tests.bench.jobs.system import TIMEOUT, check
from tests.bench.trees import running_tree


class CelerySystem:
    """Tasks are sent over one producer of the pool, as a group of Celery's does; their results come by publish and subscribe."""

    name = "celery"

    def __init__(self, redis: RedisServer, database: int) -> None:
        self.ways = {"jobs_per_s": self.submit_and_read}
        self._redis = redis
        self._url = f"{redis.address}/{database}"
        self._stack = ExitStack()
        self._roots: list[int] = []

    async def start(self, workers: int) -> None:
        os.environ["ONECONTAINER_BENCH_CELERY"] = self._url
        from tests.bench.jobs.workers import celery

        self._app, self._echo = celery.app, celery.echo
        # What workers tell each other serves monitoring and is not needed to run tasks. One log line less for each task.
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
        command = [sys.executable, "-m", "celery", "-A", "tests.bench.jobs.workers.celery", "worker", *quiet]
        process = running_tree([*command, "--concurrency", str(workers)], {}, celery.READY)
        self._roots = [self._stack.enter_context(process).pid]

    async def submit_and_read(self, jobs: int) -> None:
        from celery.result import ResultSet

        with self._app.producer_pool.acquire(block=True) as producer:
            sent = [self._echo.apply_async((value,), producer=producer) for value in range(jobs)]
        for value, result in enumerate(ResultSet(sent, app=self._app).join_native(timeout=TIMEOUT)):
            check(result, value)

    async def one_at_a_time(self, jobs: int) -> list[float]:
        latencies = []
        for value in range(jobs):
            begin = time.perf_counter()
            result = self._echo.delay(value).get(timeout=TIMEOUT)
            latencies.append(time.perf_counter() - begin)
            check(result, value)
        return latencies

    def processes(self) -> list[int]:
        return self._roots

    def broker(self) -> list[int]:
        return [self._redis.pid]

    async def stop(self) -> None:
        self._stack.close()
