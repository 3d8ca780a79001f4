"""BulkInsert: each row has its outcome; and ExecuteBatch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from google.rpc import code_pb2
from onecontainer_driver_cassandra import batch, bulk, writing
from onecontainer_driver_cassandra.database import Database

from drivers.cassandra.tests.calls import FAIL, IF_NOT_EXISTS, INT, TEXT, create, events, here, load, select, typed
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import record_pb2
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

pytestmark = pytest.mark.asyncio(loop_scope="session")
COLUMNS = ["id", "name"]


async def names(db: Database, table: str) -> None:
    await create(db, table, typed("id", TEXT), typed("name", TEXT), key=["id"])


def told(done: pb.BulkInsertResponse) -> list[tuple[int, int, int, bool]]:
    return [(one.first_row, one.row_count, one.status.code, one.skipped) for one in done.row_statuses]


async def test_rows_fail_one_by_one(db: Database, table: str) -> None:
    await names(db, table)
    rows: list[list[Any]] = [[str(index), f"n{index}"] for index in range(2000)]
    rows[7][1] = 7  # not a text
    rows[1200][0] = None
    rows[1201][0] = ""
    rows[1500].append("more")
    done = await load(db, table, COLUMNS, rows)
    assert (done.received, done.inserted, done.failed, done.ended_early) == (2000, 1996, 4, False)
    bad = code_pb2.INVALID_ARGUMENT
    assert told(done) == [
        *((0, 7, 0, False), (7, 1, bad, False), (8, 1192, 0, False), (1200, 1, bad, False), (1201, 1, bad, False)),
        *((1202, 298, 0, False), (1500, 1, bad, False), (1501, 499, 0, False)),
    ]
    assert len(await select(db, table)) == 1996


async def test_of_two_rows_of_one_key_the_latter_stays(db: Database, table: str) -> None:
    await names(db, table)
    rows = [[str(index % 50), str(index)] for index in range(500)]
    assert (await load(db, table, COLUMNS, rows)).inserted == 500
    assert {row["id"]: row["name"] for row in await select(db, table)} == {str(n): str(450 + n) for n in range(50)}


async def test_modes_options_and_limits(db: Database, table: str) -> None:
    await names(db, table)
    await load(db, table, COLUMNS, [[str(index), "old"] for index in range(0, 20, 2)])
    rows = [[str(index), "new"] for index in range(20)]
    done = await load(db, table, COLUMNS, rows, mode=IF_NOT_EXISTS)
    assert (done.inserted, done.skipped, done.failed) == (10, 10, 0)
    assert told(done)[:2] == [(0, 1, 0, True), (1, 1, 0, False)]
    done = await load(db, table, COLUMNS, [["1", "x"], ["new", "x"]], mode=FAIL)
    assert told(done) == [(0, 1, code_pb2.ALREADY_EXISTS, False), (1, 1, 0, False)]
    found = {row["id"]: row["name"] for row in await select(db, table)}
    assert (found["0"], found["1"]) == ("old", "new")
    bad = [["x", index] for index in range(40)] + [["y", "never read or not tried"]]
    done = await load(db, table, COLUMNS, bad, size=10, max_failures=15)
    assert done.ended_early
    assert done.inserted == 0
    assert sum(one.row_count for one in done.row_statuses) == done.received
    options = record_pb2.WriteOptions(
        ttl=duration_pb2.Duration(seconds=500), timestamp=timestamp_pb2.Timestamp(seconds=9)
    )
    assert (await load(db, table, COLUMNS, [["0", "older"], ["ttl", "x"]], options=options)).inserted == 2
    assert {row["id"]: row["name"] for row in await select(db, table)}["0"] == "old"
    name = (await db.table(table)).cql
    assert await db.session.ask(f"SELECT writetime(name) FROM {name} WHERE id = 'ttl'") == [
        [(9_000_000).to_bytes(8, "big")]
    ]


async def test_wrong_calls(db: Database, table: str) -> None:
    await names(db, table)
    for columns, kind, field in [
        (["name"], errors.FieldRequired, "batch.columns"),
        (["id", "nope"], errors.FieldInvalid, "batch.columns[1]"),
        (["id", "id"], errors.FieldInvalid, "batch.columns[1]"),
        ([], errors.FieldRequired, "batch.columns"),
    ]:
        with pytest.raises(kind) as raised:
            await load(db, table, columns, [["x"] * max(len(columns), 1)])
        assert raised.value.violations[0].field == field
    with pytest.raises(errors.ResourceNotFound):
        await load(db, "Nowhere", COLUMNS, [["a", "b"]])

    async def nothing() -> AsyncIterator[pb.BulkInsertRequest]:
        return
        yield

    with pytest.raises(errors.FieldRequired):
        await bulk.bulk_insert(db, nothing())


async def test_a_row_that_cassandra_refuses_does_not_take_its_batch_with_it(db: Database, table: str) -> None:
    await create(db, table, typed("id", INT), typed("name", TEXT), key=["id"], indexes=[])
    # Cassandra refuses what an index of the old kind cannot hold, and only when it is written.
    await db.session.define(f'CREATE INDEX ON {(await db.table(table)).cql} ("name")')
    rows = [[index, "x" * (70_000 if index == 13 else 5)] for index in range(30)]
    done = await load(db, table, COLUMNS, rows)
    assert told(done) == [(0, 13, 0, False), (13, 1, code_pb2.INVALID_ARGUMENT, False), (14, 16, 0, False)]


# --- ExecuteBatch ------------------------------------------------------------------------------------------------

ADD = record_pb2.Assignment(column="n", add=value(2))
EXISTS = record_pb2.WriteCondition(if_exists=True)


def event(at: int, **more: Any) -> record_pb2.Record:
    return record(place="here", day=1, at=at, kind="k", **more)


def one(at: int) -> Any:
    return here(at=at, kind="k")


def statements(*requests: Any) -> list[pb.BatchStatement]:
    fields = {
        pb.InsertRecordsRequest: "insert",
        pb.UpdateRecordsRequest: "update",
        pb.DeleteRecordsRequest: "delete",
    }
    return [pb.BatchStatement(**{fields[type(request)]: request}) for request in requests]


async def run(db: Database, *requests: Any, **more: Any) -> pb.ExecuteBatchResponse:
    return await batch.execute_batch(
        db, pb.ExecuteBatchRequest(service=SERVICE, statements=statements(*requests), **more)
    )


@pytest.mark.parametrize("kind", [pb.BATCH_KIND_UNSPECIFIED, pb.BATCH_KIND_LOGGED, pb.BATCH_KIND_UNLOGGED])
async def test_a_batch(db: Database, table: str, kind: int) -> None:
    await events(db, table)
    await writing.insert_records(db, insertion(table, event(5, note="old"), event(6)))
    made = (
        insertion(table, event(1, note="a"), event(2, note="b")),
        updating(table, one(5), setting("note", "new")),
        deletion(table, one(6)),
    )
    assert (await run(db, *made, kind=kind, dry_run=True)).applied
    assert len(await select(db, table)) == 2
    done = await run(db, *made, kind=kind)
    assert done.applied
    assert [result.WhichOneof("result") for result in done.results] == ["insert", "update", "delete"]
    assert done.results[0].insert.affected == 2
    assert {row["at"]: row["note"] for row in await select(db, table)} == {1: "a", 2: "b", 5: "new"}


async def test_conditions_of_a_batch(db: Database, table: str) -> None:
    await events(db, table)
    await writing.insert_records(db, insertion(table, event(1, note="a", score=1), event(2, note="b")))
    held = record_pb2.WriteCondition(if_fields=equals("note", "a"))
    not_held = record_pb2.WriteCondition(if_fields=equals("note", "x"))
    first = updating(table, one(1), setting("note", "A"), condition=held)
    last = updating(table, one(2), setting("note", "B"), condition=not_held)
    for dry in (True, False):
        done = await run(db, insertion(table, event(9)), first, last, dry_run=dry)
        assert (done.applied, len(done.results)) == (False, 3)
        assert [done.results[0].insert.applied, done.results[1].update.applied] == [True, True]
        assert not done.results[2].update.applied
        assert unrecord(done.results[2].update.current).items() >= {"at": 2, "note": "b"}.items()
    assert {row["at"]: row["note"] for row in await select(db, table)} == {1: "a", 2: "b"}
    taken = await run(db, insertion(table, event(3), event(1), mode=IF_NOT_EXISTS))
    assert [result.applied for result in taken.results[0].insert.results] == [True, False]
    assert unrecord(taken.results[0].insert.results[1].current)["note"] == "a"
    gone = await run(db, deletion(table, one(7), condition=EXISTS), insertion(table, event(8)))
    assert (gone.applied, len(gone.results)) == (False, 1)
    assert not gone.results[0].delete.HasField("current")
    done = await run(db, first, deletion(table, one(2), condition=EXISTS))
    assert (done.applied, done.results[1].delete.affected) == (True, 1)
    assert {row["at"]: row["note"] for row in await select(db, table)} == {1: "A"}


async def test_counters_and_times_of_a_batch(db: Database, table: str) -> None:
    await create(db, table, typed("id", INT), column("n", K.TYPE_KIND_COUNTER), key=["id"])
    adds = [updating(table, equals("id", index), ADD) for index in (1, 2, 1)]
    with pytest.raises(errors.BackendCapabilityMissing, match="COUNTER"):
        await run(db, *adds)
    assert (await run(db, *adds, kind=pb.BATCH_KIND_COUNTER)).applied
    assert sorted((row["id"], row["n"]) for row in await select(db, table)) == [(1, 4), (2, 2)]
    other = f"{table}_b"
    await names(db, other)
    twice = [insertion(other, record(id="1", name="zz")), updating(other, equals("id", "1"), setting("name", "aa"))]
    with pytest.raises(errors.BackendCapabilityMissing, match="one time"):
        await run(db, *twice)
    for index, request in enumerate(twice):
        request.options.timestamp.seconds = 10 + index
    await run(db, *twice)
    assert await select(db, other) == [{"id": "1", "name": "aa"}]
    await run(
        db,
        insertion(other, record(id="2", name="x")),
        options=record_pb2.WriteOptions(timestamp=timestamp_pb2.Timestamp(seconds=20)),
    )
    name = (await db.table(other)).cql
    assert await db.session.ask(f"SELECT writetime(name) FROM {name} WHERE id = '2'") == [
        [(20_000_000).to_bytes(8, "big")]
    ]


async def test_what_a_batch_cannot_be(db: Database, table: str) -> None:
    await events(db, table)
    insert = insertion(table, event(1))
    other_partition = insertion(table, record(place="there", day=1, at=1, kind="k"), mode=IF_NOT_EXISTS)
    bad = insertion(table, event(2, nope=1))
    for made, more, kind, field in [
        ((insert,), {"kind": pb.BATCH_KIND_TRANSACTION}, errors.BackendCapabilityMissing, "kind"),
        ((), {}, errors.FieldRequired, "statements"),
        ((insert, other_partition), {}, errors.BackendCapabilityMissing, "statements"),
        ((insert, bad), {}, errors.FieldInvalid, "statements[1].insert.records[0].fields['nope']"),
        ((insertion(table, event(1), dry_run=True),), {}, errors.FieldInvalid, "statements[0].insert.dry_run"),
        (
            (insertion(table, event(1), options=record_pb2.WriteOptions(consistency=1)),),
            {},
            errors.FieldInvalid,
            "statements[0].insert.options.consistency",
        ),
        (
            (deletion(table, None, all_records=True),),
            {},
            errors.BackendCapabilityMissing,
            "statements[0].delete.all_records",
        ),
        (
            (insert,),
            {"options": record_pb2.WriteOptions(ttl=duration_pb2.Duration(seconds=5))},
            errors.BackendCapabilityMissing,
            "options.ttl",
        ),
    ]:
        with pytest.raises(kind) as raised:
            await run(db, *made, **more)
        assert raised.value.violations[0].field == field
    assert await select(db, table) == []
