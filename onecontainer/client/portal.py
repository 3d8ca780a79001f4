"""Runs the asynchronous client for code that is not: one private loop thread per client, and one wrapper per method.

Callbacks (`on_progress`) run in the thread that called, so they may draw, raise, or call the client again. Ctrl-C, and an
error in a callback, cancel the call before they leave it.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
CALLBACK = "on_progress"


class Portal:
    """A loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_report)
        self._thread = threading.Thread(target=self._loop.run_forever, name="onecontainer-client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether `close` was called: nothing can be run any more."""
        return self._loop.is_closed()

    def run(self, method: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any) -> R:
        """Calls the coroutine function in the loop and waits for its result. Raises RuntimeError if it was closed."""
        self._check_open()
        todo: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        callback = kwargs.get(CALLBACK)
        if callback is not None:
            kwargs[CALLBACK] = lambda *values: todo.put(functools.partial(callback, *values))
        future = asyncio.run_coroutine_threadsafe(method(*args, **kwargs), self._loop)
        future.add_done_callback(lambda _future: todo.put(None))
        try:
            while (step := todo.get()) is not None:
                step()
        except BaseException:
            self._cancel(future, todo)
            raise
        return future.result()

    @staticmethod
    def _cancel(future: Future[R], todo: SimpleQueue[Callable[[], object] | None]) -> None:
        """Cancels the call, and returns when its clean-up is over."""
        future.cancel()
        while todo.get() is not None:
            pass

    def iterate(self, items: AsyncGenerator[R]) -> Generator[R]:
        """The items of an asynchronous generator; closes it when the iteration ends or is given up. Raises RuntimeError as `run` does."""
        self._check_open()
        try:
            while True:
                try:
                    item = self.run(items.__anext__)
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if not self.closed:
                self.run(items.aclose)

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("this client is closed: make another one")

    def close(self) -> None:
        """Ends the loop and its thread. Idempotent."""
        if self._thread.is_alive():
            self.run(self._loop.shutdown_asyncgens)
            self.run(self._loop.shutdown_default_executor)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """A method that waits, of one that is awaited. Its object has a `portal`, and in `inner` the asynchronous object."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        portal: Portal = self.portal
        return portal.run(method, self.inner, *args, **kwargs)

    return call


def iterating(method: Callable[Concatenate[Any, P], AsyncGenerator[R]]) -> Callable[Concatenate[Any, P], Generator[R]]:
    """A method that gives an ordinary iterator, of one that gives an asynchronous one."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Generator[R]:
        portal: Portal = self.portal
        return portal.iterate(method(self.inner, *args, **kwargs))

    return call


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # With a second loop in the process (a test's server, say) each loop's grpc poller now and then finds that the other one has
    # read the wake-up byte already. That is harmless, and grpc does not catch it.
    if isinstance(context.get("exception"), BlockingIOError):
        return
    loop.default_exception_handler(context)
