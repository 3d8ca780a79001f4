"""Features of CreateTable: what a table and its columns may have, and the types."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import timestamp_pb2

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2, value_pb2
from onecontainer.driver.conformance.expect import require
from onecontainer.driver.conformance.scenarios.database import KEY, NUMBER, TEXT, column, value, where
from onecontainer.driver.conformance.scenarios.database import NAME as SERVICE_NAME
from onecontainer.driver.conformance.scenarios.database_stand import CONTENT, Feature, Stand
from onecontainer.driver.conformance.session import SERVICE

K = table_pb2.TypeKind
INT64, LETTERS = K.TYPE_KIND_INT64, K.TYPE_KIND_TEXT


def _table(*columns: table_pb2.Column, **more: Any) -> table_pb2.Table:
    fields: dict[str, Any] = {"partition_key": [KEY]} | more
    return table_pb2.Table(columns=[column(KEY, INT64), *columns], **fields)


def _creates(table: table_pb2.Table, holds: Callable[[table_pb2.Table], object]) -> Callable[[Stand], Awaitable[None]]:
    async def show(stand: Stand) -> None:
        table_id = f"conformance_{secrets.token_hex(4)}"
        request = pb.CreateTableRequest(service=SERVICE, table_id=table_id, table=table, validate_only=True)
        made = await stand.ask("CreateTable", request)
        require(holds(made), f"CreateTable, validate_only, {{{table}}}", f"{{{made}}}")

    return show


def _with(column: table_pb2.Column, **more: Any) -> table_pb2.Column:
    made = table_pb2.Column(**more)
    made.MergeFrom(column)
    return made


_TEXT = column(TEXT, LETTERS)
_DESCENDING = table_pb2.ClusteringColumn(column=TEXT, order=table_pb2.SORT_ORDER_DESCENDING)
TABLES = (
    Feature(
        "CreateTable.comment",
        "comment of the table",
        "table.comment",
        _creates(_table(_TEXT, comment="c"), lambda made: made.comment == "c"),
    ),
    Feature(
        "CreateTable.columns.comment",
        "comment of a column",
        "table.columns[1].comment",
        _creates(_table(_with(_TEXT, comment="c")), lambda made: made.columns[1].comment == "c"),
    ),
    Feature(
        "CreateTable.columns.not_null",
        "`not_null` outside the key",
        "table.columns[1].not_null",
        _creates(_table(_with(_TEXT, not_null=True)), lambda made: made.columns[1].not_null),
    ),
    Feature(
        "CreateTable.columns.default_value",
        "`default_value`",
        "table.columns[1].default_value",
        _creates(
            _table(_with(_TEXT, default_value=value("d"))), lambda made: made.columns[1].default_value == value("d")
        ),
    ),
    Feature(
        "CreateTable.columns.auto_increment",
        "`auto_increment`",
        "table.columns[0].auto_increment",
        _creates(
            table_pb2.Table(columns=[_with(column(KEY, INT64), auto_increment=True)], partition_key=[KEY]),
            lambda made: made.columns[0].auto_increment,
        ),
    ),
    Feature(
        "CreateTable.columns.is_static",
        "`is_static`: one value for a partition",
        "table.columns[2].is_static",
        _creates(
            _table(
                _TEXT,
                _with(column(NUMBER, INT64), is_static=True),
                clustering_key=[table_pb2.ClusteringColumn(column=TEXT)],
            ),
            lambda made: any(one.is_static for one in made.columns),
        ),
    ),
    Feature(
        "CreateTable.clustering_key.order",
        "a key that descends",
        "table.clustering_key[0].order",
        _creates(
            _table(_TEXT, clustering_key=[_DESCENDING]),
            lambda made: made.clustering_key[0].order == table_pb2.SORT_ORDER_DESCENDING,
        ),
    ),
    Feature(
        "CreateTable.indexes.unique",
        "a unique index",
        "table.indexes[0].unique",
        _creates(
            _table(_TEXT, indexes=[table_pb2.Index(columns=[table_pb2.IndexColumn(column=TEXT)], unique=True)]),
            lambda made: made.indexes[0].unique,
        ),
    ),
)

_OF_INT64, _OF_TEXT = table_pb2.ColumnType(kind=INT64), table_pb2.ColumnType(kind=LETTERS)
_INSIDE: dict[table_pb2.TypeKind.ValueType, table_pb2.ColumnType] = {
    K.TYPE_KIND_LIST: table_pb2.ColumnType(kind=K.TYPE_KIND_LIST, elements=[_OF_INT64]),
    K.TYPE_KIND_SET: table_pb2.ColumnType(kind=K.TYPE_KIND_SET, elements=[_OF_INT64]),
    K.TYPE_KIND_MAP: table_pb2.ColumnType(kind=K.TYPE_KIND_MAP, elements=[_OF_TEXT, _OF_INT64]),
    K.TYPE_KIND_TUPLE: table_pb2.ColumnType(kind=K.TYPE_KIND_TUPLE, elements=[_OF_TEXT, _OF_INT64]),
    K.TYPE_KIND_VECTOR: table_pb2.ColumnType(kind=K.TYPE_KIND_VECTOR, dimension=3),
}
# STRUCT needs a type that somebody made before, NATIVE is what no table can be created with.
_KINDS = [kind for kind in K.values() if kind not in (K.TYPE_KIND_UNSPECIFIED, K.TYPE_KIND_STRUCT, K.TYPE_KIND_NATIVE)]


def kind_name(kind: table_pb2.TypeKind.ValueType) -> str:
    return K.Name(kind).removeprefix("TYPE_KIND_")


_DAYS = (value_pb2.Date(year=1, month=1, day=1), value_pb2.Date(year=9999, month=12, day=31))
_LATE = value_pb2.Time(hours=23, minutes=59, seconds=59, nanos=999_000_000)
ENDS: dict[table_pb2.TypeKind.ValueType, list[value_pb2.Value]] = {
    K.TYPE_KIND_INT16: [value(-(2**15)), value(2**15 - 1)],
    K.TYPE_KIND_INT32: [value(-(2**31)), value(2**31 - 1)],
    K.TYPE_KIND_INT64: [value(-(2**63)), value(2**63 - 1)],
    K.TYPE_KIND_DATE: [value_pb2.Value(date_value=day) for day in _DAYS],
    K.TYPE_KIND_TIME: [value_pb2.Value(time_value=time) for time in (value_pb2.Time(), _LATE)],
    K.TYPE_KIND_DATETIME: [
        value_pb2.Value(datetime_value=value_pb2.DateTime(date=day, time=time))
        for day, time in zip(_DAYS, (value_pb2.Time(), _LATE), strict=True)
    ],
    K.TYPE_KIND_TIMESTAMP: [
        value_pb2.Value(timestamp_value=timestamp_pb2.Timestamp(seconds=-62_135_596_800)),
        value_pb2.Value(timestamp_value=timestamp_pb2.Timestamp(seconds=253_402_300_799, nanos=999_000_000)),
    ],
}
"""The least and the greatest value that every backend with the type keeps: as it is, or not at all."""


async def _keeps(stand: Stand, of: table_pb2.ColumnType) -> None:
    names = [f"{SERVICE_NAME}/{method}" for method in ("InsertRecords", "SelectRecords")]
    if not all(stand.session.claims(name) for name in names):
        return
    insert, select = names
    table = await stand.other_table(of)
    for key, wanted in enumerate(ENDS[of.kind]):
        made = record_pb2.Record(fields={KEY: value(key), CONTENT: wanted})
        request = pb.InsertRecordsRequest(service=SERVICE, table=table, records=[made])
        await stand.session.one_as(insert, request, pb.InsertRecordsResponse)
        query = query_pb2.Query(where=where(key))
        asked = pb.SelectRecordsRequest(service=SERVICE, table=table, query=query)
        page = await stand.session.one_as(select, asked, pb.SelectRecordsResponse)
        shown = [one.fields[CONTENT] for one in page.records]
        require(shown == [wanted], f"SelectRecords of {{{wanted}}} in a column of {kind_name(of.kind)}", f"{shown}")


def _type(kind: table_pb2.TypeKind.ValueType) -> Feature:
    of = _INSIDE.get(kind, table_pb2.ColumnType(kind=kind))
    creates = _creates(_table(table_pb2.Column(name=CONTENT, type=of)), lambda made: made.columns[1].type.kind == kind)

    async def show(stand: Stand) -> None:
        await creates(stand)
        if kind in ENDS:
            await _keeps(stand, of)

    return Feature(f"CreateTable.type.{kind_name(kind)}", kind_name(kind), "table.columns[1].type", show)


TYPES = tuple(_type(kind) for kind in _KINDS)
