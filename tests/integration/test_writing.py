"""Whatever a client writes while the server ends the call, it sees the server's status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from onecontainer.rpc.writing import send_all, write


async def refuse(requests: AsyncIterator[bytes], context: Any) -> bytes:
    await anext(aiter(requests))
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    raise AssertionError


async def count(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return str(sum([len(request) async for request in requests])).encode()


async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        if request == b"stop":
            await context.abort(grpc.StatusCode.ABORTED, "stopped")
        yield request


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    handlers = {
        "Refuse": grpc.stream_unary_rpc_method_handler(refuse),
        "Count": grpc.stream_unary_rpc_method_handler(count),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.T", handlers)])
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        yield channel
    await server.stop(None)


async def endless(data: bytes) -> AsyncIterator[bytes]:
    while True:
        yield data


@pytest.mark.parametrize("size", [1, 1 << 16, 1 << 20])
async def test_a_refusal_arrives(channel: grpc.aio.Channel, size: int) -> None:
    for _ in range(30):
        call = channel.stream_unary("/t.T/Refuse")()
        await send_all(call, endless(bytes(size)))
        with pytest.raises(grpc.aio.AioRpcError, match="full") as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method_is_unknown(channel: grpc.aio.Channel) -> None:
    for _ in range(30):
        call = channel.stream_unary("/t.T/Nothing")()
        await send_all(call, endless(b"x"))
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_all_arrives(channel: grpc.aio.Channel) -> None:
    async def requests() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"xyz"

    call = channel.stream_unary("/t.T/Count")()
    await send_all(call, requests())
    assert await call == b"300"


async def test_both_ways(channel: grpc.aio.Channel) -> None:
    for _ in range(30):
        call = channel.stream_stream("/t.T/Echo")()
        assert await write(call, b"one")
        assert await call.read() == b"one"
        assert await write(call, b"stop")
        while await write(call, b"more"):
            pass
        assert await call.code() is grpc.StatusCode.ABORTED
        assert await call.details() == "stopped"
        assert not await write(call, b"more")


async def test_an_error_of_the_source_is_raised_and_ends_the_call(channel: grpc.aio.Channel) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise FileNotFoundError("gone")

    call = channel.stream_unary("/t.T/Count")()
    with pytest.raises(FileNotFoundError):
        await send_all(call, broken())
    assert call.cancelled()


async def test_cancel_ends_the_call(channel: grpc.aio.Channel) -> None:
    asked = asyncio.Event()

    async def waits() -> AsyncIterator[bytes]:
        yield b"x"
        asked.set()
        await asyncio.Event().wait()

    call = channel.stream_unary("/t.T/Count")()
    task = asyncio.create_task(send_all(call, waits()))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.cancelled()


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/nobody") as channel:
        call = channel.stream_unary("/t.T/Count")(timeout=60)
        await asyncio.wait_for(send_all(call, endless(b"x")), 120)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
