"""The supervisor: which sidecar serves a service now, and everything that can be asked of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random as random_module
import secrets as secrets_module
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

import grpc

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.clock import Clock
from onecontainer.errors import DriverNotAvailable, DriverUnreachable, OneContainerError, ResourceNotFound, StateInvalid
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.tls import handshake_problem
from onecontainer.settings import is_loopback
from onecontainer.sidecars.folders import Folders
from onecontainer.sidecars.instance import Instance, Surroundings
from onecontainer.sidecars.keeper import Keeper
from onecontainer.sidecars.model import (
    Endpoint,
    Heartbeat,
    HeartbeatLayer,
    HeartbeatState,
    InstanceIdentity,
    LayerHeartbeat,
    LogLine,
    ServiceState,
    Sidecar,
    SidecarState,
    Target,
)
from onecontainer.sidecars.policy import Policy
from onecontainer.sidecars.registrations import Post, Registrations
from onecontainer.sidecars.runtime import OutlivingRuntime, Runtime
from onecontainer.sidecars.secrets import SecretStore
from onecontainer.sidecars.tokens import InstanceTokens

log = logging.getLogger(__name__)

SIDECAR_TYPE = "onecontainer.dev/Sidecar"
HANDSHAKE_SECONDS = 5.0


def _new_token() -> str:
    return secrets_module.token_urlsafe(32)


def _new_suffix() -> str:
    return secrets_module.token_hex(6)


class Supervisor:
    """Runs the sidecars of all services. An async context manager: leaving it stops the ones that are the gateway's own, but with
    `leave_running` those that can go on without it.

    `job_source` tells where a target's sidecar gets its jobs from; None: it runs none. The first runtime is the default. `roots()` (PEM)
    are the authorities of sidecars beyond loopback; None: those that gRPC trusts.
    """

    def __init__(
        self,
        runtimes: Iterable[Runtime],
        *,
        folders: Folders,
        secrets: SecretStore,
        clock: Clock,
        policy: Policy,
        job_source: Callable[[Target], driver_pb2.JobSource | None],
        registrations: Registrations | None = None,
        roots: Callable[[], bytes | None] = lambda: None,
        leave_running: bool = False,
        channel: Callable[[str], grpc.aio.Channel] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random_module.random,
        new_token: Callable[[], str] = _new_token,
        new_suffix: Callable[[], str] = _new_suffix,
    ) -> None:
        all_runtimes = list(runtimes)
        self._runtimes = {runtime.kind: runtime for runtime in all_runtimes}
        self.default_runtime = all_runtimes[0].kind
        self._folders = folders
        self._tokens = InstanceTokens()
        self._registrations = registrations or _nobody(clock)
        self._roots = roots
        self._leave_running = leave_running
        self._policy = policy
        self._random = random
        self._new_suffix = new_suffix
        self._around = Surroundings(
            folders=folders,
            secrets=secrets,
            tokens=self._tokens,
            clock=clock,
            policy=policy,
            start_gate=asyncio.Semaphore(policy.concurrent_starts),
            job_source=job_source,
            open_channel=channel or self._open_channel,
            trouble=self._trouble,
            sleep=sleep,
            new_token=new_token,
            registrations=self._registrations,
        )
        self._keepers: dict[str, Keeper] = {}
        self._listeners: list[Callable[[str], None]] = []
        self._tasks: asyncio.TaskGroup | None = None

    async def __aenter__(self) -> Supervisor:
        await asyncio.to_thread(self._folders.clean)
        self._tasks = await asyncio.TaskGroup().__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        tasks, self._tasks = self._tasks, None
        for keeper in self._keepers.values():
            keeper.close(leave=self._leave_running)
        if tasks is not None:
            # The keepers end by themselves: an error of the body must not kill them before they have stopped their children.
            await tasks.__aexit__(None, None, None)

    # --- orders ------------------------------------------------------------------------------------------------------

    @property
    def runtimes(self) -> frozenset[str]:
        """Names of the runtimes there are here."""
        return frozenset(kind.value for kind in self._runtimes)

    async def apply(self, target: Target, *, restart: bool = False) -> None:
        """Brings the service to this target; answers at once. The same target again does nothing, unless `restart`."""
        keeper = self._keepers.get(target.uid)
        if keeper is not None and keeper.target is not None:
            keeper.apply(target, restart=restart)
            return
        if keeper is not None:
            # It is being ended: its sidecars may hold the state folder until they are gone.
            await keeper.done.wait()
        if self._tasks is None:
            raise RuntimeError("the supervisor is closed")
        keeper = Keeper(
            target,
            self._runtimes,
            self.default_runtime,
            self._around,
            self._name,
            self._random,
            partial(self._changed, target.uid),
        )
        self._keepers[target.uid] = keeper
        self._tasks.create_task(keeper.run(), name=f"keeper of {target.service}")
        self._changed(target.uid)

    async def unassign(self, uid: str, drain: float) -> None:
        """Ends the service's sidecars, and keeps its state folder. Idempotent."""
        keeper = self._keepers.get(uid)
        if keeper is None:
            return
        keeper.remove(drain)
        await self._gone(uid, keeper)

    async def release(self, uid: str) -> None:
        """Leaves the service to another gateway: a sidecar of our own ends, somebody else's goes on as it is. Idempotent."""
        keeper = self._keepers.get(uid)
        if keeper is None:
            return
        keeper.close()
        await self._gone(uid, keeper)

    async def _gone(self, uid: str, keeper: Keeper) -> None:
        await keeper.done.wait()
        if self._keepers.get(uid) is keeper:
            del self._keepers[uid]
        keeper.forget()
        self._registrations.forget(uid)
        self._changed(uid)

    async def remove(self, uid: str, drain: float) -> None:
        """Ends the service's sidecars; what runs in them gets `drain` seconds. Its state folder goes too. Idempotent."""
        await self.unassign(uid, drain)
        await asyncio.to_thread(self._folders.remove_state, uid)

    async def reap(self) -> None:
        """Ends what earlier gateways left behind of services that are not here; to be called when all that are here were applied."""

        def is_orphan(uid: str) -> bool:
            # One that is here looks back itself; where there is nothing to look back at, nobody goes on with what there is.
            return uid not in self._keepers or not self._folders.left(uid)

        for runtime in self._runtimes.values():
            if isinstance(runtime, OutlivingRuntime):
                await runtime.reap(is_orphan)
        await asyncio.to_thread(self._folders.forget_left, lambda uid: uid not in self._keepers)

    # --- questions ---------------------------------------------------------------------------------------------------

    def endpoint(self, uid: str) -> Endpoint | None:
        """The sidecar that takes the service's calls now, None if there is none."""
        keeper = self._keepers.get(uid)
        return keeper.serving.endpoint if keeper is not None and keeper.serving is not None else None

    def state(self, uid: str) -> tuple[ServiceState, OneContainerError | None]:
        """Where the service stands, and why if all is not well."""
        keeper = self._keepers.get(uid)
        return (ServiceState.UNASSIGNED, None) if keeper is None else keeper.state()

    def authenticate(self, token: str) -> InstanceIdentity | None:
        """Whom an instance token stands for; None: for nobody, or the instance has been stopped.

        Raises QueueUnreachable for the token of one that has to register first.
        """
        return self._tokens.authenticate(token) or self._registrations.authenticate(token)

    @property
    def introduced(self) -> bool:
        """Whether each token that may stand for a sidecar of a service that is here is known."""
        return all(keeper.introduced for keeper in self._keepers.values())

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Calls back with a service's uid whenever its state or one of its sidecars changes. Returns what ends it."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def sidecars(self, uid: str | None = None) -> list[Sidecar]:
        """Sidecars of a service, the serving one first, registered workers last; of all services, newest first. The last ended
        ones too, but for workers."""
        workers = list(self._registrations.workers(uid))
        if uid is not None:
            keeper = self._keepers.get(uid)
            return [*([] if keeper is None else [instance.record for instance in keeper.instances()]), *workers]
        found = [instance.record for keeper in self._keepers.values() for instance in keeper.instances()] + workers
        return sorted(found, key=lambda record: (-record.create_time, record.name))

    def sidecar(self, name: str) -> Sidecar:
        """Raises ResourceNotFound."""
        instance = self._find(name)
        # One that has registered is known before its instance begins.
        record = self._registrations.record(name) if instance is None else instance.record
        if record is None:
            raise _unknown(name)
        return record

    async def heartbeat(self, uid: str, timeout: float) -> Heartbeat:
        """Asks each layer now. Raises DriverNotAvailable if the service has no sidecar to come."""
        keeper = self._keepers.get(uid)
        if keeper is None:
            raise DriverNotAvailable("the service has no driver; call MatchDrivers, then AssignDriver")
        current = keeper.current
        talk = current.conversation if current is not None and not current.ended.is_set() else None
        layers = None
        if current is not None and talk is not None:
            starting = current.record.state is SidecarState.STARTING
            layers = await _unless_it_ends(talk.heartbeat(timeout, starting=starting))
        if current is None or layers is None:
            state, error = keeper.state()
            starting = state is ServiceState.STARTING or (current is not None and not current.ended.is_set())
            first = LayerHeartbeat(
                HeartbeatLayer.SIDECAR,
                HeartbeatState.STARTING if starting else HeartbeatState.UNAVAILABLE,
                error=error if error is not None or starting else DriverUnreachable("no sidecar runs"),
            )
            rest = (HeartbeatLayer.DRIVER, HeartbeatLayer.BACKEND)
            return Heartbeat("", (first, *(LayerHeartbeat(layer, HeartbeatState.SKIPPED) for layer in rest)))
        return Heartbeat(current.name, layers)

    async def logs(self, name: str, tail: int, follow: bool) -> AsyncGenerator[list[LogLine], None]:
        """The last lines of a sidecar, then with `follow` each further one until it ends.

        Raises ResourceNotFound, and StateInvalid for one that somebody else started.
        """
        instance = self._find(name)
        if instance is None and self._registrations.record(name) is None:
            raise _unknown(name)
        if instance is None or not instance.runtime.owns:
            raise StateInvalid(f"{name} is attached: its logs are with whoever started it")
        if not follow:
            yield instance.logs.tail(tail)
            return
        async with contextlib.aclosing(instance.logs.follow(tail)) as batches:
            async for lines in batches:
                yield lines

    def _find(self, name: str) -> Instance | None:
        every = (instance for keeper in self._keepers.values() for instance in keeper.instances())
        return next((instance for instance in every if instance.name == name), None)

    # --- inside ------------------------------------------------------------------------------------------------------

    def tell(self, uid: str) -> None:
        """Tells those who subscribed that something about a service has changed: one of its workers."""
        self._changed(uid)

    def _changed(self, uid: str) -> None:
        for listener in list(self._listeners):
            try:
                listener(uid)
            except Exception:
                log.exception("a listener of the supervisor failed")

    def _name(self, target: Target, runtime: Runtime) -> str:
        service = target.service.removeprefix("services/")
        presence = self._registrations.presence(target.uid, target.driver) if target.runtime.registers else None
        if presence is not None:
            return presence.name
        if runtime.owns:
            return f"sidecars/{service[:48]}-{self._new_suffix()}"
        # Somebody else's sidecar goes on when the gateway starts anew: under the same name Attach is a repetition, and
        # what runs in it runs on.
        identity = f"{target.uid} {target.runtime.endpoint} {target.generation}"
        return f"sidecars/{service[:48]}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    def _open_channel(self, target: str) -> grpc.aio.Channel:
        tls = not is_loopback(target)
        roots = self._roots() if tls else None
        return open_channel(target, max_message_bytes=self._policy.max_message_bytes, tls=tls, roots=roots)

    async def _trouble(self, target: str) -> OneContainerError | None:
        if is_loopback(target):
            return None
        problem = await handshake_problem(target, self._roots(), HANDSHAKE_SECONDS)
        return (
            DriverUnreachable(
                f"the certificate of the sidecar at {target} is not accepted: {problem}. `oca sidecar certificate` makes one, for the "
                "names and addresses by which sidecars are reached"
            )
            if problem
            else None
        )


def _nobody(clock: Clock) -> Registrations:
    """Where nothing can register."""

    def post_of(service: str) -> Post:
        raise ResourceNotFound(f"nobody registers for {service} here", resource=("onecontainer.dev/Service", service))

    return Registrations(_new_token(), post_of=post_of, clock=clock, lease=1.0, on_change=lambda _uid: None)


def _unknown(name: str) -> ResourceNotFound:
    return ResourceNotFound(
        f"there is no {name}; every start makes a new one, ListSidecars tells which there are",
        resource=(SIDECAR_TYPE, name),
    )


async def _unless_it_ends(
    heartbeat: Coroutine[Any, Any, tuple[LayerHeartbeat, ...]],
) -> tuple[LayerHeartbeat, ...] | None:
    """The layers; None if the sidecar ended meanwhile: the close of its channel cancels what is under way on it."""
    task = asyncio.ensure_future(heartbeat)
    try:
        await asyncio.wait((task,))
        return None if task.cancelled() else task.result()
    finally:
        task.cancel()
