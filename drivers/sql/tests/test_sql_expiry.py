"""ttl: a record whose time is over is not there any more, for whoever reads or writes, and goes with the next write."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf import duration_pb2
from onecontainer_driver_sql import reading, tables, writing
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.model import EXPIRY

from drivers.sql.tests.calls import create, load, page, select
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2
from onecontainer.driver import errors
from tests.fixtures.records import (
    SERVICE,
    K,
    column,
    deletion,
    equals,
    insertion,
    record,
    setting,
    unrecord,
    updating,
    value,
)

IF_NOT_EXISTS, UPSERT = record_pb2.INSERT_MODE_IF_NOT_EXISTS, record_pb2.INSERT_MODE_UPSERT
IF_EXISTS = record_pb2.WriteCondition(if_exists=True)
WAIT = 180
"""Seconds that a slow machine may take for what lasts one."""


def ttl(seconds: int) -> record_pb2.WriteOptions:
    return record_pb2.WriteOptions(ttl=duration_pb2.Duration(seconds=seconds))


async def sessions(db: Database, *records: record_pb2.Record, **more: Any) -> None:
    """Table `sessions`: id, user (unique), note; with these records."""
    index = table_pb2.Index(columns=[table_pb2.IndexColumn(column="user")], unique=True)
    columns = [column("id", K.TYPE_KIND_INT64), column("user", K.TYPE_KIND_TEXT), column("note", K.TYPE_KIND_TEXT)]
    await create(db, "sessions", *columns, key=["id"], expires=True, indexes=[index])
    if records:
        await writing.insert_records(db, insertion("sessions", *records, **more))


async def kept(db: Database) -> dict[int, Any]:
    """All that is in the backend: by id, the seconds left; None: for ever."""
    async with db.reading() as connection:
        table = (await db.fresh_table(connection, "sessions")).sa
        moment = table.columns[EXPIRY]
        seconds = sa.func.unixepoch(moment) - sa.func.unixepoch("now")
        if db.backend.name == "PostgreSQL":
            seconds = sa.extract("epoch", sa.type_coerce(moment, sa.DateTime) - sa.func.now())
        rows = await connection.execute(sa.select(sa.type_coerce(table.columns["id"], sa.BigInteger), seconds))
        return {row[0]: None if row[1] is None else float(row[1]) for row in rows}


async def let_pass(db: Database, *ids: int) -> None:
    """As if the time of these records had gone by."""
    async with db.transaction() as connection:
        table = (await db.table(connection, "sessions")).sa
        codec = db.backend.storage(table_pb2.ColumnType(kind=K.TYPE_KIND_TIMESTAMP), "").codec
        stored = codec.write(value(dt.datetime(2001, 1, 1, tzinfo=dt.UTC)))
        chosen = table.columns["id"].in_([sa.literal(one, table.columns["id"].type) for one in ids])
        await connection.execute(sa.update(table).values({EXPIRY: stored}).where(chosen))


async def test_the_column_of_their_time_is_not_shown(db: Database) -> None:
    await sessions(db, record(id=1, user="a"), options=ttl(100))
    request = pb.GetTableRequest(service=SERVICE, table="sessions")
    told = await tables.get_table(db, request)
    assert told.expires
    assert [one.name for one in told.columns] == ["id", "user", "note"]
    assert [[one.column for one in index.columns] for index in told.indexes] == [["user"]]
    assert await select(db, "sessions") == [{"id": 1, "user": "a", "note": None}]
    for call in (
        lambda: select(db, "sessions", query_pb2.Query(columns=[EXPIRY])),
        lambda: writing.insert_records(db, insertion("sessions", record(id=2, **{EXPIRY: None}))),
        lambda: create(db, "own", column("id", K.TYPE_KIND_INT64), column(EXPIRY, K.TYPE_KIND_TIMESTAMP), key=["id"]),
    ):
        with pytest.raises(errors.FieldInvalid, match=rf"{EXPIRY}|records' time"):
            await call()


async def test_times_of_writes(db: Database) -> None:
    await sessions(db, record(id=1, user="a"), record(id=2, user="b"), options=ttl(1000))
    await writing.insert_records(db, insertion("sessions", record(id=3, user="c")))
    await writing.update_records(db, updating("sessions", equals("id", 1), setting("note", "x"), options=ttl(5000)))
    await writing.update_records(db, updating("sessions", equals("id", 2), setting("note", "y")))
    left = await kept(db)
    assert 4000 < left[1] <= 5000
    assert 0 < left[2] <= 1000  # an update without it changes nothing of that
    assert left[3] is None
    await writing.insert_records(db, insertion("sessions", record(id=2, user="b"), mode=UPSERT))
    assert (await kept(db))[2] is None
    done = await load(db, "sessions", ["id", "user"], [[4, "d"], [5, "e"]], options=ttl(2000))
    assert done.inserted == 2
    done = await load(db, "sessions", ["id", "user"], [[5, "e"], [6, "f"]], options=ttl(2000), mode=IF_NOT_EXISTS)
    assert (done.inserted, done.skipped) == (1, 1)
    left = await kept(db)
    assert all(1000 < left[key] <= 2000 for key in (4, 5, 6))


async def test_what_is_over_is_gone_for_everyone(db: Database) -> None:
    await sessions(db, *(record(id=key, user=f"u{key}", note="n") for key in range(6)), options=ttl(1000))
    await let_pass(db, 1, 3)
    alive = [0, 2, 4, 5]
    assert [one["id"] for one in await select(db, "sessions")] == alive
    assert await select(db, "sessions", query_pb2.Query(where=equals("id", 1))) == []
    first = await page(db, "sessions", page_size=2)
    second = await page(db, "sessions", page_size=2, page_token=first.next_page_token)
    assert [unrecord(one)["id"] for one in (*first.records, *second.records)] == alive
    request = pb.StreamRecordsRequest(service=SERVICE, table="sessions")
    assert sum([len(one.batch.rows.rows) async for one in reading.stream_records(db, request)]) == 4
    gone = await writing.delete_records(db, deletion("sessions", equals("id", 1), condition=IF_EXISTS))
    assert not gone.applied
    assert not gone.HasField("current")
    changed = await writing.update_records(
        db, updating("sessions", None, setting("note", "m"), all_records=True, dry_run=True)
    )
    assert changed.affected == 4
    assert len(await kept(db)) == 6  # a dry run removes nothing
    missed = await writing.update_records(
        db, updating("sessions", equals("id", 3), setting("note", "m"), condition=IF_EXISTS)
    )
    assert not missed.applied
    assert not missed.HasField("current")
    assert sorted(await kept(db)) == alive
    assert (await writing.delete_records(db, deletion("sessions", None, all_records=True))).affected == 4


@pytest.mark.parametrize("mode", [record_pb2.INSERT_MODE_FAIL, IF_NOT_EXISTS, UPSERT])
async def test_what_is_over_holds_no_key_and_no_unique_value(db: Database, mode: int) -> None:
    await sessions(db, record(id=1, user="a", note="old"), record(id=2, user="b", note="old"), options=ttl(1000))
    await let_pass(db, 1, 2)
    done = await writing.insert_records(db, insertion("sessions", record(id=1, user="b"), mode=mode))
    assert done.applied
    assert await select(db, "sessions") == [{"id": 1, "user": "b", "note": None}]
    await let_pass(db, 1)
    assert (await load(db, "sessions", ["id", "user"], [[1, "b"]], mode=mode)).inserted == 1


async def test_of_twenty_who_take_what_is_over_one_gets_it(db: Database) -> None:
    await sessions(db, record(id=1, user="old"), options=ttl(1000))
    await let_pass(db, 1)

    async def take(index: int) -> bool:
        request = insertion("sessions", record(id=1, user=f"u{index}"), mode=IF_NOT_EXISTS, options=ttl(1000))
        return (await writing.insert_records(db, request)).applied

    taken = await asyncio.gather(*(take(index) for index in range(20)))
    assert sum(taken) == 1
    assert await select(db, "sessions") == [{"id": 1, "user": f"u{taken.index(True)}", "note": None}]


async def test_time_goes_by(db: Database) -> None:
    await sessions(db, record(id=1, user="a"), options=ttl(1))
    await writing.insert_records(db, insertion("sessions", record(id=2, user="b"), options=ttl(1000)))
    async with asyncio.timeout(WAIT):
        while True:
            found = [one["id"] for one in await select(db, "sessions")]
            if found == [2]:
                break
            await asyncio.sleep(0.05)


async def test_a_batch_has_times_too(db: Database) -> None:
    await sessions(db)
    statements = [
        pb.BatchStatement(insert=insertion("sessions", record(id=1, user="a"), options=ttl(100))),
        pb.BatchStatement(insert=insertion("sessions", record(id=2, user="b"))),
        pb.BatchStatement(update=updating("sessions", equals("id", 2), setting("note", "x"), options=ttl(1000))),
    ]
    assert (await writing.execute_batch(db, pb.ExecuteBatchRequest(service=SERVICE, statements=statements))).applied
    left = await kept(db)
    assert 0 < left[1] <= 100 < left[2] <= 1000
    request = pb.ExecuteBatchRequest(service=SERVICE, statements=statements, options=ttl(1))
    with pytest.raises(errors.BackendCapabilityMissing) as raised:
        await writing.execute_batch(db, request)
    assert raised.value.violations[0].field == "options.ttl"


async def test_a_table_of_others_has_them_once_it_has_the_column(db: Database) -> None:
    await create(db, "sessions", column("id", K.TYPE_KIND_INT64), column("user", K.TYPE_KIND_TEXT), key=["id"])
    request = insertion("sessions", record(id=1, user="a"), options=ttl(100))
    with pytest.raises(errors.BackendCapabilityMissing, match=EXPIRY) as raised:
        await writing.insert_records(db, request)
    assert raised.value.violations[0].field == "options.ttl"
    kind = "timestamptz" if db.backend.name == "PostgreSQL" else "TIMESTAMP_TEXT"
    async with db.transaction() as connection:
        table = (await db.table(connection, "sessions")).sa
        name = connection.dialect.identifier_preparer.format_table(table)
        await connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {EXPIRY} {kind}")
    db.tables.clear()
    await writing.insert_records(db, request)
    assert 0 < (await kept(db))[1] <= 100


@pytest.mark.parametrize("given", [duration_pb2.Duration(), duration_pb2.Duration(seconds=1, nanos=1)])
async def test_it_is_whole_seconds(db: Database, given: duration_pb2.Duration) -> None:
    await sessions(db)
    request = insertion("sessions", record(id=1, user="a"), options=record_pb2.WriteOptions(ttl=given))
    with pytest.raises(errors.FieldInvalid, match="whole seconds") as raised:
        await writing.insert_records(db, request)
    assert raised.value.violations[0].field == "options.ttl"
