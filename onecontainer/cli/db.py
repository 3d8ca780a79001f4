"""`oca db`: tables and records."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from onecontainer.api.db.v1 import table_pb2
from onecontainer.cli.options import FILE, JSON, JSON_PAIR, PAIR
from onecontainer.cli.session import Session, connected
from onecontainer.client.db import INSERT_MODES
from onecontainer.client.names import short_name
from onecontainer.client.values import column_type, type_text

MODES = click.Choice(list(INSERT_MODES))


@click.group()
def db() -> None:
    """Tables and records. SERVICE is a registered service whose driver is of scope db.

    \b
    Examples:
      oca db create-table orders items -c id=int64 -c name=text -c price='decimal(10,2)' --key id
      oca db insert orders items '{"id": 1, "name": "cup", "price": "9.90"}'
      oca db select orders items --where name=cup
    """


@db.command()
@click.argument("service")
@connected
def tables(session: Session, service: str) -> None:
    """List tables."""
    session.screen.messages(
        session.client.db.list_tables(service, timeout=session.timeout),
        {
            "table": lambda t: short_name(t.name),
            "columns": lambda t: ", ".join(f"{column.name} {type_text(column.type)}" for column in t.columns),
            "key": lambda t: ", ".join(key_of(t)),
        },
    )


def key_of(table: table_pb2.Table) -> list[str]:
    """Columns of the primary key."""
    return [*table.partition_key, *(column.column for column in table.clustering_key)]


def show_table(session: Session, table: table_pb2.Table) -> None:
    if session.screen.is_json:
        session.screen.message(table)
        return
    session.screen.say(table.name)
    key = key_of(table)
    session.screen.rows(
        [
            {
                "column": column.name,
                "type": type_text(column.type),
                "key": column.name in key,
                "not null": column.not_null,
            }
            for column in table.columns
        ]
    )


@db.command()
@click.argument("service")
@click.argument("name")
@connected
def table(session: Session, service: str, name: str) -> None:
    """Show a table: its columns, types and key."""
    show_table(session, session.client.db.get_table(service, name, timeout=session.timeout))


@db.command("create-table")
@click.argument("service")
@click.argument("name")
@click.option(
    "--column",
    "-c",
    "columns",
    type=PAIR,
    multiple=True,
    required=True,
    help="NAME=TYPE, such as id=int64, name=text(40), price='decimal(10,2)', tags='list<text>'.",
)
@click.option("--key", "keys", multiple=True, help="Column of the primary key; may be repeated, in order.")
@click.option("--if-not-exists", is_flag=True, help="Leave a table that is there as it is.")
@connected
def create_table(
    session: Session,
    service: str,
    name: str,
    columns: tuple[tuple[str, str], ...],
    keys: tuple[str, ...],
    if_not_exists: bool,
) -> None:
    """Create a table."""
    try:
        types = {column: column_type(kind) for column, kind in columns}
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    made = session.client.db.create_table(
        service, name, types, key=keys, if_not_exists=if_not_exists, timeout=session.timeout
    )
    show_table(session, made)


@db.command("drop-table")
@click.argument("service")
@click.argument("name")
@click.option("--if-exists", is_flag=True, help="No error if it is not there.")
@click.confirmation_option(prompt="Drop the table with all its records?")
@connected
def drop_table(session: Session, service: str, name: str, if_exists: bool) -> None:
    """Drop a table with its records (--yes: do not ask)."""
    session.client.db.drop_table(service, name, if_exists=if_exists, timeout=session.timeout)
    session.screen.say(f"dropped {name}")


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


@db.command()
@click.argument("service")
@click.argument("name")
@click.argument("rows", type=JSON)
@click.option("--mode", type=MODES, default="fail", show_default=True, help="What to do with one that is there.")
@connected
def insert(session: Session, service: str, name: str, rows: list[Any], mode: str) -> None:
    """Insert ROWS, all or none: JSON objects, one after the other or in an array; `@FILE`, or `-` for stdin.

    \b
    Example:
      oca db insert orders items '[{"id": 1, "name": "cup"}, {"id": 2, "name": "pot"}]'
    """
    table = session.client.db.get_table(service, name, timeout=session.timeout)
    flat = [row for item in rows for row in (item if isinstance(item, list) else [item])]
    if not all(isinstance(row, dict) for row in flat):
        raise click.UsageError("each row must be a JSON object")
    records = [typed(table, row) for row in flat]
    answer = session.client.db.insert(service, name, records, mode=mode, timeout=session.timeout)
    session.screen.message(
        answer, {"inserted": answer.affected, "not applied": sum(not r.applied for r in answer.results) or None}
    )


@db.command("import")
@click.argument("service")
@click.argument("name")
@click.argument("file", type=FILE)
@click.option("--mode", type=MODES, default="fail", show_default=True, help="What to do with one that is there.")
@click.option(
    "--max-failures", type=click.IntRange(0), default=0, help="End after so many rows that failed. Default: 1000."
)
@connected
def import_(session: Session, service: str, name: str, file: Path, mode: str, max_failures: int) -> None:
    """Insert the rows of a CSV file (first line: the columns) or of a file with a JSON object a line, over one stream."""
    table = session.client.db.get_table(service, name, timeout=session.timeout)
    with file.open(newline="") as source:
        columns, rows = read_rows(source, is_csv=file.suffix.lower() == ".csv")
        answer = session.client.db.bulk_insert(
            service,
            name,
            (typed(table, row) for row in rows),
            columns,
            mode=mode,
            max_failures=max_failures,
            timeout=session.timeout,
        )
    session.screen.message(
        answer,
        {
            "received": answer.received,
            "inserted": answer.inserted,
            "skipped": answer.skipped or None,
            "failed": answer.failed or None,
            "errors": [
                f"row {status.first_row}: {status.status.message}"
                for status in answer.row_statuses
                if status.status.code
            ][:20],
        },
    )
    if answer.failed:
        raise click.ClickException(f"{answer.failed} rows failed")


def read_rows(source: Any, *, is_csv: bool) -> tuple[Sequence[str], Iterable[dict[str, Any]]]:
    """Columns and rows of a file. An empty CSV field is null."""
    if is_csv:
        reader = csv.DictReader(source)
        return list(reader.fieldnames or ()), ({k: v if v != "" else None for k, v in row.items()} for row in reader)
    rows = [json.loads(line) for line in source if line.strip()]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return columns, ({column: row.get(column) for column in columns} for row in rows)


@db.command()
@click.argument("service")
@click.argument("name")
@click.option(
    "--where", "where", type=JSON_PAIR, multiple=True, help="COLUMN=VALUE that records must have; may be repeated."
)
@click.option("--column", "-c", "columns", multiple=True, help="Only this column; may be repeated.")
@click.option("--order-by", multiple=True, help="COLUMN, or -COLUMN for descending; may be repeated.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@connected
def select(
    session: Session,
    service: str,
    name: str,
    where: tuple[tuple[str, Any], ...],
    columns: tuple[str, ...],
    order_by: tuple[str, ...],
    limit: int,
) -> None:
    """Show records."""
    condition = condition_of(session, service, name, where)
    found = session.client.db.select(
        service, name, condition, columns=columns, order_by=order_by, limit=limit, timeout=session.timeout
    )
    if found or session.screen.is_json:
        session.screen.rows(found)
    else:
        session.screen.say("No records.")


def condition_of(session: Session, service: str, name: str, where: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    """What `--where` says, with the columns' types. None: nothing was said."""
    if not where:
        return None
    return typed(session.client.db.get_table(service, name, timeout=session.timeout), dict(where))


