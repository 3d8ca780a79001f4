"""What supervisor and sidecar say to each other over the wire."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from onecontainer.api.driver.v1 import driver_pb2, driver_pb2_grpc
from onecontainer.errors import Code, DriverMisimplemented, OneContainerError, Reason, StateInvalid
from onecontainer.rpc.manifest import bare_app
from onecontainer.rpc.status import duration, from_rpc_error
from onecontainer.rpc.structs import struct_from_dict
from onecontainer.sidecars.model import HeartbeatLayer, HeartbeatState, LayerHeartbeat, Target
from onecontainer.sidecars.policy import Policy

SOCKET_POLL = 0.02
ANSWER_TIMEOUT = 2.0


class Conversation:
    """Calls to one instance. All raise typed errors of `onecontainer.errors`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        token: str | None,
        target: Target,
        instance: str,
        policy: Policy,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.channel = channel
        self.last_error: OneContainerError | None = None
        self.probe_message = ""
        self._socket = Path(address.removeprefix("unix:")) if address.startswith("unix:") else None
        self._authorization: tuple[tuple[str, str], ...] = (
            () if token is None else (("authorization", f"Bearer {token}"),)
        )
        self._target = target
        self._instance = instance
        self._policy = policy
        self._sleep = sleep
        self._attached = False
        self._check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._driver = driver_pb2_grpc.DriverServiceStub(channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries. The instance is named once it is attached: somebody else's sidecar has another name before."""
        return (
            (*self._authorization, ("onecontainer-instance", self._instance)) if self._attached else self._authorization
        )

    async def wait_for_answer(
        self, *, check_identity: bool = True, trouble: Callable[[], Awaitable[OneContainerError | None]] | None = None
    ) -> driver_pb2.GetDriverInfoResponse:
        """Waits until it answers, and returns who it is; the caller bounds the time. `trouble` is asked, while it does not, whether
        waiting is of use.

        Raises DriverMisimplemented if it is another driver than it should be, and what `trouble` returns.
        """
        await self._wait_for_socket()
        while True:
            error = await self.check_health(ANSWER_TIMEOUT)
            if error is None:
                try:
                    info = await self.info(self._policy.probe_timeout)
                    break
                except OneContainerError as refusal:
                    error = refusal  # one that has registered may not know yet by which token
            if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                raise error
            # With a connection it is only slow.
            connected = self.channel.get_state() is grpc.ChannelConnectivity.READY
            if trouble is not None and not connected and (found := await trouble()) is not None:
                raise found
            await self._sleep(SOCKET_POLL)
        if check_identity:
            self._check_identity(info)
        return info

    async def _wait_for_socket(self) -> None:
        # A channel that finds no socket backs off for longer than a start takes.
        while self._socket is not None and not self._socket.exists():
            await self._sleep(SOCKET_POLL)

    def _check_identity(self, info: driver_pb2.GetDriverInfoResponse) -> None:
        told, wanted = info.manifest, self._target.manifest
        for what in ("name", "version", "app", "scope"):
            if getattr(told, what) != getattr(wanted, what):
                raise DriverMisimplemented(
                    f"another driver answers: its {what} is {getattr(told, what)!r}, not {getattr(wanted, what)!r}"
                )
        missing = set(wanted.services) - set(told.services)
        if missing:
            raise DriverMisimplemented(f"the driver does not serve {', '.join(sorted(missing))}")

    async def check_health(self, timeout: float | None = None, *, patient: bool = True) -> OneContainerError | None:
        """None if it answers at all, whatever it says of its health. Not ``patient``: a connection that is refused is an answer too."""
        try:
            await self._check(
                health_pb2.HealthCheckRequest(),
                timeout=self._policy.probe_timeout if timeout is None else timeout,
                metadata=self.metadata,
                wait_for_ready=patient,
            )
        except grpc.aio.AioRpcError as error:
            typed = from_rpc_error(error)
            if typed.code in (Code.UNIMPLEMENTED, Code.NOT_FOUND):
                return None
            return typed
        return None

    async def info(self, timeout: float) -> driver_pb2.GetDriverInfoResponse:
        try:
            return await self._driver.GetDriverInfo(
                driver_pb2.GetDriverInfoRequest(), timeout=timeout, metadata=self.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def attach(self, info: driver_pb2.GetDriverInfoResponse, jobs: driver_pb2.JobSource | None) -> None:
        """Binds it to the service. One that is bound to this service with older settings is released first."""
        target = self._target
        request = driver_pb2.AttachRequest(
            service=target.service,
            service_uid=target.uid,
            instance=self._instance,
            app=bare_app(target.app),
            app_version=target.app_version,
            endpoints=target.endpoints,
            options=struct_from_dict(target.options),
            job_source=jobs,
        )
        try:
            await self._attach(request)
        except StateInvalid:
            if info.service != target.service:
                raise
            await self.detach(target.drain_timeout)
            await self._attach(request)
        self._attached = True

    def resume(self, info: driver_pb2.GetDriverInfoResponse) -> None:
        """Goes on with a sidecar as it is attached. Raises StateInvalid if it is not attached to the service as this instance."""
        if (info.service, info.instance) != (self._target.service, self._instance):
            raise StateInvalid(f"{self._instance} is not attached to {self._target.service} any more")
        self._attached = True

    async def _attach(self, request: driver_pb2.AttachRequest) -> None:
        try:
            await self._driver.Attach(request, timeout=self._policy.attach_timeout, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def probe(self, timeout: float | None = None) -> tuple[bool, OneContainerError | None]:
        """Whether the backend is ready; the error if it is broken."""
        try:
            answer = await self._driver.Probe(
                driver_pb2.ProbeRequest(),
                timeout=self._policy.probe_timeout if timeout is None else timeout,
                metadata=self.metadata,
            )
        except grpc.aio.AioRpcError as error:
            self.last_error = from_rpc_error(error)
            return False, self.last_error
        self.probe_message = answer.message
        return answer.ready, None

    async def detach(self, drain_timeout: float, _timeout: float = 0) -> None:
        """Releases it from its service; what runs in it gets so many seconds."""
        try:
            await self._driver.Detach(driver_pb2.DetachRequest(), timeout=drain_timeout, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def drain(self, drain_timeout: float, timeout: float) -> None:
        """It takes nothing new; answers when what runs in it has ended, or the time is over."""
        try:
            await self._driver.Drain(
                driver_pb2.DrainRequest(timeout=duration(drain_timeout)), timeout=timeout, metadata=self.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def heartbeat(self, timeout: float, *, starting: bool) -> tuple[LayerHeartbeat, ...]:
        """Each layer's answer, asked now, from the sidecar down to the backend; behind one that fails the others are skipped.

        `starting`: the sidecar is not attached yet, so silence is no defect.
        """
        layers: list[LayerHeartbeat] = []
        silent = HeartbeatState.STARTING if starting else HeartbeatState.UNAVAILABLE

        async def ask(
            layer: HeartbeatLayer, question: Callable[[], Awaitable[tuple[bool, OneContainerError | None]]]
        ) -> bool:
            begin = time.monotonic()
            ready, error = await question()
            latency = time.monotonic() - begin
            state = HeartbeatState.OK if ready else HeartbeatState.STARTING if error is None else silent
            message = self.probe_message if layer is HeartbeatLayer.BACKEND else ""
            layers.append(LayerHeartbeat(layer, state, latency, error or self._past_error(layer), message))
            return ready

        async def health() -> tuple[bool, OneContainerError | None]:
            error = await self.check_health(timeout)
            return error is None, error

        async def info() -> tuple[bool, OneContainerError | None]:
            try:
                await self.info(timeout)
            except OneContainerError as error:
                return False, error
            return True, None

        async def backend() -> tuple[bool, OneContainerError | None]:
            ready, error = await self.probe(timeout)
            if error is not None and error.reason is Reason.NOT_ATTACHED:
                return False, None
            return ready, error

        questions = ((HeartbeatLayer.SIDECAR, health), (HeartbeatLayer.DRIVER, info), (HeartbeatLayer.BACKEND, backend))
        for layer, question in questions:
            if not await ask(layer, question):
                break
        layers += [LayerHeartbeat(layer, HeartbeatState.SKIPPED) for layer, _ in questions[len(layers) :]]
        return tuple(layers)

    def _past_error(self, layer: HeartbeatLayer) -> OneContainerError | None:
        return self.last_error if layer is HeartbeatLayer.BACKEND else None
