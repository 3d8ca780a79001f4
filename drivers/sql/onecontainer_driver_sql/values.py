"""Values with the path of where they stand in the request, so that every refusal names it."""

from __future__ import annotations

from typing import Any

from onecontainer.api.db.v1 import record_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import parameter
from onecontainer_driver_sql.model import ColumnInfo, TableInfo


def check_null(column: ColumnInfo, table: TableInfo, path: str) -> None:
    if column.proto.not_null or column.name in table.primary_key:
        raise errors.DataInvalid(path, "must not be null")


def record_parameters(table: TableInfo, record: record_pb2.Record, path: str) -> dict[str, Any]:
    """Parameters by column, in the table's order, so that records with the same columns have the same statement."""
    given: dict[str, Any] = {}
    for name in record.fields:
        column = table.column(name, f"{path}.fields[{name!r}]")
        if column.generated:
            raise errors.FieldInvalid(f"{path}.fields[{name!r}]", "is a generated column")
    for name, column in table.columns.items():
        if name in record.fields:
            given[name] = parameter(column.codec, record.fields[name], f"{path}.fields[{name!r}]")
            if given[name] is None:
                check_null(column, table, f"{path}.fields[{name!r}]")
        elif not column.has_default and not column.generated and (column.proto.not_null or name in table.primary_key):
            raise errors.FieldRequired(
                f"{path}.fields[{name!r}]", "is required: the column is not null and has no default"
            )
    if not given:
        raise errors.FieldRequired(f"{path}.fields", "has no values")
    return given
