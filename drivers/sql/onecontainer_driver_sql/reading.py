"""SelectRecords and StreamRecords."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from onecontainer.api.db.v1 import database_pb2, query_pb2, table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Column, record
from onecontainer.driver.records.requests import DEFAULT_PAGE, MAX_PAGE, chosen_columns, page_size
from onecontainer.driver.records.streams import pace_of, responses, result_columns
from onecontainer_driver_sql import expiry, paging
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.filters import condition
from onecontainer_driver_sql.model import TableInfo
from onecontainer_driver_sql.paging import Key, Position


@dataclass(slots=True)
class Plan:
    """A query against the table as it is: its columns, its order, its condition."""

    table: TableInfo
    columns: list[Column]
    order: list[Key]
    where: sa.ColumnElement[bool] | None
    distinct: bool
    limit: int | None
    hidden: list[Column] = field(default_factory=list)

    def statement(self) -> sa.Select[Any]:
        chosen = [self.table.sa.columns[column.name] for column in [*self.columns, *self.hidden]]
        # Two columns whose names differ in case only have one name as SQLAlchemy's labels; these are by position.
        statement = sa.select(*chosen).select_from(self.table.sa)
        if self.where is not None:
            statement = statement.where(self.where)
        if self.distinct:
            statement = statement.distinct()
        return statement.order_by(*(key.clause(self.table) for key in self.order))


def plan(database: Database, table: TableInfo, query: query_pb2.Query) -> Plan:
    if query.consistency:
        raise errors.BackendCapabilityMissing("query.consistency", f"{database.backend.name} has no consistency levels")
    if query.limit < 0:
        raise errors.FieldInvalid("query.limit", "must not be negative")
    columns = chosen_columns(table, query.columns, "query.columns") or list(table.columns.values())
    order: list[Key] = []
    for index, one in enumerate(query.order_by):
        path = f"query.order_by[{index}].column"
        column = table.column(one.column, path)
        if any(key.column.name == column.name for key in order):
            raise errors.FieldInvalid(path, f"{column.name!r} is there twice")
        if not column.codec.order:
            raise errors.BackendCapabilityMissing(
                path, f"columns of type {column.proto.type.native_type} have no order here"
            )
        if query.distinct and column not in columns:
            raise errors.FieldInvalid(path, "must be one of `columns` with distinct")
        order.append(_key(database, column, one.order == table_pb2.SORT_ORDER_DESCENDING, one.nulls))
    where = condition(table, query.where, "query.where") if query.HasField("where") else None
    if table.expires:
        alive = expiry.alive(database.backend, table)
        where = alive if where is None else sa.and_(where, alive)
    return Plan(table, columns, order, where, query.distinct, query.limit or None)


def _key(database: Database, column: Column, descending: bool, nulls: int = 0) -> Key:
    if column.proto.not_null:
        return Key(column, descending, None)
    if nulls == query_pb2.NULLS_ORDER_UNSPECIFIED:
        return Key(column, descending, database.backend.nulls_smallest != descending)
    return Key(column, descending, nulls == query_pb2.NULLS_ORDER_FIRST)


def _total_order(database: Database, made: Plan) -> bool:
    """Makes the order one in which no two records are equal. False: the table has no key to do that with."""
    if made.distinct:
        ties = made.columns
    elif made.table.primary_key:
        ties = [made.table.columns[name] for name in made.table.primary_key]
    else:
        return False
    ordered = {key.column.name for key in made.order}
    # In the direction of what is asked for, one index can serve both.
    descending = bool(made.order) and all(key.descending for key in made.order)
    made.order += [_key(database, column, descending) for column in ties if column.name not in ordered]
    shown = {column.name for column in made.columns}
    made.hidden = [key.column for key in made.order if key.column.name not in shown]
    return True


async def select_records(
    database: Database, request: database_pb2.SelectRecordsRequest
) -> database_pb2.SelectRecordsResponse:
    size = page_size(request.page_size, DEFAULT_PAGE, MAX_PAGE)
    query = request.query
    async with database.reading() as connection:
        table = await database.table(connection, request.table)
        made = plan(database, table, query)
        total = _total_order(database, made)
        statement = made.statement()
        remaining = made.limit
        if request.page_token:
            position = paging.read_token(request.service, request.table, query, request.page_token)
            statement = statement.where(paging.after(table, made.order, position))
            remaining = position.remaining
        wanted = size if remaining is None else min(size, remaining)
        last = remaining is not None and remaining <= size
        rows = (await connection.execute(statement.limit(wanted if last else wanted + 1))).all()
    response = database_pb2.SelectRecordsResponse(columns=result_columns(made.columns))
    shown = len(made.columns)
    response.records.extend(record(made.columns, row[:shown]) for row in rows[:wanted])
    if len(rows) > wanted:
        if not total:
            raise errors.BackendCapabilityMissing(
                "page_size",
                f"table {table.id!r} has no primary key, so there is no second page; set `query.limit`, or use StreamRecords",
            )
        names = [column.name for column in [*made.columns, *made.hidden]]
        end = rows[wanted - 1]
        values = tuple(key.column.codec.read(end[names.index(key.column.name)]) for key in made.order)
        left = None if remaining is None else remaining - wanted
        response.next_page_token = paging.write_token(request.service, request.table, query, Position(left, values))
    return response


async def stream_records(
    database: Database, request: database_pb2.StreamRecordsRequest
) -> AsyncGenerator[database_pb2.StreamRecordsResponse, None]:
    pace = pace_of(request)
    async with database.reading(snapshot=True) as connection:
        # What was answered cannot be taken back, so a stream does not start on what may be stale.
        table = await database.fresh_table(connection, request.table)
        made = plan(database, table, request.query)
        statement = made.statement()
        if made.limit is not None:
            statement = statement.limit(made.limit)
        found = responses(request, made.columns, database.backend.stream(connection, statement, pace), pace)
        async with contextlib.aclosing(found):
            async for response in found:
                yield response
