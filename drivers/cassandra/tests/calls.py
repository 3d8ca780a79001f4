"""Short ways to make calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from onecontainer_driver_cassandra import bulk, reading, tables
from onecontainer_driver_cassandra.database import Database

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2
from tests.fixtures.records import SERVICE, K, all_of, column, equals, rows_batch, unrecord

Q = query_pb2.Query


def of(kind: int, *elements: table_pb2.ColumnType, **more: Any) -> table_pb2.ColumnType:
    return table_pb2.ColumnType(kind=kind, elements=elements, **more)


INT, TEXT = of(K.TYPE_KIND_INT32), of(K.TYPE_KIND_TEXT)
FAIL, IF_NOT_EXISTS = record_pb2.INSERT_MODE_FAIL, record_pb2.INSERT_MODE_IF_NOT_EXISTS


def typed(name: str, column_type: table_pb2.ColumnType, **more: Any) -> table_pb2.Column:
    return table_pb2.Column(name=name, type=column_type, **more)


def definition(
    *columns: table_pb2.Column, key: Iterable[str], order: Iterable[str] = (), **more: Any
) -> table_pb2.Table:
    """``order`` has the clustering columns, those that descend with a minus before them."""
    clustering = [
        table_pb2.ClusteringColumn(
            column=one.removeprefix("-"),
            order=table_pb2.SORT_ORDER_DESCENDING if one.startswith("-") else table_pb2.SORT_ORDER_ASCENDING,
        )
        for one in order
    ]
    return table_pb2.Table(columns=columns, partition_key=key, clustering_key=clustering, **more)


async def create(database: Database, table_id: str, *columns: table_pb2.Column, **more: Any) -> table_pb2.Table:
    request = pb.CreateTableRequest(service=SERVICE, table_id=table_id, table=definition(*columns, **more))
    return await tables.create_table(database, request)


async def events(database: Database, table_id: str, count: int = 0) -> None:
    """`place` text and `day` int are the partition, `at` int (descending) and `kind` text cluster; `note`, `score`, static `head`."""
    await create(
        database,
        table_id,
        typed("place", TEXT),
        typed("day", INT),
        typed("at", INT),
        typed("kind", TEXT),
        typed("note", TEXT),
        column("score", K.TYPE_KIND_INT64),
        typed("head", TEXT, is_static=True),
        key=["place", "day"],
        order=["-at", "kind"],
    )
    if count:
        rows = [["here", 1, index, "k", f"note-{index}", index % 5] for index in range(count)]
        done = await load(database, table_id, ["place", "day", "at", "kind", "note", "score"], rows)
        assert done.inserted == count


def here(**more: Any) -> query_pb2.Filter:
    """Partition (here, 1), with more equalities."""
    return all_of(*(equals(name, given) for name, given in {"place": "here", "day": 1, **more}.items()))


async def load(
    database: Database, table: str, columns: list[str], rows: list[list[Any]], size: int = 500, **first: Any
) -> pb.BulkInsertResponse:
    async def requests() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table=table, **first)
        for start in range(0, len(rows), size):
            yield pb.BulkInsertRequest(batch=rows_batch(columns, rows[start : start + size]))

    return await bulk.bulk_insert(database, requests())


async def page(
    database: Database, table: str, query: query_pb2.Query | None = None, **more: Any
) -> pb.SelectRecordsResponse:
    request = pb.SelectRecordsRequest(service=SERVICE, table=table, query=query, **more)
    return await reading.select_records(database, request)


async def select(
    database: Database, table: str, query: query_pb2.Query | None = None, **more: Any
) -> list[dict[str, Any]]:
    return [unrecord(one) for one in (await page(database, table, query, page_size=10_000, **more)).records]
