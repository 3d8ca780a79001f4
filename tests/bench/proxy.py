"""The reference of bench-relay: the least that a raw-bytes gRPC proxy in Python can be, and still be one.

It forwards bytes, metadata, deadline, status with details, and cancellation. It has one target, no route, no
authentication, no limits, no typed errors: what a gateway adds is measured against this.

    python -m tests.bench.proxy LISTEN TARGET
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc

from onecontainer.rpc.channel import channel_options, server_options


class Proxy(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._handlers: dict[str, Any] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        handler = self._handlers.get(details.method)
        if handler is None:
            handler = self._handlers[details.method] = self._make(details.method)
        return handler

    def _make(self, path: str) -> Any:
        if path.rpartition("/")[2] in ("Down", "Both", "Up"):
            onward = self._channel.stream_stream(path)

            async def stream(requests: Any, context: Any) -> Any:
                call = onward(requests, timeout=context.time_remaining(), metadata=_metadata(context))
                try:
                    async for response in call:
                        yield response
                except grpc.aio.AioRpcError as error:
                    await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))
                except asyncio.CancelledError:
                    call.cancel()
                    raise
                context.set_trailing_metadata(tuple(await call.trailing_metadata()))

            return grpc.stream_stream_rpc_method_handler(stream)
        unary_onward = self._channel.unary_unary(path)

        async def unary(request: bytes, context: Any) -> bytes | None:
            call = unary_onward(request, timeout=context.time_remaining(), metadata=_metadata(context))
            try:
                response: bytes = await call
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))
                return None
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            return response

        return grpc.unary_unary_rpc_method_handler(unary)


def _metadata(context: Any) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in context.invocation_metadata() if key != "user-agent"]


async def main(listen: str, target: str) -> None:
    async with grpc.aio.insecure_channel(target, options=channel_options()) as channel:
        server = grpc.aio.server(options=server_options())
        server.add_generic_rpc_handlers((Proxy(channel),))
        server.add_insecure_port(listen)
        await server.start()
        print("READY", flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
