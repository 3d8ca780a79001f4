"""Reads tables from PostgreSQL's catalog: what is there, whoever created it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from onecontainer.api.db.v1 import table_pb2, value_pb2
from onecontainer.driver.records.names import is_identifier
from onecontainer_driver_sql import codecs
from onecontainer_driver_sql.ddl import is_of_expiry, take_expiry
from onecontainer_driver_sql.model import ColumnInfo, Storage, TableInfo
from onecontainer_driver_sql.postgresql_types import column_type, stored_as

K = table_pb2.TypeKind

_TABLES = sa.text("""
SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = COALESCE(CAST(:schema AS text), current_schema()) AND c.relkind IN ('r', 'p') ORDER BY c.relname COLLATE "C"
""")

_TABLE = sa.text("""
SELECT c.oid, obj_description(c.oid, 'pg_class') AS comment, c.reloptions
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = COALESCE(CAST(:schema AS text), current_schema()) AND c.relkind IN ('r', 'p') AND c.relname = CAST(:table AS text)
""")

_COLUMNS = sa.text("""
SELECT a.attnum, a.attname, format_type(a.atttypid, a.atttypmod) AS type, t.typtype AS typtype, a.attnotnull, a.attidentity,
       a.attgenerated, pg_get_expr(d.adbin, d.adrelid) AS "default", col_description(a.attrelid, a.attnum) AS comment
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = CAST(:oid AS oid) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
""")

_INDEXES = sa.text("""
SELECT i.relname, x.indisunique, x.indisprimary, m.amname, CAST(x.indkey AS int2[]) AS keys,
       CAST(x.indoption AS int2[]) AS orders, x.indnkeyatts, i.reloptions
FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid JOIN pg_catalog.pg_am m ON m.oid = i.relam
WHERE x.indrelid = CAST(:oid AS oid) AND x.indisvalid ORDER BY i.relname
""")

# Only literals are evaluated: an expression might call a function that does something.
_LITERAL = re.compile(r"(?:'(?:[^']|'')*'|\(?-?\d+(?:\.\d+)?(?:e[+-]?\d+)?\)?|true|false)(?:::[\w \"\[\](),.]+)?\Z")


async def table_ids(connection: AsyncConnection, schema: str | None) -> list[str]:
    rows = await connection.execute(_TABLES, {"schema": schema})
    return [row[0] for row in rows if is_identifier(row[0])]


async def describe(connection: AsyncConnection, schema: str | None, table_id: str) -> TableInfo | None:
    found = (await connection.execute(_TABLE, {"schema": schema, "table": table_id})).one_or_none()
    if found is None:
        return None
    proto = table_pb2.Table(comment=found.comment or "")
    _properties(proto.properties, found.reloptions)
    columns: dict[str, ColumnInfo] = {}
    numbers: dict[int, str] = {}
    for row in await connection.execute(_COLUMNS, {"oid": found.oid}):
        numbers[row.attnum] = row.attname
        columns[row.attname] = await _column(connection, row)
    indexes = (await connection.execute(_INDEXES, {"oid": found.oid})).all()
    primary: tuple[str, ...] = ()
    for row in indexes:
        if row.indisprimary:
            primary = tuple(numbers[number] for number in row.keys[: row.indnkeyatts])
        elif 0 not in row.keys:  # 0 stands for an expression
            index = _index(row, numbers)
            if not is_of_expiry(index):
                proto.indexes.append(index)
    expiry = take_expiry(columns)
    proto.expires = expiry is not None
    proto.columns.extend(column.proto for column in columns.values())
    proto.partition_key.extend(primary)
    return TableInfo(table_id, columns, primary, proto, schema, expiry)


async def _column(connection: AsyncConnection, row: Any) -> ColumnInfo:
    type_ = column_type(row.type)
    if _one_char(row.typtype) == "e":
        type_ = table_pb2.ColumnType(kind=K.TYPE_KIND_TEXT, native_type=row.type)
        text = codecs.text(codecs.text_check(None, nul=False), None)
        storage = Storage(row.type, row.type, text, as_text=True)
    else:
        storage = stored_as(type_)
        type_.native_type = row.type
    generated = _one_char(row.attgenerated) == "s"
    default = None if generated else row.default
    counts = _one_char(row.attidentity) in ("a", "d") or (default or "").startswith("nextval(")
    proto = table_pb2.Column(
        name=row.attname, type=type_, not_null=row.attnotnull, auto_increment=counts, comment=row.comment or ""
    )
    if default is not None and _LITERAL.match(default):
        column: sa.TextClause = sa.text(default.replace("\\", "\\\\").replace(":", "\\:"))
        value = await connection.scalar(sa.select(sa.type_coerce(column, storage.type)))
        proto.default_value.CopyFrom(storage.codec.read(value))
    return ColumnInfo(proto, storage, has_default=counts or default is not None, generated=generated)


def _index(row: Any, numbers: dict[int, str]) -> table_pb2.Index:
    index = table_pb2.Index(name=row.relname, unique=row.indisunique, method=row.amname)
    for number, order in zip(row.keys[: row.indnkeyatts], row.orders, strict=True):
        descending = row.amname == "btree" and order & 1
        index.columns.add(
            column=numbers[number],
            order=table_pb2.SORT_ORDER_DESCENDING if descending else table_pb2.SORT_ORDER_ASCENDING,
        )
    _properties(index.options, row.reloptions)
    return index


def _properties(target: Any, options: Sequence[str] | None) -> None:
    for option in options or ():
        name, _, text = option.partition("=")
        if text.lstrip("-").isdigit():
            value = value_pb2.Value(int64_value=int(text))
        elif text in ("true", "false", "on", "off"):
            value = value_pb2.Value(bool_value=text in ("true", "on"))
        else:
            value = value_pb2.Value(text_value=text)
        target[name].CopyFrom(value)


def _one_char(value: str | bytes) -> str:
    """asyncpg gives the type "char" as bytes."""
    return value.decode() if isinstance(value, bytes) else value
