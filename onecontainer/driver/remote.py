"""A driver in another process, of any language, as the worker beside it sees it: DriverService over a channel."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2

from onecontainer.api.driver.v1 import driver_pb2, driver_pb2_grpc
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver.artifacts import Metadata, typed_errors
from onecontainer.driver.auth import INSTANCE_KEY, SERVICE_KEY
from onecontainer.driver.reports import Backoff
from onecontainer.driver.source import POLL_SECONDS, Source
from onecontainer.errors import Code, DriverUnreachable, NotAttached, OneContainerError, StateInvalid

log = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
"""Between two looks at a driver that is well."""
ANSWER_SECONDS = 5.0
ASK_AGAIN_SECONDS = 0.2
CONNECT_SECONDS = 2.0
"""What the connection gets to come up when an attempt is to be sent; then the attempt is given back."""


class RemoteDriver:
    """The driver: whether it can be given attempts now, and its Run and StopRun. A task: `watch`."""

    def __init__(self, channel: grpc.aio.Channel, service: str, token: str | None) -> None:
        self.service = service
        self.info = driver_pb2.GetDriverInfoResponse()
        """As it last answered."""
        self.ready = asyncio.Event()
        """Set while it answers, serves, and is attached to the service."""
        self._channel = channel
        self._stub: driver_pb2_grpc.DriverServiceAsyncStub = driver_pb2_grpc.DriverServiceStub(channel)
        self._health = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._bearer: Metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._doubt = asyncio.Event()

    @property
    def facts(self) -> dict[str, str]:
        """Metadata of errors."""
        return {"service": self.service, "driver": self.info.manifest.name}

    # --- whether it is there -------------------------------------------------------------------------------------------

    async def identify(self) -> driver_pb2.GetDriverInfoResponse:
        """Waits until it answers and tells who it is. Raises StateInvalid if it is attached to another service, and what
        waiting does not mend: CredentialsInvalid, say."""
        backoff = Backoff()
        told = ""
        while True:
            try:
                self.info = await self._ask()
            except OneContainerError as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    raise
                if not told:
                    told = str(error)
                    log.warning("the driver does not answer yet: %s", error)
                await backoff.wait()
                continue
            if self.info.service and self.info.service != self.service:
                raise StateInvalid(f"the driver is attached to {self.info.service}, not to {self.service}")
            return self.info

    async def watch(self) -> None:
        """Keeps `ready` right, for ever."""
        backoff = Backoff()
        told = ""
        while True:
            self._doubt.clear()
            try:
                await self._check()
            except OneContainerError as error:
                self.ready.clear()
                if error.message != told:
                    told = error.message
                    log.warning("no jobs are taken now: %s", error)
                await backoff.wait()
                continue
            if not self.ready.is_set():
                log.info("the driver is ready for jobs of %s", self.service)
                self.ready.set()
            told = ""
            backoff.reset()
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._doubt.wait()

    async def _check(self) -> None:
        info = await self._ask()
        if info.manifest.name != self.info.manifest.name:
            raise StateInvalid(f"another driver answers: {info.manifest.name}, not {self.info.manifest.name}")
        if info.service != self.service:
            where = f"is attached to {info.service}" if info.service else "is not attached to a service"
            raise NotAttached(f"the driver {where}; the gateway attaches it by `runtime.endpoint` of {self.service}")
        self.info = info
        try:
            with typed_errors():
                health = await self._health(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS)
        except OneContainerError as error:
            if error.code is not Code.UNIMPLEMENTED:
                raise
        else:
            if health.status != health_pb2.HealthCheckResponse.SERVING:
                raise DriverUnreachable("the driver says of itself that it does not serve: it drains, or is ill")

    async def _ask(self) -> driver_pb2.GetDriverInfoResponse:
        with typed_errors():
            return await self._stub.GetDriverInfo(
                driver_pb2.GetDriverInfoRequest(), timeout=ANSWER_SECONDS, metadata=self._bearer
            )

    def doubt(self) -> None:
        """An attempt came back as it should not: takes no more jobs until the driver has been asked again."""
        self.ready.clear()
        self._doubt.set()

    # --- attempts ------------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Returns when there is a connection. Raises DriverUnreachable: then nothing has been sent."""
        if self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._channel.channel_ready()
        except TimeoutError:
            raise DriverUnreachable("the driver cannot be reached", retry_after=1.0) from None

    def run(self, grant: lease_pb2.Grant) -> grpc.aio.UnaryStreamCall[driver_pb2.RunRequest, driver_pb2.RunResponse]:
        """A call of Run. To this instance: another one at the same address, or for another service, refuses it."""
        meant: Metadata = ((SERVICE_KEY, self.service),)
        if self.info.instance:
            meant = (*meant, (INSTANCE_KEY, self.info.instance))
        return self._stub.Run(driver_pb2.RunRequest(grant=grant), metadata=(*self._bearer, *meant))

    async def stop_run(self, grant: lease_pb2.Grant, mode: job_pb2.CancelMode.ValueType) -> bool:
        """Tells an attempt to end; returns whether it is there. Raises the driver's typed error, or that it does not answer."""
        request = driver_pb2.StopRunRequest(job=grant.job, attempt=grant.attempt, fence=grant.fence, mode=mode)
        with typed_errors():
            return (await self._stub.StopRun(request, metadata=self._bearer, timeout=ANSWER_SECONDS)).found

    async def wait_gone(self, grant: lease_pb2.Grant) -> None:
        """Returns when the driver does not have an attempt any more, which it is told to end. Raises as `stop_run`."""
        found = True
        while found:
            found = await self.stop_run(grant, job_pb2.CANCEL_MODE_ABORT)
            if found:
                await asyncio.sleep(ASK_AGAIN_SECONDS)


class WhileReady:
    """A Source that asks for jobs only while the driver can be given them."""

    def __init__(self, source: Source, driver: RemoteDriver) -> None:
        self._source = source
        self._driver = driver

    async def poll(
        self, free: int, held: Sequence[tuple[str, int]], *, wait: float = POLL_SECONDS
    ) -> Sequence[lease_pb2.Grant]:
        if wait and not self._driver.ready.is_set():
            try:
                async with asyncio.timeout(wait):
                    await self._driver.ready.wait()
            except TimeoutError:
                return ()
        return await self._source.poll(free, held, wait=wait)

    async def close(self) -> None:
        await self._source.close()


async def events_of(
    call: grpc.aio.UnaryStreamCall[driver_pb2.RunRequest, driver_pb2.RunResponse],
) -> AsyncGenerator[driver_pb2.RunResponse, None]:
    """The events of a Run. Raises the typed error that it ended with; it is cancelled when nobody reads on."""
    try:
        with typed_errors():
            async for event in call:
                yield event
    finally:
        call.cancel()
