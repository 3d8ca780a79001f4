"""Small reads and writes that go past SQLAlchemy: the same answers and the same errors as those that do not."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from onecontainer_driver_sql import reading, writing
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.driver import open_database
from onecontainer_driver_sql.model import MAX_STATEMENTS, straight
from onecontainer_driver_sql.settings import read_settings

from drivers.sql.tests.calls import create, page, people, select
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2
from onecontainer.driver import errors
from tests.fixtures.records import SERVICE, K, all_of, any_of, column, compare, equals, insertion, record, unrecord
from tests.fixtures.stalls import stalls

Q = query_pb2.Query
F = query_pb2.Filter
OPERATORS = [one for one in query_pb2.Operator.values() if one]


def statements(database: Database) -> int:
    known = database.tables.get("people")
    assert known is not None
    return len(known.statements)


async def test_the_same_question_with_other_values(db: Database) -> None:
    await people(db, 8)
    for shape, ask in enumerate(
        (lambda key: equals("id", key), lambda key: all_of(equals("id", key), equals("id", key)))
    ):
        for key in (3, 5, 3, 99):
            expected = [key] if key < 8 else []
            assert [one["id"] for one in await select(db, "people", Q(where=ask(key)))] == expected
            assert statements(db) == shape + 1


async def test_answers_are_those_of_the_long_way(db: Database) -> None:
    await people(db, 8)
    order = [query_pb2.OrderBy(column="name", order=table_pb2.SORT_ORDER_DESCENDING)]
    for query in (Q(), Q(columns=["age"]), Q(columns=["age"], distinct=True), Q(limit=2), Q(order_by=order)):
        for operator in OPERATORS:
            for values in ((1, 2), (2, 1)):
                where = [compare("id", operator, values[0]), compare("age", operator, values[1])]
                found = []
                for asked in (all_of(*where), any_of(all_of(*where))):
                    query.where.CopyFrom(asked)
                    found.append(await page(db, "people", query, page_size=3))
                # Tokens are bound to their query.
                assert bool(found[0].next_page_token) == bool(found[1].next_page_token)
                for one in found:
                    one.ClearField("next_page_token")
                assert found[0] == found[1]


async def test_pages_go_on_behind_a_straight_one(db: Database) -> None:
    await people(db, 8)
    query = Q(where=compare("id", query_pb2.OPERATOR_GREATER, 1))
    first = await page(db, "people", query, page_size=4)
    second = await page(db, "people", query, page_size=4, page_token=first.next_page_token)
    assert [unrecord(one)["id"] for one in [*first.records, *second.records]] == [2, 3, 4, 5, 6, 7]
    assert not second.next_page_token


async def test_what_is_wrong_is_told_the_second_time_too(db: Database) -> None:
    await people(db, 2)
    for wrong in (None, "x"):
        for key in (equals("id", 1), equals("id", wrong)):
            asked = Q(where=all_of(equals("name", "name-1"), key))
            if key.comparison.value == equals("id", 1).comparison.value:
                assert len(await select(db, "people", asked)) == 1
                continue
            with pytest.raises(errors.DataInvalid) as raised:
                await select(db, "people", asked)
            assert raised.value.violations[0].field == "query.where.all_of.filters[1].comparison.value"
    with pytest.raises(errors.FieldRequired):
        await select(
            db, "people", Q(where=all_of(equals("name", "a"), F(comparison=query_pb2.Comparison(column="id"))))
        )
    with pytest.raises(errors.BackendCapabilityMissing):
        await select(db, "people", Q(where=equals("id", 1), consistency=1))


async def test_not_every_question_is_kept_for_ever(db: Database) -> None:
    await people(db, 2)
    for limit in range(1, MAX_STATEMENTS + 10):
        assert len(await select(db, "people", Q(where=equals("id", 1), limit=limit))) == 1
        assert statements(db) <= MAX_STATEMENTS


async def test_a_column_that_changes_its_type_behind_a_prepared_statement(
    postgres: str, schema: str, tmp_path: Path
) -> None:
    options = {"url": postgres, "schema": schema, "pool_size": 1}
    async with open_database(read_settings(options, {}, tmp_path)) as database:
        await people(database, 3)
        request = pb.SelectRecordsRequest(service=SERVICE, table="people", query=Q(where=equals("id", 2)))

        async def ask() -> list[dict[str, Any]]:
            found = await database.tables.with_fresh(["people"], lambda: reading.select_records(database, request))
            return [unrecord(one) for one in found.records]

        assert await ask() == [{"id": 2, "name": "name-2", "age": 2}]
        other = await asyncpg.connect(postgres)
        try:
            await other.execute(f"ALTER TABLE {schema}.people ALTER COLUMN age TYPE text USING age || ' years'")
        finally:
            await other.close()
        for _ in range(2):
            assert await ask() == [{"id": 2, "name": "name-2", "age": "2 years"}]


async def test_a_cancelled_read_ends_in_the_backend(db: Database) -> None:
    await people(db, 3000)
    started = asyncio.Event()

    async def run() -> None:
        async with db.reading() as connection:
            target = (await db.table(connection, "people")).sa
            name = connection.dialect.identifier_preparer.format_table(target)
        # Every record with every other, several times over: minutes of work.
        slow = sa.text(
            f"SELECT count(*) FROM {name} a, {name} b, {name} c, {name} d WHERE a.id + b.id + c.id + d.id < 0"
        )
        async with db.straight() as raw:
            started.set()
            await db.backend.rows(raw, straight(slow, db.dialect, ()), [])

    task = asyncio.create_task(run())
    await started.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    with stalls() as still:
        began = time.monotonic()
        task.cancel()
        async with asyncio.timeout(60):
            with pytest.raises(asyncio.CancelledError):
                await task
            # Its connection is not in the way of others.
            assert await select(db, "people", Q(where=equals("id", 1)))
        took = time.monotonic() - began - still.seconds
    assert took < 5


async def test_a_straight_read_waits_for_a_connection_of_the_pool(postgres: str, schema: str, tmp_path: Path) -> None:
    options = {"url": postgres, "schema": schema, "pool_size": 1, "connect_timeout": 3.0}
    async with open_database(read_settings(options, {}, tmp_path)) as database:
        await people(database, 2)
        assert await select(database, "people", Q(where=equals("id", 1)))
        async with database.reading():
            with pytest.raises(errors.LimitExceeded, match="pool_size"):
                await select(database, "people", Q(where=equals("id", 1)))


async def test_a_record_by_itself_and_its_errors(db: Database) -> None:
    await create(
        db,
        "people",
        column("id", K.TYPE_KIND_INT64),
        column("name", K.TYPE_KIND_TEXT, not_null=True),
        key=["id"],
    )
    await writing.insert_records(db, insertion("people", record(id=0, name="known from here on")))
    found = await select(db, "people", Q(where=equals("id", 0)))
    assert found == [{"id": 0, "name": "known from here on"}]
    kept = statements(db)
    for name in ("a", "b"):
        written = await writing.insert_records(
            db, insertion("people", record(id=1, name=name), mode=record_pb2.INSERT_MODE_UPSERT)
        )
        assert (written.applied, written.affected, len(written.results)) == (True, 1, 1)
        assert await select(db, "people", Q(where=equals("id", 1))) == [{"id": 1, "name": name}]
    assert statements(db) > kept
    told = []
    for returning in ([], ["id"]):
        with pytest.raises(errors.ResourceConflict) as raised:
            await writing.insert_records(db, insertion("people", record(id=1, name="c"), returning=returning))
        told.append((raised.value.message, raised.value.metadata, raised.value.hop))
    assert told[0] == told[1]
    assert told[0][0].startswith("records[0]: ")
    assert told[0][1]["record"] == "0"


async def test_a_record_whose_caller_left_is_not_written_later(lite: Database, tmp_path: Path) -> None:
    await people(lite, 2)
    await select(lite, "people")
    other = sqlite3.connect(tmp_path / "database.sqlite3", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(writing.insert_records(lite, insertion("people", record(id=7, name="late"))))
        for _ in range(50):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        other.execute("COMMIT")
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        other.close()
    assert [one["id"] for one in await select(lite, "people")] == [0, 1]
    await writing.insert_records(lite, insertion("people", record(id=8, name="in time")))
    assert [one["id"] for one in await select(lite, "people")] == [0, 1, 8]
