"""The sidecars of all services, where several gateways share them: this gateway runs those that it owns, and shows those of the others.

Ownership is a lease. A gateway takes the services that nobody owns; when one is killed its lease ends, and another one takes over
what it had. One that cannot reach the database goes on serving, since nobody could take over without it either; it steps down as
soon as it learns that somebody has. Jobs do not depend on any of this: their fences decide.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from onecontainer.cluster.owners import Owner, Owners, View
from onecontainer.errors import DriverUnreachable, OneContainerError, ResourceInUse
from onecontainer.sidecars.model import Endpoint, Heartbeat, LogLine, ServiceState, Sidecar, Target

log = logging.getLogger(__name__)

RETRY_AFTER = 1.0


class LocalSidecars(Protocol):
    """What runs at this gateway: the supervisor."""

    @property
    def runtimes(self) -> frozenset[str]: ...

    async def apply(self, target: Target, *, restart: bool = False) -> None: ...

    async def unassign(self, uid: str, drain: float) -> None: ...

    async def remove(self, uid: str, drain: float) -> None: ...

    async def release(self, uid: str) -> None: ...

    def endpoint(self, uid: str) -> Endpoint | None: ...

    def state(self, uid: str) -> tuple[ServiceState, OneContainerError | None]: ...

    def sidecars(self, uid: str | None = None) -> list[Sidecar]: ...

    def sidecar(self, name: str) -> Sidecar: ...

    async def heartbeat(self, uid: str, timeout: float) -> Heartbeat: ...

    def logs(self, name: str, tail: int, follow: bool) -> AsyncGenerator[list[LogLine], None]: ...

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]: ...


class SharedSidecars:
    """The catalog's `Sidecars` among several gateways. A task: `run`."""

    def __init__(
        self,
        local: LocalSidecars,
        owners: Owners,
        gateway: str,
        way_to: Callable[[Owner], Endpoint],
        *,
        interval: float,
    ) -> None:
        """``way_to(owner)`` is the way to a service through the gateway that owns it; the lease is renewed each ``interval`` seconds."""
        self._local = local
        self._owners = owners
        self._gateway = gateway
        self._way_to = way_to
        self._interval = interval
        self._targets: dict[str, Target] = {}
        self._mine: set[str] = set()
        self._others: dict[str, Owner] = {}
        self._ways: dict[str, tuple[Owner, Endpoint]] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._listeners: list[Callable[[str], None]] = []
        self._shown: dict[str, View] = {}
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._show = asyncio.Event()
        local.subscribe(self._local_changed)

    # --- orders of the catalog ---------------------------------------------------------------------------------------

    @property
    def runtimes(self) -> frozenset[str]:
        return self._local.runtimes

    async def apply(self, target: Target, *, restart: bool = False) -> None:
        self._targets[target.uid] = target
        if target.uid not in self._mine:
            self.look_soon()
            return
        async with self._locks[target.uid]:
            if target.uid in self._mine:
                await self._local.apply(target, restart=restart)

    async def unassign(self, uid: str, drain: float) -> None:
        await self._give_up(uid, self._local.unassign, drain)

    async def remove(self, uid: str, drain: float) -> None:
        await self._give_up(uid, self._local.remove, drain)

    async def _give_up(self, uid: str, end: Callable[[str, float], object], drain: float) -> None:
        self._targets.pop(uid, None)
        async with self._locks[uid]:
            await end(uid, drain)  # type: ignore[misc]
            if uid not in self._targets:
                self._mine.discard(uid)
                self._shown.pop(uid, None)
                await self._owners.release(uid)
        self._changed(uid)

    async def take(self, uid: str, instance: str) -> None:
        """This gateway runs the service from now on, for this instance of it has registered here. Raises ResourceInUse if another
        gateway that lives has another instance that serves it."""
        if uid in self._mine:
            return
        owner = self.owner(uid)
        if owner is not None and owner.view.instance not in ("", instance):
            raise ResourceInUse(
                f"{owner.view.instance} serves it at {owner.gateway}, and is alive: stop that one, or wait until it leaves",
                resource=("onecontainer.dev/Sidecar", owner.view.instance),
                retry_after=RETRY_AFTER,
            )
        log.info("%s has registered here", instance)
        await self._owners.take_over(uid)
        self.look_soon()

    # --- questions ---------------------------------------------------------------------------------------------------

    def owner(self, uid: str) -> Owner | None:
        """The other gateway that runs a service's sidecar now; None: it is this one, or none."""
        owner = self._others.get(uid)
        return owner if owner is not None and owner.live else None

    def owner_of_sidecar(self, name: str) -> Owner | None:
        """The same of a sidecar."""
        return next(
            (
                owner
                for owner in self._others.values()
                if owner.live and any(sidecar.name == name for sidecar in owner.view.sidecars)
            ),
            None,
        )

    def endpoint(self, uid: str) -> Endpoint | None:
        """Where calls of the service go: to its sidecar here, or to the gateway that has it; None: there is none now."""
        if uid in self._mine:
            return self._local.endpoint(uid)
        owner = self.owner(uid)
        if owner is None or not owner.view.instance:
            return None
        known = self._ways.get(uid)
        if known is None or known[0] != owner:
            known = self._ways[uid] = owner, self._way_to(owner)
        return known[1]

    def state(self, uid: str) -> tuple[ServiceState, OneContainerError | None]:
        if uid in self._mine:
            return self._local.state(uid)
        owner = self._others.get(uid)
        if owner is not None and not owner.live:
            return ServiceState.UNAVAILABLE, _gone(owner)
        if owner is not None:
            return owner.view.state, owner.view.error
        return (ServiceState.STARTING if uid in self._targets else ServiceState.UNASSIGNED), None

    def sidecars(self, uid: str | None = None) -> list[Sidecar]:
        others = [owner for owner in self._others.values() if owner.live]
        if uid is not None:
            found = [sidecar for owner in others if owner.service_uid == uid for sidecar in owner.view.sidecars]
            return found or self._local.sidecars(uid)
        everywhere = [sidecar for owner in others for sidecar in owner.view.sidecars]
        return sorted([*self._local.sidecars(), *everywhere], key=lambda record: (-record.create_time, record.name))

    def sidecar(self, name: str) -> Sidecar:
        owner = self.owner_of_sidecar(name)
        if owner is not None:
            return next(sidecar for sidecar in owner.view.sidecars if sidecar.name == name)
        return self._local.sidecar(name)

    async def heartbeat(self, uid: str, timeout: float) -> Heartbeat:
        owner = self._others.get(uid)
        if owner is not None and uid not in self._mine:
            raise _gone(owner)
        return await self._local.heartbeat(uid, timeout)

    def logs(self, name: str, tail: int, follow: bool) -> AsyncGenerator[list[LogLine], None]:
        return self._local.logs(name, tail, follow)

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    # --- ownership ---------------------------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Somebody's ownership may have changed, or there is a service to take."""
        self._wake.set()

    async def run(self) -> None:
        """Renews, takes over and steps down, until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._show_all())
            while True:
                self._wake.clear()
                try:
                    await self._look(tasks)
                except OneContainerError as error:
                    log.warning("the lease of this gateway's sidecars could not be renewed: %s", error)
                try:
                    async with asyncio.timeout(self._interval):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        found = await self._owners.renew(list(self._targets))
        mine = {owner.service_uid for owner in found if owner.gateway == self._gateway}
        others = {owner.service_uid: owner for owner in found if owner.gateway != self._gateway}
        touched = {uid for uid in self._others.keys() | others.keys() if self._others.get(uid) != others.get(uid)}
        self._others = others
        for uid in self._ways.keys() - others.keys():
            del self._ways[uid]
        for uid in mine ^ self._mine:
            if uid in mine:
                log.info("this gateway runs the sidecar of %s from now on", self._service(uid))
            else:
                log.warning("another gateway has taken over the sidecar of %s", self._service(uid))
                self._shown.pop(uid, None)
            tasks.create_task(self._arrange(uid))
        self._mine = mine
        for uid in touched:
            self._changed(uid)

    def _service(self, uid: str) -> str:
        return self._targets[uid].service if uid in self._targets else uid

    async def _arrange(self, uid: str) -> None:
        """Starts what has become this gateway's, and ends what is not any more."""
        async with self._locks[uid]:
            try:
                target = self._targets.get(uid)
                if uid in self._mine and target is not None:
                    await self._local.apply(target)
                elif uid in self._mine:
                    await self._owners.release(uid)
                else:
                    await self._local.release(uid)
            except Exception:  # one service's trouble must not end the leases of the others
                log.exception("after a change of the owner of %s", self._service(uid))

    # --- what the others see -----------------------------------------------------------------------------------------

    def _local_changed(self, uid: str) -> None:
        self._dirty[uid] = None
        self._show.set()
        self._changed(uid)

    async def _show_all(self) -> None:
        while True:
            await self._show.wait()
            self._show.clear()
            dirty, self._dirty = self._dirty, {}
            for uid in dirty:
                view = self._view(uid)
                if uid not in self._mine or self._shown.get(uid) == view:
                    continue
                try:
                    await self._owners.show(uid, view)
                    self._shown[uid] = view
                except OneContainerError as error:
                    log.warning("the other gateways do not see the state of %s: %s", self._service(uid), error)
                    self._dirty[uid] = None
            if self._dirty and not self._show.is_set():
                asyncio.get_running_loop().call_later(RETRY_AFTER, self._show.set)

    def _view(self, uid: str) -> View:
        state, error = self._local.state(uid)
        endpoint = self._local.endpoint(uid)
        return View(
            state,
            error,
            "" if endpoint is None else endpoint.instance,
            frozenset() if endpoint is None else endpoint.methods,
            0 if endpoint is None else endpoint.max_message_bytes,
            tuple(self._local.sidecars(uid)),
        )

    def _changed(self, uid: str) -> None:
        for listener in list(self._listeners):
            try:
                listener(uid)
            except Exception:
                log.exception("a listener of the sidecars failed")


def _gone(owner: Owner) -> DriverUnreachable:
    return DriverUnreachable(
        f"{owner.gateway}, which ran the sidecar, gives no sign of life; another gateway takes over",
        retry_after=RETRY_AFTER,
    )
