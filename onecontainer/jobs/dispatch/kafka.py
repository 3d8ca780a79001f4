"""Kafka dispatch: the gateway's half. It carries the work; the ledger stays the truth.

A record is a hint that a job is queued. What is on the broker is bounded per service (the window), so that order stays the
ledger's; what stays unclaimed for a minute is published again with the same fence, for a broker may lose what it took and a
worker what it read. Duplicates are normal: the claim decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError
from google.protobuf.message import Message

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.event.v1 import event_pb2
from onecontainer.clock import Clock
from onecontainer.errors import OneContainerError, StateInvalid
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.ledger import Granted, Outbox, Worker
from onecontainer.jobs.model import SECOND

log = logging.getLogger(__name__)

EVENTS_TOPIC = "onecontainer.job-events.v1"
LEAST_WINDOW, MOST_WINDOW = 64, 4096
UNCLAIMED = 60 * SECOND
LOOK_AGAIN = 5.0
"""Seconds between two looks for what no bell told of: unclaimed records, jobs of another gateway."""
EVENTS_AT_ONCE = 500
FIRST_BACKOFF, LAST_BACKOFF = 0.2, 5.0


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where the broker is and how to speak to it. ``client`` goes to aiokafka as it is: security_protocol, sasl_…, ssl_…."""

    bootstrap_servers: tuple[str, ...]
    partitions: int = 4
    replication_factor: int = 1
    client: Mapping[str, str] = field(default_factory=dict)


def topic_of(service_uid: str) -> str:
    """The topic of a service. By its uid: a service that is made again under its name must not find old records."""
    return f"onecontainer.jobs.{service_uid}"


class KafkaDispatch:
    """Publishes queued jobs and events. A task: `run`."""

    def __init__(
        self,
        outbox: Outbox,
        changes: Changes,
        clock: Clock,
        settings: KafkaSettings,
        limits: Callable[[str], tuple[int, int]],
        client: Mapping[str, Any],
    ) -> None:
        """``limits(service)``: announced slots, and how many jobs may run at once if that is limited (0: it is not)."""
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._limits = limits
        self._client = dict(client)
        self._topics: set[str] = set()
        self._wake = asyncio.Event()
        self._events = asyncio.Event()
        self._touched: set[str] = set()
        self._names: dict[str, str] = {}
        changes.on_work(self._work)
        changes.listen(lambda _change: self._events.set())

    def _work(self, service_uid: str) -> None:
        self._touched.add(service_uid)
        self._wake.set()
        self._events.set()

    async def poll(
        self, worker: Worker, limit: int, max_running: int, wait: float, held: Sequence[tuple[str, int]]
    ) -> list[Granted]:
        raise StateInvalid("jobs are dispatched over Kafka here; claim what the records name with ClaimJobs")

    def forget(self, instance: str) -> None:
        """Nothing is remembered of instances."""

    def source(self, service_uid: str) -> driver_pb2.JobSource:
        kafka = driver_pb2.KafkaDispatch(
            bootstrap_servers=self._settings.bootstrap_servers,
            topic=topic_of(service_uid),
            group=topic_of(service_uid),
            client_settings=self._settings.client,
        )
        return driver_pb2.JobSource(kafka=kafka)

    # --- publishing --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publishes until it is cancelled. A broker that is away is tried again and again; jobs wait in the ledger."""
        backoff = FIRST_BACKOFF
        while True:
            producer = AIOKafkaProducer(
                bootstrap_servers=",".join(self._settings.bootstrap_servers),
                enable_idempotence=True,
                acks="all",
                linger_ms=1,
                **self._client,
            )
            try:
                await producer.start()
                backoff = FIRST_BACKOFF
                await self._publish(producer)
            except (KafkaError, OSError) as error:
                log.warning(
                    "the broker does not answer (%s); jobs wait in the ledger, next try in %.1f s", error, backoff
                )
            finally:
                # One that never came up has nothing to stop, and says so by an error.
                with suppress(KafkaError, OSError, asyncio.CancelledError):
                    await producer.stop()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)

    async def _publish(self, producer: AIOKafkaProducer) -> None:
        """Both halves, until one of them meets an error."""
        halves = [asyncio.create_task(half(producer)) for half in (self._publish_jobs, self._publish_events)]
        try:
            await asyncio.gather(*halves)
        finally:
            for half in halves:
                half.cancel()
            await asyncio.wait(halves)

    async def _publish_jobs(self, producer: AIOKafkaProducer) -> None:
        loop = asyncio.get_running_loop()
        look = loop.time()
        while True:
            if loop.time() >= look:
                look = loop.time() + LOOK_AGAIN
                await self._outbox.publish_again(self._clock.now() - UNCLAIMED)
                self._names.update((uid, name) for name, uid in await self._outbox.waiting_services())
                self._touched |= self._names.keys()
            touched, self._touched = self._touched, set()
            self._wake.clear()
            for service_uid in touched:
                # One call tells of many jobs, and a full window is looked at again when a job has left it.
                if await self._send_jobs(producer, service_uid):
                    self._work(service_uid)
            if not self._touched:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, look - loop.time())):
                        await self._wake.wait()

    async def _publish_events(self, producer: AIOKafkaProducer) -> None:
        while True:
            self._events.clear()
            if not await self._send_events(producer):
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN):
                        await self._events.wait()

    async def _send_jobs(self, producer: AIOKafkaProducer, service_uid: str) -> int:
        if service_uid not in self._names:
            self._names.update((uid, name) for name, uid in await self._outbox.waiting_services())
        if service_uid not in self._names:
            return 0
        try:
            slots, max_running = self._limits(self._names[service_uid])
        except OneContainerError:
            del self._names[service_uid]  # its service is gone, and its jobs have been ended
            return 0
        window = min(MOST_WINDOW, max(LEAST_WINDOW, 2 * slots))
        rows = await self._outbox.to_publish(service_uid, window, max_running)
        if not rows:
            return 0
        topic = topic_of(service_uid)
        await self._ensure(topic)
        await _send_all(producer, topic, [_dispatch_record(row) for row in rows])
        await self._outbox.published(rows)
        return len(rows)

    async def _send_events(self, producer: AIOKafkaProducer) -> int:
        rows = await self._outbox.oldest_events(EVENTS_AT_ONCE)
        if not rows:
            return 0
        await self._ensure(EVENTS_TOPIC)
        await _send_all(producer, EVENTS_TOPIC, [_event_record(row) for row in rows])
        await self._outbox.events_sent(rows[-1].position)
        return len(rows)

    async def _ensure(self, topic: str) -> None:
        """Makes a topic before the first record goes to it."""
        if topic in self._topics:
            return
        admin = AIOKafkaAdminClient(bootstrap_servers=",".join(self._settings.bootstrap_servers), **self._client)
        await admin.start()
        try:
            new = NewTopic(topic, self._settings.partitions, self._settings.replication_factor)
            with suppress(TopicAlreadyExistsError):
                await admin.create_topics([new])
        finally:
            await admin.close()
        self._topics.add(topic)


