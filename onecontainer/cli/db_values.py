"""What a person writes (JSON, CSV) as the values that a table's columns want."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from onecontainer.api.db.v1 import table_pb2
from onecontainer.client.values import type_text


def typed(table: table_pb2.Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON or CSV values as what the table's columns want: text of a timestamp becomes a timestamp. Others are left to the driver."""
    kinds = {column.name: column.type for column in table.columns}
    return {name: as_type(kinds[name], value, name) if name in kinds else value for name, value in values.items()}


def as_type(column: table_pb2.ColumnType, value: Any, name: str) -> Any:
    """A JSON value as its column's type. A text that is none is a usage error that names the column."""
    if value is None:
        return None
    kind = table_pb2.TypeKind.Name(column.kind).removeprefix("TYPE_KIND_")
    try:
        if isinstance(value, str):
            return _from_text(kind, value)
        if kind == "DECIMAL":
            return decimal.Decimal(str(value))
        if kind in ("FLOAT", "DOUBLE") and isinstance(value, int):
            return float(value)
        if kind == "LIST" and isinstance(value, list):
            return [as_type(column.elements[0], item, name) for item in value]
        if kind == "SET" and isinstance(value, list):
            return {as_type(column.elements[0], item, name) for item in value}
    except (ValueError, decimal.InvalidOperation) as error:
        raise click.UsageError(f"column {name}: {value!r} is no {type_text(column)}: {error}") from None
    return value


def _from_text(kind: str, value: str) -> Any:
    match kind:
        case "TIMESTAMP" | "DATETIME":
            moment = dt.datetime.fromisoformat(value)
            if kind == "TIMESTAMP" and moment.tzinfo is None:
                raise ValueError("a timestamp needs its time zone, such as Z")
            return moment
        case "DATE":
            return dt.date.fromisoformat(value)
        case "TIME":
            return dt.time.fromisoformat(value)
        case "UUID" | "TIMEUUID":
            return uuid.UUID(value)
        case "DECIMAL":
            return decimal.Decimal(value)
        case "BYTES":
            return bytes.fromhex(value)
        case "INT8" | "INT16" | "INT32" | "INT64" | "VARINT" | "COUNTER":
            return int(value)
        case "FLOAT" | "DOUBLE":
            return float(value)
        case "BOOL" if value.lower() in ("true", "false"):
            return value.lower() == "true"
        case _:
            return value


def read_rows(source: Any, *, is_csv: bool) -> tuple[Sequence[str], Iterable[dict[str, Any]]]:
    """Columns and rows of a file. An empty CSV field is null."""
    if is_csv:
        reader = csv.DictReader(source)
        return list(reader.fieldnames or ()), ({k: v if v != "" else None for k, v in row.items()} for row in reader)
    rows = [json.loads(line) for line in source if line.strip()]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return columns, ({column: row.get(column) for column in columns} for row in rows)
