"""Dramatiq with its Redis broker and results."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack

from tests.bench.jobs.redis import RedisServer
from tests.bench.jobs.system import TIMEOUT, check
from tests.bench.trees import running_tree

READY = "Worker process is ready for action"


class DramatiqSystem:
    """It has no call for many messages at once; a result is awaited by a blocking pop, without polling."""

    name = "dramatiq"

    def __init__(self, redis: RedisServer, database: int) -> None:
        self.ways = {"jobs_per_s": self.submit_and_read}
        self._redis = redis
        self._url = f"{redis.address}/{database}"
        self._stack = ExitStack()
        self._roots: list[int] = []

    async def start(self, workers: int) -> None:
        os.environ["ONECONTAINER_BENCH_DRAMATIQ"] = self._url
        from tests.bench.jobs.workers import dramatiq

        self._echo = dramatiq.echo
        command = [sys.executable, "-m", "dramatiq", "tests.bench.jobs.workers.dramatiq", "--processes", str(workers)]
        self._roots = [self._stack.enter_context(running_tree(command, {}, READY)).pid]

    async def submit_and_read(self, jobs: int) -> None:
        sent = [self._echo.send(value) for value in range(jobs)]
        for value, message in enumerate(sent):
            check(message.get_result(block=True, timeout=TIMEOUT * 1000), value)

    async def one_at_a_time(self, jobs: int) -> list[float]:
        latencies = []
        for value in range(jobs):
            begin = time.perf_counter()
            result = self._echo.send(value).get_result(block=True, timeout=TIMEOUT * 1000)
            latencies.append(time.perf_counter() - begin)
            check(result, value)
        return latencies

    def processes(self) -> list[int]:
        return self._roots

    def broker(self) -> list[int]:
        return [self._redis.pid]

    async def stop(self) -> None:
        self._stack.close()
