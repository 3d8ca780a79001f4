"""The relay between a real client and a real sidecar server: bytes, metadata, deadlines, cancellation, errors, for each call shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from onecontainer.api.type.v1 import route_pb2
from onecontainer.errors import (
    BackendUnreachable,
    CapabilityMissing,
    Code,
    CredentialsInvalid,
    DataInvalid,
    DeadlineExceeded,
    DriverExecutionFailed,
    DriverUnreachable,
    FieldInvalid,
    FieldRequired,
    MessageTooLarge,
    MethodUnknown,
    ModelNotFound,
    OneContainerError,
    ResourceNotFound,
)
from onecontainer.gateway.relay import Relay
from onecontainer.rpc import status
from onecontainer.rpc.channel import open_channel, server_options
from onecontainer.rpc.server import StaticTokens
from onecontainer.rpc.writing import send_all
from onecontainer.sidecars.model import Endpoint
from tests.fakes.routes import FakeLongRunning, FakeMethod, FakeRouter
from tests.fixtures.sending import sending

CAT = route_pb2.Route(service="services/cat").SerializeToString()
LIMIT = 1024 * 1024
FORWARDED = (("onecontainer-forwarded-by", "gateways/here"),)
THERE = route_pb2.Route(service="services/there").SerializeToString()
SHAPES = {"Unary": (False, False), "Down": (False, True), "Up": (True, False), "Both": (True, True)}


class Sidecar:
    """Echoes, and does what its metadata `do` says."""

    def __init__(self) -> None:
        self.metadata: dict[str, str | bytes] = {}
        self.remaining: float | None = None
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.read = 0

    async def _do(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        self.remaining = context.time_remaining()
        self.entered.set()
        what = self.metadata.get("do")
        if what == "hang":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        elif what == "fail":
            error = ModelNotFound("no such model", metadata={"model": "x"}, retry_after=2.5)
            await status.abort(context, error, hop="backend")
        elif what == "away":
            await status.abort(context, BackendUnreachable("no route to the backend"), hop="backend")
        elif what == "crash":
            raise RuntimeError("a driver without manners")
        context.set_trailing_metadata((("said-last", "bye"),))
        await context.send_initial_metadata((("said-first", "hello"),))

    async def unary(self, request: bytes, context: Any) -> bytes:
        await self._do(context)
        return request

    async def down(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        await self._do(context)
        for index in range(3):
            yield request + bytes([index])

    async def up(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        await self._do(context)
        parts = [part async for part in requests]
        return b"|".join(parts)

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await self._do(context)
        async for part in requests:
            self.read += 1
            yield part


class Bench:
    """A sidecar, a relay before it, and a client of the relay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sidecar = Sidecar()
        self.long_calls: list[tuple[str, str, bytes, str]] = []
        methods = {
            f"test.Echo/{name}": FakeMethod(f"test.Echo/{name}", client_streaming=up, server_streaming=down)
            for name, (up, down) in SHAPES.items()
        }
        methods["test.Echo/Long"] = FakeMethod("test.Echo/Long", long_running=FakeLongRunning())
        methods["test.Echo/Missing"] = FakeMethod("test.Echo/Missing")
        self.router = FakeRouter(dict(methods))
        self.tokens: dict[str, str] = {"s3cret": "alice"}
        self.anonymous: str | None = "local"

    async def __aenter__(self) -> Bench:
        self.stack = AsyncExitStack()
        self.backend = grpc.aio.server(options=server_options())
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.sidecar.unary),
            "Down": grpc.unary_stream_rpc_method_handler(self.sidecar.down),
            "Up": grpc.stream_unary_rpc_method_handler(self.sidecar.up),
            "Both": grpc.stream_stream_rpc_method_handler(self.sidecar.both),
        }
        self.backend.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
        target = f"unix:{self.folder}/backend"
        self.backend.add_insecure_port(target)
        await self.backend.start()
        self.stack.push_async_callback(self.backend.stop, None)
        channel = open_channel(target)
        self.stack.push_async_callback(channel.close)
        own = (("authorization", "Bearer of-the-instance"), ("onecontainer-instance", "sidecars/cat-1"))
        implemented = frozenset(f"test.Echo/{name}" for name in (*SHAPES, "Long"))
        self.router.endpoints = {
            "services/cat": Endpoint("sidecars/cat-1", channel, own, implemented, LIMIT),
            "services/new": None,
            # Another gateway has this one's sidecar.
            "services/there": Endpoint("sidecars/there-1", channel, FORWARDED, implemented, LIMIT, forwards=True),
        }

        async def long_call(service: str, method: str, request: bytes, call: Any) -> bytes:
            self.long_calls.append((service, method, request, call.principal))
            return b"the job"

        relay = Relay(
            self.router,
            StaticTokens(self.tokens, self.anonymous),
            long_call,
            max_message_bytes=LIMIT,
            unary_timeout=60.0,
        )
        front = grpc.aio.server(options=server_options(LIMIT))
        front.add_generic_rpc_handlers((relay,))
        front.add_insecure_port(f"unix:{self.folder}/front")
        await front.start()
        self.stack.push_async_callback(front.stop, None)
        self.client = open_channel(f"unix:{self.folder}/front")
        self.stack.push_async_callback(self.client.close)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stack.aclose()

    async def call(self, name: str, *messages: bytes, timeout: float | None = 120, **metadata: str) -> list[bytes]:
        """All responses of a call of any shape; raises the typed error."""
        rpc = self.start(name, *messages, timeout=timeout, **metadata)
        try:
            if SHAPES.get(name, (False, False))[1]:
                return [response async for response in rpc]
            return [await rpc]
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None

    def start(self, name: str, *messages: bytes, timeout: float | None = 120, **metadata: str) -> Any:
        up, down = SHAPES.get(name, (False, False))
        make: Any = getattr(self.client, f"{'stream' if up else 'unary'}_{'stream' if down else 'unary'}")
        sent = [(key.replace("_", "-"), value) for key, value in metadata.items()]
        if up:
            return sending(make(f"/test.Echo/{name}")(timeout=timeout, metadata=sent), messages)
        return make(f"/test.Echo/{name}")(messages[0], timeout=timeout, metadata=sent)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Bench(tmp_path) as ready:
        yield ready


