"""SelectRecords and StreamRecords."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from onecontainer.api.db.v1 import database_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import record
from onecontainer.driver.records.requests import DEFAULT_PAGE, MAX_PAGE, page_size
from onecontainer.driver.records.streams import pace_of, responses, result_columns
from onecontainer_driver_sql import paging
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.paging import Position
from onecontainer_driver_sql.planning import Plan, plan, total
from onecontainer_driver_sql.prepared import comparisons_of, prepare, shape_of


async def select_records(
    database: Database, request: database_pb2.SelectRecordsRequest
) -> database_pb2.SelectRecordsResponse:
    size = page_size(request.page_size, DEFAULT_PAGE, MAX_PAGE)
    query = request.query
    table = database.tables.get(request.table)
    if table is None:
        async with database.reading() as connection:
            table = await database.fresh_table(connection, request.table)
    comparisons = comparisons_of(request)

    def made_now() -> Plan:
        return total(database, plan(database, table, query))

    known = None
    if comparisons:
        shape = shape_of(query, comparisons)
        known = table.kept(shape, lambda: prepare(made_now(), database.dialect, comparisons))
    made = known.plan if known is not None else made_now()
    remaining = made.limit
    position = None
    if request.page_token:
        position = paging.read_token(request.service, request.table, query, request.page_token)
        remaining = position.remaining
    wanted = size if remaining is None else min(size, remaining)
    last = remaining is not None and remaining <= size
    most = wanted if last else wanted + 1
    rows: Sequence[Any]
    if known is not None:
        arguments = known.arguments(comparisons, most)
        async with database.straight() as raw:
            rows = await database.backend.rows(raw, known.statement, arguments)
    else:
        statement = made.statement().limit(most)
        if position is not None:
            statement = statement.where(paging.after(table, made.order, position))
        async with database.reading() as connection:
            rows = (await connection.execute(statement)).all()
    response = database_pb2.SelectRecordsResponse(columns=result_columns(made.columns))
    shown = len(made.columns)
    response.records.extend(record(made.columns, row[:shown]) for row in rows[:wanted])
    if len(rows) > wanted:
        if not made.is_total:
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
