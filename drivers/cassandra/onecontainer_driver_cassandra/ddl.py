"""Checks a table's definition and writes it in CQL: only checked names, numbers and quoted texts reach a statement."""

from __future__ import annotations

import re
from collections.abc import Mapping

from onecontainer.api.db.v1 import table_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.names import check_identifier
from onecontainer.driver.records.requests import check_columns, key_columns
from onecontainer_driver_cassandra import types
from onecontainer_driver_cassandra.model import ColumnInfo, TableInfo, names_in_cql, quoted
from onecontainer_driver_cassandra.session import map_literal, text_literal
from onecontainer_driver_cassandra.settings import MAX_NAME
from onecontainer_driver_cassandra.types import COLLECTIONS, Structs

K = table_pb2.TypeKind
_PROPERTIES: dict[str, str] = {
    **dict.fromkeys(("compaction", "compression", "caching"), "map_value"),
    **dict.fromkeys(("speculative_retry", "additional_write_policy", "read_repair", "memtable"), "text_value"),
    **dict.fromkeys(("bloom_filter_fp_chance", "crc_check_chance"), "double_value"),
    **dict.fromkeys(("default_time_to_live", "gc_grace_seconds", "memtable_flush_period_in_ms"), "int64_value"),
    **dict.fromkeys(("min_index_interval", "max_index_interval"), "int64_value"),
    "cdc": "bool_value",
}
_METHODS = ("sai", "2i")
_PARTS = {
    table_pb2.COLLECTION_PART_KEYS: "keys",
    table_pb2.COLLECTION_PART_VALUES: "values",
    table_pb2.COLLECTION_PART_ENTRIES: "entries",
    table_pb2.COLLECTION_PART_FULL: "full",
}
_OPTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}\Z")


def create_statements(
    keyspace: str, table_id: str, table: table_pb2.Table, structs: Structs
) -> tuple[list[str], TableInfo]:
    """The statements, and the table as it will be.

    Raises FieldRequired, FieldInvalid, DataInvalid or BackendCapabilityMissing with the path of what is wrong.
    """
    check_identifier(table_id, "table_id", MAX_NAME)
    check_columns(table)
    key = _primary_key(table)
    columns = [_column(column, key, structs, f"table.columns[{i}]") for i, column in enumerate(table.columns)]
    if any(column.is_static for column in table.columns) and not table.clustering_key:
        raise errors.FieldInvalid("table.columns", "static columns need a clustering key")
    _check_counters(table, key)
    made = _as_it_will_be(keyspace, table_id, table, columns)
    key_cql = f"({names_in_cql(table.partition_key)})"
    if table.clustering_key:
        key_cql += f", {names_in_cql([one.column for one in table.clustering_key])}"
    parts = [*(f"{column.cql} {cql}{' static' if column.proto.is_static else ''}" for column, cql in columns)]
    statement = f"CREATE TABLE {made.cql} ({', '.join(parts)}, PRIMARY KEY ({key_cql}))"
    options = _options(table)
    if options:
        statement += f" WITH {' AND '.join(options)}"
    indexes = [_create_index(made, index, f"table.indexes[{i}]") for i, index in enumerate(table.indexes)]
    return [statement, *indexes], made


def _primary_key(table: table_pb2.Table) -> list[str]:
    if not table.partition_key:
        raise errors.FieldRequired("table.partition_key", "is required: every table of Cassandra has one")
    key = key_columns(table)
    columns = {column.name: column for column in table.columns}
    for name, path in key:
        column = columns[name]
        if column.type.kind in (K.TYPE_KIND_COUNTER, K.TYPE_KIND_DURATION) or column.is_static:
            raise errors.BackendCapabilityMissing(path, "a counter, duration or static column cannot be in the key")
        if column.type.kind in (*COLLECTIONS, K.TYPE_KIND_STRUCT) and not column.type.frozen:
            raise errors.BackendCapabilityMissing(path, "a collection or struct of the key must be `frozen`")
    return [name for name, _ in key]


def _column(column: table_pb2.Column, key: list[str], structs: Structs, path: str) -> tuple[ColumnInfo, str]:
    check_identifier(column.name, f"{path}.name", MAX_NAME)
    if not column.HasField("type"):
        raise errors.FieldRequired(f"{path}.type")
    cql = types.to_cql(column.type, structs, f"{path}.type")
    if column.not_null and column.name not in key:
        raise errors.BackendCapabilityMissing(f"{path}.not_null", "Cassandra takes null outside the key; leave it away")
    if column.HasField("default_value"):
        raise errors.BackendCapabilityMissing(f"{path}.default_value", "Cassandra has no defaults; write the value")
    if column.auto_increment:
        raise errors.BackendCapabilityMissing(f"{path}.auto_increment", "Cassandra numbers nothing; use a UUID")
    if column.comment:
        raise errors.BackendCapabilityMissing(f"{path}.comment", "Cassandra has comments of tables only")
    made = table_pb2.Column(
        name=column.name, type=types.from_cql(cql, structs), not_null=column.name in key, is_static=column.is_static
    )
    return ColumnInfo(made, types.codec(made.type)), cql


