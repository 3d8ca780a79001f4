"""Short ways to say requests."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

from onecontainer_driver_sql import bulk, codecs, reading, tables
from onecontainer_driver_sql.database import Database

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2, value_pb2
from onecontainer.driver.records.model import NULL

SERVICE = "services/db"
K = table_pb2.TypeKind


def value(given: Any) -> value_pb2.Value:
    """The Value that a Python value stands for."""
    match given:
        case value_pb2.Value():
            return given
        case None:
            return NULL
        case bool():
            return value_pb2.Value(bool_value=given)
        case int():
            return value_pb2.Value(int64_value=given)
        case float():
            return value_pb2.Value(double_value=given)
        case str():
            return value_pb2.Value(text_value=given)
        case bytes():
            return value_pb2.Value(bytes_value=given)
        case uuid.UUID():
            return value_pb2.Value(uuid_value=given.bytes)
        case decimal.Decimal():
            return codecs.decimal_to_value(given)
        case dt.datetime():
            return codecs.timestamp_to_value(given)
        case dt.date():
            return value_pb2.Value(date_value=codecs.date_to_proto(given))
        case list():
            return value_pb2.Value(list_value=value_pb2.ListValue(values=[value(one) for one in given]))
        case _:
            raise TypeError(type(given))


def plain(given: value_pb2.Value) -> Any:
    """The Python value of the simple kinds."""
    kind = given.WhichOneof("kind")
    if kind == "null_value":
        return None
    if kind == "list_value":
        return [plain(one) for one in given.list_value.values]
    if kind == "decimal_value":
        return codecs.decimal_from_proto(given.decimal_value)
    assert kind in ("bool_value", "int64_value", "double_value", "text_value", "bytes_value", "json_value"), kind
    return getattr(given, kind)


def record(**fields: Any) -> record_pb2.Record:
    return record_pb2.Record(fields={name: value(given) for name, given in fields.items()})


def unrecord(given: record_pb2.Record) -> dict[str, Any]:
    return {name: plain(one) for name, one in given.fields.items()}


def column(name: str, kind: int, **more: Any) -> table_pb2.Column:
    type_names = {field.name for field in table_pb2.ColumnType.DESCRIPTOR.fields}
    of_type = {key: one for key, one in more.items() if key in type_names}
    rest = {key: one for key, one in more.items() if key not in type_names}
    return table_pb2.Column(name=name, type=table_pb2.ColumnType(kind=kind, **of_type), **rest)


def equals(name: str, given: Any) -> query_pb2.Filter:
    return compare(name, query_pb2.OPERATOR_EQUAL, given)


def compare(name: str, operator: int, given: Any) -> query_pb2.Filter:
    return query_pb2.Filter(comparison=query_pb2.Comparison(column=name, operator=operator, value=value(given)))


def all_of(*filters: query_pb2.Filter) -> query_pb2.Filter:
    return query_pb2.Filter(all_of=query_pb2.FilterList(filters=filters))


def any_of(*filters: query_pb2.Filter) -> query_pb2.Filter:
    return query_pb2.Filter(any_of=query_pb2.FilterList(filters=filters))


def setting(name: str, given: Any) -> record_pb2.Assignment:
    return record_pb2.Assignment(column=name, set=value(given))


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


def rows_batch(columns: list[str], rows: Iterable[Iterable[Any]]) -> record_pb2.RecordBatch:
    return record_pb2.RecordBatch(
        columns=columns,
        rows=record_pb2.RowList(rows=[record_pb2.Row(values=[value(one) for one in row]) for row in rows]),
    )


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


def insertion(table: str, *records: record_pb2.Record, **more: Any) -> pb.InsertRecordsRequest:
    return pb.InsertRecordsRequest(service=SERVICE, table=table, records=records, **more)


def updating(
    table: str, where: query_pb2.Filter | None, *assignments: record_pb2.Assignment, **more: Any
) -> pb.UpdateRecordsRequest:
    return pb.UpdateRecordsRequest(service=SERVICE, table=table, where=where, assignments=assignments, **more)


def deletion(table: str, where: query_pb2.Filter | None, **more: Any) -> pb.DeleteRecordsRequest:
    return pb.DeleteRecordsRequest(service=SERVICE, table=table, where=where, **more)
