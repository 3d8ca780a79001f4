"""Drivers that say they are one, and are not: they stay in the catalog, with the cause, and no service gets them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState
from onecontainer.errors import OneContainerError

log = logging.getLogger(__name__)

AT_ONCE = 2

CheckInstalled = Callable[[DriverRecord], Awaitable[OneContainerError | None]]
"""Looks at a driver whose folder is valid; an error puts it into quarantine, with that error as the cause."""


async def unchecked(_record: DriverRecord) -> OneContainerError | None:
    """No further check."""
    return None


async def quarantined(records: Sequence[DriverRecord], check: CheckInstalled) -> list[DriverRecord]:
    """The same drivers, in order; plug-ins that do not pass the check are QUARANTINED. Bundled ones are tested before they are shipped."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(record: DriverRecord) -> DriverRecord:
        if record.state is not DriverState.READY or record.source is not DriverSource.PLUGIN:
            return record
        async with places:
            error = await check(record)
        if error is None:
            return record
        log.warning("%s is in quarantine: %s", record.name, error)
        return replace(record, state=DriverState.QUARANTINED, error=error)

    return list(await asyncio.gather(*map(one, records)))
