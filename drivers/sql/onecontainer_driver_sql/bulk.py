"""BulkInsert: a chunk that the backend refuses is halved until the rows that are to blame stand alone; the others are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from google.rpc import status_pb2
from sqlalchemy.ext.asyncio import AsyncConnection

from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver import to_status
from onecontainer.driver.records import bulk
from onecontainer.driver.records.bulk import NOT_TRIED, Chunk, Outcome, Request, Row, TooManyFailures, is_of_a_row
from onecontainer.driver.records.model import Column
from onecontainer_driver_sql import expiry
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.inserting import check_mode, insert_statement
from onecontainer_driver_sql.model import EXPIRY, TableInfo
from onecontainer_driver_sql.options import refuse_options


async def bulk_insert(database: Database, requests: AsyncIterator[Request]) -> database_pb2.BulkInsertResponse:
    first, max_failures = await bulk.first_message(requests)
    async with database.reading() as connection:
        table = await database.fresh_table(connection, first.table)
    check_mode(table, first.mode, "mode")
    conditional = first.mode == record_pb2.INSERT_MODE_IF_NOT_EXISTS
    refuse_options(table, first.options, "options", conditional=conditional)
    return await bulk.insert_all(table, first, requests, Writer(database, table, first, max_failures))


class Writer:
    """Writes chunks into one table and keeps the outcome of every row."""

    def __init__(self, database: Database, table: TableInfo, first: Request, max_failures: int) -> None:
        self._database = database
        self._table = table
        self._mode = first.mode
        self._options = first.options
        self._end: Any = None
        self._max_failures = max_failures
        self.outcome = Outcome()

    async def write(self, chunk: Chunk) -> None:
        """One transaction. Raises `TooManyFailures` when the call is to end."""
        self.outcome.response.received += len(chunk.rows)
        start = 0
        enough = False
        written: list[tuple[int, status_pb2.Status | None, bool]] = []
        async with self._database.transaction() as connection:
            if self._table.expires:
                await expiry.sweep(self._database.backend, connection, self._table)
                self._end = await expiry.moment(self._database.backend, connection, self._table, self._options)
            try:
                for index in [*sorted(chunk.failed), len(chunk.rows)]:
                    await self._halving(connection, chunk.columns, chunk.rows[start:index], written)
                    if index < len(chunk.rows):
                        written.append((1, to_status(chunk.failed[index]), False))
                        self._count_failure(written)
                    start = index + 1
            except TooManyFailures:
                enough = True
        # Only now it is committed.
        for count, status, skipped in written:
            self.outcome.add(count, status=status, skipped=skipped)
        if enough:
            done = sum(count for count, _, _ in written)
            self.outcome.add(len(chunk.rows) - done, status=NOT_TRIED)
            self.outcome.response.ended_early = True
            raise TooManyFailures

    def _count_failure(self, written: list[tuple[int, status_pb2.Status | None, bool]]) -> None:
        here = sum(count for count, status, _ in written if status is not None)
        if self.outcome.response.failed + here >= self._max_failures:
            raise TooManyFailures

    async def _halving(
        self,
        connection: AsyncConnection,
        columns: Sequence[Column],
        rows: list[Row],
        written: list[tuple[int, status_pb2.Status | None, bool]],
    ) -> None:
        if not rows:
            return
        try:
            async with connection.begin_nested():
                skipped = await self._insert(connection, columns, rows)
        except Exception as error:
            found = self._database.backend.translate(error)
            if found is None or not is_of_a_row(found):
                raise
            if len(rows) == 1:
                written.append((1, to_status(found), False))
                self._count_failure(written)
                return
            middle = len(rows) // 2
            await self._halving(connection, columns, rows[:middle], written)
            await self._halving(connection, columns, rows[middle:], written)
            return
        for is_skipped in skipped:
            written.append((1, None, is_skipped))
        if not skipped:
            written.append((len(rows), None, False))

    async def _insert(self, connection: AsyncConnection, columns: Sequence[Column], rows: list[Row]) -> list[bool]:
        """For each row whether it was left alone; empty: none was."""
        backend, table = self._database.backend, self._table
        names = [column.name for column in columns]
        if table.expires:
            names.append(EXPIRY)
            rows = [(*row, self._end) for row in rows]
        plain = self._mode in (record_pb2.INSERT_MODE_UNSPECIFIED, record_pb2.INSERT_MODE_FAIL)
        if plain and await backend.copy(connection, table, names, rows):
            return []
        parameters = [dict(zip(names, row, strict=True)) for row in rows]
        statement = insert_statement(backend, table, names, self._mode)
        if self._mode != record_pb2.INSERT_MODE_IF_NOT_EXISTS or not set(table.primary_key) <= set(names):
            await connection.execute(statement, parameters)
            return []
        keys = [table.sa.columns[name] for name in table.primary_key]
        inserted = Counter(map(_hashable, (await connection.execute(statement.returning(*keys), parameters)).all()))
        skipped = []
        for row in parameters:
            key = _hashable([row[name] for name in table.primary_key])
            skipped.append(inserted[key] == 0)
            inserted[key] -= not skipped[-1]
        return skipped if any(skipped) else []


def _hashable(row: Any) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in row)