@db.command()
@click.argument("service")
@click.argument("name")
@click.option("--set", "changes", type=JSON_PAIR, multiple=True, required=True, help="COLUMN=VALUE; may be repeated.")
@click.option("--where", type=JSON_PAIR, multiple=True, help="COLUMN=VALUE that records must have; may be repeated.")
@click.option("--all", "all_records", is_flag=True, help="All records.")
@connected
def update(
    session: Session,
    service: str,
    name: str,
    changes: tuple[tuple[str, Any], ...],
    where: tuple[tuple[str, Any], ...],
    all_records: bool,
) -> None:
    """Change records: those that --where takes, or --all."""
    require_target(where, all_records)
    table = session.client.db.get_table(service, name, timeout=session.timeout)
    answer = session.client.db.update(
        service,
        name,
        typed(table, dict(changes)),
        typed(table, dict(where)) if where else None,
        all_records=all_records,
        timeout=session.timeout,
    )
    session.screen.message(answer, {"changed": answer.affected if answer.HasField("affected") else "not counted"})


@db.command()
@click.argument("service")
@click.argument("name")
@click.option("--where", type=JSON_PAIR, multiple=True, help="COLUMN=VALUE that records must have; may be repeated.")
@click.option("--all", "all_records", is_flag=True, help="All records.")
@connected
def delete(session: Session, service: str, name: str, where: tuple[tuple[str, Any], ...], all_records: bool) -> None:
    """Delete records: those that --where takes, or --all."""
    require_target(where, all_records)
    condition = condition_of(session, service, name, where)
    answer = session.client.db.delete(service, name, condition, all_records=all_records, timeout=session.timeout)
    session.screen.message(answer, {"deleted": answer.affected if answer.HasField("affected") else "not counted"})


def require_target(where: Sequence[object], all_records: bool) -> None:
    if bool(where) == all_records:
        raise click.UsageError("give either --where or --all")
