"""Where a handler runs: in the loop if it is `async def`, in a thread of its own if it is plain `def`.

What is declared with `@isolated` runs in a process that can be killed: the third `Isolation` is in `onecontainer.driver.processes`.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from onecontainer.driver.context import Context
from onecontainer.driver.methods import DriverMethod

T = TypeVar("T")
Write = Callable[[Message], Awaitable[None]]


class Requests(AsyncIterator[T], Iterator[T], Generic[T]):
    """The requests of a client stream: `async for` in the loop, `for` in a handler's own thread."""

    def __init__(self, read: Callable[[], Coroutine[Any, Any, T | None]], loop: asyncio.AbstractEventLoop) -> None:
        self._read = read
        self._loop = loop

    def __aiter__(self) -> Requests[T]:
        return self

    async def __anext__(self) -> T:
        request = await self._read()
        if request is None:
            raise StopAsyncIteration
        return request

    def __iter__(self) -> Requests[T]:
        return self

    def __next__(self) -> T:
        request = asyncio.run_coroutine_threadsafe(self._read(), self._loop).result()
        if request is None:
            raise StopIteration
        return request


class Isolation(Protocol):
    """Runs a handler to its end."""

    cancellable: bool
    """Whether cancelling the task that awaits `run` ends the handler; else only `context.cancelled` reaches it."""

    async def run(self, method: DriverMethod, argument: Any, context: Context, write: Write | None) -> Any:
        """Returns the handler's response, or None after a stream whose responses went to `write`. Raises what the handler raises."""
        ...


class InLoop:
    """`async def` handlers."""

    cancellable = True

    async def run(self, method: DriverMethod, argument: Any, context: Context, write: Write | None) -> Any:
        assert method.handler is not None
        if write is None:
            return await method.handler(argument, context)
        stream = method.handler(argument, context)
        try:
            async for response in stream:
                await write(response)
        finally:
            # Its `finally` blocks run now, not when the garbage collector comes by.
            await stream.aclose()
        return None


class InThread:
    """Plain `def` handlers. A thread cannot be stopped from outside: it runs until the handler returns."""

    cancellable = False

    async def run(self, method: DriverMethod, argument: Any, context: Context, write: Write | None) -> Any:
        loop = asyncio.get_running_loop()
        handler = method.handler
        assert handler is not None
        if write is None:
            return await run_in_thread(handler, argument, context)

        def pump() -> None:
            stream = handler(argument, context)
            try:
                for response in stream:
                    # Waits until it is written: this is the back-pressure.
                    asyncio.run_coroutine_threadsafe(_await(write(response)), loop).result()
            finally:
                stream.close()

        await run_in_thread(pump)
        return None


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable


async def run_in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Runs a blocking function in a thread of its own and returns its result.

    Not an executor: handlers that wait for each other would block its last thread, and its threads hold up the process's exit.
    """
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def body() -> None:
        try:
            result = context.run(function, *arguments)
        except StopIteration as error:
            # No future takes a StopIteration: it would be lost, and the caller wait for ever.
            future.set_exception(RuntimeError("the handler raised StopIteration").with_traceback(error.__traceback__))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's to see
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=body, name=f"handler-{getattr(function, '__name__', 'call')}", daemon=True).start()
    return await asyncio.wrap_future(future)
