"""Inserts, updates and deletes as CQL statements with their values, checked against the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver import errors
from onecontainer.driver.records import requests
from onecontainer.driver.records.model import Column, parameter
from onecontainer.driver.records.requests import Delete, Update
from onecontainer_driver_cassandra.assignments import assigned
from onecontainer_driver_cassandra.conditions import Condition, tests
from onecontainer_driver_cassandra.filters import Where, restrictions
from onecontainer_driver_cassandra.model import TableInfo, names_in_cql
from onecontainer_driver_cassandra.options import Options, write_options
from onecontainer_driver_cassandra.wire import Cell

MAX_KEY_BYTES = 65_535


@dataclass(frozen=True, slots=True)
class Write:
    """One statement.

    Attributes:
        key: cells of the whole primary key, if it fixes that (of the partition key, where only static columns are written).
        path: of what Cassandra may not be able to do.
        never: no record can be chosen, so there is nothing to send.
    """

    table: TableInfo
    cql: str
    values: Sequence[Cell]
    options: Options
    key: tuple[bytes, ...] | None
    path: str
    condition: Condition | None = None
    counter: bool = False
    never: bool = False

    @property
    def partition(self) -> tuple[bytes, ...] | None:
        return None if self.key is None else self.key[: len(self.table.partition_key)]


def check_key(table: TableInfo, name: str, cell: Cell, path: str) -> bytes:
    if cell is None:
        raise errors.DataInvalid(path, "must not be null")
    if not cell and table.partition_key == (name,):
        raise errors.DataInvalid(path, "must not be empty: it is the whole partition key")
    if len(cell) > MAX_KEY_BYTES:
        raise errors.DataInvalid(path, f"has {len(cell)} bytes, a column of the key takes {MAX_KEY_BYTES}")
    return cell


def refuse_returning(request: requests.Statement, at: str) -> None:
    if request.returning:
        raise errors.BackendCapabilityMissing(f"{at}returning", "CQL returns nothing of a write; select it afterwards")


# --- insert ------------------------------------------------------------------------------------------------------


def check_insertable(table: TableInfo, path: str) -> None:
    if table.is_counter:
        raise errors.BackendCapabilityMissing(
            path, "a table of counters takes no inserts; use UpdateRecords with `add`"
        )


def insert_condition(mode: int, path: str) -> Condition | None:
    requests.check_mode(mode, path)
    if mode in (record_pb2.INSERT_MODE_FAIL, record_pb2.INSERT_MODE_IF_NOT_EXISTS):
        return Condition(absent=True)
    return None


def insert_cql(table: TableInfo, names: Sequence[str], condition: Condition | None, options: Options) -> str:
    marks = ", ".join("?" * len(names))
    ending = condition.clause if condition else ""
    return f"INSERT INTO {table.cql} ({names_in_cql(names)}) VALUES ({marks}){ending}{options.clause}"  # noqa: S608


def inserts(table: TableInfo, request: database_pb2.InsertRecordsRequest, at: str) -> list[Write]:
    requests.check_insert(request, at)
    check_insertable(table, f"{at}table")
    condition = insert_condition(request.mode, f"{at}mode")
    options = write_options(request.options, f"{at}options", conditional=condition is not None)
    refuse_returning(request, at)
    found: list[Write] = []
    for index, record in enumerate(request.records):
        path = f"{at}records[{index}]"
        cells = record_cells(table, record, path)
        key = tuple(cell for name in table.primary_key if (cell := cells.get(name)) is not None)
        cql = insert_cql(table, list(cells), condition, options)
        found.append(Write(table, cql, [*cells.values(), *options.values], options, key, path, condition))
    return found


def record_cells(table: TableInfo, record: record_pb2.Record, path: str) -> dict[str, Cell]:
    """Cells by column, in the table's order, so that records with the same columns have the same statement."""
    for name in record.fields:
        table.column(name, f"{path}.fields[{name!r}]")
    given: dict[str, Cell] = {}
    needed = table.primary_key
    others = [name for name in record.fields if name not in needed]
    only_static = bool(others) and all(table.columns[name].proto.is_static for name in others)
    if only_static and not any(name in record.fields for name in table.clustering_key):
        needed = table.partition_key
    for name, column in table.columns.items():
        at = f"{path}.fields[{name!r}]"
        if name in record.fields:
            given[name] = parameter(column.codec, record.fields[name], at)
            if name in needed:
                check_key(table, name, given[name], at)
        elif name in needed:
            raise errors.FieldRequired(at, "is required: the column is in the primary key")
    return given


# --- update and delete -------------------------------------------------------------------------------------------


