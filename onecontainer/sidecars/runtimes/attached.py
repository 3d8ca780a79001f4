"""Sidecars that somebody else starts: the gateway has their address, or they register; it neither starts nor stops them."""

from __future__ import annotations

import asyncio

from onecontainer.errors import DriverUnreachable
from onecontainer.sidecars.instance import first_of
from onecontainer.sidecars.model import RuntimeKind
from onecontainer.sidecars.registrations import Presence, Registrations
from onecontainer.sidecars.runtime import StartSpec


class _Attached:
    def __init__(self, target: str) -> None:
        self.target = target
        self.runtime_id = ""
        self._released = asyncio.Event()

    async def wait(self) -> str:
        await self._released.wait()
        return "was released"

    async def stop(self, grace: float) -> None:
        self._released.set()


class _Registered(_Attached):
    """Ends by itself when its registration does."""

    def __init__(self, presence: Presence) -> None:
        super().__init__(presence.endpoint)
        self._presence = presence

    async def wait(self) -> str:
        await first_of(self._released.wait(), self._presence.ended.wait())
        return self._presence.end or "was released"


class AttachedRuntime:
    """`Runtime` of sidecars at a fixed address, and of those that register."""

    kind = RuntimeKind.ATTACHED
    owns = False

    def __init__(self, registrations: Registrations | None = None) -> None:
        self._registrations = registrations

    async def start(self, spec: StartSpec) -> _Attached:
        target = spec.target
        if target.runtime.endpoint:
            return _Attached(target.runtime.endpoint)
        presence = None if self._registrations is None else self._registrations.presence(target.uid, target.driver)
        if presence is None or presence.name != spec.instance:
            raise DriverUnreachable(f"no sidecar of {target.driver} has registered for {target.service}")
        return _Registered(presence)
