"""The catalog: all services and drivers in memory, written through to the database, and brought to life as sidecars."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.catalog.announced import announced_driver
from onecontainer.catalog.choosing import checked, choose, target_of, why_unassigned
from onecontainer.catalog.drivers import scan
from onecontainer.catalog.matching import Match, match_drivers
from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState, ServiceRecord
from onecontainer.catalog.plugins import DRIVER_TYPE, PluginShelf
from onecontainer.catalog.ports import CatalogStore, LiveJobs, Replay, Secrets, Sidecars
from onecontainer.catalog.quarantine import CheckInstalled, quarantined, unchecked
from onecontainer.catalog.update import needs_rematch, updated
from onecontainer.clock import Clock
from onecontainer.errors import (
    DriverNotAvailable,
    DriverUnreachable,
    EtagMismatch,
    FieldViolation,
    OneContainerError,
    ResourceConflict,
    ResourceInUse,
    ResourceNotFound,
    StateInvalid,
)
from onecontainer.sidecars.model import RuntimeSpec, ServiceState

log = logging.getLogger(__name__)

SERVICE_TYPE = "onecontainer.dev/Service"
DELETE_DRAIN = 5.0
"""Seconds that running calls get when their service is deleted."""


class Catalog:
    """Services and drivers. `start` once, before anything else; changes come one at a time, questions are answered from memory.

    Args:
        driver_folders: where to look for drivers, the first one wins.
        plugins: those that were installed; what is in a folder wins.
        drain_timeout: of services that do not set their own, in seconds.
        shared: other gateways have the same store.
        check: a further look at plug-ins; those that do not pass it are put into quarantine.
    """

    def __init__(
        self,
        store: CatalogStore,
        sidecars: Sidecars,
        secrets: Secrets,
        jobs: LiveJobs,
        clock: Clock,
        *,
        driver_folders: Sequence[tuple[Path, DriverSource]],
        plugins: PluginShelf,
        drain_timeout: float = 600.0,
        shared: bool = False,
        check: CheckInstalled = unchecked,
        new_uid: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self.sidecars = sidecars
        self.closing = asyncio.Event()
        self._store = store
        self._secrets = secrets
        self._jobs = jobs
        self._clock = clock
        self._folders = driver_folders
        self._plugins = plugins
        self._drain_timeout = drain_timeout
        self._shared = shared
        self._check = check
        self._new_uid = new_uid
        self._services: dict[str, ServiceRecord] = {}
        self._names: dict[str, str] = {}
        self._drivers: dict[str, DriverRecord] = {}
        self._deleting: set[str] = set()
        self._changing = asyncio.Lock()
        self._listeners: list[Callable[[str], None]] = []
        self._driver_listeners: list[Callable[[], None]] = []
        sidecars.subscribe(self._sidecar_changed)

    async def start(self) -> None:
        """Finds the drivers, loads the services, and starts their sidecars."""
        now = self._clock.now()
        records, descriptors = await asyncio.to_thread(scan, self._folders, now)
        records = await quarantined(records, self._check)
        plugins, theirs = await self._plugins.load(now)
        found = {record.name for record in records}
        records += [plugin for plugin in plugins if plugin.name not in found]
        for hidden in found.intersection(plugin.name for plugin in plugins):
            log.warning("the plug-in %s is hidden by a driver of that name that is in a folder", hidden)
        descriptors |= theirs
        since = await self._store.drivers_seen(records, descriptors, now)
        self._drivers = {record.name: replace(record, create_time=since[record.name]) for record in records}
        for record in await self._store.load():
            self._put(record)
            try:
                await self._settle(record)
            except EtagMismatch:
                log.info("another gateway has just changed %s: `refresh` tells how", record.name)

    async def refresh(self) -> None:
        """Takes over what other gateways have changed in the same store. Safe beside itself and everything else."""
        async with self._changing:
            added = await self._follow_plugins()
            stored = {record.uid: record for record in await self._store.load()}
            gone = [
                record
                for record in self._services.values()
                if record.uid not in stored and record.uid not in self._deleting
            ]
            for record in gone:
                del self._services[record.name]
            changed = [record for record in stored.values() if self._is_news(record)]
            for record in changed:
                self._put(record)
            # Their driver was assigned at another gateway before it was known here.
            changed += [
                record
                for record in self._services.values()
                if record.assigned_driver in added and record not in changed
            ]
        for record in changed:
            self._changed(record.name)
            await self._deploy(record)
        for record in gone:
            self._changed(record.name)
        await asyncio.gather(*(self._forget(record) for record in gone))

    async def _follow_plugins(self) -> set[str]:
        """Takes over what other gateways have installed and removed; returns the names of what is new."""
        known = {record.name: record.digest for record in self._drivers.values() if self._plugins.has(record)}
        added, gone = await self._plugins.news(known, self._clock.now())
        new = {record.name: record for record in added if record.name not in self._drivers or record.name in known}
        if new or gone:
            self.change_drivers(new.values(), gone)
        return set(new)

    def _is_news(self, record: ServiceRecord) -> bool:
        known = self._services.get(record.name)
        return known is None or (known.uid, known.revision) != (record.uid, record.revision)

    async def _forget(self, record: ServiceRecord) -> None:
        await self.sidecars.remove(record.uid, DELETE_DRAIN)
        self._names.pop(record.uid, None)

    async def _settle(self, record: ServiceRecord) -> None:
        """After a start: a service whose driver is gone or broken, or that had none, gets the best one there is now."""
        current = self.driver_of(record)
        if current is None or current.state is not DriverState.READY:
            try:
                driver = choose(record, self._drivers.values())
            except OneContainerError as error:
                log.warning("%s has no driver any more: %s", record.name, error)
                driver = None
            # What is not here may well be at another gateway, which runs the service then, or come with its sidecar.
            keeps = driver is None and (self._shared or record.runtime.registers)
            assigned = record.assigned_driver if keeps else "" if driver is None else driver.name
            if assigned != record.assigned_driver:
                record = await self._write(replace(record, assigned_driver=assigned, generation=record.generation + 1))
        await self._deploy(record)

    def close(self) -> None:
        """The gateway stops: watches end."""
        self.closing.set()

    def now(self) -> int:
        """The catalog's time, in microseconds since the epoch."""
        return self._clock.now()

    # --- questions ---------------------------------------------------------------------------------------------------

    @property
    def services(self) -> Mapping[str, ServiceRecord]:
        """All services by name."""
        return self._services

    @property
    def drivers(self) -> Mapping[str, DriverRecord]:
        """All drivers by name."""
        return self._drivers

    def service(self, name: str) -> ServiceRecord:
        """Raises ResourceNotFound."""
        record = self._services.get(name)
        if record is None:
            raise ResourceNotFound(
                f"there is no {name or 'service without a name'}; ListServices tells which there are",
                resource=(SERVICE_TYPE, name),
            )
        return record

    def resolve(self, name: str) -> ServiceRecord:
        """The service that calls and new jobs are for. Raises ResourceNotFound, and StateInvalid while it is being deleted."""
        record = self.service(name)
        if record.uid in self._deleting:
            raise StateInvalid(f"{name} is being deleted", resource=(SERVICE_TYPE, name))
        return record

    def driver(self, name: str) -> DriverRecord:
        """Raises ResourceNotFound."""
        record = self._drivers.get(name)
        if record is None:
            raise ResourceNotFound(
                f"there is no {name or 'driver without a name'}; ListDrivers tells which there are",
                resource=(DRIVER_TYPE, name),
            )
        return record

    def driver_of(self, record: ServiceRecord) -> DriverRecord | None:
        """The driver that is assigned to a service."""
        return self._drivers.get(record.assigned_driver)

    def services_of(self, driver: str) -> list[str]:
        """Names of the services that a driver is assigned to."""
        return sorted(record.name for record in self._services.values() if record.assigned_driver == driver)

    def state(self, record: ServiceRecord) -> tuple[ServiceState, OneContainerError | None]:
        """Where a service stands, and why if all is not well."""
        if record.uid in self._deleting:
            return ServiceState.DELETING, None
        if not record.assigned_driver:
            return ServiceState.UNASSIGNED, why_unassigned(record, self._drivers.values())
        state, error = self.sidecars.state(record.uid)
        if state is ServiceState.UNASSIGNED and record.runtime.registers and self.driver_of(record) is None:
            text = f"{record.assigned_driver} is not installed: it is known again when a sidecar of it registers"
            return ServiceState.UNAVAILABLE, DriverUnreachable(text, metadata={"driver": record.assigned_driver})
        return (ServiceState.STARTING, None) if state is ServiceState.UNASSIGNED else (state, error)

    def match(self, app: str, app_version: str = "", wanted: str = "") -> Match:
        """Which drivers fit, and why the others do not."""
        return match_drivers(self._drivers.values(), app, app_version, wanted)

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Calls back with the name of each service that is made, changed (its state too) or deleted. Returns what ends it."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def subscribe_drivers(self, callback: Callable[[], None]) -> None:
        """Calls back, for ever, when drivers have come or gone."""
        self._driver_listeners.append(callback)

    # --- changes -----------------------------------------------------------------------------------------------------

    @property
    def changing(self) -> asyncio.Lock:
        """Held by whatever changes services or drivers: between its look and its change nothing else does."""
        return self._changing

    def change_drivers(self, added: Iterable[DriverRecord], gone: Iterable[str] = ()) -> None:
        """Drivers have come, or gone; the caller holds `changing`. Calls can use them when this returns."""
        for name in gone:
            self._drivers.pop(name, None)
        for record in added:
            self._drivers[record.name] = record
        for listener in self._driver_listeners:
            listener()
        for service in self._services.values():
            if not service.assigned_driver:
                self._changed(service.name)  # why it has none may be another reason now

    async def replayed(self, principal: str, method: str, request_id: str) -> Replay | None:
        """What a request_id was used for."""
        return await self._store.replay(principal, method, request_id, self._clock.now())

    async def create(
        self,
        sent: ServiceRecord,
        *,
        validate_only: bool,
        more_violations: Iterable[FieldViolation] = (),
        replay: Callable[[ServiceRecord, int], Replay] | None = None,
    ) -> ServiceRecord:
        """Registers a service; it is kept when this returns, and its sidecar is on its way.

        Raises FieldRequired, FieldInvalid, ResourceConflict, ResourceNotFound and DriverNotAvailable.
        """
        async with self._changing:
            now = self._clock.now()
            record = replace(sent, uid=self._new_uid(), create_time=now, update_time=now)
            driver = self._checked(record, more_violations)
            if record.name in self._services:
                raise ResourceConflict(
                    f"{record.name} is there already: choose another id, or update that one",
                    resource=(SERVICE_TYPE, record.name),
                )
            record = replace(record, assigned_driver="" if driver is None else driver.name)
            if validate_only:
                return record
            await self._store.create(record, None if replay is None else replay(record, now))
            self._put(record)
        self._changed(record.name)
        await self._deploy(record)
        return record

    async def update(
        self, sent: ServiceRecord, mask: Iterable[str], *, etag: str, validate_only: bool
    ) -> ServiceRecord:
        """Changes the fields that the mask names.

        Raises ResourceNotFound, FieldRequired, FieldInvalid, EtagMismatch, DriverNotAvailable, and StateInvalid while the
        service is being deleted.
        """
        async with self._changing:
            old = self._current(sent.name, etag)
            record = updated(old, sent, mask)
            driver = self._checked(record)
            if needs_rematch(old, record):
                record = replace(
                    record,
                    assigned_driver="" if driver is None else driver.name,
                    generation=old.generation + 1,
                )
            if validate_only or record == old:
                return record
            record = await self._write(record)
        await self._deploy(record)
        return record

    async def assign(self, name: str, driver: str, runtime: RuntimeSpec | None, etag: str) -> ServiceRecord:
        """Assigns the driver that is named, else the best one, and starts the sidecar anew.

        Raises ResourceNotFound, DriverNotAvailable, EtagMismatch, FieldInvalid and FieldRequired.
        """
        async with self._changing:
            old = self._current(name, etag)
            record = replace(old, driver=driver or old.driver, runtime=old.runtime if runtime is None else runtime)
            chosen = self._checked(record)
            if chosen is None:
                raise DriverNotAvailable(self.match(record.app, record.app_version).why_none(record.app))
            record = await self._write(replace(record, assigned_driver=chosen.name, generation=old.generation + 1))
        await self._deploy(record, restart=True)
        return record

    async def announce(self, service: str, manifest: driver_pb2.DriverManifest, descriptor_set: bytes) -> None:
        """Takes in a driver that comes with its sidecar, and assigns it to the service if that has none. One that is installed stays
        what it is.

        Raises ResourceNotFound, and DataInvalid for a driver that cannot be used.
        """
        async with self._changing:
            record = self.resolve(service)
            driver = announced_driver(manifest, descriptor_set, self._clock.now())
            known = self._drivers.get(driver.name)
            same = known is not None and (known.manifest, known.descriptor_digest) == (
                driver.manifest,
                driver.descriptor_digest,
            )
            if known is None or (known.source is DriverSource.REGISTERED and not same):
                found = {driver.descriptor_digest: descriptor_set}
                since = await self._store.drivers_seen([driver], found, driver.create_time)
                self.change_drivers([replace(driver, create_time=since[driver.name])])
            if not record.assigned_driver:
                chosen = choose(record, self._drivers.values())
                if chosen is not None:
                    record = await self._write(
                        replace(record, assigned_driver=chosen.name, generation=record.generation + 1)
                    )
        if record.assigned_driver == driver.name:
            await self._deploy(record)

    async def delete(self, name: str, *, force: bool, etag: str) -> None:
        """Ends the service's jobs (if forced) and sidecars, and removes it.

        Raises ResourceNotFound, EtagMismatch, ResourceInUse, and StateInvalid if it is being deleted already.
        """
        async with self._changing:
            record = self._current(name, etag)
            self._deleting.add(record.uid)
        try:
            self._changed(name)
            live = await self._jobs.count(record.uid)
            if live and not force:
                raise ResourceInUse(
                    f"{name} has {live} live jobs: wait for them, cancel them, or set force",
                    resource=(SERVICE_TYPE, name),
                    metadata={"live_jobs": str(live)},
                )
            # Also with none: one may have been made between the count and now.
            await self._jobs.cancel_all(record.uid)
            await self.sidecars.remove(record.uid, DELETE_DRAIN)
            async with self._changing:  # a refresh between the two would bring it back
                await self._store.delete(record.uid)
                del self._services[name]
                del self._names[record.uid]
        except BaseException:
            self._deleting.discard(record.uid)
            await self._deploy(record)
            raise
        finally:
            self._deleting.discard(record.uid)
            self._changed(name)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _current(self, name: str, etag: str) -> ServiceRecord:
        record = self.resolve(name)
        if etag and etag != record.etag:
            raise EtagMismatch(
                f"{name} has the etag {record.etag}, not {etag}: somebody else changed it; get it and try again",
                resource=(SERVICE_TYPE, name),
            )
        return record

    def _checked(self, record: ServiceRecord, more: Iterable[FieldViolation] = ()) -> DriverRecord | None:
        return checked(record, self._drivers.values(), self.sidecars.runtimes, self._secrets, more)

    async def _write(self, record: ServiceRecord) -> ServiceRecord:
        written = replace(record, revision=record.revision + 1, update_time=self._clock.now())
        await self._store.update(written, record.revision)
        self._put(written)
        self._changed(written.name)
        return written

    async def _deploy(self, record: ServiceRecord, *, restart: bool = False) -> None:
        # Another change may have overtaken this one while it was written: the newest record counts.
        record = self._services.get(record.name, record)
        if record.uid in self._deleting:
            return
        driver = self.driver_of(record)
        if driver is None or driver.manifest is None:
            await self.sidecars.unassign(record.uid, DELETE_DRAIN)
            return
        target = target_of(record, driver, driver.manifest, self._drain_timeout)
        await self.sidecars.apply(target, restart=restart)

    def _put(self, record: ServiceRecord) -> None:
        self._services[record.name] = record
        self._names[record.uid] = record.name

    def _sidecar_changed(self, uid: str) -> None:
        name = self._names.get(uid)
        if name is not None:
            self._changed(name)

    def _changed(self, name: str) -> None:
        for listener in list(self._listeners):
            listener(name)
