"""The plug-ins of a gateway: kept in the database, which is the truth, and unpacked in its own data folder to be run from."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from onecontainer.catalog import packing
from onecontainer.catalog.drivers import read_driver
from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState
from onecontainer.errors import InternalError, OneContainerError, ResourceInUse, ResourceNotFound
from onecontainer.settings import private_folder

log = logging.getLogger(__name__)

DRIVER_TYPE = "onecontainer.dev/Driver"
STAGING = ".staging"
DIGEST_CHARS = 16
UNLIMITED = 1 << 62
"""What is in the database has been weighed when it was installed; a limit that was lowered since must not break it."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """An installed plug-in. `name` is `drivers/{name}-{version}`; `quarantine` is why it must not be used, None if it may.

    `create_time` in microseconds since the epoch.
    """

    name: str
    digest: str
    origin: str
    create_time: int
    quarantine: OneContainerError | None = None


class PluginStore(Protocol):
    """Keeps plug-ins. Each write is committed when it returns."""

    async def plugins(self) -> list[Plugin]: ...

    async def archive(self, name: str) -> bytes:
        """Raises ResourceNotFound."""
        ...

    async def add(self, plugin: Plugin, archive: bytes) -> None:
        """Raises ResourceConflict if the name is taken."""
        ...

    async def remove(self, name: str) -> None:
        """Raises ResourceNotFound, and ResourceInUse if services have it assigned."""
        ...


class PluginShelf:
    """The plug-ins that this gateway has unpacked, each in `root/{name}/{version}-{digest}`; nothing else is kept below `root`."""

    def __init__(self, store: PluginStore, root: Path) -> None:
        self._store = store
        self._root = root

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder to work in, gone at the end."""
        folder = private_folder(self._root) / STAGING / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def load(self, now: int) -> tuple[list[DriverRecord], dict[str, bytes]]:
        """All plug-ins of the database as drivers, and their descriptor sets by digest. Once, before anything else.

        What is not here yet, or not as it was installed, is unpacked; what belongs to no plug-in any more is removed.
        """
        records: list[DriverRecord] = []
        descriptors: dict[str, bytes] = {}
        for plugin in await self._store.plugins():
            record, data = await self._driver(plugin, now)
            records.append(record)
            if data:
                descriptors[record.descriptor_digest] = data
        kept = {self._place(record.name, record.digest) for record in records}
        await asyncio.to_thread(self._tidy, kept)
        return records, descriptors

    async def news(self, known: Mapping[str, str], now: int) -> tuple[list[DriverRecord], list[str]]:
        """What other gateways have installed, and the names of what they have removed, since `known` (name → digest) was true."""
        plugins = {plugin.name: plugin for plugin in await self._store.plugins()}
        added = [
            (await self._driver(plugin, now))[0]
            for plugin in plugins.values()
            if known.get(plugin.name) != plugin.digest
        ]
        gone = [name for name in known if name not in plugins]
        for name in gone:
            await asyncio.to_thread(shutil.rmtree, self._place(name, known[name]), True)
        return added, gone

    def has(self, record: DriverRecord) -> bool:
        """Whether a driver is one of these, and not from a folder that somebody else keeps."""
        return record.folder == self._place(record.name, record.digest)

    async def _driver(self, plugin: Plugin, now: int) -> tuple[DriverRecord, bytes]:
        """The driver and its descriptors; one that cannot be unpacked here is BROKEN, and harms no other."""
        try:
            return await self._unpacked(plugin, now)
        except Exception as error:  # a full disk, say, or an archive that was damaged in the database
            log.exception("the plug-in %s cannot be used here", plugin.name)
            broken = InternalError(f"{plugin.name} could not be unpacked: {error}; see the gateway's log")
            record = DriverRecord(
                plugin.name,
                DriverSource.PLUGIN,
                DriverState.BROKEN,
                None,
                None,
                folder=self._place(plugin.name, plugin.digest),
                error=broken,
            )
            return as_plugin(record, plugin), b""

    async def _unpacked(self, plugin: Plugin, now: int) -> tuple[DriverRecord, bytes]:
        folder = self._place(plugin.name, plugin.digest)
        record, data = await asyncio.to_thread(read_driver, folder, DriverSource.PLUGIN, now)
        if record.digest != plugin.digest:
            archive = await self._store.archive(plugin.name)
            with self.scratch() as scratch:
                await asyncio.to_thread(packing.unpack, archive, scratch / "driver", UNLIMITED)
                await asyncio.to_thread(_replace, scratch / "driver", folder)
            record, data = await asyncio.to_thread(read_driver, folder, DriverSource.PLUGIN, now)
        return as_plugin(record, plugin), data

    async def add(self, plugin: Plugin, unpacked: Path, archive: bytes) -> Path:
        """Keeps a plug-in, whose files are in `unpacked`, which is moved. Raises ResourceConflict if its name is taken."""
        folder = self._place(plugin.name, plugin.digest)
        await asyncio.to_thread(_replace, unpacked, folder)
        try:
            await self._store.add(plugin, archive)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, True)
            raise
        return folder

    async def remove(self, record: DriverRecord) -> None:
        """Removes a plug-in; one that another gateway has removed meanwhile is gone, too. Raises ResourceInUse."""
        with contextlib.suppress(ResourceNotFound):
            await self._store.remove(record.name)
        if record.folder is not None:
            await asyncio.to_thread(shutil.rmtree, record.folder, True)
            with contextlib.suppress(OSError):
                record.folder.parent.rmdir()  # if no other version is in it

    def _place(self, driver: str, digest: str) -> Path:
        name, _, version = driver.removeprefix("drivers/").rpartition("-")
        return self._root.resolve() / name / f"{version}-{digest.removeprefix('sha256:')[:DIGEST_CHARS]}"

    def _tidy(self, kept: set[Path]) -> None:
        """Removes what an installation that was broken off, or a plug-in of old, left behind."""
        if not self._root.is_dir():
            return
        for child in self._root.resolve().iterdir():
            for folder in child.iterdir() if child.is_dir() else ():
                if child.name == STAGING or folder not in kept:
                    log.info("removing %s, which belongs to no installed driver", folder)
                    shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                child.rmdir()  # if it is empty


def as_plugin(record: DriverRecord, plugin: Plugin) -> DriverRecord:
    """A driver that was read from its folder, with what the database knows of it."""
    state = record.state
    error = record.error
    if plugin.quarantine is not None and state is DriverState.READY:
        state, error = DriverState.QUARANTINED, plugin.quarantine
    return replace(
        record,
        name=plugin.name,
        digest=plugin.digest,
        origin=plugin.origin,
        create_time=plugin.create_time,
        state=state,
        error=error,
    )


def in_use(name: str, users: Sequence[str]) -> ResourceInUse:
    return ResourceInUse(
        f"{name} is in use by {', '.join(users)}: assign them another driver, or delete them",
        resource=(DRIVER_TYPE, name),
        metadata={"services": " ".join(users)},
    )


def _replace(source: Path, target: Path) -> None:
    """Moves a folder to where there may be another one. A gateway that dies between the two steps makes it anew at its start."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
