"""The keyspace's tables and types as `system_schema` tells them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onecontainer.api.db.v1 import table_pb2, value_pb2
from onecontainer.driver.records.model import Codec
from onecontainer.driver.records.names import is_identifier
from onecontainer_driver_cassandra import codecs, composites, types
from onecontainer_driver_cassandra.model import ColumnInfo, TableInfo
from onecontainer_driver_cassandra.session import Session
from onecontainer_driver_cassandra.settings import MAX_NAME
from onecontainer_driver_cassandra.wire import Cell

_TEXTS = composites.list_of(codecs.TEXT)
_OPTIONS = composites.map_of(codecs.TEXT, codecs.TEXT)
_KINDS = ("partition_key", "clustering", "static", "regular")
_PARTS = {
    "keys": table_pb2.COLLECTION_PART_KEYS,
    "values": table_pb2.COLLECTION_PART_VALUES,
    "entries": table_pb2.COLLECTION_PART_ENTRIES,
    "full": table_pb2.COLLECTION_PART_FULL,
}
_TARGET = re.compile(r'(?:(keys|values|entries|full)\()?("(?:[^"]|"")*"|\w+)\)?\Z')


async def table_ids(session: Session) -> list[str]:
    """Of all tables whose name is an identifier, ascending."""
    found = await session.ask(
        "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?", session.settings.keyspace.encode()
    )
    return sorted(name for row in found if is_identifier(name := _text(row[0]), MAX_NAME))


async def structs(session: Session) -> dict[str, list[table_pb2.StructField]]:
    """The user-defined types; those of other such types after them."""
    rows = await session.ask(
        "SELECT type_name, field_names, field_types FROM system_schema.types WHERE keyspace_name = ?",
        session.settings.keyspace.encode(),
    )
    left = [(_text(name), _texts(fields), _texts(kinds)) for name, fields, kinds in rows]
    known: dict[str, list[table_pb2.StructField]] = {}
    while left:
        ready = [one for one in left if not _needs(one[2], {name for name, _, _ in left})] or left
        for name, fields, kinds in ready:
            known[name] = [
                table_pb2.StructField(name=field, type=types.from_cql(kind, known))
                for field, kind in zip(fields, kinds, strict=True)
            ]
        left = [one for one in left if one[0] not in known]
    return known


def _needs(kinds: Sequence[str], names: set[str]) -> bool:
    return any(word.strip('"') in names for kind in kinds for word in re.findall(r'"(?:[^"]|"")*"|\w+', kind))


async def describe(session: Session, table_id: str) -> TableInfo | None:
    keyspace, table = session.settings.keyspace.encode(), table_id.encode()
    columns = await session.ask(
        "SELECT column_name, kind, position, type, clustering_order FROM system_schema.columns"
        " WHERE keyspace_name = ? AND table_name = ?",
        keyspace,
        table,
    )
    if not columns:
        return None
    options = await session.ask(
        "SELECT comment, default_time_to_live, gc_grace_seconds, compaction FROM system_schema.tables"
        " WHERE keyspace_name = ? AND table_name = ?",
        keyspace,
        table,
    )
    indexes = await session.ask(
        "SELECT index_name, kind, options FROM system_schema.indexes WHERE keyspace_name = ? AND table_name = ?",
        keyspace,
        table,
    )
    if not options:
        return None  # a materialised view, which is no table
    known = await structs(session) if any(not _is_plain(_text(row[3])) for row in columns) else {}
    return _table(session.settings.keyspace, table_id, columns, options[0], indexes, known)


def _is_plain(cql_type: str) -> bool:
    """Whether it has no user-defined type in it."""
    return types.from_cql(cql_type, {}).kind != table_pb2.TYPE_KIND_NATIVE


def _table(
    keyspace: str,
    table_id: str,
    rows: list[list[Cell]],
    options: list[Cell],
    indexes: list[list[Cell]],
    known: types.Structs,
) -> TableInfo:
    # As SELECT * has them: the key in its order, then static columns, then the others, by name.
    rows.sort(key=lambda row: (_KINDS.index(_text(row[1])), codecs.integer(32).read(row[2]).int64_value, _text(row[0])))
    proto = table_pb2.Table(comment=_text(options[0]))
    columns: dict[str, ColumnInfo] = {}
    for name_cell, kind_cell, _, type_cell, order in rows:
        name, kind = _text(name_cell), _text(kind_cell)
        column = table_pb2.Column(
            name=name,
            type=types.from_cql(_text(type_cell), known),
            not_null=kind in _KINDS[:2],
            is_static=kind == "static",
        )
        columns[name] = ColumnInfo(column, _codec(column))
        proto.columns.append(column)
        if kind == "partition_key":
            proto.partition_key.append(name)
        elif kind == "clustering":
            descending = _text(order) == "desc"
            proto.clustering_key.add(
                column=name,
                order=table_pb2.SORT_ORDER_DESCENDING if descending else table_pb2.SORT_ORDER_ASCENDING,
            )
    for name, cell in (("default_time_to_live", options[1]), ("gc_grace_seconds", options[2])):
        proto.properties[name].CopyFrom(codecs.integer(32).read(cell))
    proto.properties["compaction"].CopyFrom(_OPTIONS.read(options[3]))
    proto.indexes.extend(_index(*row) for row in indexes)
    proto.expires = all(column.type.kind != table_pb2.TYPE_KIND_COUNTER for column in proto.columns)
    return TableInfo(table_id, keyspace, columns, proto)


def _codec(column: table_pb2.Column) -> Codec:
    return types.codec(column.type)


def _index(name: Cell, kind: Cell, options: Cell) -> table_pb2.Index:
    given = {pair.key.text_value: pair.value for pair in _OPTIONS.read(options).map_value.entries}
    index = table_pb2.Index(name=_text(name), method="2i")
    if _text(kind) == "CUSTOM":
        cls = given.pop("class_name", value_pb2.Value()).text_value
        index.method = "sai" if cls in ("sai", "StorageAttachedIndex") else cls.rpartition(".")[2]
        index.method = "sai" if index.method == "StorageAttachedIndex" else index.method
    target = given.pop("target", value_pb2.Value()).text_value
    found = _TARGET.match(target)
    if found is not None:
        column = found[2][1:-1].replace('""', '"') if found[2].startswith('"') else found[2]
        index.columns.add(column=column, part=_PARTS.get(found[1] or "", table_pb2.COLLECTION_PART_UNSPECIFIED))
    for key, value in given.items():
        index.options[key].CopyFrom(value)
    return index


def _text(cell: Cell) -> str:
    return (cell or b"").decode()


def _texts(cell: Cell) -> list[str]:
    return [value.text_value for value in _TEXTS.read(cell).list_value.values]
