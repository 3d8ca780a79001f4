"""A broker that is away, or that refuses: nothing waits for it without an end, and nothing stops working for good."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.clock import SystemClock
from onecontainer.database import Database
from onecontainer.gateway.bindings import AttemptArtifacts
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.dispatch.kafka import KafkaDispatch, KafkaSettings, topic_of
from onecontainer.jobs.sql import SqlLedger
from onecontainer.jobs.unconfirmed import Unconfirmed
from tests.faults.load import Order, submit
from tests.faults.stage import Stage, until
from tests.fixtures import kafka
from tests.fixtures.processes import running

SERVICE = "services/echo"


@pytest.fixture
async def stage(tmp_path: Path, echo_drivers: Path) -> AsyncIterator[Stage]:
    if not kafka.available():
        pytest.skip("a real broker needs java and mvn; .ci/run installs them")
    async with Stage(tmp_path / "stage", echo_drivers, kafka=True) as stage:
        await stage.service("echo")
        yield stage


def jobs(name: str, count: int, seconds: float) -> list[Order]:
    return [Order(f"{name}-{index}", True, 10, seconds / 10, index) for index in range(count)]


async def begun(marks: Path, count: int) -> None:
    async def look() -> bool:
        return marks.exists() and marks.read_text().count("begin ") >= count

    await until(look, f"{count} begun")


@pytest.mark.slow
async def test_the_gateway_ends_while_records_wait_for_a_broker_that_is_away(stage: Stage, tmp_path: Path) -> None:
    await submit(stage, SERVICE, tmp_path / "marks", jobs("first", 4, 0.1))
    await stage.ended(SERVICE, 180)
    await stage.kill_broker()
    orders = jobs("second", 40, 5.0)
    await submit(stage, SERVICE, tmp_path / "marks", orders)  # accepted: they wait in the ledger
    await begun(tmp_path / "marks", 4 + 16)  # and they run: the worker asks for the best queued ones
    # Waits as long as its drain takes; it never ended here before.
    assert await asyncio.to_thread(stage.gateway.stop, 60.0) == 0
    await asyncio.gather(asyncio.to_thread(stage.gateway.start), stage.start_broker(0.0))
    ended = {job.name: job.state for job in await stage.ended(SERVICE, 240)}
    assert {ended[order.name] for order in orders} == {job_pb2.JOB_STATE_SUCCEEDED}


@pytest.mark.slow
async def test_a_sidecar_ends_while_its_commits_wait_for_a_broker_that_is_away(stage: Stage, tmp_path: Path) -> None:
    await submit(stage, SERVICE, tmp_path / "marks", jobs("first", 4, 0.1))
    await stage.ended(SERVICE, 180)
    pid = await stage.sidecar(SERVICE)
    # More than its slots: what it has read ahead is claimed when the broker is gone.
    await submit(stage, SERVICE, tmp_path / "marks", jobs("second", 48, 1.0))
    await begun(tmp_path / "marks", 4 + 16)
    await stage.kill_broker()
    await begun(tmp_path / "marks", 4 + 17)
    os.kill(pid, signal.SIGTERM)

    async def gone() -> bool:
        return await stage.sidecar(SERVICE) != pid

    await until(gone, "the sidecar ended", timeout=180)

    async def told() -> bool:
        return "the sidecar exited with code 0" in "\n".join(stage.gateway.lines)

    # Another one may be ready before the gateway's line has come through the pipe.
    await until(told, "told how it ended")


async def test_a_topic_that_is_refused_is_told_of_and_jobs_run_without_it(tmp_path: Path, echo_drivers: Path) -> None:
    if not kafka.available():
        pytest.skip("a real broker needs java and mvn; .ci/run installs them")
    async with Stage(tmp_path / "stage", echo_drivers, kafka=True, kafka_replication_factor="2") as stage:
        await stage.service("echo")
        await submit(stage, SERVICE, tmp_path / "marks", jobs("only", 4, 0.1))
        assert {job.state for job in await stage.ended(SERVICE, 180)} == {job_pb2.JOB_STATE_SUCCEEDED}

        async def told() -> bool:
            return "InvalidReplicationFactorError" in "\n".join(stage.gateway.lines)

        await until(told, "told")


class FakeOutbox:
    """One job that waits, in a database that is away when it is asked the first time."""

    def __init__(self, uid: str) -> None:
        self.asked = 0
        self.row = SimpleNamespace(
            position=1,
            id="abc",
            service=SERVICE,
            service_uid=uid,
            method="test.Echo/Say",
            attempt=1,
            fence=1,
            payload=b"x",
            traceparent="",
        )
        self.waiting: list[Any] = [self.row]

    async def waiting_services(self) -> list[tuple[str, str]]:
        return [(self.row.service, self.row.service_uid)] if self.waiting else []

    async def to_publish(
        self, service_uid: str, window: int, max_running: int, sent: Collection[tuple[str, int]] = ()
    ) -> list[Any]:
        return [] if sent else self.waiting

    async def published(self, rows: Sequence[tuple[int, int]]) -> None:
        self.waiting = []

    async def unclaimed_services(self, before: int) -> list[tuple[str, str]]:
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("the database is away")
        return []

    async def publish_again(self, service_uid: str, before: int, slots: int) -> int:
        return 0

    async def oldest_events(self, limit: int) -> list[Any]:
        return []

    async def events_sent(self, positions: Sequence[int]) -> None: ...


async def test_publishing_goes_on_after_the_database_was_away(tmp_path: Path) -> None:
    if not kafka.available():
        pytest.skip("a real broker needs java and mvn; .ci/run installs them")
    async with AsyncExitStack() as stack:
        stack.enter_context(running(broker := kafka.KafkaBroker(tmp_path / "broker")))
        settings = KafkaSettings((broker.address,))
        outbox = FakeOutbox("uid")
        changes, clock = Changes(), SystemClock()
        database = await stack.enter_async_context(Database(f"sqlite:///{tmp_path}/unused.db"))
        unconfirmed = Unconfirmed(SqlLedger(database, clock, AttemptArtifacts()), changes)
        dispatch = KafkaDispatch(outbox, unconfirmed, changes, clock, settings, lambda _service: (1, 0), {})
        publishing = asyncio.create_task(dispatch.run())
        try:

            async def sent() -> bool:
                return not outbox.waiting or publishing.done()

            await until(sent, "published")
            assert not publishing.done()
            consumer = AIOKafkaConsumer(topic_of("uid"), bootstrap_servers=broker.address, auto_offset_reset="earliest")
            await consumer.start()
            async with asyncio.timeout(180):
                record = await consumer.getone()
            await consumer.stop()
            assert event_pb2.JobDispatch.FromString(record.value or b"").job == "jobs/abc"
        finally:
            publishing.cancel()
            await asyncio.wait((publishing,))
