"""Answers of StreamRecords."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver.records import batches
from onecontainer.driver.records.model import Column
from onecontainer.driver.records.requests import DEFAULT_BATCH, MAX_BATCH
from onecontainer.errors import FieldInvalid

FIRST_FETCH = 100


def result_columns(columns: Sequence[Column]) -> list[record_pb2.ResultColumn]:
    return [record_pb2.ResultColumn(name=column.name, type=column.proto.type) for column in columns]


@dataclass(slots=True)
class Pace:
    """How many rows are fetched next: wide rows fewer at a time, so that memory is bounded by bytes and not by rows."""

    most: int
    size: int

    def __call__(self) -> int:
        return self.size

    def saw(self, rows: int, size_bytes: int) -> None:
        self.size = max(1, min(self.most, batches.MAX_MESSAGE_BYTES * rows // max(size_bytes, 1)))


def pace_of(request: database_pb2.StreamRecordsRequest) -> Pace:
    """Checks what the caller asked for."""
    if not 0 <= request.batch_size <= MAX_BATCH:
        raise FieldInvalid("batch_size", f"must be from 0 to {MAX_BATCH}")
    if request.encoding not in record_pb2.BatchEncoding.values():
        raise FieldInvalid("encoding", f"{request.encoding} is not an encoding")
    most = request.batch_size or DEFAULT_BATCH
    return Pace(most, min(most, FIRST_FETCH))


async def responses(
    request: database_pb2.StreamRecordsRequest,
    columns: Sequence[Column],
    chunks: AsyncGenerator[Sequence[Sequence[Any]], None],
    pace: Pace,
) -> AsyncGenerator[database_pb2.StreamRecordsResponse, None]:
    """Each chunk is read when the caller has taken the ones before; the first response tells the columns, whatever follows."""
    by_column = request.encoding == record_pb2.BATCH_ENCODING_COLUMNS
    first = database_pb2.StreamRecordsResponse(columns=result_columns(columns))
    first.batch.columns.extend(column.name for column in columns)
    pending = first
    # Closed here and not by the garbage collector: what it holds of the backend goes back right after.
    async with contextlib.aclosing(chunks):
        async for rows in chunks:
            total = 0
            for batch, bytes_ in batches.encode(columns, rows, by_column=by_column):
                total += bytes_
                pending.batch.MergeFrom(batch)
                yield pending
                pending = database_pb2.StreamRecordsResponse()
            pace.saw(len(rows), total)
    if pending is first:
        empty = next(batches.encode(columns, [], by_column=by_column))[0]
        pending.batch.MergeFrom(empty)
        yield pending
