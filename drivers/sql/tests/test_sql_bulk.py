"""BulkInsert: a status for each row, whatever happens to the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.rpc import code_pb2
from onecontainer_driver_sql import bulk, writing
from onecontainer_driver_sql.database import Database

from drivers.sql.tests.calls import create, load, page, people, select
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import record_pb2
from onecontainer.driver import errors
from tests.fixtures.records import SERVICE, K, column, insertion, record, rows_batch

COLUMNS = ["id", "name", "age"]
FAIL, SKIP, UPSERT = (
    record_pb2.INSERT_MODE_FAIL,
    record_pb2.INSERT_MODE_IF_NOT_EXISTS,
    record_pb2.INSERT_MODE_UPSERT,
)


def covered(response: pb.BulkInsertResponse) -> None:
    """The statuses have every row once, and add up."""
    position = 0
    for status in response.row_statuses:
        assert status.first_row == position
        assert status.row_count >= 1
        position += status.row_count
    assert position == response.received
    assert response.inserted + response.skipped + response.failed == response.received


def outcomes(response: pb.BulkInsertResponse) -> list[tuple[int, int, int, bool]]:
    return [(one.first_row, one.row_count, one.status.code, one.skipped) for one in response.row_statuses]


async def send(database: Database, *requests: pb.BulkInsertRequest) -> pb.BulkInsertResponse:
    async def each() -> AsyncIterator[pb.BulkInsertRequest]:
        for request in requests:
            yield request

    return await bulk.bulk_insert(database, each())


@pytest.mark.parametrize("mode", record_pb2.InsertMode.values())
@pytest.mark.parametrize("size", [1, 7, 5000])
async def test_rows_of_many_messages(db: Database, mode: int, size: int) -> None:
    await people(db)
    rows = [[index, f"n{index}", index % 3 or None] for index in range(200 if size == 1 else 3000)]
    done = await load(db, "people", COLUMNS, rows, size=size, mode=mode)
    assert outcomes(done) == [(0, len(rows), 0, False)]
    assert done.inserted == len(rows)
    found = await select(db, "people", page_size=10_000)
    assert [[one["id"], one["name"], one["age"]] for one in found] == rows


async def test_a_refused_row_does_not_keep_the_others(db: Database) -> None:
    await people(db)
    await writing.insert_records(db, insertion("people", record(id=500, name="there")))
    rows: list[list[Any]] = [[index, f"n{index}", index] for index in range(1000)]
    rows[17][1] = None  # the column is not null
    rows[18][2] = "x"  # not a number
    rows[900] = [3, "twice", 0]
    done = await load(db, "people", COLUMNS, rows, size=300)
    covered(done)
    failed = {one.first_row: one.status.code for one in done.row_statuses if one.status.code}
    assert failed == {
        17: code_pb2.INVALID_ARGUMENT,
        18: code_pb2.INVALID_ARGUMENT,
        500: code_pb2.ALREADY_EXISTS,
        900: code_pb2.ALREADY_EXISTS,
    }
    assert (done.inserted, done.failed) == (996, 4)
    assert len(await select(db, "people", page_size=10_000)) == 997
    details = {one.first_row: one.status for one in done.row_statuses if one.status.code}
    assert "values[2]" in details[18].message
    assert details[500].details


async def test_rows_that_are_there_are_skipped(db: Database) -> None:
    await people(db, 10)
    rows = [[5, "new", 0], [10, "ten", 0], [10, "again", 0], [11, "eleven", None], [6, "new", 0], [7, "new", 0]]
    done = await load(db, "people", COLUMNS, rows, mode=SKIP)
    covered(done)
    assert outcomes(done) == [(0, 1, 0, True), (1, 1, 0, False), (2, 1, 0, True), (3, 1, 0, False), (4, 2, 0, True)]
    names = [one["name"] for one in await select(db, "people")]
    assert names == [*(f"name-{index}" for index in range(10)), "ten", "eleven"]


async def test_rows_that_are_there_are_overwritten(db: Database) -> None:
    await people(db, 3)
    done = await load(db, "people", ["id", "name"], [[1, "one"], [1, "uno"], [9, "nine"]], mode=UPSERT)
    assert done.inserted == 3
    assert [(one["id"], one["name"], one["age"]) for one in await select(db, "people")] == [
        (0, "name-0", 0),
        (1, "uno", 1),
        (2, "name-2", 2),
        (9, "nine", None),
    ]


async def test_it_ends_early_after_too_many_failures(db: Database) -> None:
    await people(db, 100)
    rows = [[index, "n", 0] for index in range(200)]
    done = await load(db, "people", COLUMNS, rows, size=50, max_failures=10)
    assert done.ended_early
    covered(done)
    assert done.inserted == 0
    assert done.row_statuses[-1].status.code == code_pb2.CANCELLED
    assert sum(one.status.code == code_pb2.ALREADY_EXISTS for one in done.row_statuses) <= 10
    assert len(await select(db, "people", page_size=1000)) == 100


async def test_it_ends_early_with_more_on_the_way(db: Database) -> None:
    await people(db, 1)
    async with asyncio.timeout(120):
        done = await load(db, "people", COLUMNS, [[0, "n", 0]] * 200, size=1, max_failures=1)
    assert done.ended_early
    covered(done)


async def test_columns_may_change_between_messages(db: Database) -> None:
    await people(db)
    done = await send(
        db,
        pb.BulkInsertRequest(service=SERVICE, table="people", batch=rows_batch(["id", "name"], [[1, "a"]])),
        pb.BulkInsertRequest(batch=rows_batch([], [[2, "b"]])),
        pb.BulkInsertRequest(batch=rows_batch(["name", "age", "id"], [["c", 3, 3]])),
    )
    assert done.inserted == 3
    assert await select(db, "people") == [
        {"id": 1, "name": "a", "age": None},
        {"id": 2, "name": "b", "age": None},
        {"id": 3, "name": "c", "age": 3},
    ]


async def test_numbers_that_the_backend_gives(db: Database) -> None:
    auto = column("id", K.TYPE_KIND_INT64, auto_increment=True)
    await create(db, "t", auto, column("x", K.TYPE_KIND_TEXT), key=["id"])
    done = await load(db, "t", ["x"], [["a"], ["b"], ["c"]])
    assert done.inserted == 3
    assert [one["x"] for one in await select(db, "t")] == ["a", "b", "c"]


def columns_batch(*columns: record_pb2.ColumnValues, count: int) -> record_pb2.RecordBatch:
    return record_pb2.RecordBatch(
        columns=COLUMNS, column_list=record_pb2.ColumnList(row_count=count, columns=list(columns))
    )


def int64s(*values: int, nulls: tuple[int, ...] = ()) -> record_pb2.ColumnValues:
    return record_pb2.ColumnValues(int64s=record_pb2.Int64Array(values=values), null_rows=nulls)


def texts(*values: str) -> record_pb2.ColumnValues:
    return record_pb2.ColumnValues(texts=record_pb2.TextArray(values=values))


async def test_columns(db: Database) -> None:
    await people(db)
    batch = columns_batch(int64s(1, 2, 3), texts("a", "b", "c"), int64s(0, 5, 2**40, nulls=(0,)), count=3)
    done = await send(db, pb.BulkInsertRequest(service=SERVICE, table="people", batch=batch))
    assert outcomes(done)[0] == (0, 2, 0, False)
    assert done.row_statuses[1].status.code == code_pb2.INVALID_ARGUMENT
    assert "int64s.values[2]" in done.row_statuses[1].status.message
    assert [one["age"] for one in await select(db, "people")] == [None, 5]


@pytest.mark.parametrize(
    ("batch", "path"),
    [
        (columns_batch(int64s(1), texts("a"), count=1), "batch.column_list.columns"),
        (columns_batch(int64s(1, 2), texts("a"), int64s(1), count=1), "batch.column_list.columns[0].int64s"),
        (columns_batch(texts("1"), texts("a"), int64s(1), count=1), "batch.column_list.columns[0].texts"),
        (
            columns_batch(int64s(1, nulls=(4,)), texts("a"), int64s(1), count=1),
            "batch.column_list.columns[0].null_rows",
        ),
        (
            columns_batch(int64s(1), texts("a"), record_pb2.ColumnValues(), count=1),
            "batch.column_list.columns[2].values",
        ),
        (record_pb2.RecordBatch(columns=["nope"]), "batch.columns[0]"),
        (record_pb2.RecordBatch(columns=["id", "id"]), "batch.columns[1]"),
        (record_pb2.RecordBatch(columns=["id"]), "batch.rows"),
        (rows_batch([], [[1]]), "batch.columns"),
    ],
)
async def test_a_wrong_batch(db: Database, batch: record_pb2.RecordBatch, path: str) -> None:
    await people(db)
    with pytest.raises((errors.FieldInvalid, errors.FieldRequired)) as raised:
        await send(db, pb.BulkInsertRequest(service=SERVICE, table="people", batch=batch))
    assert raised.value.violations[0].field == path


async def test_a_wrong_beginning(db: Database) -> None:
    await people(db)
    with pytest.raises(errors.FieldRequired):
        await send(db)
    with pytest.raises(errors.ResourceNotFound):
        await send(db, pb.BulkInsertRequest(service=SERVICE, table="nope"))
    with pytest.raises(errors.FieldInvalid, match="another one"):
        await send(db, pb.BulkInsertRequest(service=SERVICE, table="people"), pb.BulkInsertRequest(table="other"))
    with pytest.raises(errors.BackendCapabilityMissing, match="consistency"):
        options = record_pb2.WriteOptions(consistency=1)
        await send(db, pb.BulkInsertRequest(service=SERVICE, table="people", options=options))
    nothing = await send(db, pb.BulkInsertRequest(service=SERVICE, table="people"))
    assert nothing == pb.BulkInsertResponse()


async def test_rows_are_written_while_they_arrive(db: Database) -> None:
    await people(db)
    go_on = asyncio.Event()

    async def requests() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table="people", batch=rows_batch(COLUMNS, [[1, "a", 1]]))
        await go_on.wait()
        yield pb.BulkInsertRequest(batch=rows_batch(COLUMNS, [[2, "b", 2]]))

    task = asyncio.create_task(bulk.bulk_insert(db, requests()))
    async with asyncio.timeout(120):
        while not (await page(db, "people")).records:
            pass
    go_on.set()
    assert (await task).inserted == 2


async def test_a_caller_that_breaks_off_leaves_what_was_written(db: Database) -> None:
    await people(db)

    class BrokenOffError(Exception):
        pass

    async def requests() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table="people", batch=rows_batch(COLUMNS, [[1, "a", 1]]))
        raise BrokenOffError

    with pytest.raises(BrokenOffError):
        await bulk.bulk_insert(db, requests())
    assert len((await page(db, "people")).records) == 1


async def test_a_cancelled_bulk_ends(db: Database) -> None:
    await people(db)
    waiting = asyncio.Event()

    async def requests() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table="people", batch=rows_batch(COLUMNS, [[1, "a", 1]]))
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(bulk.bulk_insert(db, requests()))
    await waiting.wait()
    task.cancel()
    async with asyncio.timeout(120):
        with pytest.raises(asyncio.CancelledError):
            await task
