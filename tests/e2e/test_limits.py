"""Limits and bad input at a real gateway: each ends in a typed error within its deadline, and nobody else notices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import Client
from onecontainer.errors import (
    CapabilityMissing,
    DeadlineExceeded,
    DriverExecutionFailed,
    DriverMisimplemented,
    DriverNotAvailable,
    DriverUnreachable,
    FieldInvalid,
    FieldRequired,
    MessageTooLarge,
    MethodUnknown,
    NotFinishable,
    OneContainerError,
    Reason,
    ResourceNotFound,
)
from onecontainer.rpc.channel import channel_options
from onecontainer.rpc.status import from_rpc_error, from_status
from tests.fixtures.processes import GatewayProcess
from tests.fixtures.stalls import stalls
from tests.fixtures.waiting import until

ECHO = "onecontainer.test.echo.v1.EchoService"
MIB = 1024 * 1024


class Caller:
    """Calls the test driver through the gateway, by a plain channel and the driver's own messages."""

    def __init__(self, address: str) -> None:
        from onecontainer_driver_echo import echo_pb2  # built for this session

        self.pb = echo_pb2
        self.channel = grpc.insecure_channel(address, options=channel_options(256 * MIB))

    def unary(self, name: str, request: Any, timeout: float = 120.0) -> Any:
        stub = self.channel.unary_unary(
            f"/{ECHO}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=self.pb.EchoResponse.FromString,
        )
        try:
            return stub(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def echo(self, payload: bytes = b"", service: str = "services/echo", timeout: float = 120.0, **fields: Any) -> Any:
        return self.unary("Echo", self.pb.EchoRequest(service=service, payload=payload, **fields), timeout)


@pytest.fixture(scope="module")
def caller(gateway: GatewayProcess) -> Iterator[Caller]:
    caller = Caller(gateway.address)
    yield caller
    caller.channel.close()


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[Client]:
    with Client(gateway.address) as client:
        yield client


@pytest.fixture(scope="module")
def fragile(client: Client) -> str:
    """A second service on a sidecar of its own, to be broken."""
    client.services.create("fragile", app="echo")
    client.services.wait_ready("fragile", timeout=180)
    return "services/fragile"


@pytest.mark.parametrize("size", [5 * MIB, 63 * MIB])
def test_messages_over_the_common_limit_of_4_mib_work(caller: Caller, size: int) -> None:
    assert len(caller.echo(bytes(size)).payload) == size


def test_a_message_over_the_documented_limit_names_the_artifact_way(caller: Caller) -> None:
    with pytest.raises(MessageTooLarge) as raised:
        caller.echo(bytes(65 * MIB))
    assert "artifact" in raised.value.message
    assert raised.value.metadata["limit_bytes"] == str(64 * MIB)


def test_a_far_larger_message_is_refused_too(caller: Caller) -> None:
    """gRPC itself refuses it before our code sees it: the code is the same, the text is gRPC's."""
    with pytest.raises(MessageTooLarge):
        caller.echo(bytes(130 * MIB))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda caller: caller.echo(service="services/nobody"), ResourceNotFound),
        (lambda caller: caller.echo(service=""), FieldRequired),
        (lambda caller: caller.unary("Nothing", caller.pb.EchoRequest(service="services/echo")), MethodUnknown),
        (lambda caller: caller.unary("Missing", caller.pb.EchoRequest(service="services/echo")), CapabilityMissing),
        (lambda caller: caller.echo(behaviour="crash"), DriverExecutionFailed),
        (lambda caller: caller.echo(behaviour="garbage"), DriverMisimplemented),
    ],
    ids=["unknown-service", "no-service", "unknown-method", "method-not-implemented", "crash", "garbage"],
)
def test_bad_calls_are_typed(caller: Caller, call: Callable[[Caller], Any], error: type[OneContainerError]) -> None:
    with pytest.raises(error) as raised:
        call(caller)
    assert raised.value.metadata["hop"] in ("gateway", "sidecar")
    assert "Traceback" not in raised.value.message


def test_a_hanging_driver_ends_at_the_deadline(caller: Caller) -> None:
    with stalls() as still, pytest.raises(DeadlineExceeded):
        begin = time.monotonic()
        caller.echo(behaviour="hang", timeout=1.0)
    assert time.monotonic() - begin - still.seconds < 10


def test_a_driver_that_dies_in_a_call_harms_nobody_else_and_comes_back(
    caller: Caller, client: Client, fragile: str
) -> None:
    with pytest.raises(DriverUnreachable) as raised:
        caller.echo(service=fragile, behaviour="exit")
    assert raised.value.retry_after is not None
    assert caller.echo(b"other").payload == b"other"

    def answers() -> bool:
        """Not by its state alone: the connection is broken a moment before the gateway knows that the process has ended."""
        try:
            return caller.echo(b"again", service=fragile).payload == b"again"
        except DriverUnreachable:
            return False

    until(answers, "back")
    client.services.wait_ready(fragile, timeout=180)


