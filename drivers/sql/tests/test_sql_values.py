"""Every type crosses and comes back as it was, by records, rows and columns; what does not fit is refused."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onecontainer_driver_sql import bulk, codecs, reading, writing
from onecontainer_driver_sql.database import Database

from drivers.sql.tests.calls import create, load, page
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import NULL, int_from_bytes, int_to_bytes
from tests.fixtures.records import SERVICE, K, column, drawn, insertion, record, value

V = value_pb2.Value


def message(**fields: Any) -> V:
    return V(**fields)


def decimals(digits: int, scale: int) -> st.SearchStrategy[V]:
    limit = 10**digits - 1
    return st.integers(-limit, limit).map(
        lambda unscaled: V(decimal_value=value_pb2.Decimal(unscaled=int_to_bytes(unscaled), scale=scale))
    )


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)
days = st.dates().map(codecs.date_to_proto)
times = st.times().map(codecs.time_to_proto)
inets = st.one_of(
    st.binary(min_size=4, max_size=4).map(lambda address: value_pb2.Inet(address=address)),
    st.binary(min_size=16, max_size=16).map(lambda address: value_pb2.Inet(address=address)),
    st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 127)).map(
        lambda pair: value_pb2.Inet(address=pair[0], prefix_length=pair[1])
    ),
)
durations = st.tuples(st.integers(-1000, 1000), st.integers(-10000, 10000), st.integers(-(10**15), 10**15)).map(
    lambda parts: V(duration_value=value_pb2.CalendarDuration(months=parts[0], days=parts[1], nanos=parts[2] * 1000))
)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
).map(lambda document: V(json_value=json.dumps(document)))

TYPES: dict[str, tuple[table_pb2.ColumnType, st.SearchStrategy[V]]] = {
    "bool": (table_pb2.ColumnType(kind=K.TYPE_KIND_BOOL), st.booleans().map(value)),
    "int16": (table_pb2.ColumnType(kind=K.TYPE_KIND_INT16), st.integers(-(2**15), 2**15 - 1).map(value)),
    "int32": (table_pb2.ColumnType(kind=K.TYPE_KIND_INT32), st.integers(-(2**31), 2**31 - 1).map(value)),
    "int64": (table_pb2.ColumnType(kind=K.TYPE_KIND_INT64), st.integers(-(2**63), 2**63 - 1).map(value)),
    "varint": (
        table_pb2.ColumnType(kind=K.TYPE_KIND_VARINT),
        st.integers(-(10**200), 10**200).map(lambda number: V(varint_value=int_to_bytes(number))),
    ),
    "float": (
        table_pb2.ColumnType(kind=K.TYPE_KIND_FLOAT),
        st.floats(width=32, allow_nan=False).map(lambda number: V(float_value=number)),
    ),
    "double": (table_pb2.ColumnType(kind=K.TYPE_KIND_DOUBLE), st.floats(allow_nan=False).map(value)),
    "decimal": (table_pb2.ColumnType(kind=K.TYPE_KIND_DECIMAL), decimals(60, 7)),
    "decimal_10_2": (table_pb2.ColumnType(kind=K.TYPE_KIND_DECIMAL, precision=10, scale=2), decimals(10, 2)),
    "text": (table_pb2.ColumnType(kind=K.TYPE_KIND_TEXT), texts.map(value)),
    "varchar": (table_pb2.ColumnType(kind=K.TYPE_KIND_TEXT, length=50), texts.map(value)),
    "bytes": (table_pb2.ColumnType(kind=K.TYPE_KIND_BYTES), st.binary(max_size=100).map(value)),
    "timestamp": (table_pb2.ColumnType(kind=K.TYPE_KIND_TIMESTAMP), st.datetimes(timezones=st.just(dt.UTC)).map(value)),
    "datetime": (table_pb2.ColumnType(kind=K.TYPE_KIND_DATETIME), st.datetimes().map(codecs.datetime_to_value)),
    "date": (table_pb2.ColumnType(kind=K.TYPE_KIND_DATE), days.map(lambda date: V(date_value=date))),
    "time": (table_pb2.ColumnType(kind=K.TYPE_KIND_TIME), times.map(lambda time: V(time_value=time))),
    "uuid": (table_pb2.ColumnType(kind=K.TYPE_KIND_UUID), st.uuids().map(value)),
    "duration": (table_pb2.ColumnType(kind=K.TYPE_KIND_DURATION), durations),
    "inet": (table_pb2.ColumnType(kind=K.TYPE_KIND_INET), inets.map(lambda inet: V(inet_value=inet))),
    "json": (table_pb2.ColumnType(kind=K.TYPE_KIND_JSON), documents),
}
MOMENTS = (dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC))
EDGES: dict[str, list[V]] = {
    "int16": [value(-(2**15)), value(2**15 - 1)],
    "int32": [value(-(2**31)), value(2**31 - 1)],
    "int64": [value(-(2**63)), value(2**63 - 1)],
    "float": [V(float_value=number) for number in (-0.0, math.inf, -math.inf, 2.0**-149)],
    "double": [value(number) for number in (-0.0, math.inf, -math.inf, 5e-324, 1.7976931348623157e308)],
    "timestamp": [value(moment) for moment in MOMENTS],
    "datetime": [codecs.datetime_to_value(moment) for moment in MOMENTS],
    "date": [V(date_value=codecs.date_to_proto(date)) for date in (dt.date.min, dt.date.max)],
    "time": [V(time_value=codecs.time_to_proto(time)) for time in (dt.time.min, dt.time.max)],
}
"""What a random sample would hardly have: the ends of each type."""
LISTS: dict[str, tuple[table_pb2.ColumnType, st.SearchStrategy[V]]] = {
    f"list_{name}": (
        table_pb2.ColumnType(kind=K.TYPE_KIND_LIST, elements=[of]),
        st.lists(st.one_of(st.just(NULL), one), max_size=4).map(
            lambda values: V(list_value=value_pb2.ListValue(values=values))
        ),
    )
    for name, (of, one) in TYPES.items()
    if name in ("int64", "text", "decimal", "timestamp", "uuid", "bytes", "json", "inet", "duration")
}


def same(kind: str, left: V, right: V) -> bool:
    """Equal values; JSON by what it says, since PostgreSQL keeps no white space and no order."""
    if left.WhichOneof("kind") != right.WhichOneof("kind"):
        return False
    if left.WhichOneof("kind") == "json_value":
        return bool(json.loads(left.json_value) == json.loads(right.json_value))
    if left.WhichOneof("kind") == "list_value":
        return len(left.list_value.values) == len(right.list_value.values) and all(
            same(kind, one, other) for one, other in zip(left.list_value.values, right.list_value.values, strict=True)
        )
    # By their bytes: −0.0 equals 0.0, but is not the same.
    return left.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True)


async def _stream(database: Database, encoding: int) -> list[Any]:
    request = pb.StreamRecordsRequest(service=SERVICE, table="t", encoding=encoding, query=ORDERED)
    return [response async for response in reading.stream_records(database, request)]


ORDERED = query_pb2.Query(order_by=[query_pb2.OrderBy(column="id")])


@pytest.mark.parametrize("name", [*TYPES, *LISTS])
async def test_values_come_back_as_they_were(db: Database, name: str) -> None:
    if name in LISTS and db.backend.name == "SQLite":
        with pytest.raises(errors.BackendCapabilityMissing):
            await create(db, "t", table_pb2.Column(name="v", type=LISTS[name][0]))
        return
    type_, strategy = (TYPES | LISTS)[name]
    await create(db, "t", column("id", K.TYPE_KIND_INT64), table_pb2.Column(name="v", type=type_), key=["id"])
    samples = drawn(st.lists(strategy, min_size=30, max_size=30))
    expected = [*samples, *EDGES.get(name, []), NULL]
    for start in range(0, len(expected), 20):
        records = [record(id=start + i, v=one) for i, one in enumerate(expected[start : start + 20])]
        await writing.insert_records(db, insertion("t", *records))
    read = await page(db, "t", ORDERED, page_size=1000)
    for one, back in zip(expected, read.records, strict=True):
        assert same(name, one, back.fields["v"]), (one, back.fields["v"])
    assert read.columns[1].type.kind == type_.kind
    # As columns to the caller, and from the caller.
    batches = await _stream(db, record_pb2.BATCH_ENCODING_COLUMNS)
    await create(db, "copy", column("id", K.TYPE_KIND_INT64), table_pb2.Column(name="v", type=type_), key=["id"])

    async def requests() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table="copy")
        for response in batches:
            yield pb.BulkInsertRequest(batch=response.batch)

    done = await bulk.bulk_insert(db, requests())
    assert done.inserted == len(expected), done
    copied = await page(db, "copy", ORDERED, page_size=1000)
    for one, back in zip(expected, copied.records, strict=True):
        assert same(name, one, back.fields["v"]), (one, back.fields["v"])


@pytest.mark.parametrize(
    ("type_", "bad", "what"),
    [
        (table_pb2.ColumnType(kind=K.TYPE_KIND_INT16), value(40000), "from -32768 to 32767"),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_INT32), value("1"), "takes int64_value"),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_INT32), value(True), "takes int64_value"),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_TEXT, length=3), value("four"), "has 4 characters"),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_TEXT), value(1), "takes text_value"),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_DOUBLE), value(2**53 + 1), "exactly"),
        (
            table_pb2.ColumnType(kind=K.TYPE_KIND_DECIMAL, precision=4, scale=2),
            value(decimal.Decimal("1.234")),
            "more than 2 digits after",
        ),
        (
            table_pb2.ColumnType(kind=K.TYPE_KIND_DECIMAL, precision=4, scale=2),
            value(decimal.Decimal("100.5")),
            "more than 2 digits before",
        ),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_UUID), message(uuid_value=b"123"), "16"),
        (
            table_pb2.ColumnType(kind=K.TYPE_KIND_DATE),
            message(date_value=value_pb2.Date(year=2023, month=2, day=29)),
            "not a date",
        ),
        (
            table_pb2.ColumnType(kind=K.TYPE_KIND_TIME),
            message(time_value=value_pb2.Time(hours=1, nanos=1)),
            "microseconds",
        ),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_INET), message(inet_value=value_pb2.Inet(address=b"1")), "4 or 16"),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_JSON), message(json_value="{"), "line 1"),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_JSON), message(json_value="NaN"), "not JSON"),
        (table_pb2.ColumnType(kind=K.TYPE_KIND_VARINT), message(varint_value=b""), "no bytes"),
    ],
)
async def test_what_does_not_fit_is_refused_with_its_path(
    db: Database, type_: table_pb2.ColumnType, bad: V, what: str
) -> None:
    await create(db, "t", column("id", K.TYPE_KIND_INT64), table_pb2.Column(name="v", type=type_), key=["id"])
    with pytest.raises(errors.DataInvalid, match=what) as raised:
        await writing.insert_records(db, insertion("t", record(id=1), record(id=2, v=bad)))
    assert raised.value.violations[0].field == "records[1].fields['v']"
    assert not (await page(db, "t")).records
    # In bulk only that row.
    done = await load(db, "t", ["id", "v"], [[1, None], [2, bad], [3, None]])
    assert (done.inserted, done.failed) == (2, 1)
    assert [one.first_row for one in done.row_statuses if one.status.code] == [1]


async def test_a_value_without_a_kind_is_not_null(db: Database) -> None:
    await create(db, "t", column("id", K.TYPE_KIND_INT64), column("v", K.TYPE_KIND_TEXT), key=["id"])
    with pytest.raises(errors.FieldRequired, match="null_value"):
        await writing.insert_records(db, insertion("t", record(id=1, v=V())))


async def test_nan_is_kept_or_refused(db: Database) -> None:
    await create(db, "t", column("id", K.TYPE_KIND_INT64), column("v", K.TYPE_KIND_DOUBLE), key=["id"])
    write = writing.insert_records(db, insertion("t", record(id=1, v=math.nan)))
    if db.backend.name == "SQLite":  # which would store null
        with pytest.raises(errors.DataInvalid, match="NaN"):
            await write
    else:
        await write
        assert math.isnan((await page(db, "t")).records[0].fields["v"].double_value)


async def test_a_decimal_has_the_digits_that_are_declared(db: Database) -> None:
    await create(db, "t", column("v", K.TYPE_KIND_DECIMAL, precision=30, scale=3), column("w", K.TYPE_KIND_DECIMAL))
    number = decimal.Decimal("123456789012345678901234567.5")
    await writing.insert_records(db, insertion("t", record(v=number, w=number)))
    fields = (await page(db, "t")).records[0].fields
    assert codecs.decimal_from_proto(fields["v"].decimal_value).as_tuple().exponent == -3
    assert fields["w"] == value(number)


async def test_numbers_are_taken_as_whole_numbers_too(db: Database) -> None:
    kinds = (K.TYPE_KIND_DOUBLE, K.TYPE_KIND_FLOAT, K.TYPE_KIND_DECIMAL, K.TYPE_KIND_VARINT)
    await create(db, "t", *(column(f"c{index}", kind) for index, kind in enumerate(kinds)))
    await writing.insert_records(db, insertion("t", record(c0=7, c1=7, c2=7, c3=7)))
    fields = (await page(db, "t")).records[0].fields
    assert fields["c0"] == value(7.0)
    assert fields["c1"] == message(float_value=7.0)
    assert codecs.decimal_from_proto(fields["c2"].decimal_value) == 7
    assert fields["c3"] == message(varint_value=b"\x07")


@given(st.integers())
def test_varint_bytes_are_the_shortest(number: int) -> None:
    data = int_to_bytes(number)
    assert int_from_bytes(data) == number
    if len(data) > 1:
        with pytest.raises(OverflowError):
            number.to_bytes(len(data) - 1, "big", signed=True)


async def test_numbers_of_tables_of_before_are_still_numbers(lite: Database) -> None:
    async with lite.transaction() as connection:
        await connection.exec_driver_sql("CREATE TABLE t (id INTEGER PRIMARY KEY, f REAL32, d DOUBLE)")
    await writing.insert_records(lite, insertion("t", record(id=1, f=message(float_value=1.5), d=2.0)))
    read = await page(lite, "t")
    assert [one.type.kind for one in read.columns][1:] == [K.TYPE_KIND_FLOAT, K.TYPE_KIND_DOUBLE]
    assert (read.records[0].fields["f"], read.records[0].fields["d"]) == (message(float_value=1.5), value(2.0))
