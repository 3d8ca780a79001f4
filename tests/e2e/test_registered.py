"""A driver that somebody else starts, as systemd or a pod would: over TCP with TLS it registers, serves calls and jobs, and comes back."""

from __future__ import annotations

import itertools
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import Client
from onecontainer.errors import DriverUnreachable, Reason
from onecontainer.gateway.reflection import NAMES
from onecontainer.rpc.status import from_rpc_error, from_status
from onecontainer.sidecars.authority import Authority
from tests.fixtures.beside import ECHO
from tests.fixtures.processes import GatewayProcess, Process, free_port, running
from tests.fixtures.waiting import until

# A name that is not localhost: what is behind it counts as reachable from outside, and needs TLS.
HOST = socket.gethostname()
ROOT = Path(__file__).parents[2]
READY = resources_pb2.SERVICE_STATE_READY
ATTACHED = resources_pb2.Runtime(kind=resources_pb2.RUNTIME_KIND_ATTACHED)
SUCCEEDED = job_pb2.JOB_STATE_SUCCEEDED
LEASE = 60.0
"""Seconds; nothing here waits for its end, and a machine that stands still for a while costs nobody a lease."""
_numbers = itertools.count()


class Place:
    """A gateway whose internal listener is on all addresses, with TLS, and what it takes to start drivers for it."""

    def __init__(self, folder: Path, drivers: Path, *driver_paths: Path) -> None:
        from onecontainer_driver_echo import echo_pb2  # built for this session

        self.pb: Any = echo_pb2
        self.folder = folder
        self.driver_folder = drivers / "echo"
        self.internal = f"{HOST}:{free_port()}"
        self.gateway = GatewayProcess(
            folder / "data",
            driver_paths,
            internal_listen=f"0.0.0.0:{self.internal.rpartition(':')[2]}",
            lease_duration=str(LEASE),
            job_sweep_interval="0.2",
            probe_interval="0.5",
            restart_backoff_initial="0.1",
        )
        self.client = Client(self.gateway.address)
        self.started: list[Process] = []

    def make_certificate(self) -> None:
        authority = Authority(self.gateway.data_dir / "ca")
        pair = authority.issue([HOST])
        (self.folder / "cert.pem").write_bytes(pair.cert)
        (self.folder / "key.pem").write_bytes(pair.key)
        (self.folder / "ca.pem").write_bytes(authority.ca_pem())

    def create(self) -> str:
        """A service that waits for a sidecar; its short name."""
        name = f"echo-{next(_numbers)}"
        self.client.services.create(name, app="echo", app_version="1.0", runtime=ATTACHED)
        return name

    def driver(self, service: str, ready: str = "registered as", **changes: str) -> Process:
        """A driver that is not started yet; it is ended with the test."""
        options = {
            "driver_dir": str(self.driver_folder),
            "listen": f"0.0.0.0:{free_port()}",
            "gateway": self.internal,
            "service": f"services/{service}",
            "registration_token_file": str(self.gateway.data_dir / "registration.token"),
            "ca_file": str(self.folder / "ca.pem"),
            "tls_cert_file": str(self.folder / "cert.pem"),
            "tls_key_file": str(self.folder / "key.pem"),
            **changes,
        }
        arguments = [
            part for name, value in options.items() if value for part in (f"--{name.replace('_', '-')}", value)
        ]
        process = Process([sys.executable, "-m", "onecontainer.driver", *arguments], {}, ready)
        self.started.append(process)
        return process

    def serving(self, service: str, **changes: str) -> Process:
        """A driver that serves the service."""
        process = self.driver(service, **changes)
        process.start()
        self.client.services.wait_ready(service, timeout=180)
        return process

    def end_drivers(self) -> None:
        for process in self.started:
            process.kill()
        self.started.clear()

    def state(self, service: str) -> Any:
        return self.client.services.get(service).state

    def not_ready(self, service: str) -> Any:
        """Waits until the service is not READY, and returns it."""
        until(lambda: self.state(service) != READY, "not ready", timeout=LEASE)
        return self.client.services.get(service)

    def instance(self, service: str) -> str:
        return str(self.client.services.get(service).sidecars[0])

    def call(self, service: str, payload: bytes) -> bytes:
        with grpc.insecure_channel(self.gateway.address) as channel:
            stub: Any = channel.unary_unary(
                f"/{ECHO}/Echo",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=self.pb.EchoResponse.FromString,
            )
            try:
                answer = stub(self.pb.EchoRequest(service=f"services/{service}", payload=payload), timeout=60.0)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
        return bytes(answer.payload)

    def work(self, service: str, method: str = "Work", **fields: Any) -> Any:
        return self.client.jobs.create(f"services/{service}", f"{ECHO}/{method}", self.pb.WorkRequest(**fields))

    def on_its_way(self, job: Any) -> None:
        until(lambda: job.refresh().progress.done >= 1, f"{job.name} on its way")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, echo_drivers: Path) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("registered"), echo_drivers, echo_drivers)
    with running(place.gateway), place.client:
        place.make_certificate()
        yield place


