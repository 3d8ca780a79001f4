"""Removes what nobody needs any more, and finds what should be there and is not."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from onecontainer.artifacts import sql
from onecontainer.artifacts.model import COLLECTION, Artifact
from onecontainer.artifacts.ports import ArtifactStore, JobsView
from onecontainer.clock import Clock
from onecontainer.database import Database
from onecontainer.errors import LeaseLost, OneContainerError

log = logging.getLogger(__name__)

BATCH = 200
ORPHAN_GRACE = 3600 * 1_000_000
"""Microseconds for which bytes without a row are left alone: their upload may be about to write it."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep has removed: expired artifacts, staged ones without a current attempt, and bytes."""

    expired: int
    stale: int
    blobs: int


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a reconciliation has found: partial files and orphaned bytes, both removed, and artifacts without bytes."""

    partial: int
    orphans: int
    missing: tuple[str, ...]


class ArtifactSweeper:
    """Sweeps often, reconciles at start. Safe beside others of its kind: each step is a transaction, or idempotent."""

    def __init__(self, database: Database, store: ArtifactStore, jobs: JobsView, clock: Clock) -> None:
        self._database = database
        self._store = store
        self._jobs = jobs
        self._clock = clock

    async def run(self, interval: float) -> None:
        """Reconciles once, then sweeps every `interval` seconds, until it is cancelled. An error is logged and tried again."""
        first = True
        while True:
            try:
                if first:
                    await self.reconcile()
                    first = False
                await self.sweep()
            except (OneContainerError, OSError):
                log.exception("the artifacts could not be swept; trying again in %s s", interval)
            await asyncio.sleep(interval)

    async def sweep(self) -> Swept:
        """Removes what has expired and is in no live job's input, what lost attempts have staged, and the bytes of both."""
        expired = await self._sweep_expired()
        stale = await self._sweep_stale()
        return Swept(expired, stale, await self._collect_garbage())

    async def _sweep_expired(self) -> int:
        def remove(connection: Connection) -> tuple[int, int]:
            found = sql.expired(connection, self._clock.now(), BATCH)
            free = [artifact for artifact in found if self._jobs.user_of(connection, artifact.name) is None]
            return len(found), sum(sql.delete(connection, artifact.id) for artifact in free)

        removed = 0
        while True:
            found, gone = await self._database.write(remove)
            removed += gone
            if found < BATCH or gone == 0:
                return removed

    async def _sweep_stale(self) -> int:
        removed, after = 0, ""

        def is_stale(connection: Connection, artifact: Artifact) -> bool:
            if artifact.attempt is None:
                return True
            try:
                self._jobs.principal_of(connection, artifact.attempt, None)
            except LeaseLost:
                return True
            return False

        def look(connection: Connection) -> tuple[list[Artifact], list[Artifact]]:
            batch = sql.staged(connection, after, BATCH)
            return batch, [artifact for artifact in batch if is_stale(connection, artifact)]

        while True:
            batch, stale = await self._database.read(look)
            if stale:
                removed += await self._database.write(
                    # A fence that was lost stays lost: no need to look again.
                    lambda c, stale=stale: sum(sql.delete(c, artifact.id) for artifact in stale)  # type: ignore[misc]
                )
            if len(batch) < BATCH:
                return removed
            after = batch[-1].id

    async def _collect_garbage(self) -> int:
        removed = 0
        while keys := await self._database.read(lambda c: sql.garbage(c, BATCH)):
            for key in keys:
                await self._store.delete(key)
            await self._database.write(lambda c, keys=keys: sql.garbage_removed(c, keys))  # type: ignore[misc]
            removed += len(keys)
        return removed

    async def reconcile(self) -> Reconciled:
        """Compares rows and bytes.

        Partial files of dead writers go, and bytes without a row that are older than an hour. Artifacts without bytes are
        only reported: when a disk is not mounted, all are, and their rows are all that is known of them.
        """
        partial = await self._store.remove_partial()
        present: set[str] = set()
        old: list[str] = []
        horizon = self._clock.now() - ORPHAN_GRACE
        async for blob in self._store.entries():
            present.add(blob.key)
            if blob.modify_time < horizon:
                old.append(blob.key)
        orphans = 0
        for start in range(0, len(old), BATCH):
            batch = old[start : start + BATCH]
            unknown = await self._database.read(lambda c, batch=batch: sql.unknown_ids(c, batch))  # type: ignore[misc]
            for key in unknown:
                await self._store.delete(key)
            orphans += len(unknown)
        missing = await self._missing(present)
        if partial or orphans:
            log.info("removed %d partial uploads and the bytes of %d artifacts that nobody owns", partial, orphans)
        if missing:
            log.error("the bytes of %d artifacts are missing, for example of %s", len(missing), missing[0])
        return Reconciled(partial, orphans, tuple(missing))

    async def _missing(self, present: set[str]) -> list[str]:
        candidates: list[str] = []
        after = ""
        while ids := await self._ids_after(after):
            candidates += [key for key in ids if key not in present]
            after = ids[-1]
        # What was uploaded or deleted while we looked is not missing.
        return [COLLECTION + key for key in candidates if await self._is_missing(key)]

    async def _ids_after(self, after: str) -> list[str]:
        return await self._database.read(lambda c: sql.ids_after(c, after, BATCH))

    async def _is_missing(self, key: str) -> bool:
        recorded = await self._database.read(lambda c: sql.find(c, key))
        return recorded is not None and not await self._store.exists(key)