def _check_counters(table: table_pb2.Table, key: list[str]) -> None:
    others = [column for column in table.columns if column.name not in key]
    counters = [column for column in others if column.type.kind == K.TYPE_KIND_COUNTER]
    if counters and len(counters) < len(others):
        raise errors.BackendCapabilityMissing(
            "table.columns", "a table has either counters or other columns besides its key; make two tables"
        )


def _as_it_will_be(
    keyspace: str, table_id: str, table: table_pb2.Table, columns: list[tuple[ColumnInfo, str]]
) -> TableInfo:
    proto = table_pb2.Table()
    proto.CopyFrom(table)
    proto.ClearField("columns")
    proto.ClearField("name")
    proto.columns.extend(column.proto for column, _ in columns)
    return TableInfo(table_id, keyspace, {column.name: column for column, _ in columns}, proto)


# --- options -----------------------------------------------------------------------------------------------------


def _options(table: table_pb2.Table) -> list[str]:
    options: list[str] = []
    if any(one.order == table_pb2.SORT_ORDER_DESCENDING for one in table.clustering_key):
        order = ", ".join(
            f"{quoted(one.column)} {'DESC' if one.order == table_pb2.SORT_ORDER_DESCENDING else 'ASC'}"
            for one in table.clustering_key
        )
        options.append(f"CLUSTERING ORDER BY ({order})")
    if table.comment:
        options.append(f"comment = {text_literal(_plain_text(table.comment, 'table.comment'))}")
    for name, value in table.properties.items():
        path = f"table.properties[{name!r}]"
        if name not in _PROPERTIES:
            raise errors.FieldInvalid(
                path, f"Cassandra has no such property here; it has: {', '.join(sorted(_PROPERTIES))}"
            )
        options.append(f"{name} = {_literal(value, _PROPERTIES[name], path)}")
    return options


def _literal(value: value_pb2.Value, kind: str, path: str) -> str:
    given = value.WhichOneof("kind")
    if given != kind and not (given == "int64_value" and kind == "double_value"):
        raise errors.FieldInvalid(path, f"must be a {kind}")
    if given == "map_value":
        pairs = {
            _text_of(pair.key, f"{path}.entries[{i}].key"): _text_of(pair.value, f"{path}.entries[{i}].value")
            for i, pair in enumerate(value.map_value.entries)
        }
        return map_literal(pairs)
    if given == "double_value":
        if not 0 <= value.double_value <= 1:
            raise errors.FieldInvalid(path, "must be from 0 to 1")
        return repr(value.double_value)
    return text_literal(_text_of(value, path)) if given == "text_value" else _text_of(value, path)


def _text_of(value: value_pb2.Value, path: str) -> str:
    match value.WhichOneof("kind"):
        case "text_value":
            return _plain_text(value.text_value, path)
        case "int64_value":
            return str(value.int64_value)
        case "bool_value":
            return "true" if value.bool_value else "false"
        case "double_value":
            return repr(value.double_value)
        case _:
            raise errors.FieldInvalid(path, "must be a text, a number or a bool")


def _plain_text(text: str, path: str) -> str:
    if "\0" in text:
        raise errors.DataInvalid(path, "has a NUL character")
    return text


# --- indexes -----------------------------------------------------------------------------------------------------


def _create_index(table: TableInfo, index: table_pb2.Index, path: str) -> str:
    if len(index.columns) != 1:
        raise errors.FieldInvalid(f"{path}.columns", "an index of Cassandra is over one column")
    one = index.columns[0]
    column = table.columns.get(one.column)
    if column is None:
        raise errors.FieldInvalid(f"{path}.columns[0].column", f"{one.column!r} is not a column of the table")
    if one.order == table_pb2.SORT_ORDER_DESCENDING:
        raise errors.BackendCapabilityMissing(f"{path}.columns[0].order", "an index of Cassandra has no order")
    if index.unique:
        raise errors.BackendCapabilityMissing(f"{path}.unique", "Cassandra has no unique indexes; use the primary key")
    if index.method and index.method not in _METHODS:
        raise errors.FieldInvalid(f"{path}.method", f"must be one of {', '.join(_METHODS)}")
    name = check_identifier(index.name or f"{table.id}_{one.column}_idx"[:MAX_NAME], f"{path}.name", MAX_NAME)
    part = _PARTS.get(one.part)
    target = f"{part}({column.cql})" if part else column.cql
    statement = f"CREATE INDEX {quoted(name)} ON {table.cql} ({target})"
    if index.method == "sai":
        statement += " USING 'sai'"
    if index.options:
        if index.method != "sai":
            raise errors.FieldInvalid(f"{path}.options", "are for method `sai`")
        statement += f" WITH OPTIONS = {map_literal(_index_options(index.options, f'{path}.options'))}"
    return statement


def _index_options(given: Mapping[str, value_pb2.Value], path: str) -> dict[str, str]:
    for name in given:
        if not _OPTION_NAME.match(name):
            raise errors.FieldInvalid(f"{path}[{name!r}]", "is not the name of an option")
    return {name: _text_of(value, f"{path}[{name!r}]") for name, value in given.items()}
