"""Filters, order, paging, streams."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
from typing import Any

import pytest
from onecontainer_driver_sql import reading, writing
from onecontainer_driver_sql.database import Database

from drivers.sql.tests.calls import create, load, page, people, select
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records import batches
from tests.fixtures.records import (
    SERVICE,
    K,
    all_of,
    any_of,
    column,
    compare,
    deletion,
    equals,
    insertion,
    record,
    unrecord,
    value,
)

Q = query_pb2.Query
F = query_pb2.Filter
DESC = table_pb2.SORT_ORDER_DESCENDING


def by(*keys: str, **more: Any) -> list[query_pb2.OrderBy]:
    return [query_pb2.OrderBy(column=key.lstrip("-"), order=DESC if key.startswith("-") else 0, **more) for key in keys]


def membership(name: str, *values: Any) -> F:
    return F(membership=query_pb2.Membership(column=name, values=[value(one) for one in values]))


FILTERS: list[tuple[F, list[int]]] = [
    (equals("id", 3), [3]),
    (compare("id", query_pb2.OPERATOR_NOT_EQUAL, 3), [0, 1, 2, 4, 5, 6, 7]),
    (compare("id", query_pb2.OPERATOR_LESS, 2), [0, 1]),
    (compare("id", query_pb2.OPERATOR_LESS_OR_EQUAL, 2), [0, 1, 2]),
    (compare("id", query_pb2.OPERATOR_GREATER, 6), [7]),
    (compare("id", query_pb2.OPERATOR_GREATER_OR_EQUAL, 6), [6, 7]),
    (membership("id", 1, 5, 99), [1, 5]),
    (membership("id"), []),
    (F(range=query_pb2.Range(column="id", lower=value(2), upper=value(4))), [2, 3, 4]),
    (F(range=query_pb2.Range(column="id", lower=value(2), upper=value(4), lower_open=True, upper_open=True)), [3]),
    (F(null_check=query_pb2.NullCheck(column="age")), [3, 7]),
    (F(null_check=query_pb2.NullCheck(column="age", negated=True)), [0, 1, 2, 4, 5, 6]),
    (F(pattern=query_pb2.Pattern(column="name", like="name-_")), list(range(8))),
    (F(pattern=query_pb2.Pattern(column="name", like="%-3")), [3]),
    (F(pattern=query_pb2.Pattern(column="name", like="NAME%")), []),
    (F(pattern=query_pb2.Pattern(column="name", like="NAME-1", ignore_case=True)), [1]),
    (F(pattern=query_pb2.Pattern(column="name", like="name\\_%")), []),
    (all_of(equals("age", 1), compare("id", query_pb2.OPERATOR_GREATER, 1)), [5]),
    (any_of(equals("id", 0), equals("age", 2)), [0, 2, 6]),
    (F(negation=equals("age", 0)), [1, 2, 5, 6]),
    (all_of(), list(range(8))),
    (any_of(), []),
]


async def test_filters(db: Database) -> None:
    await people(db, 8)
    for where, ids in FILTERS:
        assert [one["id"] for one in await select(db, "people", Q(where=where, order_by=by("id")))] == ids, where


WRONG: list[tuple[F, str, type[Exception]]] = [
    (F(), "query.where", errors.FieldRequired),
    (equals("nope", 1), "query.where.comparison.column", errors.FieldInvalid),
    (equals("id", None), "query.where.comparison.value", errors.DataInvalid),
    (equals("id", "x"), "query.where.comparison.value", errors.DataInvalid),
    (
        all_of(equals("id", 1), membership("id", 1, "x")),
        "query.where.all_of.filters[1].membership.values[1]",
        errors.DataInvalid,
    ),
    (F(range=query_pb2.Range(column="id")), "query.where.range.lower", errors.FieldRequired),
    (F(pattern=query_pb2.Pattern(column="id", like="%")), "query.where.pattern.column", errors.FieldInvalid),
    (F(pattern=query_pb2.Pattern(column="name", like="a\\")), "query.where.pattern.like", errors.FieldInvalid),
    (
        F(contains=query_pb2.Contains(column="name", value=value("x"))),
        "query.where.contains.column",
        errors.BackendCapabilityMissing,
    ),
]


async def test_a_wrong_filter_is_told_by_its_path(db: Database) -> None:
    await people(db)
    for where, path, error in WRONG:
        with pytest.raises(error) as raised:
            await select(db, "people", Q(where=where))
        assert isinstance(
            raised.value,
            errors.FieldInvalid | errors.FieldRequired | errors.DataInvalid | errors.BackendCapabilityMissing,
        )
        assert raised.value.violations[0].field == path


async def test_a_filter_is_not_nested_without_end(db: Database) -> None:
    await people(db)
    deep = equals("id", 1)
    for _ in range(40):
        deep = F(negation=deep)
    with pytest.raises(errors.FieldInvalid, match="32 levels"):
        await select(db, "people", Q(where=deep))


async def test_projection_order_and_limit(db: Database) -> None:
    await people(db, 8)
    found = await page(db, "people", Q(columns=["name", "id"], order_by=by("-id"), limit=2))
    assert [one.name for one in found.columns] == ["name", "id"]
    assert [unrecord(one) for one in found.records] == [{"name": "name-7", "id": 7}, {"name": "name-6", "id": 6}]
    assert not found.next_page_token


async def test_distinct(db: Database) -> None:
    await people(db, 8)
    found = await select(
        db, "people", Q(columns=["age"], distinct=True, order_by=by("-age", nulls=query_pb2.NULLS_ORDER_LAST))
    )
    assert [one["age"] for one in found] == [2, 1, 0, None]


async def test_values_sort_as_what_they_are(db: Database) -> None:
    """Also where SQLite keeps them as text."""
    await create(
        db,
        "t",
        column("id", K.TYPE_KIND_INT64),
        column("d", K.TYPE_KIND_DECIMAL),
        column("t", K.TYPE_KIND_TIMESTAMP),
        key=["id"],
    )
    moments = [
        dt.datetime(2020, 1, 1, 0, 0, second, tzinfo=dt.UTC) + dt.timedelta(microseconds=micro)
        for second in (9, 10)
        for micro in (0, 1, 500_000)
    ]
    numbers = [decimal.Decimal(one) for one in ("-10", "-9.5", "0", "9", "9.50", "10")]
    rows = [[index, numbers[index], moments[index]] for index in (3, 1, 5, 0, 4, 2)]
    assert (await load(db, "t", ["id", "d", "t"], rows)).inserted == 6
    for key in ("d", "t"):
        found = await page(db, "t", Q(columns=["id"], order_by=by(key)))
        assert [unrecord(one)["id"] for one in found.records] == [0, 1, 2, 3, 4, 5], key
    found = await page(db, "t", Q(where=equals("d", decimal.Decimal("9.5000"))))
    assert [one.fields["id"].int64_value for one in found.records] == [4]


# --- paging ------------------------------------------------------------------------------------------------------


async def pages(database: Database, query: Q, size: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        one = await page(database, "people", query, page_size=size, page_token=token)
        assert len(one.records) <= size
        found += [unrecord(record) for record in one.records]
        token = one.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("order", [[], ["id"], ["-id"], ["age"], ["-age"], ["age", "-name"], ["-age", "id"]])
async def test_pages_are_the_whole_in_order(db: Database, order: list[str]) -> None:
    await people(db, 13)
    for nulls in query_pb2.NullsOrder.values():
        query = Q(columns=["name"], order_by=by(*order, nulls=nulls))
        whole = await pages(db, query, 1000)
        assert sorted(one["name"] for one in whole) == sorted(f"name-{index}" for index in range(13))
        for size in (1, 3, 20):
            assert await pages(db, query, size) == whole


async def test_limit_is_over_all_pages(db: Database) -> None:
    await people(db, 13)
    assert [one["id"] for one in await pages(db, Q(limit=7), 3)] == list(range(7))
    assert [one["id"] for one in await pages(db, Q(limit=6), 3)] == list(range(6))


async def test_distinct_pages(db: Database) -> None:
    await people(db, 13)
    assert len(await pages(db, Q(columns=["age"], distinct=True), 1)) == 4


async def test_a_page_goes_on_behind_the_last_record(db: Database) -> None:
    await people(db, 6)
    first = await page(db, "people", page_size=3)
    await writing.delete_records(db, deletion("people", membership("id", 0, 1, 2)))
    await writing.insert_records(db, insertion("people", record(id=-1, name="before"), record(id=9, name="behind")))
    second = await page(db, "people", page_size=10, page_token=first.next_page_token)
    assert [unrecord(one)["id"] for one in second.records] == [3, 4, 5, 9]


async def test_a_token_belongs_to_its_query(db: Database) -> None:
    await people(db, 6)
    await create(db, "other", column("id", K.TYPE_KIND_INT64), key=["id"])
    query = Q(where=compare("id", query_pb2.OPERATOR_GREATER, 0))
    token = (await page(db, "people", query, page_size=2)).next_page_token
    assert token
    wrong: list[tuple[str, Q, str]] = [
        ("people", Q(where=compare("id", query_pb2.OPERATOR_GREATER, 1)), token),
        ("people", Q(), token),
        ("other", query, token),
        ("people", query, token[:-2]),
        ("people", query, "x" + token[1:]),
        ("people", query, "ä"),
        ("people", query, "AAAA"),
    ]
    for table, other, given in wrong:
        with pytest.raises(errors.FieldInvalid) as raised:
            await page(db, table, other, page_size=2, page_token=given)
        assert raised.value.violations[0].field == "page_token"


async def test_a_table_without_a_key_has_no_second_page(db: Database) -> None:
    await create(db, "t", column("x", K.TYPE_KIND_INT64))
    await writing.insert_records(db, insertion("t", *(record(x=index) for index in range(5))))
    assert len(await select(db, "t")) == 5
    assert len(await select(db, "t", Q(limit=3), page_size=3)) == 3
    with pytest.raises(errors.BackendCapabilityMissing, match="no primary key"):
        await select(db, "t", page_size=3)


async def test_options_that_sql_has_not(db: Database) -> None:
    await people(db)
    with pytest.raises(errors.BackendCapabilityMissing, match=r"query\.consistency"):
        await select(db, "people", Q(consistency=query_pb2.CONSISTENCY_QUORUM))
    assert await select(db, "people", Q(allow_filtering=True)) == []
    for request in ({"page_size": -1}, {"page_size": 10_001}):
        with pytest.raises(errors.FieldInvalid, match="page_size"):
            await page(db, "people", **request)


async def test_no_such_table(db: Database) -> None:
    with pytest.raises(errors.ResourceNotFound):
        await select(db, "nope")
    with pytest.raises(errors.FieldRequired):
        await select(db, "")


async def test_a_table_changed_by_others_is_read_again(db: Database) -> None:
    await people(db, 2)
    await select(db, "people")
    async with db.transaction() as connection:
        target = (await db.table(connection, "people")).sa
        name = connection.dialect.identifier_preparer.format_table(target)
        await connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN extra TEXT")
    query = Q(columns=["extra"])
    request = pb.SelectRecordsRequest(service=SERVICE, table="people", query=query)
    found = await db.tables.with_fresh(["people"], lambda: reading.select_records(db, request))
    assert [unrecord(one) for one in found.records] == [{"extra": None}] * 2


# --- streams -----------------------------------------------------------------------------------------------------


def values_of(response: pb.StreamRecordsResponse) -> list[Any]:
    batch = response.batch
    if batch.WhichOneof("body") == "rows":
        return [row.values[0].int64_value for row in batch.rows.rows]
    return list(batch.column_list.columns[0].int64s.values)


@pytest.mark.parametrize("encoding", record_pb2.BatchEncoding.values())
@pytest.mark.parametrize("count", [0, 1, 1234])
async def test_a_stream_has_all_records_and_says_its_columns_once(db: Database, encoding: int, count: int) -> None:
    await people(db, count)
    request = pb.StreamRecordsRequest(
        service=SERVICE, table="people", encoding=encoding, batch_size=100, query=Q(order_by=by("id"))
    )
    responses = [one async for one in reading.stream_records(db, request)]
    assert [one.name for one in responses[0].columns] == list(responses[0].batch.columns) == ["id", "name", "age"]
    assert not any(one.columns or one.batch.columns for one in responses[1:])
    found = [one for response in responses for one in values_of(response)]
    assert found == list(range(count))
    assert all(len(values_of(one)) <= 100 for one in responses)


async def test_wide_rows_come_in_small_messages(db: Database) -> None:
    await create(db, "t", column("id", K.TYPE_KIND_INT64), column("b", K.TYPE_KIND_BYTES), key=["id"])
    for start in range(0, 60, 10):
        await writing.insert_records(db, insertion("t", *(record(id=start + i, b=bytes(200_000)) for i in range(10))))
    request = pb.StreamRecordsRequest(service=SERVICE, table="t")
    responses = [one async for one in reading.stream_records(db, request)]
    assert sum(len(values_of(one)) for one in responses) == 60
    assert max(one.ByteSize() for one in responses) < 2 * batches.MAX_MESSAGE_BYTES


async def test_a_stream_reads_no_further_than_it_is_taken(db: Database) -> None:
    await people(db, 5000)
    stream = reading.stream_records(db, pb.StreamRecordsRequest(service=SERVICE, table="people", batch_size=10))
    async for _ in stream:
        break
    await stream.aclose()
    # The connection is free again: as many streams as there are connections may be left in the middle.
    for _ in range(12):
        stream = reading.stream_records(db, pb.StreamRecordsRequest(service=SERVICE, table="people", batch_size=10))
        await anext(stream)
        await stream.aclose()


async def test_a_cancelled_query_ends_in_the_backend(db: Database) -> None:
    await people(db, 3000)
    # Every record with every other, several times over: minutes of work.
    slow = "SELECT count(*) FROM {t} a, {t} b, {t} c, {t} d WHERE a.id + b.id + c.id + d.id < 0"
    started = asyncio.Event()

    async def run() -> None:
        async with db.reading() as connection:
            target = (await db.table(connection, "people")).sa
            name = connection.dialect.identifier_preparer.format_table(target)
            started.set()
            await connection.exec_driver_sql(slow.format(t=name))

    task = asyncio.create_task(run())
    await started.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(60):
        with pytest.raises(asyncio.CancelledError):
            await task
        # Its connection is not in the way of others.
        assert await select(db, "people", Q(limit=1))


async def test_lists_in_postgresql(pg: Database) -> None:
    await create(
        pg,
        "t",
        column("id", K.TYPE_KIND_INT64),
        column("tags", K.TYPE_KIND_LIST, elements=[table_pb2.ColumnType(kind=K.TYPE_KIND_TEXT)]),
        key=["id"],
    )
    await writing.insert_records(pg, insertion("t", record(id=1, tags=["a", "b"]), record(id=2, tags=["c"])))
    where = F(contains=query_pb2.Contains(column="tags", value=value("b")))
    assert [one["id"] for one in await select(pg, "t", Q(where=where))] == [1]
    assert [one["id"] for one in await select(pg, "t", Q(where=equals("tags", ["c"])))] == [2]
    assert value_pb2.ListValue(values=[value("c")]) == value(["c"]).list_value
