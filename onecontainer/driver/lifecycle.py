"""A sidecar's life: what it is attached to, what runs in it, and how it ends."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.driver.artifacts import ArtifactLink, Metadata
from onecontainer.driver.auth import INSTANCE_KEY, SidecarAuthenticator
from onecontainer.driver.context import CallFacts, Context, EventSink
from onecontainer.driver.driver import Attachment, Driver, ProbeResult
from onecontainer.driver.facade import Behind, facades_of, in_front
from onecontainer.driver.isolation import Isolation, run_in_thread
from onecontainer.driver.methods import DriverMethod, methods_of
from onecontainer.driver.processes.pool import InProcess, ProcessPool
from onecontainer.driver.processes.recipe import Gateway, Recipe, entry_of
from onecontainer.driver.runs import Execution, isolation_of, missing, unforeseen
from onecontainer.driver.settings import SidecarSettings
from onecontainer.driver.state_folder import StateFolder
from onecontainer.errors import (
    Draining,
    DriverMisimplemented,
    FieldInvalid,
    FieldRequired,
    FieldViolation,
    NotAttached,
    OneContainerError,
    StateInvalid,
    WrongInstance,
)
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.manifest import Manifest
from onecontainer.rpc.options import option_violations, resolve_options, secret_names
from onecontainer.rpc.structs import struct_to_dict
from onecontainer.settings import is_loopback

if TYPE_CHECKING:
    from onecontainer.driver.attempts import Attempt

log = logging.getLogger(__name__)

ABORT_SECONDS = 3.0
"""What an aborted handler gets to end before it is left behind."""


class JobWorker(Protocol):
    """What takes jobs and runs them here, for one attachment."""

    def stop_claiming(self) -> None: ...

    async def close(self) -> None: ...


StartJobs = Callable[["Sidecar", driver_pb2.JobSource, grpc.aio.Channel, Metadata], JobWorker | None]


def no_jobs(*_arguments: object) -> None:
    """Starts no worker."""


async def call_own(driver: Driver, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls one of the driver's life-cycle methods; what it raises becomes a typed error."""
    try:
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        thread = asyncio.ensure_future(run_in_thread(function, *arguments))
        try:
            result = await asyncio.shield(thread)
        except asyncio.CancelledError:
            # It cannot be stopped, and nothing else may be done with the driver before it has ended.
            await asyncio.wait((thread,))
            raise
        return await result if inspect.isawaitable(result) else result
    except OneContainerError:
        raise
    except (Exception, SystemExit) as error:
        raise unforeseen(error, f"{type(driver).__name__}.{function.__name__}") from error


