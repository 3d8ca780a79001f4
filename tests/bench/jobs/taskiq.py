"""Taskiq with its list broker on Redis."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import ExitStack
from typing import Any

from tests.bench.jobs.redis import RedisServer
from tests.bench.jobs.system import CALLERS, TIMEOUT, check
from tests.bench.trees import running_tree

CHECK_INTERVAL = 0.001
"""Its results can only be polled; the default of 0.2 s would be all that is measured of one job at a time."""
CHECK_INTERVAL_OF_MANY = 0.02
"""Of many, the polls for what is not yet there would take the machine from what makes it."""


class TaskiqSystem:
    """Tasks are sent, and results read, by several callers at a time: it has no call for many of them."""

    name = "taskiq"

    def __init__(self, redis: RedisServer, database: int) -> None:
        self.ways = {"jobs_per_s": self.submit_and_read}
        self._redis = redis
        self._url = f"{redis.address}/{database}"
        self._stack = ExitStack()
        self._roots: list[int] = []
        self._broker: Any = None

    async def start(self, workers: int) -> None:
        os.environ["ONECONTAINER_BENCH_TASKIQ"] = self._url
        from tests.bench.jobs.workers import taskiq

        # No log line for each task; no validation of its argument by pydantic.
        quiet = ["--log-level", "WARNING", "--no-parse"]
        command = [sys.executable, "-m", "taskiq", "worker", "tests.bench.jobs.workers.taskiq:broker", *quiet]
        process = running_tree([*command, "--workers", str(workers)], {}, taskiq.READY)
        self._roots = [self._stack.enter_context(process).pid]
        self._broker, self._echo = taskiq.broker, taskiq.echo
        await self._broker.startup()

    async def submit_and_read(self, jobs: int) -> None:
        waiting = iter(range(jobs))
        sent: list[tuple[int, Any]] = []

        async def send() -> None:
            for value in waiting:
                sent.append((value, await self._echo.kiq(value)))

        await asyncio.gather(*(send() for _ in range(CALLERS)))
        unread = iter(sent)

        async def read() -> None:
            for value, task in unread:
                result = await task.wait_result(check_interval=CHECK_INTERVAL_OF_MANY, timeout=TIMEOUT)
                check(result.return_value, value)

        await asyncio.gather(*(read() for _ in range(CALLERS)))

    async def one_at_a_time(self, jobs: int) -> list[float]:
        latencies = []
        for value in range(jobs):
            begin = time.perf_counter()
            task = await self._echo.kiq(value)
            result = await task.wait_result(check_interval=CHECK_INTERVAL, timeout=TIMEOUT)
            latencies.append(time.perf_counter() - begin)
            check(result.return_value, value)
        return latencies

    def processes(self) -> list[int]:
        return self._roots

    def broker(self) -> list[int]:
        return [self._redis.pid]

    async def stop(self) -> None:
        try:
            if self._broker is not None:
                await self._broker.shutdown()
        finally:
            self._stack.close()
