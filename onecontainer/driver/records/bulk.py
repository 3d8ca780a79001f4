"""BulkInsert: rows are decoded while others are written, and each has its status."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.rpc import code_pb2, status_pb2

from onecontainer import errors
from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver.records import batches
from onecontainer.driver.records.model import Column, Table

CHUNK_ROWS = 10_000
QUEUED_MESSAGES = 4
DEFAULT_FAILURES, MAX_FAILURES = 1000, 10_000
NOT_TRIED = status_pb2.Status(code=code_pb2.CANCELLED, message="not tried: the call ended early")

Request = database_pb2.BulkInsertRequest
Row = tuple[Any, ...]


class TooManyFailures(Exception):
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

    columns: list[Column]
    rows: list[Row]
    failed: dict[int, errors.OneContainerError]

    def add(self, other: Chunk) -> None:
        start = len(self.rows)
        self.rows += other.rows
        for index, error in other.failed.items():
            self.failed[start + index] = error


class Writer(Protocol):
    """Writes chunks into one table and keeps the outcome of every row."""

    outcome: Outcome

    async def write(self, chunk: Chunk) -> None:
        """Raises `TooManyFailures` when the call is to end."""
        ...


async def first_message(requests: AsyncIterator[Request]) -> tuple[Request, int]:
    """The message that tells the table, and after how many failures to end."""
    first = await anext(requests, None)
    if first is None or not first.table:
        raise errors.FieldRequired("table", "is required in the first message")
    if not 0 <= first.max_failures <= MAX_FAILURES:
        raise errors.FieldInvalid("max_failures", f"must be from 0 to {MAX_FAILURES}")
    return first, first.max_failures or DEFAULT_FAILURES


async def insert_all(
    table: Table, first: Request, requests: AsyncIterator[Request], writer: Writer
) -> database_pb2.BulkInsertResponse:
    """The next messages are read and decoded while a chunk is being written."""
    queue: asyncio.Queue[Chunk | None] = asyncio.Queue(QUEUED_MESSAGES)
    reader = asyncio.create_task(Source(table, first).read(requests, queue))
    try:
        with contextlib.suppress(TooManyFailures):
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

    def __init__(self, table: Table, first: Request) -> None:
        self._table = table
        self._first = first
        self._columns: list[Column] = []
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

    def _columns_of(self, batch: record_pb2.RecordBatch) -> list[Column]:
        """The batch's columns, or those of the message before."""
        if batch.columns and list(batch.columns) != self._names:
            names = list(batch.columns)
            columns: list[Column] = []
            for index, name in enumerate(names):
                column = self._table.column(name, f"batch.columns[{index}]")
                if name in names[:index] or column.generated:
                    raise errors.FieldInvalid(f"batch.columns[{index}]", "is there twice, or a generated column")
                columns.append(column)
            self._columns, self._names = columns, names
        if not self._columns:
            raise errors.FieldRequired("batch.columns", "is required in the first batch")
        return self._columns


def is_of_a_row(error: errors.OneContainerError) -> bool:
    """Whether the other rows may still be written: not without rights, without space, or with the connection lost."""
    if isinstance(error, errors.BackendExecutionFailed):
        return error.code in (errors.Code.FAILED_PRECONDITION, errors.Code.INVALID_ARGUMENT, errors.Code.INTERNAL)
    return isinstance(error, errors.ResourceConflict | errors.DataInvalid)
