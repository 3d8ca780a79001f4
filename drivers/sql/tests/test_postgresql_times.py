"""What PostgreSQL has and Python's calendar does not: shown as PostgreSQL writes it, and the rest of the table with it."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator

import asyncpg
import pytest
from onecontainer_driver_sql import bulk, codecs, reading, writing
from onecontainer_driver_sql import postgresql_times as times
from onecontainer_driver_sql.database import Database

from drivers.sql.tests.calls import create, page
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2, value_pb2
from onecontainer.driver import errors
from tests.fixtures.records import SERVICE, K, column, equals, insertion, record, value

V = value_pb2.Value
FIRST, LAST = dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)
TYPES = {
    "timestamp": ("timestamptz", "timestamp with time zone", K.TYPE_KIND_TIMESTAMP),
    "datetime": ("timestamp", "timestamp without time zone", K.TYPE_KIND_DATETIME),
    "date": ("date", "date", K.TYPE_KIND_DATE),
    "time": ("time", "time without time zone", K.TYPE_KIND_TIME),
    "decimal": ("numeric", "numeric", K.TYPE_KIND_DECIMAL),
    "varint": ("numeric(1000,0)", "numeric", K.TYPE_KIND_VARINT),
    "duration": ("interval", "interval", K.TYPE_KIND_DURATION),
}
BEYOND = {
    "timestamp": [
        "infinity",
        "-infinity",
        "0044-03-15 12:30:00.25+00 BC",
        "10000-01-01 00:00:00+00",
        "4713-01-01 00:00:00+00 BC",
        "294276-12-31 23:59:59.999999+00",
    ],
    "datetime": ["infinity", "-infinity", "0001-12-31 23:59:59.999999 BC", "10000-01-01 00:00:00"],
    "date": ["infinity", "-infinity", "4713-01-01 BC", "0001-02-29 BC", "10000-01-01", "5874897-12-31"],
    "time": ["24:00:00"],
    "decimal": ["NaN", "Infinity", "-Infinity"],
    "varint": ["NaN"],
    "duration": ["14 mons -3 days 2562047788:00:54.775807", "0 mons 0 days -2562047788:00:00"],
}


def native(type_: str, text: str) -> V:
    return V(native_value=value_pb2.NativeValue(type=type_, text=text))


async def written(postgres: str, schema: str, *statements: str) -> list[asyncpg.Record]:
    """Another program's statements; the rows of the last."""
    connection = await asyncpg.connect(postgres, server_settings={"search_path": schema, "TimeZone": "UTC"})
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return list(await connection.fetch(statements[-1]))
    finally:
        await connection.close()


@pytest.mark.parametrize("name", TYPES)
async def test_what_others_wrote_is_shown_and_comes_back(pg: Database, postgres: str, schema: str, name: str) -> None:
    type_, full, _ = TYPES[name]
    rows = ", ".join(f"({index}, '{text}')" for index, text in enumerate(BEYOND[name]))
    await written(
        postgres,
        schema,
        f"CREATE TABLE t (id int PRIMARY KEY, v {type_})",
        f"INSERT INTO t VALUES {rows}",
    )
    ordered = query_pb2.Query(order_by=[query_pb2.OrderBy(column="v"), query_pb2.OrderBy(column="id")])
    expected = [native(full, text) for text in BEYOND[name]]
    seen: list[V] = []
    token = ""
    # Page by page, in the order of these very values.
    while True:
        answer = await page(pg, "t", ordered, page_size=1, page_token=token)
        seen += [one.fields["v"] for one in answer.records]
        token = answer.next_page_token
        if not token:
            break
    assert sorted(map(str, seen)) == sorted(map(str, expected))
    # Streamed by columns into another table they are the same there.
    await create(pg, "copy", column("id", K.TYPE_KIND_INT32), column("v", TYPES[name][2]), key=["id"])
    request = pb.StreamRecordsRequest(service=SERVICE, table="t", encoding=record_pb2.BATCH_ENCODING_COLUMNS)

    async def requests() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table="copy")
        async for response in reading.stream_records(pg, request):
            yield pb.BulkInsertRequest(batch=response.batch)

    done = await bulk.bulk_insert(pg, requests())
    assert done.inserted == len(expected), done
    (same,) = await written(
        postgres, schema, "SELECT count(*) FROM t JOIN copy USING (id) WHERE t.v::text = copy.v::text"
    )
    assert same[0] == len(expected)


