"""Waiting for what the wire tells of only when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
ASK_AGAIN_SECONDS = 0.1


async def until(question: Callable[[], Awaitable[T | None]], seconds: float) -> T | None:
    """The first answer that is not None; None if there is none in time. What the question raises comes out."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        found = await question()
        if found is not None or loop.time() >= end:
            return found
        await asyncio.sleep(ASK_AGAIN_SECONDS)
