"""Filters as SQL conditions. Values are bound, columns are those of the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from onecontainer.api.db.v1 import query_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import parameter
from onecontainer_driver_sql.model import ColumnInfo, TableInfo

MAX_DEPTH = 32
MAX_VALUES = 1000
Condition = sa.ColumnElement[bool]

_OPERATORS: dict[int, Callable[[Any, Any], Condition]] = {
    query_pb2.OPERATOR_UNSPECIFIED: lambda column, value: column == value,
    query_pb2.OPERATOR_EQUAL: lambda column, value: column == value,
    query_pb2.OPERATOR_NOT_EQUAL: lambda column, value: column != value,
    query_pb2.OPERATOR_LESS: lambda column, value: column < value,
    query_pb2.OPERATOR_LESS_OR_EQUAL: lambda column, value: column <= value,
    query_pb2.OPERATOR_GREATER: lambda column, value: column > value,
    query_pb2.OPERATOR_GREATER_OR_EQUAL: lambda column, value: column >= value,
}
_EQUALITIES = (query_pb2.OPERATOR_UNSPECIFIED, query_pb2.OPERATOR_EQUAL, query_pb2.OPERATOR_NOT_EQUAL)


def condition(table: TableInfo, node: query_pb2.Filter, path: str, depth: int = 0) -> Condition:
    """Raises FieldRequired, FieldInvalid, DataInvalid or BackendCapabilityMissing with the path of the node."""
    if depth >= MAX_DEPTH:
        raise errors.FieldInvalid(path, f"is nested more than {MAX_DEPTH} levels deep")
    match node.WhichOneof("node"):
        case "comparison":
            return _comparison(table, node.comparison, f"{path}.comparison")
        case "membership":
            return _membership(table, node.membership, f"{path}.membership")
        case "range":
            return _range(table, node.range, f"{path}.range")
        case "null_check":
            column = _sa(table, table.column(node.null_check.column, f"{path}.null_check.column"))
            return column.is_not(None) if node.null_check.negated else column.is_(None)
        case "pattern":
            return _pattern(table, node.pattern, f"{path}.pattern")
        case "contains":
            return _contains(table, node.contains, f"{path}.contains")
        case "all_of":
            below = f"{path}.all_of.filters"
            return sa.and_(
                sa.true(),
                *(condition(table, one, f"{below}[{i}]", depth + 1) for i, one in enumerate(node.all_of.filters)),
            )
        case "any_of":
            below = f"{path}.any_of.filters"
            return sa.or_(
                sa.false(),
                *(condition(table, one, f"{below}[{i}]", depth + 1) for i, one in enumerate(node.any_of.filters)),
            )
        case "negation":
            return sa.not_(condition(table, node.negation, f"{path}.negation", depth + 1))
        case _:
            raise errors.FieldRequired(path, "has no node")


def _sa(table: TableInfo, column: ColumnInfo) -> sa.Column[Any]:
    return table.sa.columns[column.name]


def bound(table: TableInfo, column: ColumnInfo, value: value_pb2.Value, path: str) -> sa.BindParameter[Any]:
    """The value as a parameter of the column's type. Raises what `compared` raises."""
    return sa.bindparam(None, compared(column, value, path), type_=_sa(table, column).type, unique=True)


def compared(column: ColumnInfo, value: value_pb2.Value, path: str) -> Any:
    """The value as the backend takes it. Null is refused: nothing compares with it. Raises FieldRequired or DataInvalid."""
    given = parameter(column.codec, value, path)
    if given is None:
        raise errors.DataInvalid(path, "is null, which nothing compares with; use null_check")
    return given


def _need_equality(column: ColumnInfo, path: str) -> None:
    if not column.codec.equality:
        raise errors.BackendCapabilityMissing(
            path, f"columns of type {column.proto.type.native_type} cannot be compared here"
        )


def _need_order(column: ColumnInfo, path: str) -> None:
    if not column.codec.order:
        raise errors.BackendCapabilityMissing(
            path, f"columns of type {column.proto.type.native_type} have no order here"
        )