async def test_the_ends_of_the_calendar_are_not_infinity(pg: Database, postgres: str, schema: str) -> None:
    await create(
        pg,
        "t",
        column("id", K.TYPE_KIND_INT32),
        column("d", K.TYPE_KIND_DATE),
        column("t", K.TYPE_KIND_TIMESTAMP),
        column("l", K.TYPE_KIND_DATETIME),
        table_pb2.Column(
            name="a",
            type=table_pb2.ColumnType(kind=K.TYPE_KIND_LIST, elements=[table_pb2.ColumnType(kind=K.TYPE_KIND_DATE)]),
        ),
        key=["id"],
    )
    for index, moment in enumerate((FIRST, LAST)):
        fields = record(
            id=index,
            d=moment.date(),
            t=moment,
            l=codecs.datetime_to_value(moment),
            a=[moment.date()],
        )
        await writing.insert_records(pg, insertion("t", fields))
    rows = await written(
        postgres, schema, "SELECT d::text, t::text, l::text, a::text, isfinite(a[1]) AS finite FROM t ORDER BY id"
    )
    assert [tuple(row) for row in rows] == [
        ("0001-01-01", "0001-01-01 00:00:00+00", "0001-01-01 00:00:00", "{0001-01-01}", True),
        ("9999-12-31", "9999-12-31 23:59:59.999999+00", "9999-12-31 23:59:59.999999", "{9999-12-31}", True),
    ]
    found = await page(pg, "t", query_pb2.Query(where=equals("d", dt.date.max)))
    assert [one.fields["id"] for one in found.records] == [value(1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("date", "today"),
        ("date", "2024-02-30"),
        ("date", "0000-01-01"),
        ("date", "9999999-01-01"),
        ("timestamp", "epoch"),
        ("timestamp", "10000-01-01 00:00:00"),
        ("timestamp", "10000-01-01 25:00:00+00"),
        ("datetime", "10000-01-01 00:00:00+00"),
        ("time", "allballs"),
        ("decimal", "1.5"),
        ("varint", "Infinity"),
        ("duration", "1 year"),
    ],
)
async def test_other_text_is_refused(pg: Database, name: str, text: str) -> None:
    _, full, kind = TYPES[name]
    await create(pg, "t", column("id", K.TYPE_KIND_INT32), column("v", kind), key=["id"])
    with pytest.raises(errors.DataInvalid) as raised:
        await writing.insert_records(pg, insertion("t", record(id=1, v=native(full, text))))
    assert raised.value.violations[0].field in ("records[0].fields['v']", "")


async def test_a_time_as_default(pg: Database) -> None:
    moment = dt.datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=dt.UTC)
    await create(
        pg,
        "t",
        column("id", K.TYPE_KIND_INT32),
        column("t", K.TYPE_KIND_TIMESTAMP, default_value=value(moment)),
        column("d", K.TYPE_KIND_DATE, default_value=value(dt.date.max)),
        key=["id"],
    )
    await writing.insert_records(pg, insertion("t", record(id=1)))
    (found,) = (await page(pg, "t")).records
    assert found.fields["t"] == value(moment)
    assert found.fields["d"] == value(dt.date.max)


def test_text_of_a_moment_is_what_is_read() -> None:
    for text in BEYOND["timestamp"]:
        assert times.TIMESTAMP.from_native is not None
        assert times.timestamp_text(times.TIMESTAMP.from_native(text)) == text
