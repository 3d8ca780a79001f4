"""Many records at once: rows or columns of the contract, and rows of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onecontainer import errors
from onecontainer.api.db.v1 import record_pb2, value_pb2
from onecontainer.driver.records.model import Column, parameter

MAX_MESSAGE_BYTES = 1024 * 1024

_ARRAYS: dict[str, Any] = {
    "bools": record_pb2.BoolArray,
    "int64s": record_pb2.Int64Array,
    "doubles": record_pb2.DoubleArray,
    "floats": record_pb2.FloatArray,
    "texts": record_pb2.TextArray,
    "blobs": record_pb2.BytesArray,
    "timestamps_micros": record_pb2.Int64Array,
}


# --- answers -----------------------------------------------------------------------------------------------------


def encode(
    columns: Sequence[Column], rows: Sequence[Sequence[Any]], *, by_column: bool
) -> Iterator[tuple[record_pb2.RecordBatch, int]]:
    """Batches of at most about 1 MiB (one row may be more), each with its bytes."""
    batch = _by_column(columns, rows) if by_column else _by_row(columns, rows)
    size = batch.ByteSize()
    if size > MAX_MESSAGE_BYTES and len(rows) > 1:
        middle = len(rows) // 2
        yield from encode(columns, rows[:middle], by_column=by_column)
        yield from encode(columns, rows[middle:], by_column=by_column)
    else:
        yield batch, size


def _by_row(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> record_pb2.RecordBatch:
    reads = [column.codec.read for column in columns]
    row = record_pb2.Row
    return record_pb2.RecordBatch(
        rows=record_pb2.RowList(
            rows=[row(values=[read(stored) for read, stored in zip(reads, one, strict=True)]) for one in rows]
        )
    )


def _by_column(columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> record_pb2.RecordBatch:
    transposed: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    return record_pb2.RecordBatch(
        column_list=record_pb2.ColumnList(
            row_count=len(rows),
            columns=[_array(column, stored) for column, stored in zip(columns, transposed, strict=True)],
        )
    )


def _array(column: Column, stored: tuple[Any, ...]) -> record_pb2.ColumnValues:
    codec = column.codec
    if codec.dump_array is not None and codec.array in _ARRAYS:
        nulls = [index for index, value in enumerate(stored) if value is None] if None in stored else []
        filled = [codec.filler if value is None else value for value in stored] if nulls else list(stored)
        try:
            array = _ARRAYS[codec.array](values=codec.dump_array(filled))
        except (TypeError, ValueError):
            pass  # a value that is not of the column's type (SQLite): one by one
        else:
            return record_pb2.ColumnValues(null_rows=nulls, **{codec.array: array})
    values = [codec.read(value) for value in stored]
    return record_pb2.ColumnValues(values=value_pb2.ListValue(values=values))


# --- requests ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rows:
    """Decoded rows: parameters in the columns' order, or for a row the error that it has."""

    rows: list[tuple[Any, ...]]
    failed: dict[int, errors.OneContainerError]


def decode(columns: Sequence[Column], batch: record_pb2.RecordBatch) -> Rows:
    """Raises FieldRequired or FieldInvalid if the batch itself is wrong; what is wrong with a row is in the answer."""
    body = batch.WhichOneof("body")
    if body == "rows":
        return _rows(columns, batch.rows.rows)
    if body == "column_list":
        return _columns(columns, batch.column_list)
    raise errors.FieldRequired("batch.rows", "or `column_list` is required")


def _rows(columns: Sequence[Column], rows: Sequence[record_pb2.Row]) -> Rows:
    writes = [column.codec.write for column in columns]
    width = len(columns)
    decoded = Rows([], {})
    for index, row in enumerate(rows):
        values = row.values
        try:
            if len(values) != width:
                raise ValueError
            decoded.rows.append(tuple([write(value) for write, value in zip(writes, values, strict=True)]))
        except (ValueError, ArithmeticError):
            decoded.failed[index] = _why(columns, values)
            decoded.rows.append(())
    return decoded


def _why(columns: Sequence[Column], values: Sequence[value_pb2.Value]) -> errors.OneContainerError:
    """The error of a row that did not decode, with its path."""
    if len(values) != len(columns):
        return errors.FieldInvalid("values", f"has {len(values)} values for {len(columns)} columns")
    for index, (column, value) in enumerate(zip(columns, values, strict=True)):
        try:
            parameter(column.codec, value, f"values[{index}]")
        except errors.OneContainerError as error:
            return error
    return errors.DataInvalid("values", "cannot be read")


def _columns(columns: Sequence[Column], batch: record_pb2.ColumnList) -> Rows:
    if len(batch.columns) != len(columns):
        raise errors.FieldInvalid(
            "batch.column_list.columns", f"has {len(batch.columns)} columns, {len(columns)} are named"
        )
    decoded = Rows([], {})
    loaded = [
        _column(column, values, batch.row_count, f"batch.column_list.columns[{index}]", decoded.failed)
        for index, (column, values) in enumerate(zip(columns, batch.columns, strict=True))
    ]
    decoded.rows = list(zip(*loaded, strict=True))
    return decoded


def _column(
    column: Column,
    values: record_pb2.ColumnValues,
    row_count: int,
    path: str,
    failed: dict[int, errors.OneContainerError],
) -> list[Any]:
    which = values.WhichOneof("data")
    codec = column.codec
    if which is None:
        raise errors.FieldRequired(f"{path}.values", "or an array of the column's type is required")
    if which not in ("values", codec.array):
        takes = f"{codec.array}, or values" if codec.array != "values" else "values"
        raise errors.FieldInvalid(f"{path}.{which}", f"column {column.name!r} takes {takes}")
    given: list[Any] = list(getattr(values, which).values)
    if len(given) != row_count:
        raise errors.FieldInvalid(f"{path}.{which}", f"has {len(given)} values for {row_count} rows")
    nulls = list(values.null_rows)
    if nulls and not 0 <= min(nulls) <= max(nulls) < row_count:
        raise errors.FieldInvalid(f"{path}.null_rows", f"must be from 0 to {row_count - 1}")
    loaded = codec.load_array(given) if which != "values" and codec.load_array is not None else None
    if loaded is None:
        loaded = _one_by_one(column, which, given, set(nulls), path, failed)
    elif nulls:
        loaded = list(loaded)
    for index in nulls:
        loaded[index] = None
    return loaded


def _one_by_one(
    column: Column,
    which: str,
    given: list[Any],
    nulls: set[int],
    path: str,
    failed: dict[int, errors.OneContainerError],
) -> list[Any]:
    loaded: list[Any] = []
    for index, item in enumerate(given):
        stored = None
        if index not in nulls:
            try:
                value = item if which == "values" else _value_of(column, which, item)
                stored = parameter(column.codec, value, f"{path}.{which}.values[{index}]")
            except errors.OneContainerError as error:
                failed.setdefault(index, error)
        loaded.append(stored)
    return loaded


def _value_of(column: Column, which: str, item: Any) -> value_pb2.Value:
    if which == "timestamps_micros":
        value = value_pb2.Value()
        value.timestamp_value.seconds, micros = divmod(item, 1_000_000)
        value.timestamp_value.nanos = micros * 1000
        return value
    return value_pb2.Value(**{column.codec.kind: item})
