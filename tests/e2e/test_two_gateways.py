"""Two real gateways on one PostgreSQL: each job and each service is the same through both, and one of them may be killed.

A makes the service and owns its sidecar; B has no sidecar of it, and takes over when A is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg import sql

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.catalog.packing import pack
from onecontainer.cli.driver_new import new_driver
from onecontainer.client import Client
from onecontainer.errors import (
    DriverUnreachable,
    OneContainerError,
    Reason,
    ResourceConflict,
    ResourceInUse,
    ResourceNotFound,
)
from onecontainer.jobs.dispatch.kafka import EVENTS_TOPIC
from onecontainer.rpc.status import from_rpc_error, from_status
from tests.fixtures import kafka
from tests.fixtures.postgresql import private_postgresql
from tests.fixtures.processes import GatewayProcess, running
from tests.fixtures.stalls import stalls
from tests.fixtures.waiting import until

ECHO = "onecontainer.test.echo.v1.EchoService"
SERVICE = "services/echo"
SUCCEEDED = job_pb2.JOB_STATE_SUCCEEDED
READY = resources_pb2.SERVICE_STATE_READY
_numbers = itertools.count()


@dataclass
class Pair:
    """Two gateways, a client of each, and the file in which attempts leave their marks."""

    a: GatewayProcess
    b: GatewayProcess
    via_a: Client
    via_b: Client
    marks: Path
    settings: dict[str, str]

    def __post_init__(self) -> None:
        from onecontainer_driver_echo import echo_pb2  # built for this session

        self.pb = echo_pb2

    def work(self, client: Client, method: str = "Work", *, service: str = SERVICE, **fields: Any) -> Any:
        request = self.pb.WorkRequest(mark_file=str(self.marks), **fields)
        request.job_options.retry_policy.initial_backoff.FromMilliseconds(10)
        return client.jobs.create(service, f"{ECHO}/{method}", request)

    def call(self, gateway: GatewayProcess, payload: bytes, metadata: Any = (), **fields: Any) -> bytes:
        """The answer to an Echo through a gateway."""
        with grpc.insecure_channel(gateway.address) as channel:
            stub: Any = channel.unary_unary(
                f"/{ECHO}/Echo",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=self.pb.EchoResponse.FromString,
            )
            request = self.pb.EchoRequest(service=SERVICE, payload=payload, **fields)
            try:
                answer: bytes = stub(request, timeout=60.0, metadata=metadata).payload
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            return answer

    def lines(self, job: str, kind: str) -> list[str]:
        text = self.marks.read_text() if self.marks.exists() else ""
        return [line for line in text.splitlines() if line.startswith(f"{kind} {job} ")]

    def begun(self, job: str, times: int = 1) -> None:
        until(lambda: len(self.lines(job, "begin")) >= times, f"{job} begun {times} times")

    def sidecar_parents(self) -> list[int]:
        """The gateways (pids) that have a sidecar process."""
        found = []
        for gateway in (self.a, self.b):
            children = Path(f"/proc/{gateway.pid}/task/{gateway.pid}/children")
            found += [gateway.pid for _ in children.read_text().split()] if children.exists() else []
        return found

    def effective_outcomes(self, job: str) -> int:
        record = self.via_b.jobs.get(job)
        return sum(attempt.state == job_pb2.ATTEMPT_STATE_SUCCEEDED for attempt in record.attempts)


def make_pair(stack: ExitStack, folder: Path, drivers: Path, postgresql: str, **settings: str) -> Pair:
    common = {
        "database_url": f"postgresql+psycopg://{postgresql}",
        "artifact_url": (folder / "artifacts").as_uri(),
        "lease_duration": "6",
        "gateway_lease_duration": "8",
        "job_sweep_interval": "0.2",
        "restart_backoff_initial": "0.1",
        **settings,
    }
    a, b = (GatewayProcess(folder / name, [drivers], **common) for name in ("a", "b"))
    for gateway in (a, b):
        stack.enter_context(running(gateway))
    return Pair(a, b, *(stack.enter_context(Client(gateway.address)) for gateway in (a, b)), folder / "marks", common)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """``USER@HOST:PORT`` of a PostgreSQL."""
    with private_postgresql() as place:
        yield place.rpartition("/")[0]


def new_database(server: str) -> str:
    """``USER@HOST:PORT/DATABASE`` of a database of its own."""
    name = f"gateways_{next(_numbers)}"
    with psycopg.connect(f"postgresql://{server}/postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return f"{server}/{name}"


def make_ready_pair(stack: ExitStack, folder: Path, drivers: Path, postgresql: str, **settings: str) -> Pair:
    """The service is made through A, which owns its sidecar therefore."""
    pair = make_pair(stack, folder, drivers, postgresql, **settings)
    pair.via_a.services.create("echo", app="echo")
    for client in (pair.via_a, pair.via_b):
        until(lambda client=client: is_there(client, SERVICE), "the service known at both")
        client.services.wait_ready("echo", timeout=180)
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, echo_drivers: Path, server: str) -> Iterator[Pair]:
    """For tests that leave both alive: their leases end for nobody, also if the machine stands still for a while."""
    leases = {"lease_duration": "60", "gateway_lease_duration": "60"}
    with ExitStack() as stack:
        yield make_ready_pair(stack, tmp_path_factory.mktemp("pair"), echo_drivers, new_database(server), **leases)


@pytest.fixture
def postgresql(server: str) -> str:
    return new_database(server)


@pytest.fixture
def fragile(tmp_path: Path, echo_drivers: Path, postgresql: str) -> Iterator[Pair]:
    """For tests that kill."""
    with ExitStack() as stack:
        yield make_ready_pair(stack, tmp_path, echo_drivers, postgresql)


def is_there(client: Client, name: str) -> bool:
    try:
        client.services.get(name)
    except ResourceNotFound:
        return False
    return True


def test_a_service_has_one_sidecar_and_serves_through_both(pair: Pair) -> None:
    assert pair.sidecar_parents() == [pair.a.pid]
    assert pair.call(pair.a, b"one") == b"one"
    assert pair.call(pair.b, b"two") == b"two"
    mine, other = (client.sidecars.list(service=SERVICE) for client in (pair.via_a, pair.via_b))
    assert [sidecar.name for sidecar in mine] == [sidecar.name for sidecar in other]
    assert pair.via_b.sidecars.get(other[0].name).state == resources_pb2.SIDECAR_STATE_READY
    heartbeat = pair.via_b.services.check_heartbeat("echo")
    assert heartbeat.sidecar == mine[0].name
    assert heartbeat.state == resources_pb2.HEARTBEAT_STATE_OK
    # Its errors are as typed as at home.
    with pytest.raises(OneContainerError) as raised:
        pair.call(pair.b, b"", behaviour="typed")
    assert raised.value.reason == Reason.DATA_INVALID


def test_a_job_of_the_others_sidecar_is_seen_promptly(pair: Pair, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = pair.work(pair.via_a, steps=1, step_seconds=0.5, wait_file=str(go))
    seen: dict[int, float] = {}
    with stalls() as still:
        for record in pair.via_b.jobs.watch(job.name, timeout=180):
            seen.setdefault(record.state, time.time())
            if record.progress.done == 1.0:  # it ends when its progress has been seen here
                go.touch()
        over = still.seconds
    assert list(seen)[-2:] == [job_pb2.JOB_STATE_RUNNING, SUCCEEDED]
    [attempt] = pair.via_b.jobs.get(job.name).attempts
    # The poll that knows of no notice looks after five seconds.
    assert seen[job_pb2.JOB_STATE_RUNNING] - seconds(attempt.start_time) - over < 3.0
    assert seen[SUCCEEDED] - seconds(attempt.end_time) - over < 3.0


def test_a_wait_through_the_other_ends_with_the_job(pair: Pair) -> None:
    job = pair.work(pair.via_b, steps=1, step_seconds=1.0)
    with stalls() as still:
        record = pair.via_b.jobs.handle(job.name).wait(timeout=180)
        at = time.time() - still.seconds
    assert record.state == SUCCEEDED
    # The poll of WaitJob that knows of no notice looks after five seconds.
    assert at - seconds(record.end_time) < 3.0


def seconds(time_: Timestamp) -> float:
    """Since 1970. The database's clock is this machine's."""
    return time_.ToMicroseconds() / 1e6


def cancel_through_the_other(pair: Pair) -> None:
    job = pair.work(pair.via_a, steps=6000, step_seconds=0.1)
    pair.begun(job.name)
    with stalls() as still:
        begin = time.monotonic()
        pair.via_b.jobs.cancel(job.name)
        record = pair.via_b.jobs.handle(job.name).wait(timeout=180)
        took = time.monotonic() - begin - still.seconds
    assert record.state == job_pb2.JOB_STATE_CANCELLED
    assert took < 3.0
    assert not pair.lines(job.name, "end")


def test_a_cancel_through_the_other_reaches_the_handler_in_about_a_second(pair: Pair) -> None:
    cancel_through_the_other(pair)


def test_without_notices_a_cancel_is_only_a_little_later(fragile: Pair, postgresql: str) -> None:
    make_deaf(postgresql)
    cancel_through_the_other(fragile)


def make_deaf(postgresql: str) -> None:
    """From now on no NOTIFY of anybody arrives: the function that sends them is shadowed by one that does not."""
    with psycopg.connect(f"postgresql://{postgresql}", autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS 'SELECT'",
        )
        database = sql.Identifier(postgresql.rpartition("/")[2])
        connection.execute(sql.SQL("ALTER DATABASE {} SET search_path = public, pg_catalog").format(database))
        # Each is waited for: one that is only about to end would take down a statement that has just got its connection.
        connection.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )


@pytest.mark.parametrize("method", ["Work", "WorkOnce"])
def test_kill_of_the_gateway_that_runs_it(fragile: Pair, method: str) -> None:
    job = fragile.work(fragile.via_a, method, steps=25, step_seconds=0.2)
    fragile.begun(job.name)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: fragile.via_b.jobs.handle(job.name).wait(timeout=180))
        fragile.a.kill()
        ended = waiting.result()
    record = fragile.via_b.jobs.get(job.name)
    assert ended.state == record.state
    if method == "Work":
        assert record.state == SUCCEEDED
        assert fragile.effective_outcomes(job.name) == 1
        assert fragile.lines(job.name, "end") == [f"end {job.name} {record.attempts[-1].number}"]
    else:
        assert record.state == job_pb2.JOB_STATE_FAILED
        assert from_status(record.error).reason == Reason.OUTCOME_UNKNOWN
        assert len(fragile.lines(job.name, "begin")) == 1
    # The job's lease may end before the gateway's.
    until(lambda: fragile.sidecar_parents() == [fragile.b.pid], "taken over")
    fragile.via_b.services.wait_ready("echo", timeout=180)
    assert fragile.call(fragile.b, b"mine now") == b"mine now"


def give_b_a_service(pair: Pair) -> None:
    """B makes a service and owns it therefore, as A does the other one."""
    pair.via_b.services.create("of-b", app="echo")
    pair.via_b.services.wait_ready("of-b", timeout=180)
    assert pair.sidecar_parents() == [pair.a.pid, pair.b.pid]


def test_one_that_has_a_service_of_its_own_takes_over_those_of_the_killed_one(fragile: Pair) -> None:
    give_b_a_service(fragile)
    job = fragile.work(fragile.via_a, steps=25, step_seconds=0.2)
    fragile.begun(job.name)
    fragile.a.kill()
    assert fragile.via_b.jobs.handle(job.name).wait(timeout=180).state == SUCCEEDED
    assert fragile.effective_outcomes(job.name) == 1
    fragile.via_b.services.wait_ready("echo", "of-b", timeout=180)
    assert fragile.sidecar_parents() == [fragile.b.pid, fragile.b.pid]
    assert fragile.call(fragile.b, b"mine now") == b"mine now"


def test_the_killed_one_comes_back_to_what_nobody_has_taken(
    tmp_path: Path, echo_drivers: Path, postgresql: str
) -> None:
    with ExitStack() as stack:
        # A lease that does not end meanwhile: B cannot take over.
        pair = make_ready_pair(stack, tmp_path, echo_drivers, postgresql, gateway_lease_duration="600")
        give_b_a_service(pair)
        pair.a.kill()
        pair.a.start()
        until(lambda: pair.sidecar_parents() == [pair.a.pid, pair.b.pid], "each with its own again")
        for client in (pair.via_a, pair.via_b):
            client.services.wait_ready("echo", "of-b", timeout=180)
        assert pair.call(pair.b, b"over there") == b"over there"


def test_no_job_is_lost_or_doubled_when_one_is_killed(fragile: Pair) -> None:
    jobs = [
        fragile.work(client, steps=2, step_seconds=0.2) for _ in range(20) for client in (fragile.via_a, fragile.via_b)
    ]
    fragile.begun(jobs[0].name)
    fragile.a.kill()
    for job in jobs:
        assert fragile.via_b.jobs.handle(job.name).wait(timeout=180).state == SUCCEEDED
        assert fragile.effective_outcomes(job.name) == 1


def test_the_killed_one_comes_back_and_serves_through_the_other(fragile: Pair) -> None:
    fragile.a.kill()
    until(lambda: fragile.sidecar_parents() == [fragile.b.pid], "taken over")
    fragile.via_b.services.wait_ready("echo", timeout=180)
    fragile.a.start()
    fragile.via_a.services.wait_ready("echo", timeout=180)
    assert fragile.call(fragile.a, b"over there") == b"over there"
    assert fragile.sidecar_parents() == [fragile.b.pid]


def test_a_gateway_that_stood_still_steps_down(fragile: Pair) -> None:
    os.kill(fragile.a.pid, signal.SIGSTOP)
    try:
        until(lambda: fragile.sidecar_parents() == [fragile.a.pid, fragile.b.pid], "taken over")
    finally:
        os.kill(fragile.a.pid, signal.SIGCONT)
    until(lambda: fragile.sidecar_parents() == [fragile.b.pid], "one sidecar again")
    until(lambda: fragile.via_a.services.get("echo").state == READY, "ready through both")
    assert fragile.call(fragile.a, b"over there") == b"over there"


def test_a_gateway_that_is_stopped_hands_over_at_once(fragile: Pair) -> None:
    job = fragile.work(fragile.via_b, steps=10, step_seconds=0.2)
    fragile.begun(job.name)
    assert fragile.a.stop() == 0
    assert fragile.via_b.jobs.handle(job.name).wait(timeout=180).state == SUCCEEDED
    fragile.via_b.services.wait_ready("echo", timeout=180)


def test_management_through_the_one_that_does_not_own_it(pair: Pair) -> None:
    name = "services/managed"
    running = len(pair.sidecar_parents())
    pair.via_a.services.create("managed", app="echo")
    until(lambda: is_there(pair.via_b, name), "known at both")
    pair.via_b.services.wait_ready("managed", timeout=180)
    before = pair.via_a.sidecars.list(service=name)[0].name
    pair.via_b.services.update("managed", resources_pb2.Service(options={"greeting": "good day"}), paths=["options"])

    def restarted() -> str:
        found = pair.via_b.sidecars.list(service=name)
        ready = [one.name for one in found if one.state == resources_pb2.SIDECAR_STATE_READY and one.name != before]
        return ready[0] if ready else ""

    sidecar = until(restarted, "started anew by its owner")
    assert pair.via_b.services.check_heartbeat("managed").layers[-1].message == "good day"
    assert pair.via_a.services.check_heartbeat("managed").sidecar == sidecar
    # Its log comes by a pipe, which may be behind what it answers.
    until(
        lambda: list(pair.via_b.sidecars.logs(sidecar, tail=5)) == list(pair.via_a.sidecars.logs(sidecar, tail=5)),
        "the same log through both",
    )
    pair.via_b.services.delete("managed")
    assert not is_there(pair.via_b, name)
    until(lambda: not is_there(pair.via_a, name), "gone at both")
    until(lambda: len(pair.sidecar_parents()) == running, "its sidecar ended")


def test_two_creations_of_one_name_at_once_make_one_service(pair: Pair) -> None:
    running = len(pair.sidecar_parents())
    for number in range(5):
        barrier = threading.Barrier(2)

        def create(client: Client, number: int = number, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            try:
                return client.services.create(f"new-{number}", app="echo").uid
            except ResourceConflict:
                return ""

        with ThreadPoolExecutor(2) as threads:
            made = [uid for uid in threads.map(create, (pair.via_a, pair.via_b)) if uid]
        assert len(made) == 1
        for client in (pair.via_a, pair.via_b):
            until(lambda client=client, number=number: is_there(client, f"services/new-{number}"), "known at both")
            assert client.services.get(f"new-{number}").uid == made[0]
    pair.via_b.services.wait_ready(*(f"new-{number}" for number in range(5)), timeout=180)
    assert len(pair.sidecar_parents()) == running + 5


def test_a_gateway_that_lacks_the_driver_takes_it_from_nobody(pair: Pair, tmp_path: Path) -> None:
    third = GatewayProcess(tmp_path / "c", **pair.settings)
    with running(third), Client(third.address) as client:
        assert client.services.get("echo").assigned_driver == "drivers/echo-1.0.0"
        client.services.wait_ready("echo", timeout=180)
        assert pair.call(pair.b, b"still") == b"still"


def test_a_plug_in_is_one_for_both(pair: Pair, tmp_path: Path) -> None:
    archive = tmp_path / "plug.tar.gz"
    new_driver("plug", "db", tmp_path / "plug")
    archive.write_bytes(pack(tmp_path / "plug", 1 << 20))
    installed = pair.via_a.drivers.install(artifact=pair.via_a.artifacts.upload(archive).name)
    until(lambda: installed in pair.via_b.drivers.list(), "known at the other gateway")
    # What is made at B is run by B, from a folder of its own.
    pair.via_b.services.create("plug", app="plug")
    for client in (pair.via_b, pair.via_a):
        until(lambda client=client: is_there(client, "services/plug"), "known at both")
        client.services.wait_ready("plug", timeout=180)
    assert pair.via_a.db.list_tables("plug") == []
    with pytest.raises(ResourceInUse, match="services/plug"):
        pair.via_a.drivers.uninstall(installed.name)
    pair.via_b.services.delete("plug")

    def gone() -> bool:
        try:
            pair.via_a.drivers.uninstall(installed.name)
        except ResourceInUse:
            return False
        return True

    until(gone, "free at A")
    until(lambda: installed.name not in {driver.name for driver in pair.via_b.drivers.list()}, "gone at B")
    until(lambda: not list((pair.b.data_dir / "drivers").glob("plug/*")), "its folder gone at B")


def test_a_call_goes_on_once_at_the_most(pair: Pair) -> None:
    """While ownership changes hands, two gateways may take each other for the owner."""
    sent_on = [("onecontainer-forwarded-by", "gateways/other")]
    assert pair.call(pair.a, b"x", metadata=sent_on) == b"x"
    with pytest.raises(DriverUnreachable, match="changing hands"):
        pair.call(pair.b, b"x", metadata=sent_on)


async def ends_told(broker: kafka.KafkaBroker, jobs: set[str]) -> None:
    """Reads events until all these jobs have ended by them."""
    consumer = AIOKafkaConsumer(EVENTS_TOPIC, bootstrap_servers=broker.address, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(180):
            while jobs:
                event = event_pb2.JobEvent.FromString((await consumer.getone()).value or b"")
                if event.new_state == SUCCEEDED:
                    jobs.discard(event.job)
    finally:
        await consumer.stop()


def test_over_kafka_the_other_publishes_on_and_both_see_results(
    tmp_path: Path, echo_drivers: Path, postgresql: str
) -> None:
    if not kafka.available():
        pytest.skip("a real broker needs java and mvn; .ci/run installs them")
    with ExitStack() as stack:
        broker = kafka.KafkaBroker(tmp_path / "broker")
        stack.enter_context(running(broker))
        pair = make_pair(stack, tmp_path, echo_drivers, postgresql, dispatch_url=f"kafka://{broker.address}")
        # The first one leads; the sidecar is the second one's, so that it lives on when the leader is killed.
        pair.via_b.services.create("echo", app="echo")
        pair.via_b.services.wait_ready("echo", timeout=180)
        until(lambda: is_there(pair.via_a, SERVICE), "known at both")
        for client, other in ((pair.via_a, pair.via_b), (pair.via_b, pair.via_a)):
            job = pair.work(client, steps=1)
            assert other.jobs.handle(job.name).wait(timeout=180).state == SUCCEEDED
        jobs = [pair.work(pair.via_a, steps=1, step_seconds=0.1) for _ in range(10)]
        pair.a.kill()
        later = [pair.work(pair.via_b, steps=1) for _ in range(10)]
        jobs += later
        for job in jobs:
            assert pair.via_b.jobs.handle(job.name).wait(timeout=180).state == SUCCEEDED
            assert len(pair.lines(job.name, "begin")) == 1
        # A worker would find jobs in the ledger too; events come from the one that publishes and from nobody else.
        asyncio.run(ends_told(broker, {job.name for job in later}))
