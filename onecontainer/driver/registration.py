"""The registration of a worker or a sidecar with the gateway: one stream, kept up for as long as it lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import grpc

from onecontainer.api.driver.v1 import registration_pb2 as pb
from onecontainer.api.driver.v1 import registration_pb2_grpc
from onecontainer.driver.reports import Backoff
from onecontainer.errors import Code, OneContainerError, StateInvalid
from onecontainer.rpc import status

log = logging.getLogger(__name__)

PASSING = frozenset(
    {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.CANCELLED, Code.UNKNOWN, Code.INTERNAL}
)
"""Codes after which the same announcement may be accepted later."""
LEAVE_SECONDS = 2.0

RegisterCall = grpc.aio.StreamStreamCall[pb.RegisterRequest, pb.RegisterResponse]


def is_passing(error: OneContainerError) -> bool:
    """Whether the same announcement may be accepted later, whatever else happens."""
    return error.code in PASSING


class Registration:
    """Announces it, renews its lease, and announces it again when the stream breaks: as long as its context lasts."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        token: str,
        announcement: pb.RegisterRequest,
        *,
        passing: Callable[[OneContainerError], bool] = is_passing,
        on_welcome: Callable[[pb.RegisterResponse], None] | None = None,
    ) -> None:
        """``passing`` errors are waited out. ``on_welcome`` is given the first answer of each stream, and may raise what ends it;
        without it an answer with another name or token than the first one does."""
        self._stub: registration_pb2_grpc.RegistrationServiceAsyncStub = registration_pb2_grpc.RegistrationServiceStub(
            channel
        )
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._announcement = announcement
        self._passing = passing
        self._on_welcome = self._same_as_before if on_welcome is None else on_welcome
        self._draining = asyncio.Event()
        self._first: asyncio.Future[pb.RegisterResponse] = asyncio.get_running_loop().create_future()
        self._call: RegisterCall | None = None
        self._leave_asked = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self.retired = asyncio.Event()
        """Set when the gateway wants it to take nothing new."""

    async def __aenter__(self) -> Registration:
        self._keeping = asyncio.create_task(self._keep(), name="registration")
        return self

    async def __aexit__(self, *_exception: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def wait(self) -> pb.RegisterResponse:
        """The gateway's answer to the first announcement. Raises what a repetition does not mend."""
        assert self._keeping is not None
        await asyncio.wait((self._first, self._keeping), return_when=asyncio.FIRST_COMPLETED)
        if not self._first.done():
            self._keeping.result()
        return self._first.result()

    async def wait_end(self) -> None:
        """Returns after `leave`. Raises what a repetition does not mend: the service is gone, say, or the token is not valid."""
        assert self._keeping is not None
        await asyncio.shield(self._keeping)

    async def _keep(self) -> None:
        backoff = Backoff()
        told = ""
        while True:
            error = await self._one_stream(backoff)
            if self._leave_asked.is_set():
                return
            if error is not None and not self._passing(error):
                raise error
            # What stays so is said once.
            level = logging.DEBUG if str(error) == told else logging.INFO if error is None else logging.WARNING
            told = str(error)
            log.log(level, "it is not registered now (%s); registering again", error)
            await backoff.wait(error.retry_after if error is not None else None)

    async def _one_stream(self, backoff: Backoff) -> OneContainerError | None:
        call: RegisterCall = self._stub.Register(metadata=self._metadata)
        self._call = call
        lease: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        writing = asyncio.create_task(self._write(call, lease))
        try:
            async for response in call:
                backoff.reset()
                self._take(response)
                if not lease.done():
                    lease.set_result(response.lease_duration.ToMicroseconds() / 1e6)
        except grpc.RpcError as error:
            return status.from_rpc_error(error)
        finally:
            self._call = None
            writing.cancel()
            await asyncio.wait((writing,))
            call.cancel()
        return None

    async def _write(self, call: RegisterCall, lease: asyncio.Future[float]) -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the call is over; its reader tells why
            self._announcement.draining = self._draining.is_set()
            await call.write(self._announcement)
            interval = await lease / 3
            while True:
                await self._next_renewal(interval)
                self._announcement.draining = self._draining.is_set()
                await call.write(pb.RegisterRequest(draining=self._announcement.draining))

    async def _next_renewal(self, interval: float) -> None:
        """After the interval, or at once when there is news: that it drains."""
        if self._announcement.draining:
            await asyncio.sleep(interval)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(interval):
                await self._draining.wait()

    def _take(self, response: pb.RegisterResponse) -> None:
        if response.retired:
            self.retired.set()
        if not response.instance_token:
            return
        self._on_welcome(response)
        if not self._first.done():
            self._first.set_result(response)

    def _same_as_before(self, response: pb.RegisterResponse) -> None:
        first = self._first.result() if self._first.done() else response
        if (response.sidecar, response.instance_token) != (first.sidecar, first.instance_token):
            raise StateInvalid(
                f"{self._announcement.service} has been made anew, or the gateway has another registration token: start this worker again"
            )

    def drain(self) -> None:
        """Tells the gateway that it takes nothing new."""
        self._draining.set()

    async def leave(self) -> None:
        """Takes leave, if the gateway is there."""
        self._leave_asked.set()
        call = self._call
        if call is None:
            return
        with suppress(grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(LEAVE_SECONDS):
                await call.done_writing()
                await call.code()
