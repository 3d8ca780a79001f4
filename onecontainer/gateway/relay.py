"""The byte relay: service-API calls of all four shapes go to the sidecar as they come, and back.

The gateway knows no vertical. It reads a call's route, never its payload, and calls the same method on the sidecar with the
same bytes, passing on metadata, the deadline less a margin, cancellation, status with details, and back-pressure on streams. What it knows
of methods comes from the drivers' descriptor sets (`Router`).

Nothing is retried here: who may repeat a call is its caller, by the method's idempotency.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from onecontainer.api.type.v1 import route_pb2
from onecontainer.catalog.methods import MethodRoute
from onecontainer.errors import (
    CapabilityMissing,
    DataInvalid,
    FieldInvalid,
    FieldRequired,
    MessageTooLarge,
    MethodUnknown,
)
from onecontainer.gateway import onward
from onecontainer.gateway.foreign import service_of
from onecontainer.jobs.directory import Entry
from onecontainer.rpc.server import Authenticator, Call, Context, end, header
from onecontainer.rpc.streams import confirmed
from onecontainer.rpc.writing import send_all
from onecontainer.sidecars.model import Endpoint

SERVICE_KEY = "onecontainer-service"
Shape = tuple[bool, bool]
"""(client streams, server streams)"""

LongCall = Callable[[str, str, bytes, Call], Awaitable[bytes]]
"""Turns a long call (service, method, request, caller) into a job; gives the serialised Job."""


class Router(Protocol):
    """What the relay needs to know of services and methods."""

    def shape(self, method: str) -> Shape | None:
        """The shape of a method in any driver's descriptors; None: there is no such method."""
        ...

    def rule(self, method: str) -> MethodRoute | None:
        """How calls of the method name their service; None: by `string service = 1`."""
        ...

    def entry(self, service: str) -> Entry:
        """The service. Raises ResourceNotFound."""
        ...

    def endpoint(self, entry: Entry) -> Endpoint:
        """Its sidecar. Raises DriverNotAvailable or DriverUnreachable with the cause."""
        ...


