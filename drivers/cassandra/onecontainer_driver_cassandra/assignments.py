"""Assignments of an update as CQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onecontainer.api.db.v1 import record_pb2, table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Codec, parameter
from onecontainer_driver_cassandra import composites, filters
from onecontainer_driver_cassandra.model import ColumnInfo, TableInfo, quoted
from onecontainer_driver_cassandra.types import COLLECTIONS
from onecontainer_driver_cassandra.wire import Cell

K = table_pb2.TypeKind


@dataclass(slots=True)
class Changes:
    clauses: list[str] = field(default_factory=list)
    values: list[Cell] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


def assigned(table: TableInfo, assignments: Sequence[record_pb2.Assignment], path: str) -> Changes:
    """Raises FieldRequired, FieldInvalid, DataInvalid or BackendCapabilityMissing."""
    if not assignments:
        raise errors.FieldRequired(path)
    changes = Changes()
    places: set[tuple[str, bytes | None]] = set()
    for index, assignment in enumerate(assignments):
        at = f"{path}[{index}]"
        column = table.column(assignment.column, f"{at}.column")
        if column.name in table.primary_key:
            raise errors.FieldInvalid(
                f"{at}.column", f"{column.name!r} is in the primary key; delete the record and insert it"
            )
        place = _change(column, assignment, at, changes)
        if any(name == column.name and (known is None or place is None or known == place) for name, known in places):
            raise errors.FieldInvalid(f"{at}.column", f"{column.name!r} is assigned twice")
        places.add((column.name, place))
        changes.columns.append(column.name)
    return changes


def _change(column: ColumnInfo, assignment: record_pb2.Assignment, at: str, changes: Changes) -> bytes | None:
    """Adds the change. Returns which element it is of; None: of the whole column."""
    which = assignment.WhichOneof("change")
    kind, cql = column.type.kind, column.cql
    growing = kind in COLLECTIONS and not column.type.frozen
    place: bytes | None = None
    match which:
        case "set" if kind != K.TYPE_KIND_COUNTER:
            clause, values = f"{cql} = ?", [parameter(column.codec, assignment.set, f"{at}.set")]
        case "add" if column.codec.number or growing:
            clause, values = f"{cql} = {cql} + ?", [filters.cell(column.codec, assignment.add, f"{at}.add")]
        case "subtract" if column.codec.number or growing:
            taken = composites.set_of(_keys(column)) if kind == K.TYPE_KIND_MAP else column.codec
            clause, values = f"{cql} = {cql} - ?", [filters.cell(taken, assignment.subtract, f"{at}.subtract")]
        case "prepend" if growing and kind == K.TYPE_KIND_LIST:
            clause, values = f"{cql} = ? + {cql}", [filters.cell(column.codec, assignment.prepend, f"{at}.prepend")]
        case "element" if growing or (kind == K.TYPE_KIND_STRUCT and not column.type.frozen):
            clause, values, place = _element(column, assignment.element, f"{at}.element")
        case None:
            raise errors.FieldRequired(f"{at}.set", "or another change is required")
        case _:
            out = "use add and subtract" if kind == K.TYPE_KIND_COUNTER else "use set"
            raise errors.BackendCapabilityMissing(
                f"{at}.{which}", f"Cassandra cannot do that to a column of type {column.type.native_type}; {out}"
            )
    changes.clauses.append(clause)
    changes.values.extend(values)
    return place


def _keys(column: ColumnInfo) -> Codec:
    keys, _ = column.of_elements()
    assert keys is not None
    return keys


def _element(column: ColumnInfo, given: record_pb2.ElementAssignment, at: str) -> tuple[str, list[Cell], bytes]:
    if column.type.kind != K.TYPE_KIND_STRUCT:
        place, codec = filters.element(column, given.key, f"{at}.key")
        return f"{column.cql}[?] = ?", [place, parameter(codec, given.value, f"{at}.value")], place
    name = given.key.text_value
    field_codec = column.of_field(name)
    if field_codec is None:
        raise errors.FieldInvalid(f"{at}.key", f"must be the name of a field of {column.type.native_type}")
    # The name is one of the type's own, which is what makes it safe to be written into the statement.
    return f"{column.cql}.{quoted(name)} = ?", [parameter(field_codec, given.value, f"{at}.value")], name.encode()