def _comparison(table: TableInfo, node: query_pb2.Comparison, path: str) -> Condition:
    column = table.column(node.column, f"{path}.column")
    if node.HasField("element"):
        raise errors.BackendCapabilityMissing(f"{path}.element", "elements cannot be compared in SQL here")
    if node.operator not in _OPERATORS:
        raise errors.FieldInvalid(f"{path}.operator", f"{node.operator} is not an operator")
    (_need_equality if node.operator in _EQUALITIES else _need_order)(column, f"{path}.column")
    return operation(table, column, node.operator, bound(table, column, node.value, f"{path}.value"))


def operation(table: TableInfo, column: ColumnInfo, operator: int, value: sa.BindParameter[Any]) -> Condition:
    """A comparison whose parts have been checked."""
    return _OPERATORS[operator](_sa(table, column), value)


def _membership(table: TableInfo, node: query_pb2.Membership, path: str) -> Condition:
    column = table.column(node.column, f"{path}.column")
    _need_equality(column, f"{path}.column")
    if len(node.values) > MAX_VALUES:
        raise errors.FieldInvalid(f"{path}.values", f"has {len(node.values)} values, at most {MAX_VALUES} are allowed")
    if not node.values:
        return sa.false()
    values = [bound(table, column, value, f"{path}.values[{i}]") for i, value in enumerate(node.values)]
    return _sa(table, column).in_(values)


def _range(table: TableInfo, node: query_pb2.Range, path: str) -> Condition:
    column = table.column(node.column, f"{path}.column")
    _need_order(column, f"{path}.column")
    parts: list[Condition] = []
    if node.HasField("lower"):
        value = bound(table, column, node.lower, f"{path}.lower")
        parts.append(_sa(table, column) > value if node.lower_open else _sa(table, column) >= value)
    if node.HasField("upper"):
        value = bound(table, column, node.upper, f"{path}.upper")
        parts.append(_sa(table, column) < value if node.upper_open else _sa(table, column) <= value)
    if not parts:
        raise errors.FieldRequired(f"{path}.lower", "or `upper` is required")
    return sa.and_(*parts)


def _pattern(table: TableInfo, node: query_pb2.Pattern, path: str) -> Condition:
    column = table.column(node.column, f"{path}.column")
    if column.codec.kind != "text_value":
        raise errors.FieldInvalid(
            f"{path}.column", f"is of type {column.proto.type.native_type}; a pattern is for text"
        )
    trailing = len(node.like) - len(node.like.rstrip("\\"))
    if trailing % 2:
        raise errors.FieldInvalid(f"{path}.like", "ends in a `\\` that stands before nothing")
    if "\0" in node.like:
        raise errors.DataInvalid(f"{path}.like", "has a NUL character")
    target: sa.ColumnElement[str] = sa.type_coerce(_sa(table, column), sa.Text)
    if column.storage.as_text:
        target = sa.cast(target, sa.Text)
    return target.ilike(node.like, escape="\\") if node.ignore_case else target.like(node.like, escape="\\")


def _contains(table: TableInfo, node: query_pb2.Contains, path: str) -> Condition:
    column = table.column(node.column, f"{path}.column")
    if column.codec.element is None:
        raise errors.BackendCapabilityMissing(f"{path}.column", f"{column.proto.type.native_type} is not a list")
    if node.HasField("key"):
        raise errors.BackendCapabilityMissing(f"{path}.key", "SQL has no maps")
    if not node.HasField("value"):
        raise errors.FieldRequired(f"{path}.value")
    given = parameter(column.codec.element, node.value, f"{path}.value")
    if given is None:
        raise errors.DataInvalid(f"{path}.value", "is null, which nothing compares with")
    one_element = sa.bindparam(None, [given], type_=_sa(table, column).type, unique=True)
    return _sa(table, column).op("@>", is_comparison=True)(one_element)


# --- what a condition fixes --------------------------------------------------------------------------------------


def fixes_primary_key(table: TableInfo, node: query_pb2.Filter) -> bool:
    """Whether it is equalities of exactly the primary key's columns."""
    columns = _equalities(node)
    return columns is not None and sorted(columns) == sorted(table.primary_key) and bool(columns)


def _equalities(node: query_pb2.Filter) -> list[str] | None:
    kind = node.WhichOneof("node")
    if kind == "comparison" and node.comparison.operator in _EQUALITIES[:2]:
        return [node.comparison.column]
    if kind == "all_of":
        found: list[str] = []
        for one in node.all_of.filters:
            below = _equalities(one)
            if below is None:
                return None
            found += below
        return found
    return None
