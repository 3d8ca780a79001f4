"""One database: its connections, its transactions, its tables as they are known."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from onecontainer.driver import errors
from onecontainer_driver_sql.model import Backend, TableInfo
from onecontainer_driver_sql.names import identifier

KNOWN_FOR = 30.0
"""Seconds that a table's definition is believed. What this driver changes, and what the backend complains of, is read again at once."""

STALE = frozenset({"42703", "42804", "0A000", "SQLITE_ERROR"})
"""Backend codes of statements that do not fit the table: undefined column, wrong type, a plan of the table as it was."""
T = TypeVar("T")


class Rollback(Exception):  # not an error: the way out of a transaction that is to leave no trace
    """Ends `Database.transaction` without a commit and without an error."""


class Database:
    """All calls go through `transaction` or `reading`, which give one connection and translate what the backend raises."""

    def __init__(self, backend: Backend, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.backend = backend
        self._engine = backend.create_engine()
        self._monotonic = monotonic
        self._tables: dict[str, tuple[float, TableInfo]] = {}
        self._writer = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes: committed at the end, undone by any exception, `Rollback` being a silent one."""
        async with self._writer if self.backend.single_writer else contextlib.nullcontext():
            with contextlib.suppress(Rollback):
                async with self._begun(write=True) as connection:
                    yield connection

    @contextlib.asynccontextmanager
    async def reading(self, *, snapshot: bool = False) -> AsyncIterator[AsyncConnection]:
        """Only reads. With ``snapshot`` all statements see the same moment; without, each is by itself, which saves round trips."""
        async with self._begun(write=False, snapshot=snapshot) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _begun(self, *, write: bool, snapshot: bool = False) -> AsyncIterator[AsyncConnection]:
        with self._translated():
            async with self._engine.connect() as connection:
                await connection.execution_options(**self.backend.transaction_options(write=write, snapshot=snapshot))
                async with connection.begin():
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
                self._tables.clear()  # it may have been changed behind our back
            raise found from error

    async def table(self, connection: AsyncConnection, table_id: str, field: str = "table") -> TableInfo:
        """The table of that id. Raises FieldRequired, FieldInvalid or ResourceNotFound."""
        known = self._tables.get(table_id)
        if known is not None and self._monotonic() - known[0] < KNOWN_FOR:
            return known[1]
        return await self.fresh_table(connection, table_id, field)

    async def fresh_table(self, connection: AsyncConnection, table_id: str, field: str = "table") -> TableInfo:
        found = await self.backend.describe(connection, str(identifier(table_id, field)))
        if found is None:
            self._tables.pop(table_id, None)
            raise errors.ResourceNotFound(
                f"there is no table {table_id!r}", resource=("onecontainer.dev/Table", table_id)
            )
        self._tables[table_id] = (self._monotonic(), found)
        return found

    async def with_fresh(self, table_ids: Sequence[str], call: Callable[[], Awaitable[T]]) -> T:
        """Makes the call; if it fails as it would with a table that was changed behind our back, once more with what is there now.

        The call is one transaction, so what failed has left nothing.
        """
        if not any(table_id in self._tables for table_id in table_ids):
            return await call()
        try:
            return await call()
        except (errors.FieldInvalid, errors.FieldRequired, errors.DataInvalid, errors.ResourceNotFound):
            pass
        except errors.BackendExecutionFailed as error:
            if error.metadata.get("backend_code") not in STALE:
                raise
        for table_id in table_ids:
            self.forget(table_id)
        return await call()

    def forget(self, table_id: str) -> None:
        self._tables.pop(table_id, None)

    async def version(self) -> str:
        """Asks the backend, over a connection of its own if none is free. Raises what `reading` raises."""
        async with self.reading() as connection:
            if connection.dialect.name == "sqlite":
                await connection.execute(sa.text("SELECT count(*) FROM sqlite_schema"))
                return str(await connection.scalar(sa.text("SELECT sqlite_version()")))
            return str(await connection.scalar(sa.text("SHOW server_version")))
