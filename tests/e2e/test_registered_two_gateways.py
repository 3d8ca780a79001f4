"""Who registers where two gateways share the services: a sidecar moves to the other one, a worker works for what that one owns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import Client
from onecontainer.errors import DriverUnreachable
from tests.e2e.test_two_gateways import SERVICE, SUCCEEDED, Pair, is_there, new_database
from tests.fixtures.postgresql import private_postgresql
from tests.fixtures.processes import GatewayProcess, Process, free_port, running
from tests.fixtures.waiting import until


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    with private_postgresql() as place:
        yield place.rpartition("/")[0]


class Two(Pair):
    """Two gateways, and what somebody else starts for them."""

    def internal(self, gateway: GatewayProcess) -> str:
        return gateway._environment["ONECONTAINER_INTERNAL_LISTEN"]

    def create(self, **runtime: str) -> None:
        """The service is made through A, which owns it therefore."""
        attached = resources_pb2.Runtime(kind=resources_pb2.RUNTIME_KIND_ATTACHED, **runtime)  # type: ignore[arg-type]
        self.via_a.services.create("echo", app="echo", runtime=attached)
        until(lambda: is_there(self.via_b, SERVICE), "known at both")

    def answers(self, gateway: GatewayProcess) -> bool:
        """Whether a call through it is answered; while one takes over from another they fail, and may be sent again."""
        try:
            return self.call(gateway, b"x") == b"x"
        except DriverUnreachable:
            return False


@pytest.fixture
def two(tmp_path: Path, echo_drivers: Path, postgresql: str) -> Iterator[Two]:
    settings = {
        "database_url": f"postgresql+psycopg://{new_database(postgresql)}",
        "artifact_url": (tmp_path / "artifacts").as_uri(),
        "registration_token_file": str(tmp_path / "registration.token"),
        "lease_duration": "10",
        "gateway_lease_duration": "10",
        "job_sweep_interval": "0.2",
        "probe_interval": "0.5",
        "restart_backoff_initial": "0.1",
    }
    with ExitStack() as stack:
        a, b = (
            GatewayProcess(tmp_path / name, [echo_drivers], internal_listen=f"127.0.0.1:{free_port()}", **settings)
            for name in ("a", "b")
        )
        for gateway in (a, b):
            stack.enter_context(running(gateway))
        clients = [stack.enter_context(Client(gateway.address)) for gateway in (a, b)]
        yield Two(a, b, clients[0], clients[1], tmp_path / "marks", settings)


def driver(two: Two, drivers: Path, *options: str, ready: str) -> Process:
    command = [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(drivers / "echo"), *options]
    return Process([*command, "--listen", f"127.0.0.1:{free_port()}"], {}, ready)


def registering(two: Two, drivers: Path, gateway: str, ready: str = "registered as") -> Process:
    token = two.settings["registration_token_file"]
    options = ["--gateway", gateway, "--service", "echo", "--registration-token-file", token]
    return driver(two, drivers, *options, ready=ready)


def test_a_sidecar_is_run_by_the_gateway_that_it_registers_with(two: Two, echo_drivers: Path, tmp_path: Path) -> None:
    two.create()
    both = f"ipv4:{two.internal(two.b)},{two.internal(two.a)}"
    with running(registering(two, echo_drivers, both)):
        for client in (two.via_a, two.via_b):
            client.services.wait_ready("echo", timeout=180)
        [name] = two.via_a.services.get("echo").sidecars
        # A sends calls on to B, which has taken the service.
        assert two.call(two.a, b"one") == b"one"
        assert two.call(two.b, b"two") == b"two"
        # Another one is refused at the gateway that has not got it, too.
        other = registering(two, echo_drivers, two.internal(two.a), ready="is alive")
        with running(other):
            assert name in "\n".join(other.lines)
        # B dies: the sidecar goes to A, with what it runs. A second attempt of this method would be OUTCOME_UNKNOWN.
        go = tmp_path / "go"
        job = two.work(two.via_a, "WorkOnce", steps=1, wait_file=str(go))
        two.begun(job.name)
        two.b.kill()
        until(lambda: two.answers(two.a), "ready at A")
        go.touch()
        assert two.via_a.services.get("echo").sidecars == [name]
        assert two.via_a.jobs.handle(job.name).wait(timeout=180).state == SUCCEEDED
        assert len(two.lines(job.name, "begin")) == 1
        record = two.via_a.jobs.get(job.name)
        assert [attempt.sidecar for attempt in record.attempts] == [name]


def test_a_worker_at_one_gateway_serves_a_service_of_the_other(two: Two, echo_drivers: Path, tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(echo_drivers / "echo")]
    beside = [sys.executable, "-m", "onecontainer.cli", "worker", "echo", "--driver", endpoint, "--slots", "2"]
    beside += ["--data-dir", str(tmp_path / "b"), "--registration-token-file", two.settings["registration_token_file"]]
    with running(Process([*command, "--listen", endpoint], {}, "serves on")):
        two.create(endpoint=endpoint)
        two.via_a.services.wait_ready("echo", timeout=180)
        with running(Process(beside, {}, "takes jobs of services/echo")):
            go = tmp_path / "go"
            job = two.work(two.via_a, "WorkOnce", steps=1, wait_file=str(go))
            two.begun(job.name)
            # The owner dies: the other one attaches the same sidecar, and the worker has nothing to do with it.
            two.a.kill()
            until(lambda: two.answers(two.b), "ready at B")
            go.touch()
            assert two.via_b.jobs.handle(job.name).wait(timeout=180).state == SUCCEEDED
            assert len(two.lines(job.name, "begin")) == 1
            after = two.work(two.via_b)
            assert two.via_b.jobs.handle(after.name).wait(timeout=180).state == SUCCEEDED