@pytest.fixture
def place(started: Place) -> Iterator[Place]:
    yield started
    started.end_drivers()


@pytest.fixture
def service(place: Place) -> str:
    return place.create()


def test_it_serves_calls_and_runs_jobs(place: Place, service: str) -> None:
    waiting = place.client.services.get(service)
    assert waiting.state == resources_pb2.SERVICE_STATE_UNAVAILABLE
    error = from_status(waiting.error)
    assert isinstance(error, DriverUnreachable)
    assert "--gateway" in error.message  # what to do
    with pytest.raises(DriverUnreachable) as caught:
        place.call(service, b"early")
    assert caught.value.retry_after
    early = place.work(service)
    place.serving(service)
    assert place.call(service, b"hello") == b"hello"
    assert early.wait(timeout=180).state == SUCCEEDED
    sidecar = place.client.sidecars.get(place.instance(service))
    assert (sidecar.runtime, sidecar.target.partition(":")[0]) == (resources_pb2.RUNTIME_KIND_ATTACHED, HOST)
    assert not any(one.runtime_id for one in place.client.sidecars.list(service=service))


def test_a_killed_one_is_told_soon_and_is_back_without_a_human(place: Place, service: str) -> None:
    driver = place.serving(service)
    first = place.instance(service)
    driver.kill()
    begin = time.monotonic()
    found = place.not_ready(service)
    assert time.monotonic() - begin < LEASE
    assert from_status(found.error).reason is Reason.DRIVER_UNREACHABLE
    with pytest.raises(DriverUnreachable) as caught:
        place.call(service, b"x")
    assert caught.value.retry_after
    heartbeat = place.client.services.check_heartbeat(service)
    assert heartbeat.layers[0].layer == resources_pb2.HEARTBEAT_LAYER_SIDECAR
    assert heartbeat.layers[0].state == resources_pb2.HEARTBEAT_STATE_UNAVAILABLE
    assert heartbeat.layers[0].error.message
    job = place.work(service)
    # Before its lease is over: the one that is started next has its place at once.
    driver.start()
    place.client.services.wait_ready(service, timeout=180)
    assert place.instance(service) != first
    assert place.call(service, b"back") == b"back"
    assert job.wait(timeout=180).state == SUCCEEDED


def test_a_killed_gateway_finds_it_again_and_what_runs_runs_on(place: Place, service: str) -> None:
    place.serving(service)
    first, go = place.instance(service), place.folder / f"{service}.go"
    # A method that must not be repeated: another attempt would end it as OUTCOME_UNKNOWN.
    job = place.work(service, "WorkOnce", steps=1, wait_file=str(go))
    place.on_its_way(job)
    place.gateway.kill()
    place.gateway.start()
    place.client.services.wait_ready(service, timeout=180)
    assert place.instance(service) == first
    assert place.call(service, b"again") == b"again"
    go.touch()
    assert job.wait(timeout=180).state == SUCCEEDED
    assert [attempt.sidecar for attempt in job.refresh().attempts] == [first]


def test_one_that_is_stopped_leaves_at_once_and_lets_what_runs_end(place: Place, service: str) -> None:
    driver, go = place.serving(service), place.folder / f"{service}.go"
    job = place.work(service, "WorkOnce", steps=1, wait_file=str(go))
    place.on_its_way(job)
    assert driver.child is not None
    driver.child.terminate()
    found = place.not_ready(service)
    assert "takes no more calls" in found.error.message
    go.touch()
    assert driver.child.wait(180) == 0
    assert job.refresh().state == SUCCEEDED


def test_another_instance_waits_until_the_place_is_free(place: Place, service: str) -> None:
    first, go = place.serving(service), place.folder / f"{service}.go"
    name = place.instance(service)
    second = place.driver(service, ready="is alive")
    assert name in second.start()  # it says who has the place
    assert place.instance(service) == name
    job = place.work(service, "WorkOnce", steps=1, wait_file=str(go))
    place.on_its_way(job)
    # A roll-over: the successor serves while the first one still works.
    assert first.child is not None
    first.child.terminate()
    until(lambda: place.state(service) == READY and place.instance(service) != name, "the other one serves")
    assert place.call(service, b"other") == b"other"
    go.touch()
    assert job.wait(timeout=180).state == SUCCEEDED
    assert [attempt.sidecar for attempt in job.refresh().attempts] == [name]


def test_new_settings_of_the_service_reach_it(place: Place, service: str) -> None:
    driver = place.serving(service)
    name = place.instance(service)
    # Its lines come by a pipe, which may be behind what it answers.
    until(lambda: any("attached to" in line for line in driver.lines), "attached")
    seen = len(driver.lines)
    place.client.services.update(service, resources_pb2.Service(app_version="1.1"))
    place.client.services.wait_ready(service, timeout=180)
    until(lambda: any("attached to" in line for line in driver.lines[seen:]), "attached anew")
    place.client.services.wait_ready(service, timeout=180)
    assert place.instance(service) == name
    assert place.call(service, b"new") == b"new"


