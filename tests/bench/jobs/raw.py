"""The limit that aiokafka sets: a record to a topic, its value back on another one, and nothing done about it in between."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from contextlib import AsyncExitStack

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.bench.jobs.system import TIMEOUT, check
from tests.bench.jobs.workers import raw as responder
from tests.bench.trees import running_tree
from tests.fixtures.kafka import KafkaBroker

PARTITIONS = 4
"""As many as ours has."""
PATIENCE = 600_000
"""Milliseconds. The loop stands still while systems without asyncio are measured; requests must not time out meanwhile."""


class Raw:
    """acks=all and idempotent, as ours; the values tell which reply is whose."""

    name = "raw"

    def __init__(self, kafka: KafkaBroker) -> None:
        self.ways = {"jobs_per_s": self.submit_and_read}
        self._kafka = kafka
        self._stack = AsyncExitStack()
        self._roots: list[int] = []

    async def start(self, workers: int) -> None:
        servers = self._kafka.address
        unique = uuid.uuid4().hex
        self._requests, replies = f"requests.{unique}", f"replies.{unique}"
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(self._requests, PARTITIONS, 1), NewTopic(replies, 1, 1)])
        finally:
            await admin.close()
        command = [sys.executable, "-m", "tests.bench.jobs.workers.raw", servers, self._requests, replies]
        for _ in range(workers):
            self._roots.append(self._stack.enter_context(running_tree(command, {}, responder.READY)).pid)
        self._producer = await self._stack.enter_async_context(
            AIOKafkaProducer(
                bootstrap_servers=servers,
                enable_idempotence=True,
                max_batch_size=256 * 1024,
                request_timeout_ms=PATIENCE,
            )
        )
        self._consumer = AIOKafkaConsumer(bootstrap_servers=servers, request_timeout_ms=PATIENCE)
        self._consumer.assign([TopicPartition(replies, 0)])
        await self._stack.enter_async_context(self._consumer)
        await self._consumer.seek_to_beginning()

    async def submit_and_read(self, jobs: int) -> None:
        async def submit() -> None:
            for value in range(jobs):
                await self._producer.send(self._requests, b"%d" % value, partition=value % PARTITIONS)

        sending = asyncio.ensure_future(submit())
        found: list[int] = []
        async with asyncio.timeout(TIMEOUT):
            while len(found) < jobs:
                for records in (await self._consumer.getmany(timeout_ms=1000)).values():
                    found += [int(record.value) for record in records]
            await sending
        check(sorted(found), list(range(jobs)))

    async def one_at_a_time(self, jobs: int) -> list[float]:
        latencies = []
        for value in range(jobs):
            begin = time.perf_counter()
            await self._producer.send(self._requests, b"%d" % value, partition=value % PARTITIONS)
            async with asyncio.timeout(TIMEOUT):
                record = await self._consumer.getone()
            latencies.append(time.perf_counter() - begin)
            check(int(record.value), value)
        return latencies

    def processes(self) -> list[int]:
        return self._roots

    def broker(self) -> list[int]:
        return [self._kafka.pid]

    async def stop(self) -> None:
        await self._stack.aclose()
