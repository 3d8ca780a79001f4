"""Filters as CQL restrictions. Values are bound, columns are those of the table; whether Cassandra has a way to them, it tells itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from onecontainer.api.db.v1 import query_pb2, table_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Codec, parameter
from onecontainer_driver_cassandra import codecs, composites
from onecontainer_driver_cassandra.model import ColumnInfo, TableInfo
from onecontainer_driver_cassandra.wire import Cell

MAX_DEPTH = 32
MAX_VALUES = 1000
OPERATORS = {
    query_pb2.OPERATOR_UNSPECIFIED: "=",
    query_pb2.OPERATOR_EQUAL: "=",
    query_pb2.OPERATOR_NOT_EQUAL: "!=",
    query_pb2.OPERATOR_LESS: "<",
    query_pb2.OPERATOR_LESS_OR_EQUAL: "<=",
    query_pb2.OPERATOR_GREATER: ">",
    query_pb2.OPERATOR_GREATER_OR_EQUAL: ">=",
}
_INDEX = codecs.integer(32)


@dataclass(slots=True)
class Where:
    """What a filter asks for.

    Attributes:
        clauses, values: CQL, and what it binds, in order.
        equal: the cells of columns that are fixed by an equality.
        columns: every column that is restricted.
        never: it is false whatever there is; Cassandra need not be asked.
    """

    clauses: list[str] = field(default_factory=list)
    values: list[Cell] = field(default_factory=list)
    equal: dict[str, bytes] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    never: bool = False

    def add(self, column: ColumnInfo, path: str, clause: str, *values: Cell) -> None:
        self.columns.setdefault(column.name, path)
        self.clauses.append(clause)
        self.values.extend(values)

    @property
    def clause(self) -> str:
        return f" WHERE {' AND '.join(self.clauses)}" if self.clauses else ""


def conjuncts(node: query_pb2.Filter, path: str, depth: int = 0) -> Iterator[tuple[query_pb2.Filter, str]]:
    """The conditions that must all hold. Raises BackendCapabilityMissing for what CQL has not: or, not, is null."""
    if depth >= MAX_DEPTH:
        raise errors.FieldInvalid(path, f"is nested more than {MAX_DEPTH} levels deep")
    match node.WhichOneof("node"):
        case None:
            raise errors.FieldRequired(path, "has no node")
        case "all_of":
            for index, one in enumerate(node.all_of.filters):
                yield from conjuncts(one, f"{path}.all_of.filters[{index}]", depth + 1)
        case "any_of":
            raise errors.BackendCapabilityMissing(
                f"{path}.any_of", "CQL has no OR; use membership for one column, else ask once for each alternative"
            )
        case "negation":
            raise errors.BackendCapabilityMissing(f"{path}.negation", "CQL has no NOT; ask for what is wanted instead")
        case "null_check":
            raise errors.BackendCapabilityMissing(
                f"{path}.null_check", "CQL cannot ask for null; write a value that stands for it, and ask for that"
            )
        case "pattern":
            raise errors.BackendCapabilityMissing(
                f"{path}.pattern", "CQL has no patterns; use a range of the text's beginning on a clustering column"
            )
        case _:
            yield node, path


def restrictions(table: TableInfo, node: query_pb2.Filter, path: str) -> Where:
    """Raises FieldRequired, FieldInvalid, DataInvalid or BackendCapabilityMissing with the path of the node."""
    where = Where()
    for one, at in conjuncts(node, path):
        match one.WhichOneof("node"):
            case "comparison":
                _comparison(table, one.comparison, f"{at}.comparison", where)
            case "membership":
                _membership(table, one.membership, f"{at}.membership", where)
            case "range":
                _range(table, one.range, f"{at}.range", where)
            case _:
                _contains(table, one.contains, f"{at}.contains", where)
    return where


def cell(codec: Codec, value: value_pb2.Value, path: str) -> bytes:
    """The value as a parameter. Null is refused: nothing compares with it, and nothing is added."""
    given: bytes | None = parameter(codec, value, path)
    if given is None:
        raise errors.DataInvalid(path, "must not be null")
    return given


def operator(node: query_pb2.Comparison, path: str) -> str:
    if node.operator not in OPERATORS:
        raise errors.FieldInvalid(f"{path}.operator", f"{node.operator} is not an operator")
    return OPERATORS[node.operator]


def element(column: ColumnInfo, given: value_pb2.Value, path: str) -> tuple[bytes, Codec]:
    """The key of one element of a map, or the index of one of a list; and the codec of what is there."""
    keys, values = column.of_elements()
    if values is None or column.type.kind == table_pb2.TYPE_KIND_SET:
        raise errors.FieldInvalid(path, f"column {column.name!r} is neither a map nor a list")
    place = cell(keys or _INDEX, given, path)
    if keys is None and place[0] & 0x80:
        raise errors.DataInvalid(path, "must not be negative")
    return place, values


def _comparison(table: TableInfo, node: query_pb2.Comparison, path: str, where: Where) -> None:
    column = table.column(node.column, f"{path}.column")
    sign = operator(node, path)
    if sign == "!=":
        raise errors.BackendCapabilityMissing(
            f"{path}.operator", "CQL has NOT EQUAL in conditions of writes only; ask for the values that are wanted"
        )
    if node.HasField("element"):
        place, codec = element(column, node.element, f"{path}.element")
        where.add(column, path, f"{column.cql}[?] {sign} ?", place, cell(codec, node.value, f"{path}.value"))
        return
    value = cell(column.codec, node.value, f"{path}.value")
    if sign == "=" and column.name not in where.columns:
        where.equal[column.name] = value
    else:
        where.equal.pop(column.name, None)
    where.add(column, path, f"{column.cql} {sign} ?", value)


def members(column: ColumnInfo, node: query_pb2.Membership, path: str) -> list[bytes]:
    if len(node.values) > MAX_VALUES:
        raise errors.FieldInvalid(f"{path}.values", f"has {len(node.values)} values, at most {MAX_VALUES} are allowed")
    return [cell(column.codec, value, f"{path}.values[{i}]") for i, value in enumerate(node.values)]


def _membership(table: TableInfo, node: query_pb2.Membership, path: str, where: Where) -> None:
    column = table.column(node.column, f"{path}.column")
    values = members(column, node, path)
    where.equal.pop(column.name, None)
    if not values:
        where.never = True
    elif len(values) == 1 and column.name not in where.columns:
        where.equal[column.name] = values[0]
        where.add(column, path, f"{column.cql} = ?", values[0])
    else:
        where.add(column, path, f"{column.cql} IN ?", composites.collection(list(dict.fromkeys(values))))


def bounds(column: ColumnInfo, node: query_pb2.Range, path: str) -> Iterator[tuple[str, bytes]]:
    """Operator and value of each bound."""
    if not (node.HasField("lower") or node.HasField("upper")):
        raise errors.FieldRequired(f"{path}.lower", "or `upper` is required")
    if node.HasField("lower"):
        yield ">" if node.lower_open else ">=", cell(column.codec, node.lower, f"{path}.lower")
    if node.HasField("upper"):
        yield "<" if node.upper_open else "<=", cell(column.codec, node.upper, f"{path}.upper")


def _range(table: TableInfo, node: query_pb2.Range, path: str, where: Where) -> None:
    column = table.column(node.column, f"{path}.column")
    where.equal.pop(column.name, None)
    for sign, value in bounds(column, node, path):
        where.add(column, path, f"{column.cql} {sign} ?", value)


def _contains(table: TableInfo, node: query_pb2.Contains, path: str, where: Where) -> None:
    column = table.column(node.column, f"{path}.column")
    keys, values = column.of_elements()
    if values is None:
        raise errors.FieldInvalid(f"{path}.column", f"column {column.name!r} is not a collection")
    if node.HasField("key") and keys is None:
        raise errors.FieldInvalid(f"{path}.key", f"column {column.name!r} is not a map")
    if not (node.HasField("key") or node.HasField("value")):
        raise errors.FieldRequired(f"{path}.value")
    if not node.HasField("key"):
        where.add(column, path, f"{column.cql} CONTAINS ?", cell(values, node.value, f"{path}.value"))
        return
    assert keys is not None
    key = cell(keys, node.key, f"{path}.key")
    if node.HasField("value"):
        where.add(column, path, f"{column.cql}[?] = ?", key, cell(values, node.value, f"{path}.value"))
    else:
        where.add(column, path, f"{column.cql} CONTAINS KEY ?", key)
