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
from aiokafka.errors import KafkaError, NoError, TopicAlreadyExistsError, for_code

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.event.v1 import event_pb2
from onecontainer.clock import Clock
from onecontainer.errors import OneContainerError, StateInvalid
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.dispatch.records import by_key, dispatch_record, event_record, send_all, shared_out
from onecontainer.jobs.ledger import Changed, Granted, Outbox, Worker
from onecontainer.jobs.model import SECOND, State
from onecontainer.jobs.unconfirmed import Unconfirmed

log = logging.getLogger(__name__)

EVENTS_TOPIC = "onecontainer.job-events.v1"
LEAST_WINDOW, MOST_WINDOW = 64, 4096
UNCLAIMED = 60 * SECOND
WORK_TOPIC = {"cleanup.policy": "delete", "retention.ms": str(24 * 3600 * 1000)}
"""What stays unclaimed is published again, so that no old record is needed: the topic of a deleted service empties itself."""
LOOK_AGAIN = 5.0
"""Seconds between two looks for what no bell told of: unclaimed records, jobs of another gateway."""
EVENTS_AT_ONCE = 500
"""Transactions whose events are told together."""
EVENTS_PAUSE = 0.03
TOLD_AT_ONCE = 100
FORGET_AFTER = 0.5
"""Told events are deleted so many at a time, or when it has been quiet for so many seconds: each time is a commit."""
BATCH_BYTES = 512 * 1024
MARK_AFTER = 2.0
"""Seconds after which a job that is on the broker and unclaimed is marked so in the ledger."""
STOP_SECONDS = 2.0
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
        unconfirmed: Unconfirmed,
        changes: Changes,
        clock: Clock,
        settings: KafkaSettings,
        limits: Callable[[str], tuple[int, int]],
        client: Mapping[str, Any],
    ) -> None:
        """``limits(service)``: announced slots, and how many jobs may run at once if that is limited (0: it is not)."""
        self.reachable = False
        self.unconfirmed = unconfirmed
        self._outbox = outbox
        self._clock = clock
        self._settings = settings
        self._limits = limits
        self._client = dict(client)
        self._topics: dict[str, int] = {}
        self._turn = 0
        self._wake = asyncio.Event()
        self._events = asyncio.Event()
        self._touched: set[str] = set()
        self._names: dict[str, str] = {}
        # By service: jobs that are on the broker, unclaimed, and have no mark in the ledger (job and fence → position and
        # when they went there). Most are claimed within milliseconds, and a mark for them would cost a write each.
        self._sent: dict[str, dict[tuple[str, int], tuple[int, float]]] = {}
        self._left: set[tuple[str, int]] | None = None
        """Jobs that left the queue while it is being read: the read may still have them."""
        self._refill: dict[str, int] = {}
        """By service: so few unclaimed records are there when more are looked for."""
        self._told: dict[int, None] = {}
        """Rows of events that are on the broker and have yet to be deleted."""
        changes.on_work(self._work)
        changes.listen(self._changed)

    def _work(self, service_uid: str) -> None:
        self._touched.add(service_uid)
        self._wake.set()
        self._events.set()

    def _changed(self, change: Changed) -> None:
        self._events.set()
        if change.old_state is State.QUEUED:
            if self._left is not None:
                self._left.add((change.id, change.fence))
            sent = self._sent.get(change.service_uid)
            if sent is not None:
                sent.pop((change.id, change.fence), None)
                if len(sent) == self._refill.get(change.service_uid):
                    self._work(change.service_uid)

    async def poll(
        self, worker: Worker, limit: int, max_running: int, wait: float, held: Sequence[tuple[str, int]]
    ) -> list[Granted]:
        raise StateInvalid("jobs are dispatched over Kafka here; claim what the records name with ClaimJobs")

    def forget(self, instance: str) -> None:
        """An instance has gone for good."""
        self.unconfirmed.forget(instance)

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
                # Batches are put together here; a record does not wait for another one.
                linger_ms=0,
                max_batch_size=BATCH_BYTES,
                **self._client,
            )
            try:
                await producer.start()
                self.reachable = True
                backoff = FIRST_BACKOFF
                await self._publish(producer)
            except (KafkaError, OSError) as error:
                log.warning(
                    "the broker does not answer (%s); jobs wait in the ledger, next try in %.1f s", error, backoff
                )
            except Exception:
                # A database that is away for a moment, or a defect, must not end the publishing for good.
                log.exception("publishing failed; jobs wait in the ledger, next try in %.1f s", backoff)
            finally:
                # What was on its way goes again.
                self._sent.clear()
                # A topic that was there may be what is missing now.
                self._topics.clear()
                self.reachable = False
                await _stop(producer)
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
                await self._mark(loop.time() - MARK_AFTER)
                await self._publish_again()
                self._names.update((uid, name) for name, uid in await self._outbox.waiting_services())
                self._touched |= self._names.keys()
            touched, self._touched = self._touched, set()
            self._wake.clear()
            for service_uid in touched:
                await self._send_jobs(producer, service_uid)
            if not self._touched:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, look - loop.time())):
                        await self._wake.wait()

    async def _publish_again(self) -> None:
        """Takes back what has been on the broker for so long that its record may be lost."""
        before = self._clock.now() - UNCLAIMED
        for service, service_uid in await self._outbox.unclaimed_services(before):
            try:
                slots, _ = self._limits(service)
            except OneContainerError:
                continue  # it is gone, and its jobs have been ended
            await self._outbox.publish_again(service_uid, before, slots)

    async def _publish_events(self, producer: AIOKafkaProducer) -> None:
        while True:
            self._events.clear()
            if await self._send_events(producer):
                # Many transactions are told together: nobody waits for events as for a job.
                await asyncio.sleep(EVENTS_PAUSE)
                continue
            try:
                async with asyncio.timeout(FORGET_AFTER if self._told else LOOK_AGAIN):
                    await self._events.wait()
            except TimeoutError:
                await self._forget_events()

    async def _send_jobs(self, producer: AIOKafkaProducer, service_uid: str) -> None:
        """Fills a service's window once half of it is free: a look and a batch for each job would cost more than the job."""
        if service_uid not in self._names:
            self._names.update((uid, name) for name, uid in await self._outbox.waiting_services())
        if service_uid not in self._names:
            return
        try:
            slots, max_running = self._limits(self._names[service_uid])
        except OneContainerError:
            del self._names[service_uid]  # its service is gone, and its jobs have been ended
            return
        window = min(MOST_WINDOW, max(LEAST_WINDOW, 2 * slots))
        sent = self._sent.setdefault(service_uid, {})
        self._refill[service_uid] = window // 2
        if len(sent) > window // 2:
            return
        left = self._left = set()
        try:
            rows = await self._outbox.to_publish(service_uid, window, max_running, frozenset(sent))
        finally:
            self._left = None
        rows = [row for row in rows if (row.id, row.fence) not in left]
        if not rows:
            return
        topic = topic_of(service_uid)
        partitions = await self._ensure(topic)
        now = asyncio.get_running_loop().time()
        # Before they go: a worker may claim one before the broker has told that it has it.
        sent.update(((row.id, row.fence), (row.position, now)) for row in rows)
        self._turn += 1
        await send_all(producer, topic, shared_out([dispatch_record(row) for row in rows], partitions, self._turn))

    async def _mark(self, before: float) -> None:
        """Marks in the ledger what has been on the broker since ``before`` (on the loop's clock): from then on the ledger knows."""
        for sent in self._sent.values():
            stay = {key: position for key, (position, since) in sent.items() if since <= before}
            if stay:
                await self._outbox.published([(position, fence) for (_, fence), position in stay.items()])
                for key in stay:
                    sent.pop(key, None)

    async def _send_events(self, producer: AIOKafkaProducer) -> int:
        rows = await self._outbox.oldest_events(EVENTS_AT_ONCE + len(self._told))
        rows = [row for row in rows if row.position not in self._told]
        if not rows:
            return 0
        partitions = await self._ensure(EVENTS_TOPIC)
        events = [event for row in rows for event in event_pb2.JobEvents.FromString(row.events).events]
        await send_all(producer, EVENTS_TOPIC, by_key([event_record(event) for event in events], partitions))
        self._told.update(dict.fromkeys(row.position for row in rows))
        if len(self._told) >= TOLD_AT_ONCE:
            await self._forget_events()
        return len(rows)

    async def _forget_events(self) -> None:
        """Deletes what was told; many at once, for each time is a commit that others wait for."""
        if self._told:
            told = list(self._told)
            await self._outbox.events_sent(told)
            for position in told:
                del self._told[position]

    async def _ensure(self, topic: str) -> int:
        """Makes a topic before the first record goes to it; how many partitions it has."""
        known = self._topics.get(topic)
        if known is not None:
            return known
        admin = AIOKafkaAdminClient(bootstrap_servers=",".join(self._settings.bootstrap_servers), **self._client)
        await admin.start()
        try:
            # The events are for whoever reads them, as long as the broker keeps records; work is of use for a minute.
            kept = {} if topic == EVENTS_TOPIC else WORK_TOPIC
            new = NewTopic(topic, self._settings.partitions, self._settings.replication_factor, topic_configs=kept)
            answer: Any = await admin.create_topics([new])
            # The client raises nothing for a topic that was refused.
            for name, code, *message in answer.topic_errors:
                error = for_code(code)
                if error not in (NoError, TopicAlreadyExistsError):
                    raise error(f"the topic {name} cannot be made: {error.__name__} {' '.join(filter(None, message))}")
            (found,) = await admin.describe_topics([topic])
        finally:
            await admin.close()
        # It may have been made before, with other settings.
        self._topics[topic] = len(found["partitions"]) or self._settings.partitions
        return self._topics[topic]


async def _stop(producer: AIOKafkaProducer) -> None:
    """Ends a producer, in a bounded time: with records that the broker has not taken it would wait for the broker's return.

    They are in the outbox still. One that never came up has nothing to stop, and says so by an error.
    """
    with suppress(KafkaError, OSError, TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(STOP_SECONDS):
            await producer.stop()
            return
    with suppress(KafkaError, OSError, AttributeError, TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(STOP_SECONDS):
            # It counts as closed by now and would do no more: its parts are closed one by one.
            await producer._sender.close()
            await producer.client.close()
