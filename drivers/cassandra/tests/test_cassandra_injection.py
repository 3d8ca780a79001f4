"""Nothing from a request becomes CQL: names are refused, values are stored as they are."""

from __future__ import annotations

import pytest
import pytest_asyncio
from onecontainer_driver_cassandra import tables, writing
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.settings import read_settings

from drivers.cassandra.tests.calls import INT, TEXT, Q, create, definition, load, of, select, typed
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2
from onecontainer.driver import errors
from tests.fixtures.injection import CORPUS, NAMES
from tests.fixtures.records import (
    SERVICE,
    K,
    all_of,
    deletion,
    equals,
    insertion,
    record,
    setting,
    updating,
    value,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")
TABLE = "People"
TEXTS = [
    *CORPUS,
    "'); TRUNCATE People; --",
    "x' ALLOW FILTERING; //",
    "'; APPLY BATCH; DROP KEYSPACE \"Tests\"; BEGIN BATCH '",
    "$$ ; $$",
    "now()",
    "toJson('x')",
    "0x00",
]
EVIL = [
    *NAMES,
    "People\" WITH comment = 'x",
    "system_schema.tables",
    "p) VALUES (1) IF NOT EXISTS; --",
    "a" * 49,
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def people(db: Database) -> None:
    await create(
        db,
        TABLE,
        typed("group", TEXT),
        typed("id", INT),
        typed("name", TEXT),
        typed("m", of(K.TYPE_KIND_MAP, TEXT, TEXT)),
        key=["group"],
        order=["id"],
    )


@pytest.mark.parametrize("text", TEXTS)
async def test_values_are_stored_as_they_are(db: Database, people: None, text: str) -> None:
    group = f"g{text}"
    await writing.insert_records(db, insertion(TABLE, record(group=group, id=1, name=text, m={text: text})))
    await load(db, TABLE, ["group", "id", "name"], [[group, 2, text]])
    await writing.update_records(
        db, updating(TABLE, all_of(equals("group", group), equals("id", 3)), setting("name", text))
    )
    query = Q(where=all_of(equals("group", group), equals("name", text)), allow_filtering=True)
    found = await select(db, TABLE, query)
    assert [(one["group"], one["id"], one["name"]) for one in found] == [(group, n, text) for n in (1, 2, 3)]
    assert found[0]["m"] == {text: text}
    where = all_of(equals("group", group), equals("id", 1))
    held = record_pb2.WriteCondition(if_fields=equals("name", text))
    assert (await writing.delete_records(db, deletion(TABLE, where, condition=held))).applied
    assert len(await select(db, TABLE, Q(where=equals("group", group)))) == 2


@pytest.mark.parametrize("name", EVIL)
async def test_names_are_refused(db: Database, people: None, name: str) -> None:
    wrong = (errors.FieldInvalid, errors.FieldRequired, errors.ResourceNotFound, errors.BackendCapabilityMissing)
    before = await tables.list_tables(db, pb.ListTablesRequest(service=SERVICE))
    where = all_of(equals("group", "g"), equals("id", 1))
    for call in (
        create(db, name, typed("id", INT), key=["id"]),
        create(db, "t_new", typed(name, INT), key=[name]),
        create(db, "t_new", typed("id", INT), typed("v", of(K.TYPE_KIND_STRUCT, struct_name=name)), key=["id"]),
        create(
            db,
            "t_new",
            typed("id", INT),
            typed("v", TEXT),
            key=["id"],
            indexes=[table_pb2.Index(name=name or "-", columns=[table_pb2.IndexColumn(column="v")])],
        ),
        create(db, "t_new", typed("id", INT), key=["id"], properties={name: value(1)}),
        tables.get_table(db, pb.GetTableRequest(service=SERVICE, table=name)),
        tables.drop_table(db, pb.DropTableRequest(service=SERVICE, table=name)),
        writing.insert_records(db, insertion(name, record(id=1))),
        writing.insert_records(db, insertion(TABLE, record(**{"group": "g", "id": 1, name: "x"}))),
        writing.update_records(db, updating(TABLE, where, setting(name, "x"))),
        writing.update_records(db, updating(TABLE, equals(name, "x"), setting("name", "x"))),
        writing.delete_records(db, deletion(TABLE, where, columns=[name])),
        select(db, TABLE, Q(columns=[name])),
        select(db, TABLE, Q(where=equals(name, "x"))),
        select(db, TABLE, Q(order_by=[query_pb2.OrderBy(column=name)])),
        load(db, TABLE, ["group", "id", name], [["g", 1, "x"]]),
    ):
        with pytest.raises(wrong):
            await call
    assert await tables.list_tables(db, pb.ListTablesRequest(service=SERVICE)) == before
    with pytest.raises((errors.FieldInvalid, errors.FieldRequired)):
        read_settings({"keyspace": name}, {"one": "localhost"})


@pytest.mark.parametrize("text", [text for text in TEXTS if len(text) < 1000])
async def test_comments_and_properties_are_literal(db: Database, text: str) -> None:
    """Those cannot be bound: they are quoted."""
    made = definition(typed("id", INT), key=["id"], comment=text, properties={"speculative_retry": value("NEVER")})
    request = pb.CreateTableRequest(service=SERVICE, table_id="Commented", table=made, validate_only=True)
    assert (await tables.create_table(db, request)).comment == text
    bad = definition(typed("id", INT), key=["id"], properties={"speculative_retry": value(text or "?")})
    with pytest.raises(errors.OneContainerError):
        await tables.create_table(db, pb.CreateTableRequest(service=SERVICE, table_id="Commented", table=bad))


async def test_comments_stay_as_they_are(db: Database, table: str) -> None:
    text = " ".join(TEXTS[:-1])[:2000]
    assert (await create(db, table, typed("id", INT), key=["id"], comment=text)).comment == text


@pytest.mark.parametrize("odd", ['a"b', "semi;colon", "x' --", "Ünïcode name", "SELECT"])
async def test_columns_that_others_named_are_quoted(db: Database, table: str, odd: str) -> None:
    escaped = odd.replace('"', '""')
    await db.session.define(f'CREATE TABLE "{db.keyspace}"."{table}" (id int PRIMARY KEY, "{escaped}" text)')
    await writing.insert_records(db, insertion(table, record(id=1, **{odd: "v"})))
    await load(db, table, ["id", odd], [[2, "v"]])
    held = record_pb2.WriteCondition(if_fields=equals(odd, "v"))
    assert (
        await writing.update_records(db, updating(table, equals("id", 1), setting(odd, "w"), condition=held))
    ).applied
    assert await select(db, table, Q(where=equals(odd, "w"), allow_filtering=True)) == [{"id": 1, odd: "w"}]
    await writing.delete_records(db, deletion(table, equals("id", 2), columns=[odd]))
    assert await select(db, table, Q(where=equals("id", 2))) == [{"id": 2, odd: None}]
