"""service_handler over a real socket, for each of the four call shapes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from onecontainer.api.type.v1 import route_pb2
from onecontainer.errors import Code, CredentialsInvalid, Draining, FieldInvalid, OneContainerError, Reason
from onecontainer.rpc.channel import open_channel, server_options
from onecontainer.rpc.server import StaticTokens, current_call, service_handler
from onecontainer.rpc.status import from_rpc_error
from tests.fixtures.sending import sending

SHAPES = {"Unary": (False, False), "Down": (False, True), "Up": (True, False), "Both": (True, True)}
Route = route_pb2.Route


def descriptor() -> Any:
    """A service with a method of each shape, and one that nobody implements."""
    file = descriptor_pb2.FileDescriptorProto(
        name="test/shapes.proto", package="test.shapes", dependency=["onecontainer/api/type/v1/route.proto"]
    )
    service = file.service.add(name="Shapes")
    for name, (up, down) in {**SHAPES, "Missing": (False, False)}.items():
        message = ".onecontainer.api.type.v1.Route"
        service.method.add(
            name=name, input_type=message, output_type=message, client_streaming=up, server_streaming=down
        )
    pool = descriptor_pool.DescriptorPool()
    for dependency in (route_pb2.DESCRIPTOR.dependencies[0].dependencies[0], *route_pb2.DESCRIPTOR.dependencies):
        pool.AddSerializedFile(dependency.serialized_pb)
    pool.AddSerializedFile(route_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("test.shapes.Shapes")


class Servicer:
    """Does what the first request says."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cleaned_up = asyncio.Event()
        self.principals: list[str] = []

    async def _do(self, what: str) -> Any:
        self.principals.append(current_call().principal)
        self.entered.set()
        try:
            if what == "typed":
                raise FieldInvalid("a.b", "is wrong")
            if what == "defect":
                raise RuntimeError("hunter2")
            if what == "cancelled":
                raise asyncio.CancelledError
            if what == "hang":
                await asyncio.Event().wait()
            return Route(service=f"{what}!")
        finally:
            self.cleaned_up.set()

    async def Unary(self, request: Any, context: Any) -> Any:
        return await self._do(request.service)

    async def Down(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            self.cleaned_up.clear()
            yield Route(service="first")
            yield await self._do(request.service)
        finally:
            self.cleaned_up.set()

    async def Up(self, requests: AsyncIterator[Any], context: Any) -> Any:
        return await self._do((await anext(aiter(requests))).service)

    async def Both(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        yield Route(service="first")
        async for request in requests:
            yield await self._do(request.service)


class Client:
    """Calls of each shape, the same way."""

    def __init__(self, channel: grpc.aio.Channel, servicer: Servicer) -> None:
        self.channel = channel
        self.servicer = servicer

    def call(self, shape: str, what: str, **arguments: Any) -> Any:
        up, down = SHAPES.get(shape, (False, False))
        kinds = (("unary_unary", "unary_stream"), ("stream_unary", "stream_stream"))
        make = getattr(self.channel, kinds[up][down])
        multicallable = make(
            f"/test.shapes.Shapes/{shape}",
            request_serializer=Route.SerializeToString,
            response_deserializer=Route.FromString,
        )
        if up:
            return sending(multicallable(timeout=120, **arguments), [Route(service=what)])
        return multicallable(Route(service=what), timeout=120, **arguments)

    async def ask(self, shape: str, what: str, **arguments: Any) -> str:
        call = self.call(shape, what, **arguments)
        if SHAPES.get(shape, (False, False))[1]:
            return [response.service async for response in call][-1]
        return str((await call).service)

    async def failure(self, shape: str, what: str, **arguments: Any) -> OneContainerError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.ask(shape, what, **arguments)
        return from_rpc_error(caught.value)


@pytest.fixture
async def refusing() -> dict[str, BaseException]:
    return {}


@pytest.fixture
async def client(tmp_path: Path, refusing: dict[str, BaseException]) -> AsyncIterator[Client]:
    servicer = Servicer()
    server = grpc.aio.server(options=server_options())
    tokens = StaticTokens({"s3cret": "bob"}, anonymous=None)
    server.add_generic_rpc_handlers(
        (service_handler(servicer, descriptor(), tokens, hop="sidecar", unless=refusing.get),)
    )
    server.add_insecure_port(f"unix:{tmp_path}/s.sock")
    await server.start()
    async with open_channel(f"unix:{tmp_path}/s.sock") as channel:
        yield Client(channel, servicer)
    await server.stop(None)


GOOD = {"metadata": (("authorization", "Bearer s3cret"),)}
shapes = pytest.mark.parametrize("shape", list(SHAPES))


@shapes
async def test_answers_and_knows_who_asked(client: Client, shape: str) -> None:
    assert await client.ask(shape, "hello", **GOOD) == "hello!"
    assert client.servicer.principals == ["bob"]


@shapes
@pytest.mark.parametrize(
    "metadata",
    [(), (("authorization", "Bearer wrong"),), (("authorization", "Basic s3cret"),), (("authorization", "Bearer "),)],
)
async def test_without_credentials_the_handler_is_not_entered(
    client: Client, shape: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    error = await client.failure(shape, "hello", metadata=metadata)
    assert isinstance(error, CredentialsInvalid)
    assert error.hop == "sidecar"
    assert client.servicer.principals == []


def test_a_stranger_is_not_taken_for_somebody_of_this_machine() -> None:
    tokens = StaticTokens({"s3cret": "bob"}, anonymous="local")
    assert tokens.authenticate(()).principal == "local"
    with pytest.raises(CredentialsInvalid):
        tokens.authenticate((("onecontainer-strangers", "true"),))
    known = (("onecontainer-strangers", "true"), ("authorization", "Bearer s3cret"))
    assert tokens.authenticate(known).principal == "bob"


@shapes
async def test_a_typed_error_comes_with_all_it_has(client: Client, shape: str) -> None:
    error = await client.failure(shape, "typed", **GOOD)
    assert isinstance(error, FieldInvalid)
    assert error.violations[0].field == "a.b"
    assert error.hop == "sidecar"


@shapes
async def test_a_defect_is_internal_and_keeps_its_text(client: Client, shape: str) -> None:
    error = await client.failure(shape, "defect", **GOOD)
    assert error.reason is Reason.INTERNAL
    assert "hunter2" not in str(error)


@shapes
async def test_a_cancelled_error_inside_a_handler_does_not_hang_the_client(client: Client, shape: str) -> None:
    assert (await client.failure(shape, "cancelled", **GOOD)).code is Code.CANCELLED


@shapes
async def test_a_client_that_cancels_ends_the_handler(client: Client, shape: str) -> None:
    call = client.call(shape, "hang", **GOOD)
    reading = asyncio.ensure_future(anext(aiter(call)) if SHAPES[shape][1] else call)
    if SHAPES[shape][1]:
        await reading
        reading = asyncio.ensure_future(anext(aiter(call)))
    await client.servicer.entered.wait()
    call.cancel()
    await client.servicer.cleaned_up.wait()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_stream_that_its_client_leaves_cleans_up_behind_it(client: Client) -> None:
    call = client.call("Down", "hang", **GOOD)
    async for _ in call:
        await client.servicer.entered.wait()
        break
    call.cancel()
    await client.servicer.cleaned_up.wait()


@shapes
async def test_what_is_refused_is_not_entered(client: Client, refusing: dict[str, BaseException], shape: str) -> None:
    refusing[f"test.shapes.Shapes/{shape}"] = Draining("the gateway stops", retry_after=2.0)
    error = await client.failure(shape, "hello", **GOOD)
    assert (error.reason, error.retry_after) == (Reason.DRAINING, 2.0)
    assert not client.servicer.entered.is_set()


async def test_a_method_that_the_servicer_does_not_have_is_unimplemented(client: Client) -> None:
    assert (await client.failure("Missing", "hello", **GOOD)).code is Code.UNIMPLEMENTED


async def test_a_long_text_in_another_script_arrives_with_its_reason(tmp_path: Path) -> None:
    class Wordy:
        async def Unary(self, request: Any, context: Any) -> Any:
            raise FieldInvalid(
                "feld", "ü" * 500, message="漢字" * 4000, metadata={f"k{n}": "é" * 500 for n in range(40)}
            )

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service_handler(Wordy(), descriptor(), StaticTokens({}, "ann")),))
    server.add_insecure_port(f"unix:{tmp_path}/w.sock")
    await server.start()
    # A client with gRPC's own limits, which are 8 KiB for all trailers.
    async with grpc.aio.insecure_channel(
        f"unix:{tmp_path}/w.sock",
        options=[("grpc.default_authority", "localhost"), ("grpc.absolute_max_metadata_size", 8 * 1024)],
    ) as channel:
        error = await Client(channel, Servicer()).failure("Unary", "x")
    await server.stop(None)
    assert isinstance(error, FieldInvalid)
    assert error.message.startswith("漢字")
    assert error.violations[0].field == "feld"