class Sidecar:
    """One driver, attached to at most one service, and all that runs in it. Everything in the loop's thread."""

    def __init__(
        self, driver: Driver, manifest: Manifest, settings: SidecarSettings, start_jobs: StartJobs = no_jobs
    ) -> None:
        """Raises DriverMisimplemented if the class does not serve what metadata.json says."""
        self.driver = driver
        self.manifest = manifest
        self.settings = settings
        self.authenticator = SidecarAuthenticator(settings.token(), settings.instance, registers=bool(settings.gateway))
        self._named = settings.instance
        facades = facades_of(driver.facades, manifest.services)
        self.services = (*driver.services, *(facade.service for facade in facades))
        """All that it serves for callers."""
        served = {service.full_name for service in self.services}
        if served != set(manifest.services):
            raise DriverMisimplemented(
                f"metadata.json lists the services {sorted(manifest.services)}, but {type(driver).__name__} has {sorted(served)}"
            )
        own = methods_of(driver, driver.services)
        behind = Behind.of(manifest, own, self.probe, self._isolation)
        self.methods: Mapping[str, DriverMethod] = {**own, **in_front(facades, behind)}
        self._isolates = any(method.isolated for method in self.methods.values())
        if self._isolates:
            entry_of(driver, manifest)
        self.drain_asked = asyncio.Event()
        self.attempts: dict[tuple[str, int], Attempt] = {}
        """Attempts of jobs that run here, by job and fence, whoever brought them."""
        self._state = StateFolder(settings.state_dir)
        self._attached: driver_pb2.AttachRequest | None = None
        self._changing = asyncio.Lock()
        self._releasing = False
        self._running: set[Execution] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._channel: grpc.aio.Channel | None = None
        self.gateway_channel: grpc.aio.Channel | None = None
        """The way to the gateway that it has registered with. None: Attach tells which."""
        self._artifacts: ArtifactLink | None = None
        self._start_jobs = start_jobs
        self._worker: JobWorker | None = None
        self._pool: ProcessPool | None = None

    # --- what it is ----------------------------------------------------------------------------------------------------

    @property
    def instance(self) -> str:
        return self.authenticator.instance

    @property
    def service(self) -> str:
        """`services/{service}`; empty if not attached."""
        return "" if self._attached is None else self._attached.service

    @property
    def running(self) -> int:
        """Handlers that have not ended."""
        return len(self._running)

    @property
    def draining(self) -> bool:
        return self.drain_asked.is_set()

    @property
    def artifacts(self) -> ArtifactLink | None:
        """The way to the gateway's artifacts. None: Attach named no gateway."""
        return self._artifacts

    @property
    def facts(self) -> dict[str, str]:
        """Metadata of the sidecar's errors."""
        facts = {"driver": self.manifest.name}
        if self.service:
            facts["service"] = self.service
        return facts

    def registered(self, instance: str, token: str) -> None:
        """The gateway has taken it in, by this name and with this token. Raises StateInvalid if it is attached as somebody else."""
        if self._attached is not None and self.instance != instance:
            raise StateInvalid(
                f"{self.service} has been made anew, or the gateway has another registration token: start this sidecar again"
            )
        self._named = self.authenticator.instance = instance
        self.authenticator.admit(token)

    # --- attach and detach ---------------------------------------------------------------------------------------------

    async def attach(self, request: driver_pb2.AttachRequest) -> None:
        """Binds the sidecar to the service. The same request again changes nothing."""
        self._check(request)
        if self.gateway_channel is not None and request.HasField("job_source"):
            # It has a way to its gateway, which may be another one of several by now.
            request.job_source.internal_target = self.settings.gateway
        async with self._changing:
            if self.draining:
                raise Draining("this sidecar is draining", retry_after=1.0)
            if self._attached is not None:
                if self._attached == request:
                    return
                what = "with other settings" if self.service == request.service else f"to {self.service}"
                raise StateInvalid(
                    f"this sidecar is attached {what}: detach it first", metadata={"attached_service": self.service}
                )
            options = self._options(request)
            self._state.acquire(exclusive=self.manifest.exclusive_state)
            try:
                attachment = Attachment(
                    service=request.service,
                    app=request.app,
                    app_version=request.app_version,
                    endpoints=dict(request.endpoints),
                    options=options,
                    state_dir=self._state.path,
                    manifest=self.manifest,
                )
                await call_own(self.driver, self.driver.attach, attachment)
                self.authenticator.instance = request.instance
                self.authenticator.service = request.service
                self._attached = request
                if self._isolates:
                    self._pool = ProcessPool(self._recipe(request, attachment), self.settings.max_isolated)
                    self._pool.warm()
                await self._connect(request)
            except BaseException:
                await self._let_go()
                raise
        log.info("attached to %s as %s", request.service, request.instance)

    def _check(self, request: driver_pb2.AttachRequest) -> None:
        absent = [name for name in ("service", "service_uid", "instance", "app") if not getattr(request, name)]
        if absent:
            raise FieldRequired(violations=[FieldViolation(name, "is required") for name in absent])
        if not request.service.startswith("services/"):
            raise FieldInvalid("service", "must be `services/{service}`")
        mine = self._named
        if mine and request.instance != mine:
            raise WrongInstance(
                f"the request means {request.instance!r}, but this is {mine!r}: resolve the address again"
            )
        if request.HasField("job_source"):
            source = request.job_source
            if not source.internal_target:
                raise FieldRequired("job_source.internal_target")
            if source.slots < 0:
                raise FieldInvalid("job_source.slots", "must not be negative")

    def _options(self, request: driver_pb2.AttachRequest) -> dict[str, Any]:
        values = struct_to_dict(request.options)
        violations = option_violations(self.manifest.options, values)
        if violations:
            only_missing = all(values.get(v.field.removeprefix("options.")) is None for v in violations) and all(
                any(v.field == f"options.{option.name}" for option in self.manifest.options) for v in violations
            )
            raise (FieldRequired if only_missing else FieldInvalid)(violations=violations)
        defaults = {option.name: option.default for option in self.manifest.options if values.get(option.name) is None}
        secrets = self.settings.secrets(secret_names(values) | secret_names(defaults))
        violations = [
            FieldViolation(f"options.{name}", f"there is no secret {absent!r} in the secrets folder")
            for name, value in {**defaults, **values}.items()
            for absent in sorted(secret_names(value) - secrets.keys())
        ]
        if violations:
            raise FieldInvalid(violations=violations)
        return resolve_options(self.manifest.options, values, secrets)

    async def _connect(self, request: driver_pb2.AttachRequest) -> None:
        if not request.HasField("job_source"):
            return
        channel = self.gateway_channel
        if channel is None:
            channel = self._channel = self._open(request.job_source.internal_target)
        self._artifacts = ArtifactLink(lambda: channel, self._credentials())
        self._worker = self._start_jobs(self, request.job_source, channel, self._credentials())

    def _open(self, target: str) -> grpc.aio.Channel:
        ca_file = self._ca_file(target)
        if ca_file is None and not is_loopback(target):
            raise StateInvalid(
                f"the gateway's internal listener is at {target}, not on loopback: start this sidecar with "
                "ONECONTAINER_TLS_CA_FILE, a copy of ca/ca.pem in the gateway's data folder"
            )
        return open_channel(target, max_message_bytes=self.settings.max_message_bytes, ca_file=ca_file)

    def _ca_file(self, target: str) -> Path | None:
        return None if target.startswith("unix:") else self.settings.tls_ca_file

    def _recipe(self, request: driver_pb2.AttachRequest, attachment: Attachment) -> Recipe:
        gateway = None
        if request.HasField("job_source"):
            target = request.job_source.internal_target
            ca_file = self._ca_file(target)
            gateway = Gateway(target, None if ca_file is None else str(ca_file), self._credentials())
        return Recipe.of(
            self.driver,
            attachment,
            log_level=self.settings.log_level,
            max_message_bytes=self.settings.max_message_bytes,
            gateway=gateway,
        )

    def _credentials(self) -> Metadata:
        token = self.authenticator.token
        bearer = () if token is None else (("authorization", f"Bearer {token}"),)
        return (*bearer, (INSTANCE_KEY, self.instance))

    async def detach(self, timeout: float | None) -> None:
        """Releases the service; running calls and attempts get `timeout` seconds (None: as long as they need) before they are aborted."""
        async with self._changing:
            if self._attached is None:
                return
            self._releasing = True
            try:
                await self._end_running(timeout)
            finally:
                await self._let_go()
                self._releasing = False

    async def _let_go(self) -> None:
        """Closes whatever is open, also after an attach that failed half-way."""
        worker, self._worker = self._worker, None
        try:
            if worker is not None:
                await worker.close()
        finally:
            pool, self._pool = self._pool, None
            try:
                if pool is not None:
                    await pool.close()
            finally:
                await self._close_backend()

    async def _close_backend(self) -> None:
        try:
            await call_own(self.driver, self.driver.detach)
        except OneContainerError as error:
            log.warning("detach of the driver failed: %s", error)
        finally:
            self._attached = None
            self.authenticator.service = ""
            self.authenticator.instance = self._named
            self._artifacts = None
            channel, self._channel = self._channel, None
            if channel is not None:
                await channel.close()
            self._state.release()

    async def probe(self) -> ProbeResult:
        """Asks the driver, which asks its backend."""
        if self._attached is None:
            raise NotAttached("attach this sidecar to a service first")
        result = await call_own(self.driver, self.driver.probe)
        if not isinstance(result, ProbeResult):
            raise DriverMisimplemented(
                f"probe must return a ProbeResult, but the driver returned {type(result).__name__}"
            )
        return result

    # --- what runs -----------------------------------------------------------------------------------------------------

    def method(self, full_name: str) -> DriverMethod:
        """The method. Raises CapabilityMissing if the driver does not have it."""
        method = self.methods.get(full_name)
        if method is None or method.handler is None:
            raise missing(full_name, self.manifest.name)
        return method

    def begin(self, method: DriverMethod, facts: CallFacts, sink: EventSink | None = None) -> Execution:
        """An execution that counts as running until it has ended. Raises Draining or NotAttached.

        The caller starts it with `on_end=self.ended`, or calls `ended` itself.
        """
        self.check_open()
        context = Context(
            facts,
            asyncio.get_running_loop(),
            sink=sink,
            artifacts=self._artifacts,
            scratch_root=self.settings.scratch_dir,
        )
        execution = Execution(method, context, self.facts, self._isolation(method))
        self._running.add(execution)
        self._idle.clear()
        return execution

    def _isolation(self, method: DriverMethod) -> Isolation:
        if method.isolated and self._pool is not None:
            return InProcess(self._pool)
        return isolation_of(method)

    def check_open(self) -> None:
        """Raises Draining or NotAttached if nothing new may begin."""
        if self.draining or self._releasing:
            raise Draining("this sidecar is draining", retry_after=1.0)
        if self._attached is None:
            raise NotAttached("this sidecar is not attached to a service yet", retry_after=1.0)

    def ended(self, execution: Execution) -> None:
        self._running.discard(execution)
        if not self._running:
            self._idle.set()

    # --- the end -------------------------------------------------------------------------------------------------------

    async def drain(self, timeout: float) -> int:
        """Takes nothing new; returns how many had to be aborted when the timeout was over."""
        if not self.draining:
            log.info("draining")
            self.drain_asked.set()
        return await self._end_running(timeout)

    async def _end_running(self, timeout: float | None) -> int:
        if self._worker is not None:
            self._worker.stop_claiming()
        if await self._wait_idle(timeout):
            return 0
        left = [execution for execution in self._running if execution.stop_error is None]
        if not left:
            return 0  # told before, and waited for then
        for execution in left:
            execution.stop(Draining("the sidecar was stopped while this ran", retry_after=1.0))
        if not await self._wait_idle(ABORT_SECONDS):
            log.warning("%d handlers do not end; they are left behind", len(self._running))
        return len(left)

    async def _wait_idle(self, timeout: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
