"""BulkInsert: rows are written in chunks while they arrive, and each has its status.

A chunk that the backend refuses is halved until the rows that are to blame stand alone; the others are written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from google.rpc import code_pb2, status_pb2
from sqlalchemy.ext.asyncio import AsyncConnection

from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver import errors, to_status
from onecontainer_driver_sql import batches
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.inserting import check_mode, insert_statement
from onecontainer_driver_sql.model import ColumnInfo, TableInfo
from onecontainer_driver_sql.options import refuse_options

CHUNK_ROWS = 10_000
QUEUED_MESSAGES = 4
DEFAULT_FAILURES, MAX_FAILURES = 1000, 10_000
_NOT_TRIED = status_pb2.Status(code=code_pb2.CANCELLED, message="not tried: the call ended early")

Request = database_pb2.BulkInsertRequest
Row = tuple[Any, ...]


class _TooManyFailures(Exception):  # the way out, not an error
    """`max_failures` is reached."""


@dataclass(slots=True)
class Outcome:
    """What became of the rows, in order; neighbours that fared alike share a status."""

    response: database_pb2.BulkInsertResponse = field(default_factory=database_pb2.BulkInsertResponse)

    def add(self, count: int, *, status: status_pb2.Status | None = None, skipped: bool = False) -> None:
        response = self.response
        if count == 0:
            return
        given = status or status_pb2.Status()
        if skipped:
            response.skipped += count
        elif given.code:
            response.failed += count
        else:
            response.inserted += count
        last = response.row_statuses[-1] if response.row_statuses else None
        if last is not None and last.skipped == skipped and last.status == given:
            last.row_count += count
        else:
            first = last.first_row + last.row_count if last else 0
            response.row_statuses.add(first_row=first, row_count=count, status=given, skipped=skipped)


@dataclass(slots=True)
class Chunk:
    """Rows of the same columns that are written together; rows that did not decode have their error."""

    columns: list[ColumnInfo]
    rows: list[Row]
    failed: dict[int, errors.OneContainerError]

    def add(self, other: Chunk) -> None:
        start = len(self.rows)
        self.rows += other.rows
        for index, error in other.failed.items():
            self.failed[start + index] = error


async def bulk_insert(database: Database, requests: AsyncIterator[Request]) -> database_pb2.BulkInsertResponse:
    first = await anext(requests, None)
    if first is None or not first.table:
        raise errors.FieldRequired("table", "is required in the first message")
    async with database.reading() as connection:
        table = await database.fresh_table(connection, first.table)
    check_mode(table, first.mode, "mode")
    conditional = first.mode == record_pb2.INSERT_MODE_IF_NOT_EXISTS
    refuse_options(first.options, "options", conditional=conditional, delete=False)
    if not 0 <= first.max_failures <= MAX_FAILURES:
        raise errors.FieldInvalid("max_failures", f"must be from 0 to {MAX_FAILURES}")
    source = Source(table, first)
    writer = Writer(database, table, first.mode, first.max_failures or DEFAULT_FAILURES)
    # The next messages are read and decoded while a chunk is being written.
    queue: asyncio.Queue[Chunk | None] = asyncio.Queue(QUEUED_MESSAGES)
    reader = asyncio.create_task(source.read(requests, queue))
    try:
        with contextlib.suppress(_TooManyFailures):
            await _write_all(writer, queue)
        if not writer.outcome.response.ended_early:
            await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
    return writer.outcome.response


async def _write_all(writer: Writer, queue: asyncio.Queue[Chunk | None]) -> None:
    """Writes what is there, several messages at once; waits for more only with nothing in hand."""
    chunk = await queue.get()
    while chunk is not None:
        following: Chunk | None = None
        while len(chunk.rows) < CHUNK_ROWS and not queue.empty():
            following = queue.get_nowait()
            if following is None or following.columns != chunk.columns:
                break
            chunk.add(following)
            following = None
        else:
            await writer.write(chunk)
            chunk = await queue.get()
            continue
        await writer.write(chunk)
        chunk = following


class Source:
    """Decodes the messages of a call into chunks."""

    def __init__(self, table: TableInfo, first: Request) -> None:
        self._table = table
        self._first = first
        self._columns: list[ColumnInfo] = []
        self._names: list[str] = []

    async def read(self, requests: AsyncIterator[Request], queue: asyncio.Queue[Chunk | None]) -> None:
        """Ends with None in the queue, whatever happens: the writer must not wait for ever."""
        try:
            await self._put(self._first, queue)
            async for request in requests:
                await self._put(request, queue)
        except asyncio.CancelledError:
            while not queue.empty():  # nobody makes room any more
                queue.get_nowait()
            queue.put_nowait(None)
            raise
        except BaseException:
            await queue.put(None)
            raise
        await queue.put(None)

    async def _put(self, request: Request, queue: asyncio.Queue[Chunk | None]) -> None:
        if request.service not in ("", self._first.service) or request.table not in ("", self._first.table):
            raise errors.FieldInvalid("table", "is another one than in the first message")
        if request.HasField("batch"):
            columns = self._columns_of(request.batch)
            decoded = batches.decode(columns, request.batch)
            if decoded.rows:
                await queue.put(Chunk(columns, decoded.rows, decoded.failed))

    def _columns_of(self, batch: record_pb2.RecordBatch) -> list[ColumnInfo]:
        """The batch's columns, or those of the message before."""
        if batch.columns and list(batch.columns) != self._names:
            names = list(batch.columns)
            columns: list[ColumnInfo] = []
            for index, name in enumerate(names):
                column = self._table.column(name, f"batch.columns[{index}]")
                if name in names[:index] or column.generated:
                    raise errors.FieldInvalid(f"batch.columns[{index}]", "is there twice, or a generated column")
                columns.append(column)
            self._columns, self._names = columns, names
        if not self._columns:
            raise errors.FieldRequired("batch.columns", "is required in the first batch")
        return self._columns


