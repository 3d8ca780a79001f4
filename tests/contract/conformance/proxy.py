"""Stands between two that talk gRPC and passes all on as bytes, but for what a fault does to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import status_pb2

from onecontainer.errors import OneContainerError
from onecontainer.rpc.channel import open_channel, server_options
from onecontainer.rpc.status import GRPC_CODES, Code, details_of, to_status, trailers
from onecontainer.rpc.writing import write

LIMIT = 256 * 1024 * 1024
RESERVED = ("user-agent", "grpc-", "te", "content-type", ":")


@dataclass
class Told:
    """What a call has shown so far."""

    method: str
    metadata: dict[str, str]
    first: bytes = b""


class Faults:
    """What is done to what passes through; this base passes everything on as it is."""

    def metadata(self, told: Told) -> dict[str, str]:
        return told.metadata

    def request(self, told: Told, data: bytes) -> bytes:
        return data

    def instead(self, told: Told) -> OneContainerError | status_pb2.Status | Sequence[bytes] | None:
        """An answer that the proxy gives itself, once it knows the first request: an error, a status as it is, or responses.

        None: it is asked behind it.
        """
        return None

    def responses(self, told: Told, data: bytes) -> Sequence[bytes]:
        return (data,)

    def error(self, told: Told, status: status_pb2.Status) -> status_pb2.Status | Sequence[bytes]:
        """The status of a call that failed, or responses instead of it."""
        return status

    def lives_on(self, told: Told, *, late: bool) -> bool:
        """Whether a call goes on behind the proxy when its caller has gone. `late`: by its deadline."""
        return False


@dataclass
class Proxy:
    """Listens at `listen`, passes on to `target`. An async context manager."""

    listen: str
    target: str
    faults: Faults
    _server: Any = field(default=None, init=False)
    _channel: Any = field(default=None, init=False)
    _left: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    async def __aenter__(self) -> Proxy:
        self._channel = open_channel(self.target, max_message_bytes=LIMIT)
        self._server = grpc.aio.server(options=server_options(LIMIT))
        self._server.add_generic_rpc_handlers((_Handler(self._call),))
        self._server.add_insecure_port(self.listen)
        await self._server.start()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for task in self._left:
            task.cancel()
        await asyncio.gather(*self._left, return_exceptions=True)
        await self._server.stop(None)
        await self._channel.close()

    async def _call(self, method: str, context: Any) -> None:
        values = {key: value for key, value in context.invocation_metadata() or () if not key.startswith(RESERVED)}
        told = Told(method, values)
        first = await context.read()
        told.first = b"" if first is grpc.aio.EOF else first
        answer = self.faults.instead(told)
        if isinstance(answer, OneContainerError):
            answer = to_status(answer, hop="sidecar")
        if isinstance(answer, status_pb2.Status):
            await _end(context, answer)
            return
        if answer is not None:
            for data in answer:
                await context.write(data)
            return
        await self._pass(told, first, context)

    async def _pass(self, told: Told, first: Any, context: Any) -> None:
        remaining = context.time_remaining()
        stays = self.faults.lives_on(told, late=True) or self.faults.lives_on(told, late=False)
        call = self._channel.stream_stream(f"/{told.method}")(
            metadata=tuple(self.faults.metadata(told).items()), timeout=None if stays else remaining
        )
        # Tasks of their own: a cancelled `read` would cancel the call, and that is for the fault to say.
        pump = asyncio.create_task(self._pump(told, first, context, call))
        relay = asyncio.create_task(self._relay(told, context, call))
        try:
            await asyncio.shield(relay)
        except asyncio.CancelledError:
            late = remaining is not None and (context.time_remaining() or 0) <= 0.05
            if self.faults.lives_on(told, late=late):
                self._left |= {relay, pump}
                raise
            call.cancel()
            pump.cancel()
            await asyncio.gather(relay, pump, return_exceptions=True)
            raise
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        code = await call.code()
        if code.value[0]:
            trailing = tuple(await call.trailing_metadata() or ())
            status = details_of(trailing) or status_pb2.Status(code=code.value[0], message=await call.details() or "")
            instead = self.faults.error(told, status)
            if isinstance(instead, status_pb2.Status):
                await _end(context, instead, code)
            else:
                for one in instead:
                    await context.write(one)

    async def _relay(self, told: Told, context: Any, call: Any) -> None:
        try:
            while (data := await call.read()) is not grpc.aio.EOF:
                for one in self.faults.responses(told, data):
                    await context.write(one)
        except grpc.aio.AioRpcError:
            return

    async def _pump(self, told: Told, first: Any, context: Any, call: Any) -> None:
        data = first
        while data is not grpc.aio.EOF:
            # gRPC's own write makes INTERNAL of an end that comes before it.
            if not await write(call, self.faults.request(told, data)):
                return
            data = await context.read()
        await call.done_writing()


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, call: Callable[[str, Any], Awaitable[None]]) -> None:
        self._call = call

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method.removeprefix("/")

        async def handle(_requests: Any, context: Any) -> None:
            await self._call(method, context)

        return grpc.stream_stream_rpc_method_handler(handle)


async def _end(context: Any, status: status_pb2.Status, code: grpc.StatusCode | None = None) -> None:
    """Ends the call as it is, without the bound that the SDK puts on errors."""
    details = trailers(status) if status.details else ()
    await context.abort(code or GRPC_CODES[Code(status.code)], status.message[:200], details)
