"""Nothing from a request becomes SQL: names are refused, values are stored as they are."""

from __future__ import annotations

import pytest
from onecontainer_driver_sql import tables, writing
from onecontainer_driver_sql.database import Database

from drivers.sql.tests.calls import create, load, people, select
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, table_pb2
from onecontainer.driver import errors
from tests.fixtures.injection import CORPUS, NAMES
from tests.fixtures.records import SERVICE, K, column, deletion, equals, insertion, record, setting, updating, value


@pytest.mark.parametrize("text", CORPUS)
async def test_values_are_stored_as_they_are(db: Database, text: str) -> None:
    await people(db, 3)
    await writing.insert_records(db, insertion("people", record(id=10, name=text)))
    await load(db, "people", ["id", "name"], [[11, text]])
    await writing.update_records(db, updating("people", equals("id", 0), setting("name", text)))
    found = await select(db, "people", query_pb2.Query(where=equals("name", text)))
    assert [(one["id"], one["name"]) for one in found] == [(0, text), (10, text), (11, text)]
    pattern = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    like = query_pb2.Filter(pattern=query_pb2.Pattern(column="name", like=pattern))
    assert len(await select(db, "people", query_pb2.Query(where=like))) == 3
    assert (await writing.delete_records(db, deletion("people", equals("name", text)))).affected == 3
    assert [one["id"] for one in await select(db, "people")] == [1, 2]


@pytest.mark.parametrize("text", [text for text in CORPUS if "\\" not in text])
async def test_defaults_and_comments_are_literal(db: Database, text: str) -> None:
    comments = {} if db.backend.name == "SQLite" else {"comment": text}
    created = await create(
        db, "t", column("id", K.TYPE_KIND_INT64), column("v", K.TYPE_KIND_TEXT, default_value=value(text), **comments)
    )
    assert created.columns[1].default_value == value(text)
    assert created.columns[1].comment == comments.get("comment", "")
    await writing.insert_records(db, insertion("t", record(id=1)))
    assert await select(db, "t") == [{"id": 1, "v": text}]


async def test_a_default_with_a_backslash_is_refused(db: Database) -> None:
    with pytest.raises(errors.BackendCapabilityMissing):
        await create(db, "t", column("v", K.TYPE_KIND_TEXT, default_value=value("\\'; DROP TABLE x")))


@pytest.mark.parametrize("name", NAMES)
async def test_names_are_refused(db: Database, name: str) -> None:
    await people(db, 3)
    refused = (errors.FieldInvalid, errors.FieldRequired)
    with pytest.raises(refused):
        await create(db, name, column("id", K.TYPE_KIND_INT64))
    with pytest.raises(refused):
        await create(db, "t", column(name, K.TYPE_KIND_INT64))
    with pytest.raises(refused):
        await create(
            db,
            "t",
            column("id", K.TYPE_KIND_INT64),
            indexes=[table_pb2.Index(name=name or "a b", columns=[table_pb2.IndexColumn(column="id")])],
        )
    with pytest.raises(refused):
        await select(db, name)
    with pytest.raises(refused):
        await tables.drop_table(db, pb.DropTableRequest(service=SERVICE, table=name, if_exists=True))
    for query in (
        query_pb2.Query(columns=[name]),
        query_pb2.Query(order_by=[query_pb2.OrderBy(column=name)]),
        query_pb2.Query(where=equals(name, 1)),
    ):
        with pytest.raises(refused):
            await select(db, "people", query)
    with pytest.raises(refused):
        await writing.insert_records(db, insertion("people", record(id=9, name="x"), returning=[name]))
    with pytest.raises(refused):
        await writing.update_records(db, updating("people", equals("id", 1), setting(name, "x")))
    with pytest.raises(refused):
        await load(db, "people", ["id", name], [[1, 1]])
    assert len(await select(db, "people")) == 3


async def test_odd_names_of_others_are_quoted(db: Database) -> None:
    odd = 'a "b"; DROP TABLE people; --:x %(y)s'
    await people(db, 1)
    async with db.transaction() as connection:
        target = (await db.table(connection, "people")).sa
        schema = f"{target.schema}." if target.schema else ""
        escaped = odd.replace('"', '""')
        await connection.exec_driver_sql(f'CREATE TABLE {schema}theirs (id bigint PRIMARY KEY, "{escaped}" text)')
    await writing.insert_records(db, insertion("theirs", record(id=1, **{odd: "v"}), returning=[odd]))
    await writing.insert_records(db, insertion("theirs", record(id=2, **{odd: "v"}), record(id=3, **{odd: "w"})))
    await load(db, "theirs", ["id", odd], [[4, "v"]])
    await writing.update_records(db, updating("theirs", equals(odd, "w"), setting(odd, "x")))
    query = query_pb2.Query(
        where=equals(odd, "v"), order_by=[query_pb2.OrderBy(column=odd), query_pb2.OrderBy(column="id")]
    )
    assert [one["id"] for one in await select(db, "theirs", query)] == [1, 2, 4]
    assert len(await select(db, "people")) == 1