@dataclass(frozen=True, slots=True)
class _Record:
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


async def _send_all(producer: AIOKafkaProducer, topic: str, records: Sequence[_Record]) -> None:
    """Sends records and waits until the broker has all of them."""
    sending = [
        await producer.send(topic, value=record.value, key=record.key, headers=record.headers) for record in records
    ]
    await asyncio.gather(*sending)


def _dispatch_record(row: Any) -> _Record:
    message = event_pb2.JobDispatch(
        job=f"jobs/{row.id}", attempt=row.attempt, fence=row.fence, service=row.service, method=row.method
    )
    # What is in the ledger is small enough for a record; larger requests are artifacts, which the grant names.
    if row.payload is not None:
        message.request = row.payload
    headers = _cloud_event(message, f"{row.id}/{row.fence}", row.service, "dev.onecontainer.job.dispatch.v1")
    if row.traceparent:
        headers.append(("traceparent", row.traceparent.encode()))
    return _Record(row.id.encode(), message.SerializeToString(), headers)


def _event_record(row: Any) -> _Record:
    event = event_pb2.JobEvent.FromString(row.event)
    identity = f"{row.job}/{event.sequence}"
    return _Record(
        row.job.encode(),
        row.event,
        _cloud_event(event, identity, event.service, "dev.onecontainer.job.event.v1"),
    )


def _cloud_event(message: Message, identity: str, source: str, kind: str) -> list[tuple[str, bytes]]:
    """Headers of CloudEvents 1.0 in Kafka's binary mode.

    Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
    """
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", identity.encode()),
        ("ce_source", source.encode()),
        ("ce_type", kind.encode()),
        ("ce_dataschema", message.DESCRIPTOR.full_name.encode()),
        ("content-type", b"application/protobuf"),
    ]
