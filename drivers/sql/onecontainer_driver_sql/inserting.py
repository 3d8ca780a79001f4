"""The inserts of a call or of a batch: up to 1000 records in the transaction that is open."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection

from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver import errors
from onecontainer.driver.records import requests
from onecontainer.driver.records.model import Column, record
from onecontainer_driver_sql import expiry
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.model import EXPIRY, Backend, Straight, TableInfo, straight
from onecontainer_driver_sql.options import refuse_options, returned_columns
from onecontainer_driver_sql.values import record_parameters

Parameters = dict[str, Any]
T = TypeVar("T")


async def insert(
    database: Database, connection: AsyncConnection, request: database_pb2.InsertRecordsRequest, at: str
) -> database_pb2.InsertRecordsResponse:
    table = await database.table(connection, request.table, f"{at}table")
    returning, rows = _checked(table, request, at)
    conditional = request.mode == record_pb2.INSERT_MODE_IF_NOT_EXISTS
    if table.expires:
        await expiry.sweep(database.backend, connection, table)
        end = await expiry.moment(database.backend, connection, table, request.options)
        rows = [{**row, EXPIRY: end} for row in rows]
    alike = len({tuple(row) for row in rows}) == 1
    if len(rows) > 1 and alike and not returning and not conditional:
        await _insert_alike(database.backend, connection, table, rows, request.mode, at)
        results = [database_pb2.InsertResult(applied=True) for _ in rows]
    else:
        results = []
        for index, row in enumerate(rows):
            statement = insert_statement(database.backend, table, list(row), request.mode)
            columns = [table.sa.columns[column.name] for column in returning]
            executing = connection.execute(statement.returning(*columns) if columns else statement, row)
            done = await _located(database.backend, executing, index, at)
            found = done.first() if columns else None
            if conditional and (found is None if columns else done.rowcount == 0):
                current = await _current(database.backend, connection, table, row)
                results.append(database_pb2.InsertResult(applied=False, current=current))
            else:
                shown = None if found is None else record(returning, found)
                results.append(database_pb2.InsertResult(applied=True, record=shown))
    written = sum(result.applied for result in results)
    return database_pb2.InsertRecordsResponse(applied=written == len(rows), affected=written, results=results)


async def insert_one(
    database: Database, table: TableInfo, request: database_pb2.InsertRecordsRequest
) -> database_pb2.InsertRecordsResponse:
    """One record into a table whose records do not expire, of which nothing is to be told but that it was written."""
    _, (row,) = _checked(table, request, "")
    statement = table.kept(
        (Straight, *row, request.mode),
        lambda: straight(insert_statement(database.backend, table, list(row), request.mode), database.dialect, row),
    )
    async with database.straight(write=True) as raw:
        await _located(database.backend, database.backend.rows(raw, statement, statement.arguments(row)), 0, "")
    result = database_pb2.InsertResult(applied=True)
    return database_pb2.InsertRecordsResponse(applied=True, affected=1, results=[result])


def _checked(
    table: TableInfo, request: database_pb2.InsertRecordsRequest, at: str
) -> tuple[list[Column], list[Parameters]]:
    """Columns to return, and parameters of each record."""
    requests.check_insert(request, at)
    check_mode(table, request.mode, f"{at}mode")
    conditional = request.mode == record_pb2.INSERT_MODE_IF_NOT_EXISTS
    refuse_options(table, request.options, f"{at}options", conditional=conditional)
    returning = returned_columns(table, request.returning, f"{at}returning")
    rows = [record_parameters(table, one, f"{at}records[{index}]") for index, one in enumerate(request.records)]
    return returning, rows


def check_mode(table: TableInfo, mode: int, path: str) -> None:
    requests.check_mode(mode, path)
    if mode in (record_pb2.INSERT_MODE_IF_NOT_EXISTS, record_pb2.INSERT_MODE_UPSERT) and not table.primary_key:
        raise errors.BackendCapabilityMissing(path, f"table {table.id!r} has no primary key to find a record by")


def insert_statement(backend: Backend, table: TableInfo, columns: list[str], mode: int) -> Any:
    """An INSERT of these columns, whose parameters are given when it is executed. Made once for each table as it is known."""
    return table.kept((*columns, mode), lambda: _insert_statement(backend, table, columns, mode))


def _insert_statement(backend: Backend, table: TableInfo, columns: list[str], mode: int) -> Any:
    statement = backend.insert(table.sa).values(
        {table.sa.columns[name]: sa.bindparam(name, type_=table.sa.columns[name].type) for name in columns}
    )
    keys = [table.sa.columns[name] for name in table.primary_key]
    if mode == record_pb2.INSERT_MODE_IF_NOT_EXISTS:
        return statement.on_conflict_do_nothing(index_elements=keys)
    if mode == record_pb2.INSERT_MODE_UPSERT:
        # With nothing but a key there is nothing to change, but the record is to be touched and returned all the same.
        changed = [name for name in columns if name not in table.primary_key] or [table.primary_key[0]]
        updates = {table.sa.columns[name]: statement.excluded[name] for name in changed}
        return statement.on_conflict_do_update(index_elements=keys, set_=updates)
    return statement


async def _insert_alike(
    backend: Backend, connection: AsyncConnection, table: TableInfo, rows: list[Parameters], mode: int, at: str
) -> None:
    statement = insert_statement(backend, table, list(rows[0]), mode)
    try:
        async with connection.begin_nested():
            await connection.execute(statement, rows)
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        # Which record it was is known only when they go one by one.
        for index, row in enumerate(rows):
            await _located(backend, connection.execute(statement, row), index, at)


async def _located(backend: Backend, executing: Awaitable[T], index: int, at: str) -> T:
    """What it gives; the backend's error tells which record it is of."""
    try:
        return await executing
    except Exception as error:
        found = backend.translate(error)
        if found is None:
            raise
        found.message = f"{at}records[{index}]: {found.message}"
        found.metadata["record"] = str(index)
        raise found from error


async def _current(
    backend: Backend, connection: AsyncConnection, table: TableInfo, row: Parameters
) -> record_pb2.Record | None:
    if any(name not in row for name in table.primary_key):
        return None
    found = (
        await connection.execute(
            sa.select(*table.visible).where(
                expiry.alive(backend, table),
                *(
                    table.sa.columns[name]
                    == sa.bindparam(None, row[name], type_=table.sa.columns[name].type, unique=True)
                    for name in table.primary_key
                ),
            )
        )
    ).first()
    return None if found is None else record(list(table.columns.values()), found)
