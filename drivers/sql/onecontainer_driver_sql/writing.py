"""InsertRecords, UpdateRecords, DeleteRecords and ExecuteBatch: each one transaction, all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection

from onecontainer.api.db.v1 import database_pb2, record_pb2
from onecontainer.driver import errors
from onecontainer.driver.records import requests
from onecontainer.driver.records.model import Column, record
from onecontainer.driver.records.requests import Delete, Update
from onecontainer_driver_sql import expiry
from onecontainer_driver_sql.assignments import assigned
from onecontainer_driver_sql.database import Database, Rollback
from onecontainer_driver_sql.filters import Condition, condition, fixes_primary_key
from onecontainer_driver_sql.inserting import insert, insert_one
from onecontainer_driver_sql.model import EXPIRY, Backend, TableInfo
from onecontainer_driver_sql.options import refuse_options, refuse_replicas, returned_columns

MAX_RETURNED = 10_000


async def insert_records(
    database: Database, request: database_pb2.InsertRecordsRequest
) -> database_pb2.InsertRecordsResponse:
    one_write = len(request.records) == 1 and not request.dry_run and database.is_plain(request.table)
    table = database.tables.get(request.table)
    silent = not request.returning and request.mode != record_pb2.INSERT_MODE_IF_NOT_EXISTS
    if one_write and silent and table is not None:
        return await insert_one(database, table, request)
    async with database.transaction(one_write=one_write) as connection:
        response = await insert(database, connection, request, "")
        if request.dry_run:
            raise Rollback
    return response


async def update_records(database: Database, request: Update) -> database_pb2.UpdateRecordsResponse:
    async with database.transaction(one_write=_is_one_write(database, request)) as connection:
        response = await update(database, connection, request, "")
        if request.dry_run:
            raise Rollback
    return response


async def delete_records(database: Database, request: Delete) -> database_pb2.DeleteRecordsResponse:
    async with database.transaction(one_write=_is_one_write(database, request)) as connection:
        response = await delete(database, connection, request, "")
        if request.dry_run:
            raise Rollback
    return response


def _is_one_write(database: Database, request: Update | Delete) -> bool:
    """Whether what it wrote is never taken back: nothing is counted, and nothing but the write itself depends on a condition."""
    counted = request.HasField("max_affected") or request.returning
    return not (request.dry_run or counted) and database.is_plain(request.table)


# --- update and delete -------------------------------------------------------------------------------------------


async def update(
    database: Database, connection: AsyncConnection, request: Update, at: str
) -> database_pb2.UpdateRecordsResponse:
    table = await database.table(connection, request.table, f"{at}table")
    refuse_options(table, request.options, f"{at}options", conditional=request.HasField("condition"))
    changes = assigned(database.backend, table, request.assignments, f"{at}assignments")
    await expiry.sweep(database.backend, connection, table)
    if request.options.HasField("ttl"):
        end = await expiry.moment(database.backend, connection, table, request.options)
        target = table.sa.columns[EXPIRY]
        changes[target] = sa.bindparam(None, end, type_=target.type, unique=True)
    done = await _change(database.backend, connection, table, sa.update(table.sa).values(changes), request, at)
    response = database_pb2.UpdateRecordsResponse(applied=done.applied, affected=done.affected, records=done.records)
    if done.current is not None:
        response.current.CopyFrom(done.current)
    return response


async def delete(
    database: Database, connection: AsyncConnection, request: Delete, at: str
) -> database_pb2.DeleteRecordsResponse:
    table = await database.table(connection, request.table, f"{at}table")
    refuse_options(table, request.options, f"{at}options", conditional=request.HasField("condition"), delete=True)
    statement: sa.Update | sa.Delete = sa.delete(table.sa)
    if request.columns:
        nulls: dict[sa.Column[Any], Any] = {}
        for index, name in enumerate(request.columns):
            path = f"{at}columns[{index}]"
            column = table.column(name, path)
            if name in table.primary_key or column.proto.not_null:
                raise errors.FieldInvalid(path, f"{name!r} cannot be null")
            nulls[table.sa.columns[name]] = sa.null()
        statement = sa.update(table.sa).values(nulls)
    done = await _change(database.backend, connection, table, statement, request, at)
    response = database_pb2.DeleteRecordsResponse(applied=done.applied, affected=done.affected, records=done.records)
    if done.current is not None:
        response.current.CopyFrom(done.current)
    return response


@dataclass(frozen=True, slots=True)
class Done:
    applied: bool
    affected: int
    records: Sequence[record_pb2.Record] = ()
    current: record_pb2.Record | None = None


async def _change(
    backend: Backend,
    connection: AsyncConnection,
    table: TableInfo,
    statement: sa.Update | sa.Delete,
    request: Update | Delete,
    at: str,
) -> Done:
    where = _where(table, request, at)
    if where is not None:
        statement = statement.where(where)
    if table.expires:
        statement = statement.where(expiry.alive(backend, table))
    if request.HasField("condition"):
        held = _condition(table, request, at)
        if held is not None:
            statement = statement.where(held)
    returning = returned_columns(table, request.returning, f"{at}returning")
    records: list[record_pb2.Record] = []
    if returning:
        rows = (await connection.execute(statement.returning(*_sa(table, returning)))).all()
        affected = len(rows)
    else:
        rows = []
        affected = (await connection.execute(statement)).rowcount
    if request.HasField("max_affected") and affected > request.max_affected:
        raise errors.StateInvalid(
            f"{affected} records are chosen, at most {request.max_affected} may be; nothing was written"
        )
    if len(rows) > MAX_RETURNED:
        raise errors.StateInvalid(
            f"{len(rows)} records would be returned, at most {MAX_RETURNED} can be; nothing was written"
        )
    records = [record(returning, row) for row in rows]
    if request.HasField("condition") and not affected:
        assert where is not None
        return Done(False, 0, current=await _current(connection, table, where, expiry.alive(backend, table)))
    return Done(True, affected, records)


def _where(table: TableInfo, request: Update | Delete, at: str) -> Condition | None:
    requests.check_chosen(request, at)
    return condition(table, request.where, f"{at}where") if request.HasField("where") else None


def _condition(table: TableInfo, request: Update | Delete, at: str) -> Condition | None:
    """What must hold besides `where`; that there is a record is told by one having changed."""
    path = f"{at}condition"
    if not table.primary_key:
        raise errors.BackendCapabilityMissing(path, f"table {table.id!r} has no primary key")
    if not request.HasField("where") or not fixes_primary_key(table, request.where):
        key = ", ".join(table.primary_key)
        raise errors.FieldInvalid(
            f"{at}where", f"must fix the primary key ({key}) with equalities, and nothing else, under a condition"
        )
    fields = requests.check_condition(request.condition, path)
    return None if fields is None else condition(table, fields, f"{path}.if_fields")


async def _current(connection: AsyncConnection, table: TableInfo, *where: Condition) -> record_pb2.Record | None:
    row = (await connection.execute(sa.select(*table.visible).where(*where))).first()
    return None if row is None else record(list(table.columns.values()), row)


def _sa(table: TableInfo, columns: Iterable[Column]) -> list[sa.Column[Any]]:
    return [table.sa.columns[column.name] for column in columns]


# --- batch -------------------------------------------------------------------------------------------------------


async def execute_batch(
    database: Database, request: database_pb2.ExecuteBatchRequest
) -> database_pb2.ExecuteBatchResponse:
    if request.kind not in (database_pb2.BATCH_KIND_UNSPECIFIED, database_pb2.BATCH_KIND_TRANSACTION):
        raise errors.BackendCapabilityMissing("kind", f"{database.backend.name} has transactions only; use TRANSACTION")
    if request.options.HasField("ttl"):
        raise errors.BackendCapabilityMissing("options.ttl", "is of a statement, not of a batch; set it there")
    refuse_replicas(request.options, "options")
    requests.check_batch(request)
    response = database_pb2.ExecuteBatchResponse(applied=True)
    async with database.transaction() as connection:
        for index in range(len(request.statements)):
            result = await _statement(database, connection, request, index)
            response.results.append(result)
            if not getattr(result, str(result.WhichOneof("result"))).applied:
                response.applied = False
                raise Rollback
        if request.dry_run:
            raise Rollback
    return response


async def _statement(
    database: Database, connection: AsyncConnection, request: database_pb2.ExecuteBatchRequest, index: int
) -> database_pb2.StatementResult:
    inner, at = requests.batch_statement(request, index)
    try:
        if isinstance(inner, database_pb2.InsertRecordsRequest):
            return database_pb2.StatementResult(insert=await insert(database, connection, inner, at))
        if isinstance(inner, Update):
            return database_pb2.StatementResult(update=await update(database, connection, inner, at))
        return database_pb2.StatementResult(delete=await delete(database, connection, inner, at))
    except exc.DBAPIError as error:
        found = database.backend.translate(error)
        if found is None:
            raise
        found.message = f"statements[{index}]: {found.message}"
        found.metadata["statement"] = str(index)
        raise found from error
    except errors.OneContainerError as error:
        error.metadata["statement"] = str(index)
        raise
