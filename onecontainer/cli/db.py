"""`oca db`: tables and records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import table_pb2
from onecontainer.cli.db_values import read_rows, typed
from onecontainer.cli.options import DURATION, FILE, JSON, JSON_PAIR, PAIR, F
from onecontainer.cli.session import Session, connected
from onecontainer.client.db import INSERT_MODES, Page
from onecontainer.client.names import short_name
from onecontainer.client.values import column_type, from_record, type_text
from onecontainer.errors import BackendCapabilityMissing

MODES = click.Choice(list(INSERT_MODES))
DEFAULT_ROWS = 100

where_option = click.option(
    "--where", type=JSON_PAIR, multiple=True, help="COLUMN=VALUE that records must have; may be repeated."
)
ttl_option = click.option(
    "--ttl", type=DURATION, help="They go by themselves after so long, such as 1h. In SQL: in a table with --expires."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would happen, and write nothing.")


def changing_options(function: F) -> F:
    """Adds the options of a command that changes records: which, on what condition, and how many at most."""
    options: tuple[Callable[[Any], Any], ...] = (
        where_option,
        click.option("--all", "all_records", is_flag=True, help="All records."),
        click.option("--if-exists", is_flag=True, help="Only if the record is there; --where has its whole key."),
        click.option(
            "--if",
            "if_fields",
            type=JSON_PAIR,
            multiple=True,
            help="COLUMN=VALUE that the record must have, else it stays as it is and is shown; --where has its whole key. May be repeated.",
        ),
        click.option("--max-affected", type=click.IntRange(1), help="If it were more records, none of them."),
        dry_run_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.group()
def db() -> None:
    """Tables and records. SERVICE is a registered service whose driver is of scope db.

    \b
    Examples:
      oca db create-table orders items -c id=int64 -c name=text -c price='decimal(10,2)' --key id
      oca db insert orders items '{"id": 1, "name": "cup", "price": "9.90"}'
      oca db select orders items --where name=cup
      oca db update orders items --set price=8.50 --where id=1 --if price=9.90
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
@click.option("--expires", is_flag=True, help="SQL: its records may have a --ttl.")
@click.option("--if-not-exists", is_flag=True, help="Leave a table that is there as it is.")
@connected
def create_table(
    session: Session,
    service: str,
    name: str,
    columns: tuple[tuple[str, str], ...],
    keys: tuple[str, ...],
    expires: bool,
    if_not_exists: bool,
) -> None:
    """Create a table."""
    try:
        types = {column: column_type(kind) for column, kind in columns}
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    made = session.client.db.create_table(
        service, name, types, key=keys, expires=expires, if_not_exists=if_not_exists, timeout=session.timeout
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


@db.command()
@click.argument("service")
@click.argument("name")
@click.argument("rows", type=JSON)
@click.option("--mode", type=MODES, default="fail", show_default=True, help="What to do with one that is there.")
@ttl_option
@dry_run_option
@connected
def insert(
    session: Session, service: str, name: str, rows: list[Any], mode: str, ttl: float | None, dry_run: bool
) -> None:
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
    answer = session.client.db.insert(
        service, name, records, mode=mode, ttl=ttl, dry_run=dry_run, timeout=session.timeout
    )
    refused = sum(not result.applied for result in answer.results)
    session.screen.message(answer, {f"{would(dry_run)}inserted": answer.affected, "not applied": refused or None})


@db.command("import")
@click.argument("service")
@click.argument("name")
@click.argument("file", type=FILE)
@click.option("--mode", type=MODES, default="fail", show_default=True, help="What to do with one that is there.")
@click.option(
    "--max-failures", type=click.IntRange(0), default=0, help="End after so many rows that failed. Default: 1000."
)
@ttl_option
@connected
def import_(
    session: Session, service: str, name: str, file: Path, mode: str, max_failures: int, ttl: float | None
) -> None:
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
            ttl=ttl,
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


@db.command()
@click.argument("service")
@click.argument("name")
@where_option
@click.option("--column", "-c", "columns", multiple=True, help="Only this column; may be repeated.")
@click.option("--order-by", multiple=True, help="COLUMN, or -COLUMN for descending; may be repeated.")
@click.option("--limit", type=click.IntRange(1), help="At most so many. Default: 100; page by page all.")
@click.option(
    "--allow-filtering", is_flag=True, help="Cassandra may read and discard records to find these, which may be slow."
)
@click.option("--page-size", type=click.IntRange(1), help="One page of so many, with the token of the next.")
@click.option("--page-token", default="", help="The page that the one before named; all else is to be as it was there.")
@connected
def select(
    session: Session,
    service: str,
    name: str,
    where: tuple[tuple[str, Any], ...],
    columns: tuple[str, ...],
    order_by: tuple[str, ...],
    limit: int | None,
    allow_filtering: bool,
    page_size: int | None,
    page_token: str,
) -> None:
    """Show records."""
    paged = page_size is not None or bool(page_token)
    condition = condition_of(session, service, name, where)
    query: Any = {"columns": columns, "order_by": order_by, "allow_filtering": allow_filtering}
    db = session.client.db
    try:
        if paged:
            page = db.select_page(
                service,
                name,
                condition,
                limit=limit or 0,
                page_size=page_size or 0,
                page_token=page_token,
                timeout=session.timeout,
                **query,
            )
        else:
            found = db.select(service, name, condition, limit=limit or DEFAULT_ROWS, timeout=session.timeout, **query)
            page = Page(found, "")
    except BackendCapabilityMissing as error:
        if "`allow_filtering`" in error.message:
            error.add_note("Add --allow-filtering, or one of the other ways that the message tells.")
        raise
    show_page(session, page, paged=paged)


def show_page(session: Session, page: Page, *, paged: bool) -> None:
    """The rows; as JSON an array of them, or with paging an object that has the token, too."""
    if session.screen.is_json and paged:
        session.screen.data({"rows": page.rows, "next_page_token": page.next_page_token})
        return
    if page.rows or session.screen.is_json:
        session.screen.rows(page.rows)
    else:
        session.screen.say("No records.")
    if paged and page.next_page_token:
        click.echo(f"The next page: --page-token {page.next_page_token}")  # in one line, however long


def condition_of(session: Session, service: str, name: str, where: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    """What `--where` says, with the columns' types. None: nothing was said."""
    if not where:
        return None
    return typed(session.client.db.get_table(service, name, timeout=session.timeout), dict(where))


@db.command()
@click.argument("service")
@click.argument("name")
@click.option("--set", "changes", type=JSON_PAIR, multiple=True, required=True, help="COLUMN=VALUE; may be repeated.")
@changing_options
@ttl_option
@connected
def update(
    session: Session,
    service: str,
    name: str,
    changes: tuple[tuple[str, Any], ...],
    where: tuple[tuple[str, Any], ...],
    all_records: bool,
    if_exists: bool,
    if_fields: tuple[tuple[str, Any], ...],
    max_affected: int | None,
    dry_run: bool,
    ttl: float | None,
) -> None:
    """Change records: those that --where takes, or --all."""
    check_choice(where, all_records, if_exists, if_fields)
    table = session.client.db.get_table(service, name, timeout=session.timeout)
    answer = session.client.db.update(
        service,
        name,
        typed(table, dict(changes)),
        typed(table, dict(where)) if where else None,
        all_records=all_records,
        if_exists=if_exists,
        if_fields=typed(table, dict(if_fields)) if if_fields else None,
        ttl=ttl,
        max_affected=max_affected,
        dry_run=dry_run,
        timeout=session.timeout,
    )
    show_change(session, answer, f"{would(dry_run)}changed")


@db.command()
@click.argument("service")
@click.argument("name")
@changing_options
@connected
def delete(
    session: Session,
    service: str,
    name: str,
    where: tuple[tuple[str, Any], ...],
    all_records: bool,
    if_exists: bool,
    if_fields: tuple[tuple[str, Any], ...],
    max_affected: int | None,
    dry_run: bool,
) -> None:
    """Delete records: those that --where takes, or --all."""
    check_choice(where, all_records, if_exists, if_fields)
    answer = session.client.db.delete(
        service,
        name,
        condition_of(session, service, name, where),
        all_records=all_records,
        if_exists=if_exists,
        if_fields=condition_of(session, service, name, if_fields),
        max_affected=max_affected,
        dry_run=dry_run,
        timeout=session.timeout,
    )
    show_change(session, answer, f"{would(dry_run)}deleted")


def show_change(session: Session, answer: pb.UpdateRecordsResponse | pb.DeleteRecordsResponse, what: str) -> None:
    """How many; or that the condition did not hold, with the record as it is."""
    fields: dict[str, Any] = {what: answer.affected if answer.HasField("affected") else "not counted"}
    if not answer.applied:
        there = from_record(answer.current) if answer.HasField("current") else None
        fields = {"not applied": "the condition does not hold", "there is": there or "no such record"}
    session.screen.message(answer, fields)


def would(dry_run: bool) -> str:
    return "would be " if dry_run else ""


def check_choice(where: Sequence[object], all_records: bool, if_exists: bool, if_fields: Sequence[object]) -> None:
    if bool(where) == all_records:
        raise click.UsageError("give either --where or --all")
    if if_exists and if_fields:
        raise click.UsageError("give --if-exists or --if: a record that has these values is there")
