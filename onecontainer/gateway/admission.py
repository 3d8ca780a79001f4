"""Who may register as the sidecar of a service, beyond what the registrations themselves know."""

from __future__ import annotations

from typing import Protocol

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.catalog.catalog import Catalog
from onecontainer.sidecars.registrations import Registration


class Ownership(Protocol):
    """Which gateway runs the sidecar of a service."""

    async def take(self, uid: str, instance: str) -> None:
        """This one from now on, for this instance has registered here. Raises ResourceInUse if another gateway has another one."""
        ...


class Admission:
    """`sidecars.servicer.Admission`, on the catalog, and on the owners where there are several gateways."""

    def __init__(self, catalog: Catalog, ownership: Ownership | None) -> None:
        self._catalog = catalog
        self._ownership = ownership

    async def announce(self, service: str, manifest: driver_pb2.DriverManifest, descriptor_set: bytes) -> None:
        await self._catalog.announce(service, manifest, descriptor_set)

    async def own(self, registration: Registration) -> None:
        if self._ownership is not None:
            identity = registration.identity
            await self._ownership.take(identity.service_uid, identity.instance)
