"""Keeps one service on a sidecar: starts, starts again, switches from the old one to the new one, and ends."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from onecontainer.errors import DriverUnreachable, InternalError, OneContainerError, Reason, StateInvalid
from onecontainer.sidecars.instance import Instance, Surroundings, first_of
from onecontainer.sidecars.model import Adopted, RuntimeKind, ServiceState, SidecarState, Target
from onecontainer.sidecars.policy import restart_delay
from onecontainer.sidecars.runtime import LeftBehind, OutlivingRuntime, Runtime

log = logging.getLogger(__name__)

DEFECT_PAUSE = 1.0
RESUME_SECONDS = 5.0
"""What a sidecar of before gets to be ready before its successor is started without it: it was so already, unless it is on its way out."""


class Keeper:
    """Brings a service to its target, one round per start. `run` is its only task; all else tells it what to do."""

    def __init__(
        self,
        target: Target,
        runtimes: Mapping[RuntimeKind, Runtime],
        default_runtime: RuntimeKind,
        around: Surroundings,
        new_name: Callable[[Target, Runtime], str],
        random: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self.target: Target | None = target
        self.serving: Instance | None = None
        self.newest: Instance | None = None
        self.past: deque[Instance] = deque()
        self.done = asyncio.Event()
        self._retiring: set[Instance] = set()
        self._runtimes = runtimes
        self._default_runtime = default_runtime
        self._around = around
        self._new_name = new_name
        self._random = random
        self._on_change = on_change
        self._wake = asyncio.Event()
        self._removing = False
        self._closing = False
        self._leaving = False
        self._looked_back = False
        self._drain: float = 0
        self._failures = 0
        self._last_error: OneContainerError | None = None
        self._refused = False

    # --- orders ------------------------------------------------------------------------------------------------------

    def apply(self, target: Target, *, restart: bool) -> None:
        """The target from now on. What differs in nothing but the drain timeout starts nothing new."""
        old, self.target = self.target, target
        if restart or old is None or replace(old, drain_timeout=target.drain_timeout) != target:
            self._failures = 0
            self._refused = False
            self._wake.set()

    def remove(self, drain: float) -> None:
        """Ends the service: what runs gets `drain` seconds. `done` is set when all has ended."""
        self._removing = True
        self._end(drain)

    def close(self, *, leave: bool = False) -> None:
        """The gateway stops, or leaves the service to another one: its own sidecars end, those of others go on as they are; with `leave`
        so does its own that serves, if it can."""
        self._closing = True
        self._leaving = leave
        self._end(0)

    def _end(self, drain: float) -> None:
        self.target = None
        self._drain = drain
        self._wake.set()
        loop = asyncio.get_running_loop()
        for instance in self._retiring:
            loop.call_later(drain, instance.hurry)

    @property
    def introduced(self) -> bool:
        """Whether the sidecar that there may have been before this gateway is known by its token."""
        if self._leaving:
            # One that goes on without us must not be told, at the end, that it is a stranger: it would give up what it runs.
            return self.newest is not None and self.newest.introduced.is_set()
        return (
            self.target is None
            or self.target.runtime.registers  # such a token tells by itself that it was made here
            or self._is_newest_introduced
        )

    @property
    def _is_newest_introduced(self) -> bool:
        return self.newest is not None and (self.newest.introduced.is_set() or self.newest.ended.is_set())

    # --- what is to be seen ------------------------------------------------------------------------------------------

    @property
    def current(self) -> Instance | None:
        """The instance to ask: the serving one if it lives, else the newest."""
        return self.serving if self.serving is not None and not self.serving.ended.is_set() else self.newest

    def instances(self) -> list[Instance]:
        """All that are known, the serving one first, then by age, newest first; of those of one name (somebody else's sidecar has
        the same at each start) the first."""
        found: dict[str, Instance] = {}
        for instance in (self.serving, self.newest, *self._retiring, *reversed(self.past)):
            if instance is not None:
                found.setdefault(instance.name, instance)
        return list(found.values())

    def state(self) -> tuple[ServiceState, OneContainerError | None]:
        """Where the service stands, and the cause if all is not well.

        A service that is served by its old sidecar is READY, with the error of the new one that does not come up.
        """
        if self._removing:
            return ServiceState.DELETING, None
        current = self.current
        if current is None:
            return (ServiceState.FAILED, self._last_error) if self._refused else self._starting()
        record = current.record
        if record.state is SidecarState.READY and current is self.serving:
            return ServiceState.READY, self._last_error
        if self._refused:
            return ServiceState.FAILED, self._last_error
        if record.state is SidecarState.PROBING and record.error is not None:
            return ServiceState.UNAVAILABLE, record.error
        if record.state is SidecarState.BACKOFF:
            return ServiceState.UNAVAILABLE, record.error or self._last_error
        return self._starting()

    def _starting(self) -> tuple[ServiceState, OneContainerError | None]:
        if self._last_error is not None:
            return ServiceState.UNAVAILABLE, self._last_error
        # What it waits for, if its runtime tells.
        current = self.current
        waits = current is not None and current.record.state is SidecarState.STARTING
        return ServiceState.STARTING, current.record.error if current is not None and waits else None

    # --- its task ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is removed or closed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while self.target is not None:
                    self._wake.clear()
                    try:
                        await self._round(tasks, self.target)
                    except Exception as error:
                        # A defect here must not end the supervision of this service, and of no other at all.
                        log.exception("%s: a defect of the supervisor", self.target)
                        self._last_error = InternalError(f"the gateway failed to look after the service: {error}")
                        self._on_change()
                        await first_of(self._around.sleep(DEFECT_PAUSE), self._wake.wait())
                try:
                    await self._finish()
                except Exception:
                    log.exception("a defect of the supervisor")
        finally:
            self.done.set()

    async def _round(self, tasks: asyncio.TaskGroup, target: Target) -> None:
        """One start: up to its end, or to the next order."""
        kind = target.runtime.kind or self._default_runtime
        runtime = self._runtimes.get(kind)
        if runtime is None:
            self._last_error = StateInvalid(f"the gateway has no runtime {kind.value} any more; choose another one")
            self._refused = True
            self._on_change()
            await self._wake.wait()
            return
        old = self.serving
        if old is not None and not old.ended.is_set() and (target.exclusive or not (runtime.owns and old.runtime.owns)):
            # Its state, or its address, cannot be shared.
            self.serving = None
            await self._retire(old, target.drain_timeout)
            if self.target is not target:
                return
        if target.runtime.registers and not await self._has_registered(target):
            return
        left = await self._look_back(target, runtime)
        if left.older is not None:
            await self._resume(left.older, tasks, target, runtime)
        if self.target is not target:
            if left.current is not None and isinstance(runtime, OutlivingRuntime) and not self._leaving:
                await runtime.discard(left.current)
            return
        instance = Instance(
            left.current or self._new_name(target, runtime),
            target,
            runtime,
            self._failures,
            self._around,
            self._on_change,
            adopted=Adopted.NO if left.current is None else Adopted.CURRENT,
        )
        if self.newest is not None:
            self.newest.superseded(instance)
            self._keep(self.newest)
        self.newest = instance
        instance.begin(tasks)
        await first_of(instance.ready.wait(), instance.ended.wait(), self._wake.wait(), instance.wait_leaving())
        if instance.ready.is_set() and not instance.ended.is_set():
            self._switch(instance, tasks, target)
            await first_of(instance.ended.wait(), self._wake.wait(), instance.wait_leaving())
        if instance.ended.is_set():
            await self._after_end(instance)
        elif instance.presence is not None and instance.presence.draining.is_set():
            self._let_drain(instance, tasks, target)
        elif instance is not self.serving and not (self._leaving and instance.adopted):
            await instance.stop()

    async def _has_registered(self, target: Target) -> bool:
        """Waits for a sidecar of the target to register; False: an order came first."""
        registrations = self._around.registrations
        arrival = registrations.arrival(target.uid)
        while self.target is target:
            arrival.clear()
            if registrations.presence(target.uid, target.driver) is not None:
                return True
            if self._last_error is None:
                self._last_error = DriverUnreachable(
                    f"no sidecar of {target.driver} has registered for {target.service}: start one "
                    "(python -m onecontainer.driver --gateway … --service …), or look why it does not come through",
                    metadata={"service": target.service, "driver": target.driver},
                    hop="sidecar",
                )
            self._on_change()
            await first_of(arrival.wait(), self._wake.wait())
            if self._wake.is_set():
                return False
        return False

    def _let_drain(self, instance: Instance, tasks: asyncio.TaskGroup, target: Target) -> None:
        """It leaves by itself: what runs in it ends beside the one that takes its place."""
        if self.serving is instance:
            self.serving = None
        self._last_error = DriverUnreachable(
            f"{instance.name} has said that it takes no more calls, and leaves: start it again, or another one",
            metadata={"sidecar": instance.name},
            hop="sidecar",
        )
        self._retiring.add(instance)
        tasks.create_task(self._retire(instance, target.drain_timeout))

    async def _resume(self, name: str, tasks: asyncio.TaskGroup, target: Target, runtime: Runtime) -> None:
        """Has the service served by its sidecar of before, as that is, until there is one for the target."""
        old = Instance(name, target, runtime, 0, self._around, self._on_change, adopted=Adopted.AS_IT_IS)
        self.newest = old
        old.begin(tasks)
        await first_of(old.ready.wait(), old.ended.wait(), self._around.sleep(RESUME_SECONDS))
        if old.ready.is_set() and not old.ended.is_set():
            self._switch(old, tasks, target)
        else:
            await old.stop()

    async def _look_back(self, target: Target, runtime: Runtime) -> LeftBehind:
        """The sidecars of an earlier gateway to go on with; the others of this service end. Once."""
        found = LeftBehind()
        if self._looked_back:
            return found
        folders = self._around.folders
        try:
            for place in self._runtimes.values():
                candidates = folders.left(target.uid)
                if isinstance(place, OutlivingRuntime) and candidates:
                    left = await place.take_over(target, candidates if place is runtime else ())
                    found = left if place is runtime else found
        except OneContainerError as error:
            log.warning("what earlier gateways left of %s cannot be told: %s", target.service, error)
            return found  # asked again before the next start
        self._looked_back = True
        kept = (found.current, found.older)
        await asyncio.to_thread(folders.forget_left, lambda uid: uid == target.uid, keep=kept)
        return found

    def _switch(self, instance: Instance, tasks: asyncio.TaskGroup, target: Target) -> None:
        old, self.serving = self.serving, instance
        self._last_error = None
        if old is not None and not old.ended.is_set():
            self._retiring.add(old)
            tasks.create_task(self._retire(old, target.drain_timeout))
        self._on_change()

    async def _retire(self, instance: Instance, drain_timeout: float) -> None:
        self._retiring.add(instance)
        try:
            await instance.retire(drain_timeout)
        finally:
            self._retiring.discard(instance)
            self._keep(instance)
            self._on_change()

    async def _after_end(self, instance: Instance) -> None:
        """Waits until it is time to start again, or for the next order."""
        if self.serving is instance:
            self.serving = None
        self._last_error = instance.record.error
        old = self.serving
        if old is not None and self._last_error is not None and self._last_error.reason is Reason.RESOURCE_IN_USE:
            # The driver locks its state folder without saying so in its manifest: the old one has to go first.
            self.serving = None
            await self._retire(old, instance.target.drain_timeout)
            return
        if instance.refused:
            self._refused = True
            self._on_change()
            await self._wake.wait()
            return
        ready_time, now = instance.record.ready_time, self._around.clock.now()
        if ready_time and now - ready_time >= self._around.policy.backoff_reset * 1e6:
            self._failures = 0
        self._failures += 1
        delay = restart_delay(self._around.policy, self._failures, self._random)
        instance.record = replace(instance.record, next_start_time=now + int(delay * 1e6))
        log.warning("%s ended, next start in %.1f s: %s", instance.name, delay, self._last_error)
        self._on_change()
        # One that registers need not wait for that.
        arrival = self._around.registrations.arrival(instance.target.uid)
        await first_of(self._around.sleep(delay), self._wake.wait(), arrival.wait())

    async def _finish(self) -> None:
        leaving = [one for one in (self.serving, self.newest) if one is not None and not one.ended.is_set()]
        for instance in dict.fromkeys(leaving):
            if self._leaving and (instance is self.serving or instance.adopted):
                await instance.leave()
            elif self._closing or instance is not self.serving:
                await instance.stop()
            else:
                await self._retire(instance, self._drain)
        for instance in list(self._retiring):
            if self._closing:
                await instance.stop()
        if not self._closing and self.newest is not None:
            self.newest.disown()

    def _keep(self, instance: Instance) -> None:
        """Ended ones are kept for a while: their logs tell why."""
        if instance is self.serving or instance in self._retiring or instance in self.past:
            return
        self.past.append(instance)
        while len(self.past) > self._around.policy.past_instances:
            self.past.popleft().logs.forget()

    def forget(self) -> None:
        """Removes the logs of all instances."""
        for instance in {self.serving, self.newest, *self._retiring, *self.past} - {None}:
            assert instance is not None
            instance.logs.forget()
