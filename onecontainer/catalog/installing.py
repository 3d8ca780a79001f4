"""Installing and removing plug-in drivers, while everything runs."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

from onecontainer.catalog import packing
from onecontainer.catalog.catalog import Catalog
from onecontainer.catalog.conflicts import conflict
from onecontainer.catalog.drivers import read_driver
from onecontainer.catalog.model import DriverRecord, DriverSource
from onecontainer.catalog.plugins import DRIVER_TYPE, Plugin, PluginShelf, as_plugin, in_use
from onecontainer.catalog.ports import CatalogStore
from onecontainer.catalog.quarantine import CheckInstalled, unchecked
from onecontainer.catalog.sources import Fetched, Source, Sources
from onecontainer.errors import ResourceConflict, StateInvalid
from onecontainer.sidecars.model import LIVE

log = logging.getLogger(__name__)


class Installer:
    """Installs plug-ins into a catalog. What is wrong with one is found before anything is kept, and harms no other.

    Args:
        check: a further look at a driver that is valid, with its folder unpacked.
    """

    def __init__(
        self,
        catalog: Catalog,
        shelf: PluginShelf,
        store: CatalogStore,
        sources: Sources,
        *,
        check: CheckInstalled = unchecked,
    ) -> None:
        self._catalog = catalog
        self._shelf = shelf
        self._store = store
        self._sources = sources
        self._check = check

    async def install(self, source: Source, *, validate_only: bool = False) -> DriverRecord:
        """The driver, which can be assigned and called when this returns; with `validate_only` as it would be.

        The same content again gives the driver that is there. Raises what `Sources.fetch` does; DataInvalid with all that is
        wrong with its metadata or descriptors; ResourceConflict if its version is there with another content, or if its
        contracts do not go with another driver's.
        """
        with self._shelf.scratch() as scratch:
            fetched = await self._sources.fetch(source, scratch)
            folder = scratch / "driver"
            # From the archive, not from where it came: this is what each gateway will unpack.
            await asyncio.to_thread(packing.unpack, fetched.archive, folder, self._sources.max_bytes)
            record, descriptors = await asyncio.to_thread(read_driver, folder, DriverSource.PLUGIN, self._catalog.now())
            if record.error is not None:
                raise record.error
            there = self._there(record)
            if there is not None:
                return there
            quarantine = await self._check(record)
            plugin = Plugin(record.name, record.digest, fetched.origin, record.create_time, quarantine)
            async with self._catalog.changing:
                there = self._there(record)  # it may have been installed twice at once
                if there is not None:
                    return there
                record = as_plugin(record, plugin)
                if validate_only:
                    return replace(record, folder=None)
                return await self._keep(record, plugin, folder, fetched, descriptors)

    def _there(self, record: DriverRecord) -> DriverRecord | None:
        """The driver of this name, if it has this content. Raises ResourceConflict."""
        there = self._catalog.drivers.get(record.name)
        if there is not None:
            if there.digest == record.digest:
                return there
            raise ResourceConflict(
                f"{record.name} is there with another content ({there.digest}, this one has {record.digest}): "
                "raise `version` in metadata.json",
                resource=(DRIVER_TYPE, record.name),
            )
        assert record.methods is not None
        assert record.manifest is not None
        problem = conflict(record.manifest.name, record.methods, self._catalog.drivers.values())
        if problem:
            raise ResourceConflict(problem, resource=(DRIVER_TYPE, record.name))
        return None

    async def _keep(
        self, record: DriverRecord, plugin: Plugin, folder: Path, fetched: Fetched, descriptors: bytes
    ) -> DriverRecord:
        await self._store.drivers_seen([record], {record.descriptor_digest: descriptors}, record.create_time)
        place = await self._shelf.add(plugin, folder, fetched.archive)
        record = replace(record, folder=place)
        self._catalog.change_drivers([record])
        log.info("installed %s from %s, %s", record.name, record.origin, record.digest)
        return record

    async def uninstall(self, name: str) -> None:
        """Removes a plug-in.

        Raises ResourceNotFound; StateInvalid for a driver that was not installed by `install`; ResourceInUse while it is
        assigned to services, or a sidecar of it still runs.
        """
        async with self._catalog.changing:
            record = self._catalog.driver(name)
            if record.source is DriverSource.BUNDLED:
                raise StateInvalid(
                    f"{name} comes with oneContainer and cannot be removed", resource=(DRIVER_TYPE, name)
                )
            if not self._shelf.has(record):
                raise StateInvalid(
                    f"{name} was not installed: {record.folder or 'its folder'} is in ONECONTAINER_DRIVER_PATHS; "
                    "take it away there and start the gateway again",
                    resource=(DRIVER_TYPE, name),
                )
            # A sidecar that is being drained still runs from the folder.
            draining = [
                sidecar.service
                for sidecar in self._catalog.sidecars.sidecars()
                if sidecar.driver == name and sidecar.state in LIVE
            ]
            users = sorted({*self._catalog.services_of(name), *draining})
            if users:
                raise in_use(name, users)
            await self._shelf.remove(record)
            self._catalog.change_drivers((), [name])
        log.info("uninstalled %s", name)
