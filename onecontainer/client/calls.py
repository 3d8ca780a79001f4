"""One way to make calls: deadline, typed errors, and retries of what the contract declares idempotent.

A method is retried only if its `idempotency_level` says so, only on UNAVAILABLE, and never past the deadline. The wait is what
the server's RetryInfo asks for; without one it grows from try to try, and after a few tries the error is the answer.
"""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from onecontainer.errors import Code, DeadlineExceeded, OneContainerError
from onecontainer.rpc.status import details_of, from_rpc_error
from onecontainer.rpc.writing import send_all

Q = TypeVar("Q")
A = TypeVar("A")
S = TypeVar("S")

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast a call is tried again when the server does not say when.

    Attributes:
        max_attempts: tries of a unary call, the first included.
        stream_attempts: tries of a stream that can be resumed, in a row without a message between them.
        initial_backoff, max_backoff: seconds before the second try, and the most before any.
        multiplier: growth from one wait to the next.
        on_retry: is told the error and the seconds to the next try; it must not block.
    """

    max_attempts: int = 4
    stream_attempts: int = 20
    initial_backoff: float = 0.1
    max_backoff: float = 3.0
    multiplier: float = 2.0
    on_retry: Callable[[OneContainerError, float], object] | None = None


class Deadline:
    """A point in time that several calls share. `timeout` None: there is none."""

    def __init__(self, timeout: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if timeout is None or timeout == float("inf") else clock() + timeout

    def remaining(self) -> float | None:
        """Seconds left, not negative. None: no deadline."""
        return None if self._end is None else max(0.0, self._end - self._clock())


class Backoff:
    """Decides about the next try of one call."""

    def __init__(
        self, policy: RetryPolicy, attempts: int, deadline: Deadline, draw: Callable[[], float] = random.random
    ) -> None:
        self._policy = policy
        self._attempts = attempts
        self._deadline = deadline
        self._draw = draw
        self._failures = 0

    def reset(self) -> None:
        """Starts anew, after something has worked."""
        self._failures = 0

    def wait_for(self, error: OneContainerError) -> float | None:
        """Seconds to wait before the next try. None: the error is final."""
        if error.code is not Code.UNAVAILABLE:
            return None
        policy = self._policy
        if error.retry_after is not None:
            # Never earlier than asked; a little later, so that not all callers come back in the same moment.
            wait = error.retry_after * (1 + self._draw() / 10)
        else:
            self._failures += 1
            if self._failures >= self._attempts:
                return None
            full = min(policy.initial_backoff * policy.multiplier ** (self._failures - 1), policy.max_backoff)
            wait = full * (0.5 + self._draw() / 2)
        left = self._deadline.remaining()
        if left is not None and wait >= left:
            return None
        if policy.on_retry is not None:
            policy.on_retry(error, wait)
        return wait


class Caller:
    """Makes the calls of a client on one channel.

    Attributes:
        channel: for stubs of one's own, see `stub`.
        address: where the gateway is, for messages.
        metadata: sent with every call.
        timeout: seconds for a unary call that gets none.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        address: str = "",
        metadata: Metadata = (),
        timeout: float = 60.0,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.channel = channel
        self.address = address
        self.metadata = metadata
        self.timeout = timeout
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        # Keyed by the stubs' callables themselves, which it thereby keeps alive.
        self._idempotent: dict[object, bool] = {}

    def stub(self, make: Callable[[grpc.aio.Channel], S], service: ServiceDescriptor) -> S:
        """A generated stub whose methods `unary` and the others know: which of them may be repeated is in the descriptor."""
        stub = make(self.channel)
        for method in service.methods:
            self._idempotent[getattr(stub, method.name)] = is_idempotent(method)
        return stub

    def with_metadata(self, metadata: Iterable[tuple[str, str]]) -> Caller:
        """The same, but its calls send this metadata too."""
        other = copy.copy(self)
        other.metadata = (*self.metadata, *metadata)
        return other

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Q, A],
        request: Q,
        *,
        timeout: float | None = None,
    ) -> A:
        """One request, one answer. Raises the typed error of the call."""
        deadline = self.deadline(timeout)
        backoff = self.backoff(deadline, self._retry.max_attempts)
        repeatable = self._idempotent.get(method, False)
        while True:
            try:
                return await method(request, timeout=_some(deadline.remaining()), metadata=self.metadata)
            except grpc.aio.AioRpcError as error:
                failure = self._typed(error)
                wait = backoff.wait_for(failure) if repeatable else None
                if wait is None:
                    raise failure from error
            await self._sleep(wait)

    async def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Q, A],
        request: Q,
        *,
        timeout: float | None = None,
    ) -> AsyncGenerator[A]:
        """One request, many answers. Ends the call when the iteration is given up. No timeout: no deadline."""
        call = method(request, timeout=_some(timeout), metadata=self.metadata)
        async with aclosing(self._received(call)) as answers:
            async for answer in answers:
                yield answer

    async def send(
        self,
        method: grpc.aio.StreamUnaryMultiCallable[Q, A],
        requests: AsyncIterable[Q] | Iterable[Q],
        *,
        timeout: float | None = None,
    ) -> A:
        """Many requests, one answer. Never repeated: the requests may be gone. No timeout: no deadline."""
        call = method(timeout=_some(timeout), metadata=self.metadata)
        await send_all(call, iterate(requests))
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._typed(error) from error

    async def talk(
        self,
        method: grpc.aio.StreamStreamMultiCallable[Q, A],
        requests: AsyncIterable[Q] | Iterable[Q],
        *,
        timeout: float | None = None,
    ) -> AsyncGenerator[A]:
        """Many requests, many answers, both as they come. No timeout: no deadline."""
        call = method(timeout=_some(timeout), metadata=self.metadata)
        # Sent by us: given the requests, gRPC would lose the status of a server that ends the call before they do.
        sender = asyncio.create_task(send_all(call, iterate(requests)))
        try:
            async with aclosing(self._received(call)) as answers:
                async for answer in answers:
                    yield answer
        except asyncio.CancelledError:
            task = asyncio.current_task()
            by_us = task is not None and task.cancelling()
            if not by_us and sender.done() and not sender.cancelled() and (failure := sender.exception()) is not None:
                raise failure from None  # of the requests: it has cancelled the call
            raise
        finally:
            sender.cancel()
            await asyncio.wait([sender])

    async def resumed(
        self, start: Callable[[float | None], AsyncGenerator[A]], *, timeout: float | None = None
    ) -> AsyncGenerator[A]:
        """Goes on with a stream over broken connections and gateway restarts.

        `start` is called with the seconds that are left and begins the stream where the last one stopped.
        """
        deadline = Deadline(timeout)
        backoff = self.backoff(deadline, self._retry.stream_attempts)
        while True:
            try:
                async with aclosing(start(deadline.remaining())) as answers:
                    async for answer in answers:
                        backoff.reset()
                        yield answer
                return
            except OneContainerError as error:
                wait = backoff.wait_for(error)
                if wait is None:
                    raise
            await self._sleep(wait)

    def deadline(self, timeout: float | None) -> Deadline:
        """The deadline of a unary call. None: the client's own timeout."""
        return Deadline(self.timeout if timeout is None else timeout)

    def backoff(self, deadline: Deadline, attempts: int) -> Backoff:
        return Backoff(self._retry, attempts, deadline)

    async def _received(
        self, call: grpc.aio.UnaryStreamCall[Q, A] | grpc.aio.StreamStreamCall[Q, A]
    ) -> AsyncGenerator[A]:
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self._typed(error) from error
        finally:
            call.cancel()

    def _typed(self, error: grpc.aio.AioRpcError) -> OneContainerError:
        """The typed error of a failed call; one that did not come to the gateway, or not back, says so."""
        failure = from_rpc_error(error)
        if failure.code is Code.UNAVAILABLE and details_of(error.trailing_metadata() or ()) is None:
            where = f" at {self.address}" if self.address else ""
            failure.message = f"the gateway{where} is not reachable: {failure.message}"
            failure.args = (failure.message,)
        return failure


def _some(timeout: float | None) -> float | None:
    """Seconds for gRPC, which says of a call without any no more than that its stream was removed. Raises DeadlineExceeded."""
    if timeout is not None and timeout <= 0:
        raise DeadlineExceeded("no time is left for the call: its timeout is over, or was not more than 0 seconds")
    return timeout


async def iterate(items: AsyncIterable[Q] | Iterable[Q]) -> AsyncIterator[Q]:
    """Items of either kind of iterable. A lazy one is asked in a thread, for it may read a file or wait."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    elif isinstance(items, list | tuple):
        for item in items:
            yield item
    else:
        source = iter(items)
        end = object()
        while (found := await asyncio.to_thread(next, source, end)) is not end:
            yield found  # type: ignore[misc]  # it is not `end`


def is_idempotent(method: MethodDescriptor) -> bool:
    """Whether the contract says that the method may be repeated."""
    options: MethodOptions = method.GetOptions()
    return options.idempotency_level in (MethodOptions.IDEMPOTENT, MethodOptions.NO_SIDE_EFFECTS)
