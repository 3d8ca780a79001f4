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
from onecontainer.rpc.kafka import DISPATCH_SCHEMA, DISPATCH_TYPE, HEADER_ID, HEADER_SCHEMA, HEADER_TYPE
from onecontainer.rpc.status import to_status

log = logging.getLogger(__name__)

COMMIT_SECONDS = 0.05
"""Offsets are committed so often at the most."""
COMMIT_TIMEOUT = 3.0
CLOSE_TIMEOUT = 3.0
"""So long a broker that is away may hold up a commit, and the end of the consumer: aiokafka would wait for it."""
PAUSED_SECONDS = 0.5
READ_MS = 500
LEAST_READ_AHEAD = 16
CLAIM_TIMEOUT = 10.0
FIRST_LOOK, LAST_LOOK = 0.25, 2.0
"""Seconds without a record after which a worker with free slots asks for the best queued jobs, whatever was published."""
HEAD_BYTES = 4096
EXPECTED_HEADERS = {
    HEADER_TYPE: DISPATCH_TYPE.encode(),
    HEADER_SCHEMA: DISPATCH_SCHEMA.encode(),
}


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
        # Records that are no jobs, until the gateway has them as dead letters.
        self._rejecting: dict[TopicPartition, set[int]] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._look = FIRST_LOOK
        self._ask_again = 0.0
        self._reader: asyncio.Task[None] | None = None

    async def poll(
        self, free: int, held: Sequence[tuple[str, int]], *, wait: float = 20.0
    ) -> Sequence[lease_pb2.Grant]:
        if wait <= 0:
            # A last one before the end: only what this worker has and does not know of.
            return await self._best_queued(0, held)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read(), name="kafka reader")
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        look = loop.time() + self._look
        while True:
            if self._records and loop.time() >= self._ask_again:
                grants = await self._claim(free, held)
                if grants:
                    self._look = FIRST_LOOK
                    return grants
                continue
            left = min(end, look, self._ask_again if self._records else end) - loop.time()
            if left <= 0:
                # A record may have been lost.
                grants = await self._best_queued(free, held)
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
        self._records.clear()

    # --- claims ------------------------------------------------------------------------------------------------------

    async def _claim(self, free: int, held: Sequence[tuple[str, int]]) -> Sequence[lease_pb2.Grant]:
        """Claims what the oldest records name. If the gateway is away they stay, uncommitted; so do those that have to wait."""
        batch = list(self._records)[:free]
        request = lease_pb2.ClaimJobsRequest(claims=[claim for _, _, claim in batch], held=_held(held))
        response = await self._ask(request)
        grants = list(response.grants)
        done: set[tuple[TopicPartition, int]] = set()
        waits = 0.0
        for (partition, offset, _), result in zip(batch, response.results, strict=True):
            if result.decision == lease_pb2.CLAIM_DECISION_RETRY_LATER:
                waits = result.retry_after.ToMicroseconds() / 1e6
                continue
            done.add((partition, offset))
            if result.decision == lease_pb2.CLAIM_DECISION_GRANTED:
                grants.append(result.grant)
        # A rebalance may have dropped some of them meanwhile: those are not ours to commit.
        for partition, offset in done & {entry[:2] for entry in self._records}:
            self._done(partition, offset)
        self._records = deque(entry for entry in self._records if entry[:2] not in done)
        self._taken.set()
        if not grants and waits:
            self._ask_again = asyncio.get_running_loop().time() + waits
        return grants

    async def _best_queued(self, free: int, held: Sequence[tuple[str, int]]) -> Sequence[lease_pb2.Grant]:
        request = lease_pb2.ClaimJobsRequest(best_queued=min(free, 1000), held=_held(held))
        return (await self._ask(request)).grants

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
            self._rejecting.clear()
            self._committed.clear()
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
                room = self._capacity - len(self._records) - sum(map(len, self._rejecting.values()))
                if room <= 0:
                    # It goes on being polled, or it would be taken for dead and lose its partitions.
                    consumer.pause(*consumer.assignment())
                    self._taken.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(PAUSED_SECONDS):
                            await self._taken.wait()
                    # A rebalance in this moment brings partitions that are not paused: what comes of them is kept.
                    found = await consumer.getmany(timeout_ms=0, max_records=LEAST_READ_AHEAD)
                else:
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
            with suppress(KafkaError, OSError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await consumer.stop()

    def _take(self, record: ConsumerRecord[bytes | None, bytes | None]) -> None:
        partition = TopicPartition(record.topic, record.partition)
        try:
            claim = self._decode(record)
        except RecordInvalid as error:
            self._rejecting.setdefault(partition, set()).add(record.offset)
            self._reject(_rejected(record, error), lambda: self._letter_written(partition, record.offset))
            return
        self._records.append((partition, record.offset, claim))
        self._arrived.set()

    def _letter_written(self, partition: TopicPartition, offset: int) -> None:
        """The dead letter of a record is in the ledger. Of a partition that was lost meanwhile nothing is to be committed."""
        waiting = self._rejecting.get(partition, set())
        if offset in waiting:
            waiting.discard(offset)
            self._done(partition, offset)
            self._taken.set()

    def _decode(self, record: ConsumerRecord[bytes | None, bytes | None]) -> lease_pb2.Claim:
        """The job that a record names. Raises RecordInvalid for one that is not as the gateway writes them.

        Whether there is such a job is for the claim to say: one of ours may have ended, and been deleted, since.
        """
        headers = {name: value or b"" for name, value in record.headers}
        for name, expected in EXPECTED_HEADERS.items():
            if name in headers and headers[name] != expected:
                raise RecordInvalid(f"has the {name} {_shown(headers[name])}, not {_shown(expected)}")
        try:
            message = event_pb2.JobDispatch.FromString(record.value or b"")
        except DecodeError:
            raise RecordInvalid(f"does not decode to {DISPATCH_SCHEMA}") from None
        if not message.job.startswith("jobs/") or not message.job[5:].isalnum() or message.fence < 1:
            raise RecordInvalid("names no job and fence")
        if message.service != self._service:
            raise RecordInvalid(f"is for {message.service[:100]!r}, this worker is for {self._service!r}")
        identity = f"{message.job[5:]}/{message.fence}".encode()
        if headers.get(HEADER_ID) != identity or record.key != message.job[5:].encode():
            raise RecordInvalid(
                f"names {message.job[:100]} with fence {message.fence}, but its {HEADER_ID} and key do not"
            )
        missing = EXPECTED_HEADERS.keys() - headers.keys()
        if missing:
            raise RecordInvalid(f"has no {', '.join(sorted(missing))}")
        return lease_pb2.Claim(job=message.job, attempt=message.attempt, fence=message.fence)

    def _drop(self, partitions: set[TopicPartition]) -> None:
        """Forgets what is not ours any more: whoever gets the partitions reads it again."""
        self._records = deque(entry for entry in self._records if entry[0] not in partitions)
        for partition in partitions:
            self._offsets.pop(partition, None)
            self._rejecting.pop(partition, None)
            self._committed.pop(partition, None)

    async def _commit_loop(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            try:
                await self._commit(consumer)
            except (KafkaError, OSError) as error:
                why = str(error) or "no answer in time"
                log.info("offsets are not committed now (%s): what is read again is skipped by its claim", why)

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        assigned = consumer.assignment()
        offsets = {
            partition: self._committable(partition, offset)
            for partition, offset in self._offsets.items()
            if partition in assigned
        }
        offsets = {
            partition: offset for partition, offset in offsets.items() if offset > self._committed.get(partition, -1)
        }
        if not offsets:
            return
        async with asyncio.timeout(COMMIT_TIMEOUT):
            await consumer.commit(offsets)
        for partition, offset in offsets.items():
            if self._offsets.get(partition) == offset:
                del self._offsets[partition]
            else:
                self._committed[partition] = offset

    def _committable(self, partition: TopicPartition, offset: int) -> int:
        """The offset to go on from: not beyond a record that waits for its claim, or for its dead letter."""
        waiting = [place for held, place, _ in self._records if held == partition]
        return int(min([offset, *waiting, *self._rejecting.get(partition, ())]))


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


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("utf-8", "replace"))


def _held(held: Sequence[tuple[str, int]]) -> list[lease_pb2.HeldLease]:
    return [lease_pb2.HeldLease(job=job, fence=fence) for job, fence in held]


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
