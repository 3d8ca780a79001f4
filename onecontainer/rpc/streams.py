"""The end of a client's stream, told from a call that breaks off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

TURNS = 8
"""Turns of the loop until a cancellation that has come out of gRPC's queue has reached the handler's task, and some to spare."""


async def confirm_end(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Call it at the end of the requests, before their completeness means anything.

    In grpc.aio a call that is cancelled half-way first reads exactly like one whose caller has said all: a handler would take
    half of an upload for the whole, each time. But then the cancellation is in gRPC's event queue already; so whatever is read
    next comes behind it, and a few turns later the handler's own task has its CancelledError.
    """
    await context.read()
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def confirmed(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
    """The same requests; its end is an end."""
    async for request in requests:
        yield request
    await confirm_end(context)