@pytest.mark.parametrize(
    ("name", "sent", "expected"),
    [
        ("Unary", [CAT], [CAT]),
        ("Down", [CAT], [CAT + b"\0", CAT + b"\1", CAT + b"\2"]),
        ("Up", [CAT, b"two", b"three"], [CAT + b"|two|three"]),
        ("Both", [CAT, b"two"], [CAT, b"two"]),
    ],
)
async def test_bytes_pass_unchanged_in_every_shape(
    bench: Bench, name: str, sent: list[bytes], expected: list[bytes]
) -> None:
    assert await bench.call(name, *sent) == expected


@pytest.mark.parametrize("name", list(SHAPES))
async def test_metadata_passes_on_but_not_credentials(bench: Bench, name: str) -> None:
    sent = {
        "traceparent": "00-1-2-03",
        "x_own": "1",
        "onecontainer_principal": "root",
        "onecontainer_instance": "other",
    }
    rpc = bench.start(name, CAT, **sent)
    responses = [item async for item in rpc] if SHAPES[name][1] else [await rpc]
    assert responses
    seen = bench.sidecar.metadata
    assert seen["traceparent"] == "00-1-2-03"
    assert seen["x-own"] == "1"
    assert seen["onecontainer-principal"] == "local"
    assert seen["onecontainer-instance"] == "sidecars/cat-1"
    assert seen["onecontainer-service"] == "services/cat"
    assert seen["authorization"] == "Bearer of-the-instance"
    assert ("said-last", "bye") in tuple(await rpc.trailing_metadata())
    assert ("said-first", "hello") in tuple(await rpc.initial_metadata())


@pytest.mark.parametrize("name", list(SHAPES))
async def test_to_another_gateway_a_call_goes_with_its_callers_credentials(bench: Bench, name: str) -> None:
    """It authenticates the caller itself; whom this one took him for is not for it."""
    await bench.call(name, THERE, authorization="Bearer s3cret", onecontainer_principal="root", x_own="1")
    seen = bench.sidecar.metadata
    assert seen["authorization"] == "Bearer s3cret"
    assert seen["onecontainer-forwarded-by"] == "gateways/here"
    assert seen["onecontainer-service"] == "services/there"
    assert seen["x-own"] == "1"
    assert "onecontainer-principal" not in seen
    assert "onecontainer-instance" not in seen
    # Nor does it take for its own machine's user whom a front has called a stranger.
    await bench.call(name, THERE, authorization="Bearer s3cret", onecontainer_strangers="true")
    assert bench.sidecar.metadata["onecontainer-strangers"] == "true"
    await bench.call(name, CAT, authorization="Bearer s3cret", onecontainer_strangers="true")
    assert "onecontainer-strangers" not in bench.sidecar.metadata


