"""Sidecars that somebody else starts: the gateway has their address, and neither starts nor stops them."""

from __future__ import annotations

import asyncio

from onecontainer.errors import FieldRequired
from onecontainer.sidecars.model import RuntimeKind
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


class AttachedRuntime:
    """`Runtime` of sidecars at a fixed address."""

    kind = RuntimeKind.ATTACHED
    owns = False

    async def start(self, spec: StartSpec) -> _Attached:
        endpoint = spec.target.runtime.endpoint
        if not endpoint:
            raise FieldRequired("service.runtime.endpoint")
        return _Attached(endpoint)
