"""What requests of DatabaseService must be, whatever the database; errors have the path of what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from onecontainer.api.db.v1 import database_pb2, query_pb2, record_pb2, table_pb2
from onecontainer.driver.records.model import Column, Table
from onecontainer.errors import FieldInvalid, FieldRequired

MAX_COLUMNS = 1000
MAX_RECORDS = 1000
MAX_STATEMENTS, MAX_BATCH_RECORDS = 1000, 10_000
DEFAULT_PAGE, MAX_PAGE = 100, 10_000
DEFAULT_TABLES, MAX_TABLES = 50, 1000
DEFAULT_BATCH, MAX_BATCH = 1000, 10_000
MAX_TTL = 630_720_000
"""Seconds, 20 years."""

Update = database_pb2.UpdateRecordsRequest
Delete = database_pb2.DeleteRecordsRequest
Statement = database_pb2.InsertRecordsRequest | Update | Delete
C = TypeVar("C", bound=Column)


def check_insert(request: database_pb2.InsertRecordsRequest, at: str) -> None:
    if not request.records:
        raise FieldRequired(f"{at}records")
    if len(request.records) > MAX_RECORDS:
        raise FieldInvalid(
            f"{at}records", f"has {len(request.records)}, at most {MAX_RECORDS} are allowed; use BulkInsert"
        )


def check_mode(mode: int, path: str) -> None:
    if mode not in record_pb2.InsertMode.values():
        raise FieldInvalid(path, f"{mode} is not a mode")


def check_options(options: record_pb2.WriteOptions, path: str, *, conditional: bool, delete: bool) -> None:
    """What no backend allows."""
    if delete and options.HasField("ttl"):
        raise FieldInvalid(f"{path}.ttl", "must not be set on a delete")
    if options.HasField("ttl") and (options.ttl.nanos or not 1 <= options.ttl.seconds <= MAX_TTL):
        raise FieldInvalid(f"{path}.ttl", "must be whole seconds, from 1 s to 20 years")
    if conditional and options.HasField("timestamp"):
        raise FieldInvalid(f"{path}.timestamp", "must not be set on a conditional write")


def check_chosen(request: Update | Delete, at: str) -> None:
    """That the request tells which records: by `where`, or all of them on purpose; and how many at most."""
    if request.HasField("where") and request.all_records:
        raise FieldInvalid(f"{at}all_records", "must not be set with `where`")
    if not request.HasField("where") and not request.all_records:
        raise FieldRequired(f"{at}where", "is required; for every record set all_records")
    if request.HasField("where") and always(request.where) is True:
        raise FieldRequired(
            f"{at}where",
            "has no condition that a record could fail; for every record leave it away, and set all_records",
        )
    if request.HasField("max_affected") and request.max_affected < 1:
        raise FieldInvalid(f"{at}max_affected", "must be at least 1")


def always(node: query_pb2.Filter) -> bool | None:
    """What the filter is of every record, whatever is in it: true, false, or None where that depends on the record."""
    match node.WhichOneof("node"):
        case "membership":
            return None if node.membership.values else False
        case "negation":
            below = always(node.negation)
            return None if below is None else not below
        case "all_of":
            parts = {always(one) for one in node.all_of.filters}
            return False if False in parts else None if None in parts else True
        case "any_of":
            parts = {always(one) for one in node.any_of.filters}
            return True if True in parts else None if None in parts else False
        case _:
            return None


def check_condition(condition: record_pb2.WriteCondition, path: str) -> query_pb2.Filter | None:
    """What must hold of the record; None: that it is there."""
    match condition.WhichOneof("condition"):
        case "if_exists":
            if not condition.if_exists:
                raise FieldInvalid(f"{path}.if_exists", "must be true")
            return None
        case "if_fields":
            return condition.if_fields
        case _:
            raise FieldRequired(path, "has no condition")


def check_batch(request: database_pb2.ExecuteBatchRequest) -> None:
    if not request.statements:
        raise FieldRequired("statements")
    if len(request.statements) > MAX_STATEMENTS:
        raise FieldInvalid("statements", f"has {len(request.statements)}, at most {MAX_STATEMENTS} are allowed")
    total = sum(len(one.insert.records) for one in request.statements)
    if total > MAX_BATCH_RECORDS:
        raise FieldInvalid(
            "statements", f"has {total} records, at most {MAX_BATCH_RECORDS} are allowed; use BulkInsert"
        )


def batch_statement(request: database_pb2.ExecuteBatchRequest, index: int) -> tuple[Statement, str]:
    """One statement of a batch, and its path with a point at the end."""
    which = request.statements[index].WhichOneof("statement")
    if which is None:
        raise FieldRequired(f"statements[{index}]", "has no statement")
    at = f"statements[{index}].{which}."
    statement: Statement = getattr(request.statements[index], which)
    if statement.service not in ("", request.service):
        raise FieldInvalid(f"{at}service", "is another service than the batch's")
    if statement.dry_run:
        raise FieldInvalid(f"{at}dry_run", "is set for the whole batch, not for a statement")
    return statement, at


def touched(request: database_pb2.ExecuteBatchRequest) -> list[str]:
    """Ids of the tables that a batch writes to."""
    return [getattr(one, which).table for one in request.statements if (which := one.WhichOneof("statement"))]


def page_size(given: int, default: int, most: int) -> int:
    if not 0 <= given <= most:
        raise FieldInvalid("page_size", f"must be from 0 to {most}")
    return given or default


def chosen_columns(table: Table, names: Sequence[str], path: str) -> list[Column]:
    """The columns of these names, each of which may be there once."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise FieldInvalid(f"{path}[{index}]", f"{name!r} is there twice")
    return [table.column(name, f"{path}[{index}]") for index, name in enumerate(names)]


def key_columns(table: table_pb2.Table) -> list[tuple[str, str]]:
    """Names of the primary key's columns, each one of the table's and there once, with their paths in CreateTableRequest."""
    names = {column.name for column in table.columns}
    key = [(name, f"table.partition_key[{index}]") for index, name in enumerate(table.partition_key)]
    key += [(one.column, f"table.clustering_key[{index}].column") for index, one in enumerate(table.clustering_key)]
    seen: set[str] = set()
    for name, path in key:
        if name not in names:
            raise FieldInvalid(path, f"{name!r} is not a column of the table")
        if name in seen:
            raise FieldInvalid(path, f"{name!r} is in the key twice")
        seen.add(name)
    return key


def check_columns(table: table_pb2.Table, *, folds_case: bool = False) -> None:
    """That there are some, and each name is there once; with ``folds_case`` not in another case either."""
    if not table.columns:
        raise FieldRequired("table.columns")
    if len(table.columns) > MAX_COLUMNS:
        raise FieldInvalid("table.columns", f"has {len(table.columns)} columns, at most {MAX_COLUMNS} are allowed")
    seen: dict[str, str] = {}
    for index, column in enumerate(table.columns):
        known = column.name.lower() if folds_case else column.name
        if known in seen:
            how = "twice" if seen[known] == column.name else f"as {seen[known]!r} too, which is the same name here"
            raise FieldInvalid(f"table.columns[{index}].name", f"{column.name!r} is there {how}")
        seen[known] = column.name
