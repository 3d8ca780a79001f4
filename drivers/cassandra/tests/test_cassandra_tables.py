"""Tables: what is created is told as it was asked for, and what Cassandra has not is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from onecontainer_driver_cassandra import tables
from onecontainer_driver_cassandra.database import Database

from drivers.cassandra.tests.calls import INT, TEXT, create, definition, of, typed
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import table_pb2
from onecontainer.driver import errors
from tests.fixtures.records import SERVICE, K, column, value

pytestmark = pytest.mark.asyncio(loop_scope="session")


def creation(table_id: str, table: table_pb2.Table, **more: Any) -> pb.CreateTableRequest:
    return pb.CreateTableRequest(service=SERVICE, table_id=table_id, table=table, **more)


async def test_a_table_with_composite_keys_comes_back_as_it_was_asked_for(db: Database, table: str) -> None:
    made = definition(
        typed("P2", TEXT),
        typed("p1", INT),
        typed("c1", INT),
        typed("c2", TEXT),
        typed("s", TEXT, is_static=True),
        typed("v", of(K.TYPE_KIND_LIST, of(K.TYPE_KIND_MAP, TEXT, INT))),
        key=["P2", "p1"],
        order=["-c1", "c2"],
        comment="It's one",
        properties={
            "gc_grace_seconds": value(1234),
            "compaction": value({"class": "LeveledCompactionStrategy", "sstable_size_in_mb": 80}),
            "default_time_to_live": value(60),
            "bloom_filter_fp_chance": value(0.1),
        },
    )
    foreseen = await tables.create_table(db, creation(table, made, validate_only=True))
    with pytest.raises(errors.ResourceNotFound):
        await db.fresh_table(table)
    told = await tables.create_table(db, creation(table, made))
    assert [one.native_type for one in (column.type for column in foreseen.columns)] == [
        *("text", "int", "int", "text", "text"),
        "list<frozen<map<text, int>>>",
    ]
    assert {one.name: one.type for one in foreseen.columns} == {one.name: one.type for one in told.columns}
    assert told.name == f"{SERVICE}/tables/{table}"
    assert (list(told.partition_key), list(told.clustering_key)) == (
        list(made.partition_key),
        list(foreseen.clustering_key),
    )
    assert [one.name for one in told.columns if one.is_static] == ["s"]
    assert told.comment == "It's one"
    assert told.properties["gc_grace_seconds"] == value(1234)
    assert told.properties["default_time_to_live"] == value(60)
    compaction = {
        pair.key.text_value: pair.value.text_value for pair in told.properties["compaction"].map_value.entries
    }
    assert compaction["sstable_size_in_mb"] == "80"
    with pytest.raises(errors.ResourceConflict):
        await tables.create_table(db, creation(table, made))
    assert await tables.create_table(db, creation(table, made, if_not_exists=True)) == told
    assert await tables.get_table(db, pb.GetTableRequest(service=SERVICE, table=table)) == told
    drop = pb.DropTableRequest(service=SERVICE, table=table)
    await tables.drop_table(db, drop)
    with pytest.raises(errors.ResourceNotFound):
        await tables.drop_table(db, drop)
    drop.if_exists = True
    await tables.drop_table(db, drop)


async def test_two_who_create_it_at_once_both_find_it(db: Database, table: str) -> None:
    request = creation(table, definition(typed("id", INT), key=["id"]), if_not_exists=True)
    first, second = await asyncio.gather(tables.create_table(db, request), tables.create_table(db, request))
    assert first == second


async def test_tables_are_listed_by_pages(db: Database, table: str) -> None:
    for name in ("List_a", "List_b", "List_c"):
        await tables.create_table(db, creation(name, definition(typed("id", INT), key=["id"]), if_not_exists=True))
    names: list[str] = []
    token = ""
    while True:
        request = pb.ListTablesRequest(service=SERVICE, page_size=2, page_token=token)
        found = await tables.list_tables(db, request)
        names += [one.name.rpartition("/")[2] for one in found.tables]
        token = found.next_page_token
        if not token:
            break
    assert names == sorted(set(names))
    assert {"List_a", "List_b", "List_c"} <= set(names)
    for wrong in ({"page_token": "x"}, {"page_size": 1001}):
        with pytest.raises(errors.FieldInvalid):
            await tables.list_tables(db, pb.ListTablesRequest(service=SERVICE, **wrong))


async def test_a_table_whose_index_is_refused_is_not_there(db: Database, table: str) -> None:
    index = table_pb2.Index(
        columns=[table_pb2.IndexColumn(column="v")], method="sai", options={"nonsense": value("true")}
    )
    with pytest.raises(errors.OneContainerError):
        await create(db, table, typed("id", INT), typed("v", TEXT), key=["id"], indexes=[index])
    with pytest.raises(errors.ResourceNotFound):
        await db.fresh_table(table)


ID = typed("id", INT)
MISSING, INVALID, REQUIRED = errors.BackendCapabilityMissing, errors.FieldInvalid, errors.FieldRequired


def index_of(**more: Any) -> table_pb2.Table:
    index = table_pb2.Index(columns=[table_pb2.IndexColumn(column="id")])
    index.MergeFrom(table_pb2.Index(**more))
    return definition(ID, key=["id"], indexes=[index])


@pytest.mark.parametrize(
    ("table", "kind", "path"),
    [
        (table_pb2.Table(), REQUIRED, "table.columns"),
        (definition(ID, key=[]), REQUIRED, "table.partition_key"),
        (definition(ID, key=["nope"]), INVALID, "table.partition_key[0]"),
        (definition(ID, key=["id"], order=["id"]), INVALID, "table.clustering_key[0].column"),
        (definition(ID, ID, key=["id"]), INVALID, "table.columns[1].name"),
        (definition(ID, typed("v", TEXT, not_null=True), key=["id"]), MISSING, "table.columns[1].not_null"),
        (
            definition(ID, typed("v", TEXT, default_value=value("x")), key=["id"]),
            MISSING,
            "table.columns[1].default_value",
        ),
        (definition(typed("id", INT, auto_increment=True), key=["id"]), MISSING, "table.columns[0].auto_increment"),
        (definition(typed("id", INT, comment="x"), key=["id"]), MISSING, "table.columns[0].comment"),
        (definition(ID, typed("v", TEXT, is_static=True), key=["id"]), INVALID, "table.columns"),
        (definition(ID, table_pb2.Column(name="v"), key=["id"]), REQUIRED, "table.columns[1].type"),
        (definition(ID, column("v", K.TYPE_KIND_JSON), key=["id"]), MISSING, "table.columns[1].type.kind"),
        (definition(ID, column("v", K.TYPE_KIND_DATETIME), key=["id"]), MISSING, "table.columns[1].type.kind"),
        (definition(ID, column("v", K.TYPE_KIND_TEXT, length=5), key=["id"]), MISSING, "table.columns[1].type.length"),
        (definition(ID, column("v", K.TYPE_KIND_LIST), key=["id"]), INVALID, "table.columns[1].type.elements"),
        (definition(ID, column("v", K.TYPE_KIND_VECTOR), key=["id"]), INVALID, "table.columns[1].type.dimension"),
        (
            definition(ID, column("v", K.TYPE_KIND_INT32, frozen=True), key=["id"]),
            INVALID,
            "table.columns[1].type.frozen",
        ),
        (definition(ID, column("n", K.TYPE_KIND_COUNTER), typed("v", TEXT), key=["id"]), MISSING, "table.columns"),
        (definition(typed("id", of(K.TYPE_KIND_SET, INT)), key=["id"]), MISSING, "table.partition_key[0]"),
        (definition(column("id", K.TYPE_KIND_DURATION), key=["id"]), MISSING, "table.partition_key[0]"),
        (definition(ID, key=["id"], properties={"nope": value(1)}), INVALID, "table.properties['nope']"),
        (definition(ID, key=["id"], properties={"cdc": value(1)}), INVALID, "table.properties['cdc']"),
        (index_of(unique=True), MISSING, "table.indexes[0].unique"),
        (index_of(method="btree"), INVALID, "table.indexes[0].method"),
        (index_of(columns=[table_pb2.IndexColumn(column="id")]), INVALID, "table.indexes[0].columns"),
        (index_of(options={"a": value("b")}), INVALID, "table.indexes[0].options"),
    ],
)
async def test_what_cassandra_has_not_is_refused(db: Database, table: table_pb2.Table, kind: Any, path: str) -> None:
    with pytest.raises(kind) as raised:
        await tables.create_table(db, creation("Never", table))
    assert raised.value.violations[0].field == path
