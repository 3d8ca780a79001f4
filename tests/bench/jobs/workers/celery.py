"""The Celery app: what its workers load, and what the caller submits with."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready

URL = "ONECONTAINER_BENCH_CELERY"
READY = "takes jobs"

app = Celery("bench", broker=os.environ[URL], backend=os.environ[URL])
app.conf.update(
    # The default of 4 is for tasks that take long; the manual advises 50 to 150 for many short ones.
    worker_prefetch_multiplier=100,
    # Nobody listens to events.
    worker_send_task_events=False,
    task_send_sent_event=False,
    task_ignore_result=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="echo")
def echo(value: int) -> int:
    return value


@worker_ready.connect
def _tell(**_: Any) -> None:
    print(READY, flush=True)