def test_a_service_that_is_made_later_gets_it(place: Place) -> None:
    driver = place.driver("later", ready="there is no services/later")
    driver.start()
    place.client.services.create("later", app="echo", app_version="1.0", runtime=ATTACHED)
    place.client.services.wait_ready("later", timeout=180)
    assert place.call("later", b"x") == b"x"
    place.client.services.delete("later")


def ended(process: Process) -> str:
    """What a driver that ends by itself says; it must have told that starting it again does not help."""
    process.start_soon()
    assert process.child is not None
    assert process.child.wait(180) == 2
    process.kill()
    return "\n".join(process.lines)


def test_what_does_not_fit_is_told_and_ends(place: Place, service: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong")
    assert "registration.token" in ended(place.driver(service, registration_token_file=str(token)))
    place.client.services.create("own", app="echo", app_version="1.0")
    assert "waits for no sidecar" in ended(place.driver("own"))
    place.client.services.delete("own")
    # Never without TLS beyond loopback, on neither side.
    assert "ca/ca.pem" in ended(place.driver(service, ca_file=""))
    assert "needs tls_cert_file" in ended(place.driver(service, tls_cert_file="", tls_key_file=""))


def test_a_certificate_that_the_gateway_does_not_accept_is_told(place: Place, service: str, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger").issue([HOST])
    (tmp_path / "cert.pem").write_bytes(stranger.cert)
    (tmp_path / "key.pem").write_bytes(stranger.key)
    place.driver(service, tls_cert_file=str(tmp_path / "cert.pem"), tls_key_file=str(tmp_path / "key.pem")).start()
    told = "the certificate of the sidecar at"
    until(lambda: told in place.client.services.get(service).error.message, told, timeout=180)
    assert "oca sidecar certificate" in place.client.services.get(service).error.message


def test_another_version_of_the_driver_is_told_and_ends(place: Place, service: str, tmp_path: Path) -> None:
    folder = tmp_path / "echo"
    folder.symlink_to(place.driver_folder)
    other = tmp_path / "other"
    other.mkdir()
    for path in place.driver_folder.iterdir():
        (other / path.name).symlink_to(path)
    metadata = (other / "metadata.json").read_text()
    (other / "metadata.json").unlink()
    (other / "metadata.json").write_text(metadata.replace('"version": "1.0.0"', '"version": "7.0.0"'))
    assert "not 7.0.0" in ended(place.driver(service, driver_dir=str(other)))


def test_a_listener_that_speaks_no_tls_is_not_talked_to(place: Place, service: str) -> None:
    with grpc.insecure_channel(place.internal) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=1.0)


def test_a_driver_with_a_contract_of_others_comes_with_all_of_it(place: Place) -> None:
    options = {"default_model": "none"}
    place.client.services.create("models", app="onnx", runtime=ATTACHED, options=options)
    place.serving("models", driver_dir=str(ROOT / "drivers" / "onnx"))
    assert place.client.ai.list_models("models") == []


def test_a_driver_that_the_gateway_does_not_have_comes_with_its_sidecar(tmp_path: Path, echo_drivers: Path) -> None:
    place = Place(tmp_path, echo_drivers)
    with ExitStack() as stack:
        stack.enter_context(running(place.gateway))
        stack.enter_context(place.client)
        stack.callback(place.end_drivers)
        place.make_certificate()
        service = place.create()
        assert place.state(service) == resources_pb2.SERVICE_STATE_UNASSIGNED
        driver = place.serving(service)
        [found] = [one for one in place.client.drivers.list() if one.manifest.name == "echo"]
        assert (found.source, found.digest) == (resources_pb2.DRIVER_SOURCE_REGISTERED, "")
        assert f"{ECHO}/Echo" in [method.name for method in found.methods]
        assert place.call(service, b"mine") == b"mine"
        assert place.work(service).wait(timeout=180).state == SUCCEEDED
        assert ECHO in reflected(place.gateway.address)
        # A gateway that has started anew knows it again when it has registered again.
        place.gateway.kill()
        place.gateway.start()
        place.client.services.wait_ready(service, timeout=180)
        assert place.call(service, b"still") == b"still"
        assert place.client.services.get(service).assigned_driver == found.name
        assert driver.stop() == 0


def reflected(address: str) -> list[str]:
    """Services that the gateway's reflection lists."""
    from grpc_reflection.v1alpha import reflection_pb2

    with grpc.insecure_channel(address) as channel:
        info: Any = channel.stream_stream(
            f"/{NAMES[0]}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        [answer] = info(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=60.0)
    return [service.name for service in answer.list_services_response.service]
