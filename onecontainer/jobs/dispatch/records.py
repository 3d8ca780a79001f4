"""What is written on the broker: records with the headers of CloudEvents, put together in batches.

A batch is filled here and handed over whole: a record that goes to aiokafka's `send` by itself costs a future, a header at a
time and a hash in Python, together more than all that the ledger does for its job.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaProducer

from onecontainer.api.event.v1 import event_pb2
from onecontainer.rpc.kafka import DISPATCH_SCHEMA, DISPATCH_TYPE, HEADER_ID, HEADER_SCHEMA, HEADER_TYPE

EVENT_TYPE = "dev.onecontainer.job.event.v1"

SEND_TIMEOUT = 10.0
LEAST_BATCH = 32

Headers = tuple[tuple[str, bytes], ...]


@dataclass(slots=True)
class Record:
    """One record."""

    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]]


def by_key(records: Sequence[Record], partitions: int) -> dict[int, Sequence[Record]]:
    """Records by partition, so that those of a key stay in their order."""
    shared: dict[int, list[Record]] = {}
    for record in records:
        shared.setdefault(zlib.crc32(record.key) % partitions, []).append(record)
    return dict(shared)


def shared_out(records: Sequence[Record], partitions: int, first: int) -> dict[int, Sequence[Record]]:
    """Records by partition in as few batches as still give each consumer some, beginning with partition ``first``.

    For records whose order is not theirs to keep: the claim decides, and a consumer gets what a batch brings at once.
    """
    batches = min(partitions, -(-len(records) // LEAST_BATCH))
    size = -(-len(records) // batches) if batches else 0
    return {
        (first + number) % partitions: records[number * size : (number + 1) * size]
        for number in range(batches)
        if records[number * size :]
    }


async def send_all(producer: AIOKafkaProducer, topic: str, by_partition: Mapping[int, Sequence[Record]]) -> None:
    """Sends records and waits until the broker has all of them.

    Raises KafkaError, and TimeoutError if that takes too long: a client whose broker is away tries on and on by itself.
    """
    async with asyncio.timeout(SEND_TIMEOUT):
        await _send_all(producer, topic, by_partition)


async def _send_all(producer: AIOKafkaProducer, topic: str, by_partition: Mapping[int, Sequence[Record]]) -> None:
    sending: list[asyncio.Future[Any]] = []
    for partition, group in by_partition.items():
        batch = producer.create_batch()
        for record in group:
            if batch.append(key=record.key, value=record.value, timestamp=None, headers=record.headers) is None:
                sending.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                # The first record of a batch is taken however large it is.
                batch.append(key=record.key, value=record.value, timestamp=None, headers=record.headers)
        sending.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*sending)


def dispatch_record(row: Any) -> Record:
    """The record that says that a job is queued; ``row`` has the columns of `jobs` that it needs."""
    message = event_pb2.JobDispatch(
        job=f"jobs/{row.id}", attempt=row.attempt, fence=row.fence, service=row.service, method=row.method
    )
    # What is in the ledger is small enough for a record; larger requests are artifacts, which the grant names.
    if row.payload is not None:
        message.request = row.payload
    headers = [(HEADER_ID, f"{row.id}/{row.fence}".encode()), *_common(row.service, DISPATCH_TYPE, DISPATCH_SCHEMA)]
    if row.traceparent:
        headers.append(("traceparent", row.traceparent.encode()))
    return Record(row.id.encode(), message.SerializeToString(), headers)


def event_record(event: event_pb2.JobEvent) -> Record:
    """The record of a job's transition."""
    job = event.job.removeprefix("jobs/")
    headers = [(HEADER_ID, f"{job}/{event.sequence}".encode()), *_common(event.service, EVENT_TYPE, _EVENT_SCHEMA)]
    return Record(job.encode(), event.SerializeToString(), headers)


_EVENT_SCHEMA = event_pb2.JobEvent.DESCRIPTOR.full_name


@lru_cache(maxsize=1024)
def _common(source: str, kind: str, schema: str) -> Headers:
    """Headers of CloudEvents 1.0 in Kafka's binary mode that many records share.

    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
    """
    return (
        ("ce_specversion", b"1.0"),
        ("ce_source", source.encode()),
        (HEADER_TYPE, kind.encode()),
        (HEADER_SCHEMA, schema.encode()),
        ("content-type", b"application/protobuf"),
    )
