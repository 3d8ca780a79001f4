"""Where faults are played: a broker, a gateway and the test driver as real processes. Each can be killed, and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client.aio import AsyncClient
from onecontainer.client.jobs import TERMINAL
from onecontainer.errors import Code, OneContainerError, ResourceNotFound
from onecontainer.jobs.dispatch.kafka import EVENTS_TOPIC, topic_of
from tests.fixtures.kafka import KafkaBroker
from tests.fixtures.processes import GatewayProcess

T = TypeVar("T")
LOOK = 0.005
"""Seconds between two looks at something that is about to happen."""
CALL_TIMEOUT = 20.0
PASSING = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.ABORTED)


async def until(condition: Callable[[], Awaitable[T]], what: str, timeout: float = 240.0, look: float = LOOK) -> T:
    """Looks until a condition holds; what it gives is returned."""
    try:
        async with asyncio.timeout(timeout):
            while True:
                if found := await condition():
                    return found
                await asyncio.sleep(look)
    except TimeoutError:
        raise AssertionError(f"in {timeout:g} s: not {what}") from None


async def answered(call: Callable[[], Awaitable[T]], timeout: float = 240.0) -> T:
    """Makes an idempotent call again and again until it is answered: a gateway that was killed answers nothing."""
    async with asyncio.timeout(timeout):
        while True:
            try:
                return await call()
            except OneContainerError as error:
                if error.code not in PASSING:
                    raise
            await asyncio.sleep(0.05)


class Stage:
    """A gateway on a data folder of its own, with a broker if jobs go over Kafka. Use as an async context manager."""

    def __init__(self, folder: Path, drivers: Path, *, kafka: bool, **settings: str) -> None:
        self.folder = folder
        self.drivers = drivers
        self.broker = KafkaBroker(folder / "broker") if kafka else None
        if self.broker is not None:
            settings["dispatch_url"] = f"kafka://{self.broker.address}"
        settings = {
            "lease_duration": "4",
            "job_sweep_interval": "0.2",
            "probe_interval": "1",
            "restart_backoff_initial": "0.1",
            "restart_backoff_max": "1",
        } | settings
        self.gateway = GatewayProcess(folder / "data", [drivers], **settings)
        self._killed: set[int] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as stack:
            for process in (self.broker, self.gateway):
                if process is not None:
                    stack.callback(process.kill)
                    await asyncio.to_thread(process.start)
            self.client = await stack.enter_async_context(AsyncClient(self.gateway.address, timeout=CALL_TIMEOUT))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    async def service(self, name: str, **fields: Any) -> str:
        """Makes a service of the test driver, and waits until it is ready; its uid."""
        service = await self.client.services.create(name, app="echo", **fields)
        await self.client.services.wait_ready(name, timeout=240)
        return service.uid

    async def remove(self, name: str, uid: str) -> None:
        """Deletes a service, and its topic with it: a broker that was killed looks through all that it has before it is back."""

        async def delete() -> None:
            with suppress(ResourceNotFound):  # the answer to an earlier try was lost
                await self.client.services.delete(name, force=True)

        await answered(delete)
        if self.broker is not None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.broker.address)
            await admin.start()
            try:
                await admin.delete_topics([topic_of(uid)])
            finally:
                await admin.close()

    async def sidecar(self, service: str) -> int:
        """The process of a service's sidecar, once it is ready. One that was just killed may still be listed as ready."""

        async def find() -> int:
            found = await answered(lambda: self.client.sidecars.list(service=service))
            ready = [int(one.runtime_id) for one in found if one.state == resources_pb2.SIDECAR_STATE_READY]
            return next((pid for pid in ready if pid not in self._killed), 0)

        return await until(find, f"a sidecar of {service}", look=0.05)

    # --- what the ledger says --------------------------------------------------------------------------------------------

    async def job(self, name: str) -> job_pb2.Job:
        return await answered(lambda: self.client.jobs.get(name))

    async def ended(self, service: str, timeout: float) -> Sequence[job_pb2.Job]:
        """All jobs of a service once all are terminal, or as they are when the time is over: the audit tells what is wrong."""

        async def look() -> Sequence[job_pb2.Job]:
            return await answered(lambda: self.client.jobs.list(filter=f'service = "{service}"'))

        async def all_ended() -> Sequence[job_pb2.Job] | None:
            jobs = await look()
            return jobs if all(job.state in TERMINAL for job in jobs) else None

        try:
            return await until(all_ended, "all ended", timeout, look=0.1) or []
        except AssertionError:
            return await look()

    async def published(self, uid: str, job: str, enough: Callable[[], Awaitable[bool]]) -> bool:
        """Waits until a job's record is on its service's topic, or ``enough`` holds; whether it is there."""
        assert self.broker is not None
        consumer = AIOKafkaConsumer(
            topic_of(uid),
            bootstrap_servers=self.broker.address,
            auto_offset_reset="earliest",
            metadata_max_age_ms=300,  # the first record makes the topic
        )
        await consumer.start()
        try:
            while not await enough():
                for records in (await consumer.getmany(timeout_ms=20)).values():
                    if any(record.key == job.removeprefix("jobs/").encode() for record in records):
                        return True
            return False
        finally:
            await consumer.stop()

    async def events(self, jobs: set[str], timeout: float) -> dict[str, list[event_pb2.JobEvent]]:
        """The events of jobs as they stand on their topic, once each has a terminal one or the time is over."""
        assert self.broker is not None
        found: dict[str, list[event_pb2.JobEvent]] = {job: [] for job in jobs}
        waiting = set(jobs)
        consumer = AIOKafkaConsumer(
            EVENTS_TOPIC, bootstrap_servers=self.broker.address, auto_offset_reset="earliest", enable_auto_commit=False
        )
        await consumer.start()
        try:
            loop = asyncio.get_running_loop()
            end = loop.time() + timeout
            while (waiting and loop.time() < end) or not await _at_end(consumer):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        event = event_pb2.JobEvent.FromString(record.value or b"")
                        if event.job in found:
                            found[event.job].append(event)
                            if event.new_state in TERMINAL:
                                waiting.discard(event.job)
        finally:
            await consumer.stop()
        return found

    async def caught_up(self, uid: str, timeout: float) -> None:
        """Returns when a service's consumer group has dealt with every record. Raises AssertionError if it is stuck.

        Jobs alone do not show that: a worker that gets no records finds them by asking for the best queued.
        """
        assert self.broker is not None
        topic = topic_of(uid)
        admin = AIOKafkaAdminClient(bootstrap_servers=self.broker.address)
        consumer = AIOKafkaConsumer(bootstrap_servers=self.broker.address, enable_auto_commit=False)
        await admin.start()
        await consumer.start()
        try:
            (described,) = await admin.describe_topics([topic])
            partitions = [TopicPartition(topic, one["partition"]) for one in described["partitions"]]
            if not partitions:
                return  # every job was claimed before its record could be published: there is no topic yet

            async def done() -> bool:
                try:
                    ends = await consumer.end_offsets(partitions)
                    committed = await admin.list_consumer_group_offsets(topic)
                except KafkaError as error:
                    if not error.retriable:
                        raise
                    return False  # a broker that is just back may not have loaded the group yet
                positions = {partition: known.offset for partition, known in committed.items()}
                return all(end == 0 or positions.get(partition, 0) >= end for partition, end in ends.items())

            await until(done, f"{topic} read to its end", timeout, look=0.2)
        finally:
            await consumer.stop()
            await admin.close()

    # --- faults ----------------------------------------------------------------------------------------------------------

    def freeze_gateway(self) -> None:
        """It stands still from here on: it takes no report, and its sidecars go on."""
        os.kill(self.gateway.pid, signal.SIGSTOP)

    def thaw_gateway(self) -> None:
        os.kill(self.gateway.pid, signal.SIGCONT)

    def kill_driver(self, pid: int) -> None:
        """SIGKILL; the gateway starts the next one."""
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)

    async def restart_gateway(self, away: float) -> None:
        """SIGKILL; its sidecars die with it. It comes back after so many seconds."""
        await asyncio.to_thread(self.gateway.kill)
        await asyncio.sleep(away)
        await asyncio.to_thread(self.gateway.start)

    async def kill_broker(self) -> None:
        """SIGKILL."""
        assert self.broker is not None
        await asyncio.to_thread(self.broker.kill)

    async def start_broker(self, away: float) -> None:
        """After so many seconds it comes back, with the data that it had."""
        assert self.broker is not None
        await asyncio.sleep(away)
        await asyncio.to_thread(self.broker.start)


async def _at_end(consumer: AIOKafkaConsumer) -> bool:
    """Whether everything that is on the consumer's topics has been read."""
    partitions: set[TopicPartition] = consumer.assignment()
    ends = await consumer.end_offsets(partitions)
    return all([await consumer.position(partition) >= ends[partition] for partition in partitions])