def test_a_driver_that_dies_in_the_middle_of_a_stream(caller: Caller, client: Client, fragile: str) -> None:
    client.services.wait_ready(fragile, timeout=180)
    stub = caller.channel.unary_stream(
        f"/{ECHO}/Down",
        request_serializer=caller.pb.EchoRequest.SerializeToString,
        response_deserializer=caller.pb.EchoResponse.FromString,
    )
    received = 0
    with pytest.raises(grpc.RpcError) as raised:
        for _ in stub(caller.pb.EchoRequest(service=fragile, count=5, behaviour="exit"), timeout=120):
            received += 1
    assert isinstance(from_rpc_error(raised.value), DriverUnreachable)
    assert received <= 4
    client.services.wait_ready(fragile, timeout=180)


def test_a_service_without_a_matching_driver_is_kept_and_says_why(caller: Caller, client: Client) -> None:
    service = client.services.create("lonely", app="cassandra-of-my-own")
    assert service.state == resources_pb2.SERVICE_STATE_UNASSIGNED
    assert from_status(service.error).reason == Reason.DRIVER_NOT_AVAILABLE
    with pytest.raises(DriverNotAvailable):
        caller.echo(service="services/lonely")
    match = client.services.match_drivers("lonely")
    assert all(rejection.cause for rejection in match.rejections)


def test_wrong_settings_are_told_with_their_path(client: Client) -> None:
    with pytest.raises(FieldInvalid) as raised:
        client.services.create("wrong", app="echo", options={"greeting": 5, "unheard": "x"})
    assert {violation.field for violation in raised.value.violations} == {
        "service.options.greeting",
        "service.options.unheard",
    }


def test_a_broken_backend_is_seen_by_the_heartbeat(client: Client) -> None:
    client.services.create("broken", app="echo", options={"broken": True})
    end = time.monotonic() + 180
    while (beat := client.services.check_heartbeat("broken")).layers[2].state != (
        resources_pb2.HEARTBEAT_STATE_UNAVAILABLE
    ):
        assert time.monotonic() < end, beat
        time.sleep(0.05)
    assert [layer.state for layer in beat.layers[:2]] == [resources_pb2.HEARTBEAT_STATE_OK] * 2
    assert from_status(beat.layers[2].error).reason == Reason.BACKEND_UNREACHABLE


def work(caller: Caller, client: Client, method: str = "Work", **fields: Any) -> Any:
    request = caller.pb.WorkRequest(**fields)
    return client.jobs.create("services/echo", f"{ECHO}/{method}", request)


def test_a_job_with_a_large_request_and_a_large_result(caller: Caller, client: Client) -> None:
    request = caller.pb.EchoRequest(payload=bytes(5 * MIB))
    job = client.jobs.create("services/echo", f"{ECHO}/Echo", request)
    ended = job.wait(timeout=180)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED
    assert ended.result_artifact
    assert len(job.result(caller.pb.EchoResponse, timeout=180).payload) == 5 * MIB


def test_artifacts_of_a_job_become_ready_with_its_success(caller: Caller, client: Client) -> None:
    job = work(caller, client, steps=1, artifact_bytes=3 * MIB)
    ended = job.wait(timeout=180)
    made = caller.pb.WorkResult.FromString(ended.result.value).artifact
    assert list(client.jobs.get(job.name).artifacts) == [made]
    assert client.artifacts.get(made).size_bytes == 3 * MIB
    client.jobs.delete(job.name)
    with pytest.raises(ResourceNotFound):
        client.artifacts.get(made)


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "thread"])
def test_cancel_reaches_the_handler_in_about_a_second(caller: Caller, client: Client, blocking: bool) -> None:
    job = work(caller, client, steps=6000, step_seconds=0.1, blocking=blocking)
    while client.jobs.get(job.name).progress.done < 1:
        time.sleep(0.02)
    with stalls() as still:
        begin = time.monotonic()
        job.cancel()
        ended = job.wait(timeout=180)
        took = time.monotonic() - begin - still.seconds
    assert ended.state == job_pb2.JOB_STATE_CANCELLED
    assert from_status(ended.error).reason == Reason.CANCELLED
    # Far more than a second, for a machine that is busy; `make faults` measures the latency.
    assert took < 10


def test_finish_keeps_what_is_done(caller: Caller, client: Client) -> None:
    job = work(caller, client, steps=6000, step_seconds=0.1)
    while client.jobs.get(job.name).progress.done < 1:
        time.sleep(0.02)
    job.cancel(finish=True)
    ended = job.wait(timeout=180)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED
    assert ended.ended_early
    assert 1 <= caller.pb.WorkResult.FromString(ended.result.value).steps < 6000
    once = work(caller, client, "WorkOnce", steps=6000, step_seconds=0.1)
    with pytest.raises(NotFinishable):
        once.cancel(finish=True)
    once.cancel()
    assert once.wait(timeout=180).state == job_pb2.JOB_STATE_CANCELLED


def test_retries_follow_the_methods_idempotency(caller: Caller, client: Client) -> None:
    request = caller.pb.WorkRequest(steps=1, failing_attempts=1)
    request.job_options.retry_policy.initial_backoff.FromMilliseconds(10)
    again = client.jobs.create("services/echo", f"{ECHO}/Work", request).wait(timeout=180)
    assert again.state == job_pb2.JOB_STATE_SUCCEEDED
    assert again.attempt_count == 2
    once = client.jobs.create("services/echo", f"{ECHO}/WorkOnce", request).wait(timeout=180)
    assert once.state == job_pb2.JOB_STATE_FAILED
    assert once.attempt_count == 1
    assert from_status(once.error).reason == Reason.BACKEND_UNREACHABLE
