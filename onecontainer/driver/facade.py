"""Façades: contracts of others that the SDK serves over a driver's own methods, so that no driver has code for them.

A vertical's base class names its façades; a sidecar serves those that its metadata.json lists among `services`. Their methods are
methods like all others: they are authenticated, counted, cancelled and drained in the same way.
"""

from __future__ import annotations

import asyncio
import pkgutil
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from onecontainer.driver.context import Context
from onecontainer.driver.driver import ProbeResult
from onecontainer.driver.isolation import Isolation
from onecontainer.driver.methods import DriverMethod, methods_of, snake_case
from onecontainer.driver.runs import encode
from onecontainer.rpc.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Behind:
    """What a façade stands in front of: the driver's methods by their handlers' names, its probe, and its metadata.json."""

    manifest: Manifest
    methods: Mapping[str, DriverMethod]
    probe: Callable[[], Awaitable[ProbeResult]]
    isolation: Callable[[DriverMethod], Isolation]

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        methods: Mapping[str, DriverMethod],
        probe: Callable[[], Awaitable[ProbeResult]],
        isolation: Callable[[DriverMethod], Isolation],
    ) -> Behind:
        """From a driver's methods by their full names."""
        return cls(
            manifest, {snake_case(name.rpartition("/")[2]): one for name, one in methods.items()}, probe, isolation
        )

    def has(self, *names: str) -> bool:
        """Whether the driver implements all of them."""
        return all(name in self.methods and self.methods[name].handler is not None for name in names)

    async def call(self, name: str, request: Message, context: Context) -> Any:
        """Runs a handler of the driver as a part of this call. Raises what it raises; cancelled, it ends when the handler has ended."""
        method = self.methods[name]
        isolation = self.isolation(method)
        running = asyncio.ensure_future(isolation.run(method, request, context, None))
        try:
            response = await asyncio.shield(running)
        except asyncio.CancelledError:
            if isolation.cancellable:
                running.cancel()
            # A thread looks at `context.cancelled`: until it is over, the call counts as running.
            await asyncio.wait((running,))
            if not running.cancelled():
                running.exception()
            raise
        encode(method, response)
        return response


class Facade:
    """A contract over the methods of a driver. Its handlers are named as a driver's are; `needs` tells what each stands on."""

    service: ClassVar[ServiceDescriptor]
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Method of the façade → handlers of the driver. One that lacks any of them is a method that the driver does not have."""

    def __init__(self, behind: Behind) -> None:
        self.behind = behind
        for method, needed in self.needs.items():
            if not behind.has(*needed):
                setattr(self, snake_case(method), None)


def facades_of(declared: Mapping[str, str], services: Collection[str]) -> list[type[Facade]]:
    """The façades of these services, as far as a driver declares them."""
    return [pkgutil.resolve_name(path) for name, path in declared.items() if name in services]


def in_front(facades: Iterable[type[Facade]], behind: Behind) -> dict[str, DriverMethod]:
    """All methods of the façades, by full name."""
    found: dict[str, DriverMethod] = {}
    for facade in facades:
        found.update(methods_of(facade(behind), (facade.service,)))
    return found
