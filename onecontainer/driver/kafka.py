"""Jobs from Kafka: records are read, claimed on the gateway's internal listener, and committed beside the handler.

The consumer is polled for as long as the source lives, also while no slot is free: its partitions are paused then. No
offset is held while a handler runs, so a rebalance never stops an attempt, and a record that is read twice is skipped by
its claim.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from google.protobuf.message import DecodeError

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2_grpc, job_pb2
from onecontainer.driver.artifacts import Metadata, typed_errors
from onecontainer.driver.source import Reject
from onecontainer.errors import RecordInvalid
from onecontainer.rpc.status import to_status

log = logging.getLogger(__name__)

COMMIT_SECONDS = 0.05
"""Offsets are committed so often at the most."""
PAUSED_SECONDS = 0.5
READ_MS = 500
LEAST_READ_AHEAD = 16
CLAIM_TIMEOUT = 10.0
FIRST_LOOK, LAST_LOOK = 0.25, 2.0
"""Seconds without a record after which a worker with free slots asks for the best queued jobs, whatever was published."""
HEAD_BYTES = 4096
DISPATCH_TYPE = b"dev.onecontainer.job.dispatch.v1"


class KafkaSource:
    """A Source on a topic. ``reject`` is called with each record that is no job."""

    def __init__(
        self,
        dispatch: driver_pb2.KafkaDispatch,
        channel: grpc.aio.Channel,
        metadata: Metadata,
        service: str,
        client: Mapping[str, Any],
        reject: Reject,
        slots: int,
    ) -> None:
        self._dispatch = dispatch
        self._stub: job_lease_service_pb2_grpc.JobLeaseServiceAsyncStub = (
            job_lease_service_pb2_grpc.JobLeaseServiceStub(channel)
        )
        self._metadata = metadata
        self._service = service
        self._client = dict(client)
        self._reject = reject
        # What is read ahead does not hold a job back: another worker that is free claims it from the ledger.
        self._capacity = max(slots, LEAST_READ_AHEAD)
        self._records: deque[tuple[TopicPartition, int, lease_pb2.Claim]] = deque()
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._offsets: dict[TopicPartition, int] = {}
        self._look = FIRST_LOOK
        self._reader: asyncio.Task[None] | None = None
        self._broken: Exception | None = None

    async def poll(
        self, free: int, held: Sequence[tuple[str, int]], *, wait: float = 20.0
    ) -> Sequence[lease_pb2.Grant]:
        if self._reader is None:
            self._reader = asyncio.create_task(self._read(), name="kafka reader")
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        look = loop.time() + (self._look if wait else 0.0)
        while True:
            if self._records:
                grants = await self._claim(free)
                if grants:
                    self._look = FIRST_LOOK
                    return grants
                continue
            left = min(end, look) - loop.time()
            if left <= 0:
                # A record may have been lost, or the service's limit was reached when it came.
                grants = await self._best_queued(free)
                self._look = FIRST_LOOK if grants else min(self._look * 2, LAST_LOOK)
                look = loop.time() + self._look
                if grants or loop.time() >= end:
                    return grants
                continue
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait((self._reader,))

    # --- claims ------------------------------------------------------------------------------------------------------

    async def _claim(self, free: int) -> Sequence[lease_pb2.Grant]:
        """Claims what the oldest records name. If the gateway is away they stay, uncommitted."""
        batch = list(self._records)[:free]
        request = lease_pb2.ClaimJobsRequest(claims=[claim for _, _, claim in batch])
        response = await self._ask(request)
        for partition, offset, _ in batch:
            # A rebalance may have dropped some of them meanwhile.
            with suppress(ValueError, IndexError):
                if self._records[0][:2] == (partition, offset):
                    self._records.popleft()
            self._done(partition, offset)
        self._taken.set()
        return [result.grant for result in response.results if result.decision == lease_pb2.CLAIM_DECISION_GRANTED]

    async def _best_queued(self, free: int) -> Sequence[lease_pb2.Grant]:
        return (await self._ask(lease_pb2.ClaimJobsRequest(best_queued=min(free, 1000)))).grants

    async def _ask(self, request: lease_pb2.ClaimJobsRequest) -> lease_pb2.ClaimJobsResponse:
        with typed_errors():
            return await self._stub.ClaimJobs(request, metadata=self._metadata, timeout=CLAIM_TIMEOUT)

    def _done(self, partition: TopicPartition, offset: int) -> None:
        self._offsets[partition] = max(self._offsets.get(partition, 0), offset + 1)

    # --- the consumer ------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        backoff = 0.2
        while True:
            try:
                await self._consume()
            except (KafkaError, OSError) as error:
                log.warning("the broker does not answer (%s); next try in %.1f s", error, backoff)
            except Exception:
                # Without a reader the sidecar would look well and get no jobs.
                log.exception("reading from the broker failed")
            # The consumer is closed: whatever was read ahead is read again, by us or by another.
            self._records.clear()
            self._offsets.clear()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, 5.0)

    async def _consume(self) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=",".join(self._dispatch.bootstrap_servers),
            group_id=self._dispatch.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            metadata_max_age_ms=5_000,  # the topic is made with the first job, which may be after us
            session_timeout_ms=10_000,
            heartbeat_interval_ms=2_000,
            **self._client,
        )
        listener = _Rebalance(self, consumer)
        consumer.subscribe([self._dispatch.topic], listener=listener)
        committing = asyncio.create_task(self._commit_loop(consumer), name="kafka commits")
        try:
            await consumer.start()
            while True:
                room = self._capacity - len(self._records)
                if room <= 0:
                    # It goes on being polled, or it would be taken for dead and lose its partitions.
                    consumer.pause(*consumer.assignment())
                    await consumer.getmany(timeout_ms=0)
                    self._taken.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(PAUSED_SECONDS):
                            await self._taken.wait()
                    continue
                consumer.resume(*consumer.paused())
                found = await consumer.getmany(timeout_ms=READ_MS, max_records=room)
                for records in found.values():
                    for record in records:
                        self._take(record)
        finally:
            committing.cancel()
            await asyncio.wait((committing,))
            with suppress(KafkaError, OSError):
                await self._commit(consumer)
            await consumer.stop()

    def _take(self, record: ConsumerRecord[bytes | None, bytes | None]) -> None:
        partition = TopicPartition(record.topic, record.partition)
        try:
            claim = self._decode(record)
        except RecordInvalid as error:
            self._reject(_rejected(record, error))
            self._done(partition, record.offset)
            return
        self._records.append((partition, record.offset, claim))
        self._arrived.set()

    def _decode(self, record: ConsumerRecord[bytes | None, bytes | None]) -> lease_pb2.Claim:
        headers = dict(record.headers)
        kind = headers.get("ce_type", DISPATCH_TYPE)
        if kind != DISPATCH_TYPE:
            raise RecordInvalid(f"is of the type {kind[:100]!r}, not {DISPATCH_TYPE.decode()}")
        try:
            message = event_pb2.JobDispatch.FromString(record.value or b"")
        except DecodeError:
            raise RecordInvalid("does not decode to onecontainer.api.event.v1.JobDispatch") from None
        if not message.job.startswith("jobs/") or not message.job[5:].isalnum() or message.fence < 1:
            raise RecordInvalid("names no job and fence")
        if message.service != self._service:
            raise RecordInvalid(f"is for {message.service[:100]!r}, this worker is for {self._service!r}")
        return lease_pb2.Claim(job=message.job, attempt=message.attempt, fence=message.fence)

    def _drop(self, partitions: set[TopicPartition]) -> None:
        """Forgets what is not ours any more: whoever gets the partitions reads it again."""
        self._records = deque(entry for entry in self._records if entry[0] not in partitions)
        for partition in partitions:
            self._offsets.pop(partition, None)

    async def _commit_loop(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            try:
                await self._commit(consumer)
            except (KafkaError, OSError) as error:
                log.info("offsets are not committed now (%s): what is read again is skipped by its claim", error)

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        assigned = consumer.assignment()
        offsets = {partition: offset for partition, offset in self._offsets.items() if partition in assigned}
        if not offsets:
            return
        await consumer.commit(offsets)
        for partition, offset in offsets.items():
            if self._offsets.get(partition) == offset:
                del self._offsets[partition]


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no type for it
    """Before partitions go, what was claimed from them is committed; running attempts are not touched."""

    def __init__(self, source: KafkaSource, consumer: AIOKafkaConsumer) -> None:
        self._source = source
        self._consumer = consumer

    # aiokafka takes coroutines here, its types do not say so.
    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, revoked: set[TopicPartition]
    ) -> None:
        with suppress(KafkaError, OSError):
            await self._source._commit(self._consumer)
        self._source._drop(revoked)

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: set[TopicPartition]
    ) -> None:
        """The consumer goes on from what is committed."""


def _rejected(record: ConsumerRecord[bytes | None, bytes | None], error: RecordInvalid) -> lease_pb2.Rejected:
    value = record.value or b""
    origin = job_pb2.RecordOrigin(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        sha256=hashlib.sha256(value).digest(),
        size_bytes=len(value),
        head=value[:HEAD_BYTES],
    )
    return lease_pb2.Rejected(origin=origin, error=to_status(error, hop="sidecar"))
