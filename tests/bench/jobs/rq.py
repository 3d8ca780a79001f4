"""RQ, the queue of the original: with a fork for each job, as it comes, and with SimpleWorker, its best case."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Literal

from tests.bench.jobs.redis import RedisServer
from tests.bench.jobs.system import TIMEOUT, check
from tests.bench.trees import running_tree

BATCH = 500


class Rq:
    """Jobs are enqueued by `enqueue_many`, in one pipeline a batch. A result is awaited on its job's stream, without polling."""

    def __init__(self, redis: RedisServer, kind: Literal["fork", "simple"], database: int) -> None:
        self.name = f"rq_{kind}"
        self.ways = {"jobs_per_s": self.submit_and_read}
        self._redis = redis
        self._kind = kind
        self._url = f"{redis.address}/{database}"
        self._stack = ExitStack()
        self._roots: list[int] = []

    async def start(self, workers: int) -> None:
        import redis
        import rq

        from tests.bench.jobs.workers import rq as worker

        self._echo = worker.echo
        command = [sys.executable, "-m", "tests.bench.jobs.workers.rq", self._url, self._kind]
        for _ in range(workers):
            self._roots.append(self._stack.enter_context(running_tree(command, {}, worker.READY)).pid)
        connection = self._stack.enter_context(redis.Redis.from_url(self._url))
        self._queue = rq.Queue("bench", connection=connection)

    async def submit_and_read(self, jobs: int) -> None:
        submitted = []
        for start in range(0, jobs, BATCH):
            values = range(start, min(jobs, start + BATCH))
            submitted += self._queue.enqueue_many([self._queue.prepare_data(self._echo, (value,)) for value in values])
        for value, job in enumerate(submitted):
            self._check(job.latest_result(timeout=TIMEOUT), value)

    async def one_at_a_time(self, jobs: int) -> list[float]:
        latencies = []
        for value in range(jobs):
            begin = time.perf_counter()
            result = self._queue.enqueue(self._echo, value).latest_result(timeout=TIMEOUT)
            latencies.append(time.perf_counter() - begin)
            self._check(result, value)
        return latencies

    @staticmethod
    def _check(result: object, value: int) -> None:
        check(getattr(result, "return_value", None), value)

    def processes(self) -> list[int]:
        return self._roots

    def broker(self) -> list[int]:
        return [self._redis.pid]

    async def stop(self) -> None:
        self._stack.close()
