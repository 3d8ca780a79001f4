"""One keyspace: its session, and its tables as they are known."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self
from weakref import WeakValueDictionary

from cassandra.query import PreparedStatement

from onecontainer.driver import errors
from onecontainer.driver.records.known import KnownTables
from onecontainer.driver.records.names import check_identifier
from onecontainer_driver_cassandra import catalog
from onecontainer_driver_cassandra.faults import INVALID
from onecontainer_driver_cassandra.model import TableInfo
from onecontainer_driver_cassandra.session import Session
from onecontainer_driver_cassandra.settings import Settings
from onecontainer_driver_cassandra.writes import Write


class Database:
    def __init__(self, settings: Settings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.session = Session(settings)
        # What Cassandra calls invalid is told when a statement is prepared, before anything is written.
        self.tables: KnownTables[TableInfo] = KnownTables(
            lambda error: error.metadata.get("backend_code") == INVALID, monotonic
        )
        # A lock goes when nobody holds it or waits for it.
        self._locks: WeakValueDictionary[tuple[str | bytes, ...], asyncio.Lock] = WeakValueDictionary()
        self.defining = asyncio.Lock()
        """Cassandra takes changes of the schema badly when they come at once."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    @property
    def keyspace(self) -> str:
        return self.session.settings.keyspace

    async def table(self, table_id: str, field: str = "table") -> TableInfo:
        """The table of that id. Raises FieldRequired, FieldInvalid or ResourceNotFound."""
        return self.tables.get(table_id) or await self.fresh_table(table_id, field)

    async def fresh_table(self, table_id: str, field: str = "table") -> TableInfo:
        check_identifier(table_id, field)
        return self.tables.found(table_id, await catalog.describe(self.session, table_id))

    def changed(self, table_id: str) -> None:
        self.tables.forget(table_id)
        self.session.forget()

    @contextlib.asynccontextmanager
    async def contended(self, writes: Sequence[Write]) -> AsyncIterator[None]:
        """Conditional writes of one partition wait for one another here: in Cassandra they would compete until one times out."""
        places: set[tuple[str | bytes, ...]] = {
            (write.table.id, *(write.partition or ())) for write in writes if write.condition is not None
        }
        async with contextlib.AsyncExitStack() as held:
            for place in sorted(places, key=repr):  # always in the same order, so that nobody waits in a circle
                lock = self._locks.get(place)
                if lock is None:
                    lock = self._locks[place] = asyncio.Lock()
                await held.enter_async_context(lock)
            yield

    async def version(self) -> str:
        """Asks the backend. Raises BackendUnreachable and its like."""
        rows = await self.session.ask("SELECT release_version FROM system.local WHERE key = 'local'")
        if not rows:
            raise errors.BackendExecutionFailed("Cassandra does not tell its version", code=errors.Code.INTERNAL)
        return (rows[0][0] or b"").decode()

    async def prepare(self, cql: str, path: str, way_out: str) -> PreparedStatement:
        """Raises BackendCapabilityMissing of ``path`` for a statement that Cassandra understands and does not do."""
        try:
            return await self.session.prepare(cql)
        except errors.BackendExecutionFailed as error:
            if error.metadata.get("backend_code") != INVALID or "Undefined column" in error.message:
                raise
            raise errors.BackendCapabilityMissing(path, f"{error.message} {way_out}") from error
