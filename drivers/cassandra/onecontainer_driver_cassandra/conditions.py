"""Conditions of writes: as CQL, and judged here where Cassandra is only asked what there is (`dry_run`, refused batches)."""

from __future__ import annotations

import decimal
import operator as op
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onecontainer.api.db.v1 import query_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import NULL, int_from_bytes
from onecontainer_driver_cassandra import composites, filters
from onecontainer_driver_cassandra.model import ColumnInfo, TableInfo
from onecontainer_driver_cassandra.wire import Cell

_EXACT = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
_JUDGE: dict[str, Callable[[Any, Any], bool]] = {
    "=": op.eq,
    "!=": op.ne,
    "<": op.lt,
    "<=": op.le,
    ">": op.gt,
    ">=": op.ge,
}


@dataclass(frozen=True, slots=True)
class Test:
    """One condition on a column's value, or on one element of it."""

    column: ColumnInfo
    sign: str
    operands: Sequence[value_pb2.Value]
    place: value_pb2.Value | None
    clause: str
    values: tuple[Cell, ...]

    def holds(self, cell: Cell) -> bool:
        found = self.column.codec.read(cell)
        if self.place is not None:
            found = _at(found, self.place)
        if found.HasField("null_value"):
            return self.sign == "!="
        judged = comparable(found)
        return any(_JUDGE[self.sign](judged, comparable(operand)) for operand in self.operands)


def tests(table: TableInfo, node: query_pb2.Filter, path: str) -> list[Test]:
    """Comparisons and memberships of columns outside the key, as the contract has them for CQL."""
    found: list[Test] = []
    for one, at in filters.conjuncts(node, path):
        match one.WhichOneof("node"):
            case "comparison":
                found.append(_comparison(table, one.comparison, f"{at}.comparison"))
            case "membership":
                found.append(_membership(table, one.membership, f"{at}.membership"))
            case "range":
                found.extend(_range(table, one.range, f"{at}.range"))
            case _:
                raise errors.BackendCapabilityMissing(
                    f"{at}.contains", "CQL has no CONTAINS in a condition; compare one `element`, or the whole value"
                )
    if all(test.sign == "!=" for test in found) and found:
        raise errors.BackendCapabilityMissing(
            path, "in CQL it would hold of a record that is not there, too; add what must be equal, or less, or greater"
        )
    return found


def _column(table: TableInfo, name: str, path: str) -> ColumnInfo:
    column = table.column(name, path)
    if name in table.primary_key:
        raise errors.BackendCapabilityMissing(path, f"{name!r} is in the key; CQL has conditions on other columns only")
    return column


def _comparison(table: TableInfo, node: query_pb2.Comparison, path: str) -> Test:
    column = _column(table, node.column, f"{path}.column")
    sign = filters.operator(node, path)
    if not node.HasField("element"):
        value = filters.cell(column.codec, node.value, f"{path}.value")
        return Test(column, sign, [column.codec.read(value)], None, f"{column.cql} {sign} ?", (value,))
    place, codec = filters.element(column, node.element, f"{path}.element")
    value = filters.cell(codec, node.value, f"{path}.value")
    return Test(column, sign, [codec.read(value)], node.element, f"{column.cql}[?] {sign} ?", (place, value))


def _membership(table: TableInfo, node: query_pb2.Membership, path: str) -> Test:
    column = _column(table, node.column, f"{path}.column")
    values = filters.members(column, node, path)
    operands = [column.codec.read(value) for value in values]
    return Test(column, "=", operands, None, f"{column.cql} IN ?", (composites.collection(values),))


def _range(table: TableInfo, node: query_pb2.Range, path: str) -> list[Test]:
    column = _column(table, node.column, f"{path}.column")
    return [
        Test(column, sign, [column.codec.read(value)], None, f"{column.cql} {sign} ?", (value,))
        for sign, value in filters.bounds(column, node, path)
    ]


@dataclass(frozen=True, slots=True)
class Condition:
    """Of one write. Neither ``absent`` nor tests: the record is there, whatever it is."""

    absent: bool = False
    tests: Sequence[Test] = ()

    @property
    def clause(self) -> str:
        if self.absent:
            return " IF NOT EXISTS"
        return f" IF {' AND '.join(test.clause for test in self.tests)}" if self.tests else " IF EXISTS"

    @property
    def values(self) -> list[Cell]:
        return [value for test in self.tests for value in test.values]

    def holds(self, record: Mapping[str, Cell] | None) -> bool:
        """Of the record's cells by column; None: there is no record."""
        if record is None:
            return self.absent
        return not self.absent and all(test.holds(record[test.column.name]) for test in self.tests)


# --- values that Python compares as Cassandra does ---------------------------------------------------------------


def _at(found: value_pb2.Value, place: value_pb2.Value) -> value_pb2.Value:
    """One element of a map or a list; null where there is none."""
    if found.HasField("map_value"):
        wanted = comparable(place)
        return next((pair.value for pair in found.map_value.entries if comparable(pair.key) == wanted), NULL)
    values = found.list_value.values
    return values[place.int64_value] if place.int64_value < len(values) else NULL


def comparable(value: value_pb2.Value) -> Any:
    """Collections and their like compare by equality alone."""
    kind = str(value.WhichOneof("kind"))
    given = getattr(value, kind)
    match kind:
        case "decimal_value":
            return _EXACT.scaleb(decimal.Decimal(int_from_bytes(given.unscaled)), -given.scale)
        case "varint_value":
            return int_from_bytes(given)
        case "text_value":
            return given.encode()
        case "timestamp_value":
            return given.seconds, given.nanos
        case "date_value":
            return given.year, given.month, given.day
        case "time_value":
            return given.hours, given.minutes, given.seconds, given.nanos
        case "uuid_value":
            found = uuid.UUID(bytes=given)
            return found.version or 0, found.time if found.version == 1 else 0, given
        case "inet_value":
            return given.address
        case "int64_value" | "double_value" | "float_value" | "bool_value" | "bytes_value":
            return given
        case _:
            return value.SerializeToString(deterministic=True)