@pytest.mark.parametrize("name", list(SHAPES))
async def test_a_call_from_another_gateway_goes_to_no_third_one(bench: Bench, name: str) -> None:
    with pytest.raises(DriverUnreachable, match="changing hands") as raised:
        await bench.call(name, THERE, authorization="Bearer s3cret", onecontainer_forwarded_by="gateways/other")
    assert raised.value.retry_after
    # A sidecar of this gateway does not learn of the hop.
    await bench.call(name, CAT, authorization="Bearer s3cret", onecontainer_forwarded_by="gateways/other")
    assert "onecontainer-forwarded-by" not in bench.sidecar.metadata


@pytest.mark.parametrize("name", list(SHAPES))
async def test_a_typed_error_comes_through_with_its_details(bench: Bench, name: str) -> None:
    with pytest.raises(ModelNotFound) as raised:
        await bench.call(name, CAT, do="fail")
    assert raised.value.metadata["hop"] == "backend"
    assert raised.value.metadata["model"] == "x"
    assert raised.value.retry_after == 2.5


@pytest.mark.parametrize("name", list(SHAPES))
async def test_a_backend_that_a_call_finds_away_is_doubted(bench: Bench, name: str) -> None:
    endpoint = bench.router.endpoints["services/cat"]
    assert endpoint is not None
    with pytest.raises(ModelNotFound):
        await bench.call(name, CAT, do="fail")
    assert not endpoint.doubt.is_set()
    with pytest.raises(BackendUnreachable):
        await bench.call(name, CAT, do="away")
    assert endpoint.doubt.is_set()


