"""Taskiq's broker and task: what its workers load, and what the caller submits with."""

from __future__ import annotations

import os

from taskiq import TaskiqEvents, TaskiqState
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

URL = "ONECONTAINER_BENCH_TASKIQ"
READY = "takes jobs"

# The list is the faster of its brokers; the stream acknowledges each message.
broker = ListQueueBroker(os.environ[URL]).with_result_backend(
    RedisAsyncResultBackend(os.environ[URL], result_ex_time=3600)
)


@broker.task(task_name="echo")
async def echo(value: int) -> int:
    return value


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def _tell(_: TaskiqState) -> None:
    print(READY, flush=True)