def update(table: TableInfo, request: Update, at: str) -> Write:
    requests.check_chosen(request, at)
    condition = _condition(table, request, at)
    options = write_options(request.options, f"{at}options", conditional=condition is not None)
    refuse_returning(request, at)
    changes = assigned(table, request.assignments, f"{at}assignments")
    static = all(table.columns[name].proto.is_static for name in changes.columns)
    key_names = table.partition_key if static else table.primary_key
    if request.all_records:
        raise errors.BackendCapabilityMissing(
            f"{at}all_records", "CQL changes one record at a time; select the keys, and update each"
        )
    where = restrictions(table, request.where, f"{at}where")
    key = _fixed(table, where, key_names)
    if key is None:
        _needs_key(request, at, key_names, conditional=condition is not None)
    cql = f"UPDATE {table.cql}{options.clause} SET {', '.join(changes.clauses)}{where.clause}"  # noqa: S608
    cql += condition.clause if condition else ""
    values = [*options.values, *changes.values, *where.values, *(condition.values if condition else ())]
    return Write(table, cql, values, options, key, f"{at}assignments", condition, table.is_counter)


def delete(table: TableInfo, request: Delete, at: str) -> Write | None:
    """None: every record of the table is to go."""
    requests.check_chosen(request, at)
    condition = _condition(table, request, at)
    options = write_options(request.options, f"{at}options", conditional=condition is not None, delete=True)
    refuse_returning(request, at)
    chosen = requests.chosen_columns(table, request.columns, f"{at}columns")
    if request.all_records:
        _check_truncate(request, options, at)
        return None
    where = restrictions(table, request.where, f"{at}where")
    _only_key(table, where)
    key_names = _deleted_by(table, chosen, f"{at}columns")
    key = _fixed(table, where, key_names)
    if key is None and (condition is not None or chosen):
        _needs_key(request, at, key_names, conditional=condition is not None)
    if key is None and request.HasField("max_affected"):
        raise errors.BackendCapabilityMissing(
            f"{at}max_affected", "Cassandra does not count what it deletes; fix the whole primary key, or leave it away"
        )
    columns = f" {names_in_cql([column.name for column in chosen])}" if chosen else ""
    cql = f"DELETE{columns} FROM {table.cql}{options.clause}{where.clause}"
    cql += condition.clause if condition else ""
    values = [*options.values, *where.values, *(condition.values if condition else ())]
    return Write(table, cql, values, options, key, f"{at}where", condition, table.is_counter, where.never)


def _check_truncate(request: Delete, options: Options, at: str) -> None:
    for name, given in (
        ("columns", bool(request.columns)),
        ("max_affected", request.HasField("max_affected")),
        ("options", bool(options.using) or options.consistency is not None),
    ):
        if given:
            raise errors.BackendCapabilityMissing(
                f"{at}{name}", "Cassandra empties a table as a whole, and counts nothing; leave it away, or set `where`"
            )


def _deleted_by(table: TableInfo, chosen: Sequence[Column], path: str) -> tuple[str, ...]:
    """The key that finds what goes: static columns are the partition's."""
    for index, column in enumerate(chosen):
        if column.name in table.primary_key:
            raise errors.FieldInvalid(f"{path}[{index}]", f"{column.name!r} is in the primary key")
    static = bool(chosen) and all(column.proto.is_static for column in chosen)
    return table.partition_key if static else table.primary_key


def _only_key(table: TableInfo, where: Where) -> None:
    for name, path in where.columns.items():
        if name not in table.primary_key:
            raise errors.BackendCapabilityMissing(
                path,
                f"{name!r} is not in the key, by which CQL finds what goes; use a condition, or select the keys first",
            )


def _fixed(table: TableInfo, where: Where, names: Sequence[str]) -> tuple[bytes, ...] | None:
    """The cells of these columns, if equalities of exactly them are asked for."""
    if where.never or set(where.columns) != set(names) or len(where.clauses) != len(names):
        return None
    if any(name not in where.equal for name in names):
        return None
    return tuple(check_key(table, name, where.equal[name], where.columns[name]) for name in names)


def _needs_key(request: Update | Delete, at: str, names: Sequence[str], *, conditional: bool) -> None:
    message = f"must fix the key ({', '.join(names)}) with equalities, and nothing else"
    if conditional:
        raise errors.FieldInvalid(f"{at}where", f"{message}, under a condition")
    raise errors.BackendCapabilityMissing(
        f"{at}where", f"{message}: CQL changes one record at a time; select the keys, and send a write for each"
    )


def _condition(table: TableInfo, request: Update | Delete, at: str) -> Condition | None:
    if not request.HasField("condition"):
        return None
    path = f"{at}condition"
    fields = requests.check_condition(request.condition, path)
    if not request.HasField("where"):
        raise errors.FieldInvalid(f"{at}where", "must fix the primary key under a condition")
    if fields is None:
        return Condition()
    found = tests(table, fields, f"{path}.if_fields")
    return Condition(tests=found)