class Relay(grpc.GenericRpcHandler):
    """Handles every method that is not the gateway's own; add it to the server after those."""

    def __init__(
        self,
        router: Router,
        authenticator: Authenticator,
        long_call: LongCall,
        *,
        max_message_bytes: int,
        unary_timeout: float = 60.0,
        margin: float = 0.05,
        unless: Callable[[str], BaseException | None] = lambda _method: None,
    ) -> None:
        """Times in seconds. ``unless(method)`` may give an error to answer with, for example while draining."""
        self._router = router
        self._authenticator = authenticator
        self._long_call = long_call
        self._limit = max_message_bytes
        self._unary_timeout = unary_timeout
        self._margin = margin
        self._unless = unless
        self._handlers: dict[tuple[str, Shape], grpc.RpcMethodHandler[Any, Any]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        path = handler_call_details.method
        shape = self._router.shape(path[1:])
        if shape is None:
            return _unknown(path[1:])
        handler = self._handlers.get((path, shape))
        if handler is None:
            handler = self._handlers[path, shape] = self._handler(path, shape)
        return handler

    def _handler(self, path: str, shape: Shape) -> grpc.RpcMethodHandler[Any, Any]:
        name = path[1:]

        async def unary(request: bytes, context: Context) -> bytes | None:
            try:
                return await self._unary(path, name, request, context)
            except BaseException as error:
                await end(context, error, hop="gateway")
                return None

        async def stream_to_unary(requests: AsyncIterator[bytes], context: Context) -> bytes | None:
            response = None
            try:
                # Read to its end: what follows the one response is the trailing metadata.
                async for message in self._stream(path, name, shape, requests, context):
                    response = message
            except BaseException as error:
                await end(context, error, hop="gateway")
            return response

        async def to_stream(requests: Any, context: Context) -> AsyncIterator[bytes]:
            try:
                async for response in self._stream(path, name, shape, requests, context):
                    yield response
            except GeneratorExit:
                raise
            except BaseException as error:
                await end(context, error, hop="gateway")

        if shape == (False, False):
            return grpc.unary_unary_rpc_method_handler(unary)
        if shape == (True, False):
            return grpc.stream_unary_rpc_method_handler(stream_to_unary)
        if shape == (False, True):
            return grpc.unary_stream_rpc_method_handler(to_stream)
        return grpc.stream_stream_rpc_method_handler(to_stream)

    # --- the two ways through ----------------------------------------------------------------------------------------

    async def _unary(self, path: str, name: str, request: bytes, context: Context) -> bytes | None:
        metadata: Any = context.invocation_metadata()
        call = self._authenticator.authenticate(metadata)
        self._admit(name, request)
        rule = self._router.rule(name)
        if rule is not None and rule.answer is not None and not header(metadata, SERVICE_KEY):
            return rule.answer
        entry = self._route(rule, request, metadata)
        method = entry.methods.get(name) if entry.methods is not None else None
        if method is not None and method.long_running is not None:
            if not named_inside(request):
                # The job's worker has the request alone, without this call's metadata.
                request += route_pb2.Route(service=entry.name).SerializeToString()
            return await self._long_call(entry.name, name, request, call)
        endpoint = self._endpoint(entry, name, metadata)
        multicallable: Any = endpoint.calls.get(path)
        if multicallable is None:
            multicallable = endpoint.calls[path] = endpoint.channel.unary_unary(path)
        remaining = onward.time_left(context)
        rpc = multicallable(
            request,
            timeout=self._unary_timeout if remaining is None else onward.shortened(remaining, self._margin),
            metadata=onward.metadata(metadata, endpoint, entry.name, call.principal),
        )
        try:
            response: bytes = await rpc
        except grpc.aio.AioRpcError as error:
            await onward.abort(context, error, entry, endpoint)
        await onward.pass_initial(context, rpc)
        await onward.pass_trailing(context, rpc)
        return response

    async def _stream(
        self, path: str, name: str, shape: Shape, requests: Any, context: Context
    ) -> AsyncIterator[bytes]:
        metadata: Any = context.invocation_metadata()
        call = self._authenticator.authenticate(metadata)
        first: bytes | None = requests if not shape[0] else None
        if shape[0] and not header(metadata, SERVICE_KEY):
            first = await anext(requests, None)
            if first is None:
                raise FieldRequired("service", "is required: in the first message, or as metadata onecontainer-service")
        self._admit(name, first)
        entry = self._route(self._router.rule(name), first, metadata)
        endpoint = self._endpoint(entry, name, metadata)
        multicallable: Any = endpoint.calls.get(path)
        if multicallable is None:
            multicallable = endpoint.calls[path] = _multicallable(endpoint.channel, path, shape)
        remaining = onward.time_left(context)
        rpc = multicallable(
            *(() if shape[0] else (first,)),
            timeout=None if remaining is None else onward.shortened(remaining, self._margin),
            metadata=onward.metadata(metadata, endpoint, entry.name, call.principal),
        )
        sender = None
        if shape[0]:
            # Unconfirmed, the sidecar would be told that a caller who breaks off has said all.
            sent = confirmed(requests, context)
            # Sent by us: given the requests, gRPC would lose the status of a sidecar that ends the call before they do.
            sender = asyncio.create_task(send_all(rpc, sent if first is None else _behind(first, sent)))
        try:
            await onward.pass_initial(context, rpc)
            if shape[1]:
                async for response in rpc:
                    yield response
            else:
                yield await rpc
        except grpc.aio.AioRpcError as error:
            await onward.abort(context, error, entry, endpoint)
        except (asyncio.CancelledError, GeneratorExit):
            rpc.cancel()
            raise
        finally:
            if sender is not None:
                sender.cancel()
                await asyncio.wait([sender])
        await onward.pass_trailing(context, rpc)

    # --- the route ---------------------------------------------------------------------------------------------------

    def _admit(self, name: str, request: bytes | None) -> None:
        refusal = self._unless(name)
        if refusal is not None:
            raise refusal
        if request is not None and len(request) > self._limit:
            raise MessageTooLarge(
                f"the message has {len(request)} bytes, the limit is {self._limit}: "
                "upload it with ArtifactService.Upload and pass the artifact's name",
                metadata={"limit_bytes": str(self._limit)},
            )

    def _route(self, rule: MethodRoute | None, request: bytes | None, metadata: Any) -> Entry:
        named = header(metadata, SERVICE_KEY)
        if rule is not None:
            return self._router.entry(named or service_of(rule, request))
        field = ""
        if request is not None:
            try:
                field = route_pb2.Route.FromString(request).service
            except DecodeError:
                raise DataInvalid("", "the request does not decode") from None
        if named and field and named != field:
            raise FieldInvalid("service", f"is {field!r}, but the metadata {SERVICE_KEY} is {named!r}")
        service = named or field
        if not service:
            raise FieldRequired("service", f"is required: in the request, or as metadata {SERVICE_KEY}")
        return self._router.entry(service)

    def _endpoint(self, entry: Entry, name: str, metadata: Any) -> Endpoint:
        endpoint = self._router.endpoint(entry)
        if endpoint.forwards:
            onward.refuse_second_hop(metadata)
        if name not in endpoint.methods:
            raise CapabilityMissing(
                f"{entry.driver}, the driver of {entry.name}, does not implement {name}; GetDriver lists what it does",
                metadata={"service": entry.name, "driver": entry.driver},
            )
        return endpoint


def named_inside(request: bytes) -> bool:
    """Whether a request names its service itself."""
    return bool(route_pb2.Route.FromString(request).service)


def _unknown(name: str) -> grpc.RpcMethodHandler[Any, Any]:
    """Refuses a method that no driver here has. A handler of this shape can refuse a call of any, without reading its messages."""

    async def refuse(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        error = MethodUnknown(f"no driver here has a method {name!r}; reflection and ListDrivers tell which there are")
        await end(context, error, hop="gateway")
        yield b""

    return grpc.stream_stream_rpc_method_handler(refuse)


def _multicallable(channel: grpc.aio.Channel, path: str, shape: Shape) -> Any:
    make = {
        (True, False): channel.stream_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }[shape]
    return make(path)


async def _behind(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for message in rest:
        yield message
