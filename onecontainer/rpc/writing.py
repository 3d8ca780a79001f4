"""Writing the requests of a streaming call without losing the server's answer.

A server may end a call while its client still writes: an upload that is refused, a method that is not there. In grpc.aio the write
that fails then overwrites the status that the server has sent with INTERNAL `Internal error from Core` (grpc #36066, still
open), and an error of the request iterator becomes a bare CancelledError. So we write ourselves.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import Any

import grpc

StreamCall = grpc.aio.StreamUnaryCall[Any, Any] | grpc.aio.StreamStreamCall[Any, Any]

# What a failed write of the core raises; grpc's public modules do not name it.
_WriteFailed: type[Exception] = importlib.import_module("grpc._cython.cygrpc").InternalError

STATUS_WAIT = 5.0
"""Seconds for the server's status to come in after a write has failed; it is on its way, except where the call never began."""


async def write(call: StreamCall, request: Any) -> bool:
    """Writes one request; returns when the transport has taken it. False: the call has ended, and its status tells why.

    The call must have been made without a request iterator.
    """
    if call.done():
        return False
    # The core's call below the public one: its write does not touch the status. Where a later grpcio has none, the defect
    # may be gone too, and the public write does.
    core: Any = getattr(call, "_cython_call", None)
    serialize: Any = getattr(call, "_request_serializer", None)
    begun: Any = getattr(call, "_metadata_sent", None)
    if core is None or begun is None or not hasattr(core, "send_serialized_message"):
        return await _public_write(call, request)
    await begun.wait()
    if call.done():
        return False
    try:
        await core.send_serialized_message(request if serialize is None else serialize(request))
    except asyncio.CancelledError:
        call.cancel()
        raise
    except _WriteFailed as error:
        try:
            await asyncio.wait_for(call.code(), STATUS_WAIT)
        except TimeoutError:
            core.set_internal_error(str(error))
        return False
    return True


async def _public_write(call: StreamCall, request: Any) -> bool:
    try:
        await call.write(request)
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return False
    return True


async def send_all(call: StreamCall, requests: AsyncIterable[Any]) -> None:
    """Writes all requests and closes the client's half. Stops early, without an error, when the call has ended.

    An error of `requests` cancels the call and is raised here.
    """
    try:
        async for request in requests:
            if not await write(call, request):
                return
        with suppress(grpc.aio.AioRpcError):
            await call.done_writing()
    except BaseException:
        call.cancel()
        raise
