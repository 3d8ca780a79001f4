"""One database: its connections, its transactions, its tables as they are known."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Self

import sqlalchemy as sa
from sqlalchemy import PoolProxiedConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import greenlet_spawn

from onecontainer.driver import errors
from onecontainer.driver.records.known import KnownTables
from onecontainer_driver_sql.model import Backend, TableInfo
from onecontainer_driver_sql.names import identifier

STALE = frozenset({"42703", "42804", "0A000", "SQLITE_ERROR"})
"""Backend codes of statements that do not fit the table: undefined column, wrong type, a plan of the table as it was."""


class Rollback(Exception):  # not an error: the way out of a transaction that is to leave no trace
    """Ends `Database.transaction` without a commit and without an error."""


class Database:
    """All calls go through `transaction`, `reading` or `straight`, which give one connection and translate what the backend raises."""

    def __init__(self, backend: Backend, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.backend = backend
        self._engine = backend.create_engine()
        self._engines: dict[tuple[bool, bool, bool], AsyncEngine] = {}
        """The same one, as each use of it wants its connections."""
        # Calls are one transaction, so what failed has left nothing.
        self.tables: KnownTables[TableInfo] = KnownTables(
            lambda error: error.metadata.get("backend_code") in STALE, monotonic
        )
        self._writer = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def transaction(self, *, one_write: bool = False) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes: committed at the end, undone by any exception, `Rollback` being a silent one.

        With ``one_write`` there is but one statement that writes, and nothing after it undoes it: a server is told so, which saves
        the round trips of BEGIN and COMMIT.
        """
        async with self._turn(write=True):
            with contextlib.suppress(Rollback):
                async with self._begun(write=True, one_write=one_write) as connection:
                    yield connection

    @contextlib.asynccontextmanager
    async def reading(self, *, snapshot: bool = False) -> AsyncIterator[AsyncConnection]:
        """Only reads. With ``snapshot`` all statements see the same moment; without, each is by itself, which saves round trips."""
        async with self._begun(write=False, snapshot=snapshot) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def straight(self, *, write: bool = False) -> AsyncIterator[PoolProxiedConnection]:
        """A connection for `Backend.rows`: nothing but the pool is SQLAlchemy's there, and each statement is a transaction of its own."""
        async with self._turn(write=write):
            with self._translated():
                connection = await self._engine.raw_connection()
                try:
                    yield connection
                except asyncio.CancelledError:
                    # As SQLAlchemy does it: what the connection is at then is not known.
                    await greenlet_spawn(connection.invalidate)
                    raise
                finally:
                    await greenlet_spawn(connection.close)

    def _turn(self, *, write: bool) -> contextlib.AbstractAsyncContextManager[None]:
        return self._writer if write and self.backend.single_writer else contextlib.nullcontext()

    @property
    def dialect(self) -> sa.Dialect:
        return self._engine.dialect

    @contextlib.asynccontextmanager
    async def _begun(
        self, *, write: bool, snapshot: bool = False, one_write: bool = False
    ) -> AsyncIterator[AsyncConnection]:
        use = (write, snapshot, one_write)
        if use not in self._engines:
            options = self.backend.transaction_options(write=write, snapshot=snapshot, one_write=one_write)
            self._engines[use] = self._engine.execution_options(**options)
        begins = snapshot or (write and (self.backend.single_writer or not one_write))
        with self._translated():
            async with (
                self._engines[use].connect() as connection,
                connection.begin() if begins else contextlib.nullcontext(),
            ):
                yield connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (errors.OneContainerError, Rollback, asyncio.CancelledError):
            raise
        except Exception as error:
            found = self.backend.translate(error)
            if found is None:
                raise
            if isinstance(found, errors.ResourceNotFound | errors.BackendExecutionFailed):
                self.tables.clear()  # it may have been changed behind our back
            raise found from error

    async def table(self, connection: AsyncConnection, table_id: str, field: str = "table") -> TableInfo:
        """The table of that id. Raises FieldRequired, FieldInvalid or ResourceNotFound."""
        return self.tables.get(table_id) or await self.fresh_table(connection, table_id, field)

    async def fresh_table(self, connection: AsyncConnection, table_id: str, field: str = "table") -> TableInfo:
        return self.tables.found(table_id, await self.backend.describe(connection, str(identifier(table_id, field))))

    def is_plain(self, table_id: str) -> bool:
        """Whether a write to the table is known to be one statement: its records do not expire, so nothing is swept before."""
        known = self.tables.get(table_id)
        return known is not None and not known.expires

    async def version(self) -> str:
        """Asks the backend, over a connection of its own if none is free. Raises what `reading` raises."""
        async with self.reading() as connection:
            if connection.dialect.name == "sqlite":
                await connection.execute(sa.text("SELECT count(*) FROM sqlite_schema"))
                return str(await connection.scalar(sa.text("SELECT sqlite_version()")))
            return str(await connection.scalar(sa.text("SHOW server_version")))
