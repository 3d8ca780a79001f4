"""Short ways to say requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from onecontainer_driver_sql import bulk, reading, tables
from onecontainer_driver_sql.database import Database

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, table_pb2
from tests.fixtures.records import SERVICE, K, column, rows_batch, unrecord


async def create(
    database: Database, table_id: str, *columns: table_pb2.Column, key: Iterable[str] = (), **more: Any
) -> table_pb2.Table:
    table = table_pb2.Table(columns=columns, partition_key=list(key), **more)
    return await tables.create_table(database, pb.CreateTableRequest(service=SERVICE, table_id=table_id, table=table))


async def people(database: Database, count: int = 0) -> None:
    """Table `people`: id, name (not null), age (may be null); ages are 0, 1, 2, null, 0, …"""
    await create(
        database,
        "people",
        column("id", K.TYPE_KIND_INT64),
        column("name", K.TYPE_KIND_TEXT, not_null=True),
        column("age", K.TYPE_KIND_INT32),
        key=["id"],
    )
    if count:
        rows = [[index, f"name-{index}", None if index % 4 == 3 else index % 4] for index in range(count)]
        done = await load(database, "people", ["id", "name", "age"], rows)
        assert done.inserted == count


async def load(
    database: Database, table: str, columns: list[str], rows: list[list[Any]], size: int = 100, **first: Any
) -> pb.BulkInsertResponse:
    async def requests() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table=table, **first)
        for start in range(0, len(rows), size):
            yield pb.BulkInsertRequest(batch=rows_batch(columns, rows[start : start + size]))

    return await bulk.bulk_insert(database, requests())


async def select(
    database: Database, table: str, query: query_pb2.Query | None = None, **more: Any
) -> list[dict[str, Any]]:
    return [unrecord(one) for one in (await page(database, table, query, **more)).records]


async def page(
    database: Database, table: str, query: query_pb2.Query | None = None, **more: Any
) -> pb.SelectRecordsResponse:
    request = pb.SelectRecordsRequest(service=SERVICE, table=table, query=query, **more)
    return await reading.select_records(database, request)