@pytest.mark.parametrize("name", ["Up", "Both"])
async def test_an_error_comes_through_while_the_client_still_sends(bench: Bench, name: str) -> None:
    """The gateway's own write to the sidecar fails then, and must not take the place of the sidecar's answer."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield CAT

    make: Any = bench.client.stream_stream if name == "Both" else bench.client.stream_unary
    for _ in range(20):
        rpc = make(f"/test.Echo/{name}")(timeout=120, metadata=[("do", "fail")])
        await send_all(rpc, endless())
        with pytest.raises(ModelNotFound):
            await _typed(rpc.read() if name == "Both" else _await(rpc))


async def _typed(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error) from None


@pytest.mark.parametrize("name", list(SHAPES))
async def test_an_untyped_failure_is_explained(bench: Bench, name: str) -> None:
    with pytest.raises(DriverExecutionFailed) as raised:
        await bench.call(name, CAT, do="crash")
    assert raised.value.metadata["service"] == "services/cat"
    assert raised.value.metadata["driver"] == "drivers/test-1.0"
    assert raised.value.metadata["legacy_code"] == "202"


@pytest.mark.parametrize("name", list(SHAPES))
async def test_cancellation_reaches_the_sidecar(bench: Bench, name: str) -> None:
    rpc = bench.start(name, CAT, do="hang")
    waiting = asyncio.ensure_future(rpc.read() if SHAPES[name][1] else _await(rpc))
    await bench.sidecar.entered.wait()
    rpc.cancel()
    async with asyncio.timeout(60):
        await bench.sidecar.cancelled.wait()
        await asyncio.gather(waiting, return_exceptions=True)


async def _await(rpc: Any) -> Any:
    return await rpc


@pytest.mark.parametrize("name", list(SHAPES))
async def test_the_deadline_is_passed_on_a_little_shorter_and_kept(bench: Bench, name: str) -> None:
    for timeout in (0.5, 5.0, 50.0):  # as long as it takes this machine to reach the sidecar at all
        with pytest.raises(DeadlineExceeded) as raised:
            await bench.call(name, CAT, timeout=timeout, do="hang")
        assert raised.value.code == Code.DEADLINE_EXCEEDED
        if bench.sidecar.remaining is not None:
            break
    assert bench.sidecar.remaining is not None
    assert bench.sidecar.remaining < timeout


async def test_a_unary_call_without_a_deadline_gets_one(bench: Bench) -> None:
    await bench.call("Unary", CAT, timeout=None)
    assert bench.sidecar.remaining is not None
    assert bench.sidecar.remaining <= 61


@pytest.mark.parametrize("name", ["Down", "Up", "Both"])
async def test_a_stream_without_a_deadline_has_none(bench: Bench, name: str) -> None:
    await bench.call(name, CAT, timeout=None)
    assert bench.sidecar.remaining is None or bench.sidecar.remaining > 10**6


@pytest.mark.parametrize("name", list(SHAPES))
async def test_a_dead_sidecar_is_unavailable_and_says_when_to_retry(bench: Bench, name: str) -> None:
    await bench.backend.stop(None)
    with pytest.raises(DriverUnreachable) as raised:
        await bench.call(name, CAT)
    assert raised.value.code == Code.UNAVAILABLE
    assert raised.value.retry_after is not None


@pytest.mark.parametrize("name", list(SHAPES))
async def test_a_sidecar_that_dies_in_a_call(bench: Bench, name: str) -> None:
    calling = asyncio.ensure_future(bench.call(name, CAT, do="hang"))
    await bench.sidecar.entered.wait()
    await bench.backend.stop(None)
    with pytest.raises(DriverUnreachable):
        await calling


@pytest.mark.parametrize("name", list(SHAPES))
async def test_refusals_before_the_sidecar(bench: Bench, name: str) -> None:
    nobody = route_pb2.Route(service="services/nobody").SerializeToString()
    starting = route_pb2.Route(service="services/new").SerializeToString()
    with pytest.raises(ResourceNotFound):
        await bench.call(name, nobody)
    with pytest.raises(DriverUnreachable):
        await bench.call(name, starting)
    with pytest.raises(FieldRequired) as required:
        await bench.call(name, b"")
    assert required.value.violations[0].field == "service"
    with pytest.raises(DataInvalid):
        await bench.call(name, b"\xff\xff")
    assert not bench.sidecar.entered.is_set()


async def test_the_route_is_the_last_field_1_on_the_wire(bench: Bench) -> None:
    nobody = route_pb2.Route(service="services/nobody").SerializeToString()
    assert await bench.call("Unary", nobody + b"\x1a\x03abc" + CAT) == [nobody + b"\x1a\x03abc" + CAT]
    with pytest.raises(ResourceNotFound):
        await bench.call("Unary", CAT + nobody)


async def test_the_metadata_names_the_service_too(bench: Bench) -> None:
    assert await bench.call("Unary", b"", onecontainer_service="services/cat") == [b""]
    assert await bench.call("Both", b"x", onecontainer_service="services/cat") == [b"x"]
    assert await bench.call("Both", onecontainer_service="services/cat") == []
    with pytest.raises(FieldInvalid) as raised:
        await bench.call("Unary", CAT, onecontainer_service="services/dog")
    assert raised.value.violations[0].field == "service"


async def test_an_empty_stream_without_metadata_names_no_service(bench: Bench) -> None:
    with pytest.raises(FieldRequired):
        await bench.call("Up")


async def test_a_method_nobody_has_and_one_this_driver_lacks(bench: Bench) -> None:
    with pytest.raises(MethodUnknown):
        await bench.call("Nothing", CAT)
    with pytest.raises(CapabilityMissing):
        await bench.call("Missing", CAT)


async def test_a_message_over_the_limit_names_the_way_out(bench: Bench) -> None:
    big = CAT + b"\x1a" + b"\x80\x80\x40" + bytes(LIMIT)
    with pytest.raises(MessageTooLarge) as raised:
        await bench.call("Unary", big)
    assert "artifact" in raised.value.message
    assert raised.value.metadata["limit_bytes"] == str(LIMIT)


async def test_a_long_running_method_becomes_a_job_and_names_its_service(bench: Bench) -> None:
    assert await bench.call("Long", CAT) == [b"the job"]
    assert await bench.call("Long", b"", onecontainer_service="services/cat") == [b"the job"]
    assert bench.long_calls == [("services/cat", "test.Echo/Long", CAT, "local")] * 2


async def test_back_pressure_reaches_the_client_of_a_stream(bench: Bench) -> None:
    """A client that does not read stops the sidecar from reading on, after what the buffers hold."""
    big = bytes(256 * 1024)
    rpc: Any = bench.client.stream_stream("/test.Echo/Both")(metadata=[("onecontainer-service", "services/cat")])
    written = 0
    try:
        async with asyncio.timeout(2):
            for _ in range(2000):
                await rpc.write(big)
                written += 1
    except TimeoutError:
        pass
    assert written < 1000
    rpc.cancel()


async def test_credentials(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.tokens, bench.anonymous = {"s3cret": "alice"}, None
    async with bench:
        for name in SHAPES:
            with pytest.raises(CredentialsInvalid):
                await bench.call(name, CAT)
            with pytest.raises(CredentialsInvalid):
                await bench.call(name, CAT, authorization="Bearer wrong")
            await bench.call(name, CAT, authorization="Bearer s3cret")
            assert bench.sidecar.metadata["onecontainer-principal"] == "alice"


def test_statuses_without_our_details_are_typed_by_their_code() -> None:
    error = status.from_status(status_pb2.Status(code=5, message="gone"))
    assert isinstance(error, OneContainerError)
    assert isinstance(error, ResourceNotFound)
    info = error_details_pb2.ErrorInfo(reason="QUOTA", domain="example.com")
    foreign = status_pb2.Status(code=8, message="quota")
    foreign.details.add().Pack(info)
    assert status.from_status(foreign).code == Code.RESOURCE_EXHAUSTED
