"""Dramatiq's broker and actor: what its workers load, and what the caller submits with."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

URL = "ONECONTAINER_BENCH_DRAMATIQ"

broker = RedisBroker(url=os.environ[URL])
broker.add_middleware(Results(backend=RedisBackend(url=os.environ[URL])))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def echo(value: int) -> int:
    return value