class Writer:
    """Writes chunks into one table and keeps the outcome of every row."""

    def __init__(self, database: Database, table: TableInfo, mode: int, max_failures: int) -> None:
        self._database = database
        self._table = table
        self._mode = mode
        self._max_failures = max_failures
        self.outcome = Outcome()

    async def write(self, chunk: Chunk) -> None:
        """One transaction. Raises `_TooManyFailures` when the call is to end."""
        self.outcome.response.received += len(chunk.rows)
        start = 0
        enough = False
        written: list[tuple[int, status_pb2.Status | None, bool]] = []
        async with self._database.transaction() as connection:
            try:
                for index in [*sorted(chunk.failed), len(chunk.rows)]:
                    await self._halving(connection, chunk.columns, chunk.rows[start:index], written)
                    if index < len(chunk.rows):
                        written.append((1, _status(chunk.failed[index]), False))
                        self._count_failure(written)
                    start = index + 1
            except _TooManyFailures:
                enough = True
        # Only now it is committed.
        for count, status, skipped in written:
            self.outcome.add(count, status=status, skipped=skipped)
        if enough:
            done = sum(count for count, _, _ in written)
            self.outcome.add(len(chunk.rows) - done, status=_NOT_TRIED)
            self.outcome.response.ended_early = True
            raise _TooManyFailures

    def _count_failure(self, written: list[tuple[int, status_pb2.Status | None, bool]]) -> None:
        here = sum(count for count, status, _ in written if status is not None)
        if self.outcome.response.failed + here >= self._max_failures:
            raise _TooManyFailures

    async def _halving(
        self,
        connection: AsyncConnection,
        columns: list[ColumnInfo],
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
            if found is None or not _is_of_a_row(found):
                raise
            if len(rows) == 1:
                written.append((1, _status(found), False))
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

    async def _insert(self, connection: AsyncConnection, columns: list[ColumnInfo], rows: list[Row]) -> list[bool]:
        """For each row whether it was left alone; empty: none was."""
        backend, table = self._database.backend, self._table
        names = [column.name for column in columns]
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


def _is_of_a_row(error: errors.OneContainerError) -> bool:
    """Whether the other rows may still be written: not without rights, without space, or with the connection lost."""
    if isinstance(error, errors.BackendExecutionFailed):
        return error.code in (errors.Code.FAILED_PRECONDITION, errors.Code.INVALID_ARGUMENT, errors.Code.INTERNAL)
    return isinstance(error, errors.ResourceConflict | errors.DataInvalid)


def _hashable(row: Any) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in row)


def _status(error: errors.OneContainerError) -> status_pb2.Status:
    return to_status(error)
