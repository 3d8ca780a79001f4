"""A broker, a gateway that dispatches over it, and the test driver's service."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError

from onecontainer.api.event.v1 import event_pb2
from onecontainer.client import Client
from onecontainer.jobs.dispatch.kafka import EVENTS_TOPIC, topic_of
from tests.contract.dispatch.scene import ECHO
from tests.fixtures import kafka
from tests.fixtures.processes import GatewayProcess

PARTITIONS = 4
Headers = list[tuple[str, bytes]]
DISPATCH = "onecontainer.api.event.v1.JobDispatch"


class Scene:
    """A broker, a gateway that dispatches over it, and the test driver's service."""

    def __init__(self, broker: kafka.KafkaBroker, gateway: GatewayProcess, client: Client) -> None:
        from onecontainer_driver_echo import echo_pb2  # built for this session

        self.pb = echo_pb2
        self.broker = broker
        self.gateway = gateway
        self.client = client
        self.topic = topic_of(client.services.get("echo").uid)

    def job(self, method: str = "Echo", **fields: Any) -> Any:
        kind = self.pb.EchoRequest if method.startswith("Echo") else self.pb.WorkRequest
        return self.client.jobs.create("services/echo", f"{ECHO}/{method}", kind(**fields))

    def produce(self, *records: tuple[bytes, Headers], key: bytes = b"foreign", partition: int | None = None) -> None:
        """Sends records to the topic: to the partition, else to that of the key."""

        async def send() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=self.broker.address, max_request_size=20_000_000)
            await producer.start()
            try:
                for value, headers in records:
                    await producer.send_and_wait(self.topic, value=value, key=key, headers=headers, partition=partition)
            finally:
                await producer.stop()

        asyncio.run(send())

    def events(self, job: str, until: int) -> list[tuple[event_pb2.JobEvent, dict[str, bytes]]]:
        """The events of a job, up to the one with the state ``until``."""

        async def read() -> list[tuple[event_pb2.JobEvent, dict[str, bytes]]]:
            found: list[tuple[event_pb2.JobEvent, dict[str, bytes]]] = []
            consumer = AIOKafkaConsumer(
                EVENTS_TOPIC, bootstrap_servers=self.broker.address, auto_offset_reset="earliest"
            )
            await consumer.start()
            try:
                async with asyncio.timeout(180):
                    async for record in consumer:
                        event = event_pb2.JobEvent.FromString(record.value or b"")
                        if event.job == job:
                            found.append((event, dict(record.headers)))
                            if event.new_state == until:
                                return found
            finally:
                await consumer.stop()
            return found

        return asyncio.run(read())

    def read_all_again(self) -> None:
        """Sets the group back to the beginning of the topic, once nobody is in it."""

        async def rewind() -> None:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.broker.address, group_id=self.topic, enable_auto_commit=False
            )
            await consumer.start()
            try:
                await consumer._client.force_metadata_update()
                partitions = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
                consumer.assign(partitions)
                async with asyncio.timeout(180):
                    while True:
                        # One that ended without the time to say so is in it until its session is over.
                        with suppress(CommitFailedError):
                            await consumer.commit(dict.fromkeys(partitions, 0))
                            return
                        await asyncio.sleep(0.5)
            finally:
                await consumer.stop()

        asyncio.run(rewind())


def headers(
    job: str, fence: int = 1, *, kind: str = "dev.onecontainer.job.dispatch.v1", schema: str = DISPATCH
) -> Headers:
    """Headers such as the gateway gives its records."""
    identity = f"{job.removeprefix('jobs/')}/{fence}"
    return [("ce_id", identity.encode()), ("ce_type", kind.encode()), ("ce_dataschema", schema.encode())]
