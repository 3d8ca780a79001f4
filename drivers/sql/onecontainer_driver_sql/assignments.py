"""Assignments of an update as SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from onecontainer.api.db.v1 import record_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import parameter
from onecontainer_driver_sql.model import Backend, ColumnInfo, TableInfo
from onecontainer_driver_sql.values import check_null


def assigned(
    backend: Backend, table: TableInfo, assignments: Sequence[record_pb2.Assignment], path: str
) -> dict[sa.Column[Any], Any]:
    """The new value of each column. Raises FieldRequired, FieldInvalid, DataInvalid or BackendCapabilityMissing."""
    if not assignments:
        raise errors.FieldRequired(path)
    changes: dict[sa.Column[Any], Any] = {}
    for index, assignment in enumerate(assignments):
        at = f"{path}[{index}]"
        column = table.column(assignment.column, f"{at}.column")
        if column.name in table.primary_key:
            raise errors.FieldInvalid(
                f"{at}.column", f"{column.name!r} is in the primary key; delete the record and insert it"
            )
        if column.generated:
            raise errors.FieldInvalid(f"{at}.column", f"{column.name!r} is a generated column")
        target = table.sa.columns[column.name]
        if target in changes:
            raise errors.FieldInvalid(f"{at}.column", f"{column.name!r} is assigned twice")
        changes[target] = _changed(backend, table, column, assignment, at)
    return changes


def _changed(backend: Backend, table: TableInfo, column: ColumnInfo, assignment: record_pb2.Assignment, at: str) -> Any:
    target = table.sa.columns[column.name]
    which = assignment.WhichOneof("change")
    is_list = column.codec.element is not None
    match which:
        case "set":
            given = parameter(column.codec, assignment.set, f"{at}.set")
            if given is None:
                check_null(column, table, f"{at}.set")
            return sa.bindparam(None, given, type_=target.type, unique=True)
        case "add" if column.codec.number or is_list:
            return backend.plus(column.codec, target, _operand(column, target, assignment.add, f"{at}.add"))
        case "subtract" if column.codec.number:
            return backend.minus(column.codec, target, _operand(column, target, assignment.subtract, f"{at}.subtract"))
        case "prepend" if is_list:
            return backend.plus(column.codec, _operand(column, target, assignment.prepend, f"{at}.prepend"), target)
        case None:
            raise errors.FieldRequired(f"{at}.set", "or another change is required")
        case _:
            what = column.proto.type.native_type
            raise errors.BackendCapabilityMissing(
                f"{at}.{which}", f"{backend.name} cannot do that to a column of type {what}; use set"
            )


def _operand(column: ColumnInfo, target: sa.Column[Any], value: value_pb2.Value, path: str) -> sa.BindParameter[Any]:
    given = parameter(column.codec, value, path)
    if given is None:
        raise errors.DataInvalid(path, "must not be null")
    return sa.bindparam(None, given, type_=target.type, unique=True)
