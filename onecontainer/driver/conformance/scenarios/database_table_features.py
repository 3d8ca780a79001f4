"""Features of CreateTable: what a table and its columns may have, and the types."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import table_pb2
from onecontainer.driver.conformance.expect import require
from onecontainer.driver.conformance.scenarios.database import KEY, NUMBER, TEXT, column, value
from onecontainer.driver.conformance.scenarios.database_stand import Feature, Stand
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


def _type(kind: table_pb2.TypeKind.ValueType) -> Feature:
    of = _INSIDE.get(kind, table_pb2.ColumnType(kind=kind))
    return Feature(
        f"CreateTable.type.{kind_name(kind)}",
        kind_name(kind),
        "table.columns[1].type",
        _creates(_table(table_pb2.Column(name="content", type=of)), lambda made: made.columns[1].type.kind == kind),
    )


TYPES = tuple(_type(kind) for kind in _KINDS)
