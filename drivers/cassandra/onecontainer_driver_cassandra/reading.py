"""SelectRecords and StreamRecords."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from cassandra import ConsistencyLevel
from cassandra.query import BoundStatement

from onecontainer.api.db.v1 import database_pb2, query_pb2, table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records import tokens
from onecontainer.driver.records.batches import MAX_MESSAGE_BYTES
from onecontainer.driver.records.model import Column, record
from onecontainer.driver.records.requests import DEFAULT_PAGE, MAX_PAGE, chosen_columns, page_size
from onecontainer.driver.records.streams import FIRST_FETCH, Pace, pace_of, responses, result_columns
from onecontainer_driver_cassandra import codecs
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.filters import Where, restrictions
from onecontainer_driver_cassandra.model import TableInfo, names_in_cql, quoted
from onecontainer_driver_cassandra.options import consistency_level
from onecontainer_driver_cassandra.session import bound
from onecontainer_driver_cassandra.wire import Cell

MAX_FETCH = 5000
_DESCENDING = table_pb2.SORT_ORDER_DESCENDING
_WAYS_OUT = (
    "Ways out: fix the partition key with equalities and restrict clustering columns in their order; create an index"
    " (method `sai`) on the column; or set `allow_filtering`, with which Cassandra reads and discards, which may be slow."
)


@dataclass(slots=True)
class Plan:
    """A query against the table as it is."""

    columns: list[Column]
    cql: str
    values: list[Cell]
    never: bool
    consistency: int | None


def plan(table: TableInfo, query: query_pb2.Query) -> Plan:
    consistency = consistency_level(query.consistency, "query.consistency")
    if consistency == ConsistencyLevel.ANY:
        raise errors.FieldInvalid("query.consistency", "ANY is for writes only")
    if query.limit < 0:
        raise errors.FieldInvalid("query.limit", "must not be negative")
    columns = chosen_columns(table, query.columns, "query.columns") or list(table.columns.values())
    if query.distinct:
        _check_distinct(table, columns)
    where = restrictions(table, query.where, "query.where") if query.HasField("where") else Where()
    order = _order(table, query, where)
    distinct = "DISTINCT " if query.distinct else ""
    cql = f"SELECT {distinct}{names_in_cql([column.name for column in columns])} FROM {table.cql}{where.clause}{order}"  # noqa: S608
    values = list(where.values)
    if 0 < query.limit <= codecs.INT32_MAX:
        cql += " LIMIT ?"
        values.append(codecs.integer(32).load(query.limit))
    if query.allow_filtering:
        cql += " ALLOW FILTERING"
    return Plan(columns, cql, values, where.never, consistency)


def _check_distinct(table: TableInfo, columns: Sequence[Column]) -> None:
    names = {column.name for column in columns}
    allowed = {*table.partition_key, *(name for name, column in table.columns.items() if column.proto.is_static)}
    if not names <= allowed or not set(table.partition_key) <= names:
        raise errors.BackendCapabilityMissing(
            "query.distinct",
            f"CQL has it for the whole partition key ({', '.join(table.partition_key)}) and static columns alone",
        )


def _order(table: TableInfo, query: query_pb2.Query, where: Where) -> str:
    if not query.order_by:
        return ""
    flips: set[bool] = set()
    for index, one in enumerate(query.order_by):
        path = f"query.order_by[{index}]"
        table.column(one.column, f"{path}.column")
        if one.nulls:
            raise errors.BackendCapabilityMissing(f"{path}.nulls", "clustering columns have no nulls; leave it away")
        if table.clustering_key[index : index + 1] != (one.column,):
            clustering = ", ".join(table.clustering_key) or "none"
            raise errors.BackendCapabilityMissing(
                f"{path}.column",
                f"CQL orders by the clustering columns ({clustering}), in their order; make a table that is clustered so",
            )
        flips.add((one.order == _DESCENDING) != (table.proto.clustering_key[index].order == _DESCENDING))
    if len(flips) > 1:
        raise errors.BackendCapabilityMissing(
            "query.order_by", "CQL has the table's clustering order, or all of it turned round; not a mixture"
        )
    if not set(table.partition_key) <= set(where.equal):
        raise errors.BackendCapabilityMissing(
            "query.order_by", f"CQL orders inside one partition: fix {', '.join(table.partition_key)} with equalities"
        )
    parts = [f"{quoted(one.column)} {'DESC' if one.order == _DESCENDING else 'ASC'}" for one in query.order_by]
    return f" ORDER BY {', '.join(parts)}"


async def _statement(database: Database, made: Plan, fetch_size: int) -> BoundStatement:
    prepared = await database.prepare(made.cql, "query.where", _WAYS_OUT)
    return bound(prepared, made.values, consistency=made.consistency, fetch_size=fetch_size)


async def select_records(
    database: Database, request: database_pb2.SelectRecordsRequest
) -> database_pb2.SelectRecordsResponse:
    size = page_size(request.page_size, DEFAULT_PAGE, MAX_PAGE)
    made = plan(await database.table(request.table), request.query)
    place = (request.service, request.table, request.query)
    state = tokens.read_token(*place, request.page_token) if request.page_token else None
    response = database_pb2.SelectRecordsResponse(columns=result_columns(made.columns))
    if made.never:
        return response
    rows = await database.session.run(await _statement(database, made, size), state)
    response.records.extend(record(made.columns, cells) for cells in rows.cells())
    if rows.paging_state is not None:
        response.next_page_token = tokens.write_token(*place, rows.paging_state)
    return response


async def stream_records(
    database: Database, request: database_pb2.StreamRecordsRequest
) -> AsyncGenerator[database_pb2.StreamRecordsResponse, None]:
    """The next page is read from Cassandra while the caller takes the one before."""
    pace = pace_of(request)
    # What was answered cannot be taken back, so a stream does not start on what may be stale.
    made = plan(await database.fresh_table(request.table), request.query)
    found = responses(request, made.columns, _chunks(database, made, pace), pace)
    async with contextlib.aclosing(found):
        async for response in found:
            yield response


async def _chunks(database: Database, made: Plan, pace: Pace) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
    if made.never:
        return
    statement = await _statement(database, made, FIRST_FETCH)
    ahead = asyncio.ensure_future(database.session.run(statement))
    try:
        while True:
            rows = await ahead
            more = rows.paging_state
            if more is not None:
                # Wide rows are fetched fewer at a time, so that memory is bounded by bytes and not by rows.
                statement.fetch_size = max(1, min(MAX_FETCH, MAX_MESSAGE_BYTES * len(rows) // max(rows.size, 1)))
                ahead = asyncio.ensure_future(database.session.run(statement, more))
            cells = rows.cells()
            for start in range(0, len(cells), pace.most):
                yield cells[start : start + pace.most]
            if more is None:
                return
    finally:
        ahead.cancel()
        await asyncio.gather(ahead, return_exceptions=True)
