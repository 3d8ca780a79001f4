"""A responder of the raw limit: `python -m tests.bench.jobs.workers.raw SERVERS REQUESTS REPLIES`.

It answers each record with its own value, and does nothing else: no ledger, no claim, no retry.
"""

from __future__ import annotations

import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

READY = "takes jobs"


async def main(servers: str, requests: str, replies: str) -> None:
    consumer = AIOKafkaConsumer(requests, bootstrap_servers=servers, group_id="raw", auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True, max_batch_size=256 * 1024)
    async with consumer, producer:
        print(READY, flush=True)
        while True:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                for record in records:
                    await producer.send(replies, record.value)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
