"""Every type crosses and comes back as it was, by records, rows and columns; what does not fit is refused."""

from __future__ import annotations

import datetime as dt
import ipaddress
import math
import struct
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import timestamp_pb2
from hypothesis import strategies as st
from onecontainer_driver_cassandra import bulk, catalog, reading, writing
from onecontainer_driver_cassandra.calendar import MAX_DAYS, MIN_DAYS, date_from_days, days_from_date
from onecontainer_driver_cassandra.conditions import comparable
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.types import codec, from_cql

from drivers.cassandra.tests.calls import INT, TEXT, Q, create, of, page, select, typed
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import NULL, int_to_bytes
from tests.fixtures.records import SERVICE, K, drawn, equals, insertion, record, setting, updating, value

pytestmark = pytest.mark.asyncio(loop_scope="session")
V = value_pb2.Value


def listed(kind: str, values: list[V]) -> V:
    return V(**{kind: value_pb2.ListValue(values=values)})


def ints(bits: int) -> st.SearchStrategy[V]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).map(value)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(value)
addresses = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
timeuuids = st.builds(
    lambda number, node: V(uuid_value=uuid.UUID(int=(number & ~(0xF << 76)) | (1 << 76)).bytes[:8] + node),
    st.integers(0, 2**128 - 1),
    st.binary(min_size=8, max_size=8),
)
times = st.integers(0, 86_400 * 10**9 - 1).map(
    lambda nanos: V(
        time_value=value_pb2.Time(
            hours=nanos // 3_600_000_000_000,
            minutes=nanos // 60_000_000_000 % 60,
            seconds=nanos // 10**9 % 60,
            nanos=nanos % 10**9,
        )
    )
)
durations = st.tuples(
    st.sampled_from([1, -1]), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1)
).map(
    lambda parts: V(
        duration_value=value_pb2.CalendarDuration(
            months=parts[0] * parts[1], days=parts[0] * parts[2], nanos=parts[0] * parts[3]
        )
    )
)
decimals = st.tuples(st.integers(-(10**60), 10**60), st.integers(-(2**31), 2**31 - 1)).map(
    lambda pair: V(decimal_value=value_pb2.Decimal(unscaled=int_to_bytes(pair[0]), scale=pair[1]))
)
timestamps = st.integers(-62_135_596_800_000, 253_402_300_799_999).map(
    lambda millis: V(timestamp_value=timestamp_pb2.Timestamp(seconds=millis // 1000, nanos=millis % 1000 * 1_000_000))
)
floats = st.floats(width=32, allow_nan=False)
EDGES: dict[str, list[V]] = {
    "tinyint": [value(-(2**7)), value(2**7 - 1)],
    "smallint": [value(-(2**15)), value(2**15 - 1)],
    "int": [value(-(2**31)), value(2**31 - 1)],
    "bigint": [value(-(2**63)), value(2**63 - 1)],
    "float": [V(float_value=number) for number in (-0.0, math.inf, -math.inf, 2.0**-149)],
    "double": [value(number) for number in (-0.0, math.inf, -math.inf, 5e-324, 1.7976931348623157e308)],
    "timestamp": [
        V(timestamp_value=timestamp_pb2.Timestamp(seconds=-62_135_596_800)),
        V(timestamp_value=timestamp_pb2.Timestamp(seconds=253_402_300_799, nanos=999_000_000)),
    ],
    "date": [V(date_value=date_from_days(days)) for days in (MIN_DAYS, MAX_DAYS)]
    + [
        V(date_value=value_pb2.Date(year=year, month=month, day=day))
        for year, month, day in ((1, 1, 1), (9999, 12, 31))
    ],
    "time": [
        V(time_value=value_pb2.Time()),
        V(time_value=value_pb2.Time(hours=23, minutes=59, seconds=59, nanos=999_999_999)),
    ],
}
"""What a random sample would hardly have: the ends of each type."""
SCALARS: dict[str, tuple[table_pb2.ColumnType, st.SearchStrategy[V]]] = {
    "boolean": (of(K.TYPE_KIND_BOOL), st.booleans().map(value)),
    "tinyint": (of(K.TYPE_KIND_INT8), ints(8)),
    "smallint": (of(K.TYPE_KIND_INT16), ints(16)),
    "int": (INT, ints(32)),
    "bigint": (of(K.TYPE_KIND_INT64), ints(64)),
    "varint": (of(K.TYPE_KIND_VARINT), st.integers(-(10**99), 10**99).map(lambda n: V(varint_value=int_to_bytes(n)))),
    "float": (of(K.TYPE_KIND_FLOAT), floats.map(lambda number: V(float_value=number))),
    "double": (of(K.TYPE_KIND_DOUBLE), st.floats(allow_nan=False).map(value)),
    "decimal": (of(K.TYPE_KIND_DECIMAL), decimals),
    "text": (TEXT, texts),
    "ascii": (of(K.TYPE_KIND_ASCII), st.text(st.characters(max_codepoint=127), max_size=40).map(value)),
    "blob": (of(K.TYPE_KIND_BYTES), st.binary(max_size=100).map(value)),
    "timestamp": (of(K.TYPE_KIND_TIMESTAMP), timestamps),
    "date": (of(K.TYPE_KIND_DATE), st.integers(MIN_DAYS, MAX_DAYS).map(lambda n: V(date_value=date_from_days(n)))),
    "time": (of(K.TYPE_KIND_TIME), times),
    "uuid": (of(K.TYPE_KIND_UUID), st.uuids().map(value)),
    "timeuuid": (of(K.TYPE_KIND_TIMEUUID), timeuuids),
    "duration": (of(K.TYPE_KIND_DURATION), durations),
    "inet": (of(K.TYPE_KIND_INET), addresses.map(lambda one: V(inet_value=value_pb2.Inet(address=one)))),
    "vector": (
        of(K.TYPE_KIND_VECTOR, dimension=3),
        st.lists(floats, min_size=3, max_size=3).map(lambda n: V(vector_value=value_pb2.FloatVector(values=n))),
    ),
}


def lists(one: st.SearchStrategy[V]) -> st.SearchStrategy[V]:
    return st.lists(one, min_size=1, max_size=3).map(lambda values: listed("list_value", values))


def in_order(values: list[V]) -> list[V]:
    return sorted(values, key=comparable)


def sets(one: st.SearchStrategy[V]) -> st.SearchStrategy[V]:
    distinct = st.lists(one, min_size=1, max_size=3, unique_by=comparable)
    return distinct.map(lambda values: listed("set_value", in_order(values)))


def maps(keys: st.SearchStrategy[V], values: st.SearchStrategy[V]) -> st.SearchStrategy[V]:
    pairs = st.lists(st.tuples(keys, values), min_size=1, max_size=3, unique_by=lambda pair: comparable(pair[0]))
    return pairs.map(
        lambda found: V(
            map_value=value_pb2.MapValue(
                entries=[
                    value_pb2.MapEntry(key=key, value=one)
                    for key, one in sorted(found, key=lambda pair: comparable(pair[0]))
                ]
            )
        )
    )


def structs(**fields: st.SearchStrategy[V]) -> st.SearchStrategy[V]:
    return st.fixed_dictionaries(fields).map(lambda found: V(struct_value=value_pb2.StructValue(fields=found)))


maybe_text, maybe_int = st.just(NULL) | texts, st.just(NULL) | ints(32)
STRUCT = of(K.TYPE_KIND_STRUCT, struct_name="Address")
COMPOSED: dict[str, tuple[table_pb2.ColumnType, st.SearchStrategy[V]]] = {
    **{
        f"list_{name}": (of(K.TYPE_KIND_LIST, SCALARS[name][0]), lists(SCALARS[name][1]))
        for name in ("decimal", "timestamp", "duration", "vector", "date")
    },
    **{
        f"set_{name}": (of(K.TYPE_KIND_SET, SCALARS[name][0]), sets(SCALARS[name][1]))
        for name in ("text", "int", "time", "blob")
    },
    "map_text_double": (of(K.TYPE_KIND_MAP, TEXT, SCALARS["double"][0]), maps(texts, SCALARS["double"][1])),
    "map_int_inet": (of(K.TYPE_KIND_MAP, INT, SCALARS["inet"][0]), maps(ints(32), SCALARS["inet"][1])),
    "tuple": (
        of(K.TYPE_KIND_TUPLE, INT, TEXT),
        st.tuples(maybe_int, maybe_text).map(lambda pair: listed("tuple_value", list(pair))),
    ),
    "struct": (STRUCT, structs(street=texts, number=maybe_int, lines=lists(texts))),
    "nested": (
        of(K.TYPE_KIND_LIST, of(K.TYPE_KIND_MAP, TEXT, of(K.TYPE_KIND_SET, INT))),
        lists(maps(texts, sets(ints(32)))),
    ),
    "frozen": (of(K.TYPE_KIND_SET, INT, frozen=True), sets(ints(32))),
    "list_of_structs": (
        of(K.TYPE_KIND_LIST, STRUCT),
        lists(structs(street=texts, number=maybe_int, lines=lists(texts))),
    ),
}
TYPES = SCALARS | COMPOSED
TABLE, COPY = "AllTypes", "AllTypesCopy"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def every_type(db: Database) -> None:
    """Two tables with a column of each type."""
    await db.session.define(
        f'CREATE TYPE "{db.keyspace}"."Address" (street text, number int, lines frozen<list<text>>)'
    )
    for table in (TABLE, COPY):
        columns = [typed(f"c_{name}", one[0]) for name, one in TYPES.items()]
        await create(db, table, typed("type", TEXT), typed("id", INT), *columns, key=["type"], order=["id"])


@pytest.mark.parametrize("name", TYPES)
async def test_values_come_back_as_they_were(db: Database, every_type: None, name: str) -> None:
    kind, strategy = TYPES[name]
    count = 30 if name in SCALARS else 5
    expected = [*drawn(st.lists(strategy, min_size=count, max_size=count)), *EDGES.get(name, []), NULL]
    records = [record(type=name, id=index, **{f"c_{name}": one}) for index, one in enumerate(expected)]
    await writing.insert_records(db, insertion(TABLE, *records))
    query = Q(where=equals("type", name), columns=["type", "id", f"c_{name}"])
    read = await page(db, TABLE, query, page_size=1000)
    assert [one.fields[f"c_{name}"] for one in read.records] == expected
    assert read.columns[2].type.kind == kind.kind
    # As columns to the caller, and from the caller.
    request = pb.StreamRecordsRequest(
        service=SERVICE, table=TABLE, encoding=record_pb2.BATCH_ENCODING_COLUMNS, query=query
    )
    batches = [response.batch async for response in reading.stream_records(db, request)]

    async def requests() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table=COPY)
        for batch in batches:
            yield pb.BulkInsertRequest(batch=batch)

    done = await bulk.bulk_insert(db, requests())
    assert done.inserted == len(expected), done
    copied = await page(db, COPY, query, page_size=1000)
    assert [one.fields[f"c_{name}"] for one in copied.records] == expected


async def test_the_table_tells_each_type_as_it_was_asked_for(db: Database, every_type: None) -> None:
    found = await db.fresh_table(TABLE)
    for name, (kind, _) in TYPES.items():
        told = found.columns[f"c_{name}"].type
        assert (told.kind, told.dimension, told.frozen) == (kind.kind, kind.dimension, kind.frozen or name == "tuple")
    assert [one.name for one in found.columns["c_struct"].type.struct_fields] == ["street", "number", "lines"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -0.0])
async def test_floating_point_keeps_every_bit(db: Database, every_type: None, number: float) -> None:
    await writing.insert_records(
        db, insertion(TABLE, record(type="bits", id=1, c_double=number, c_float=V(float_value=number)))
    )
    read = (await page(db, TABLE, Q(where=equals("type", "bits")))).records[0].fields
    assert struct.pack(">d", read["c_double"].double_value) == struct.pack(">d", number)
    assert struct.pack(">f", read["c_float"].float_value) == struct.pack(">f", number)


async def test_an_empty_collection_is_null_unless_it_is_frozen(db: Database, every_type: None) -> None:
    empty = {"c_list_date": listed("list_value", []), "c_frozen": listed("set_value", [])}
    await writing.insert_records(db, insertion(TABLE, record(type="empty", id=1, **empty)))
    read = (await page(db, TABLE, Q(where=equals("type", "empty")))).records[0].fields
    assert read["c_list_date"] == NULL
    assert read["c_frozen"] == empty["c_frozen"]


REFUSED: list[tuple[str, Any, str]] = [
    ("tinyint", 128, "from -128 to 127"),
    ("smallint", -(2**15) - 1, "from -32768"),
    ("int", 2**31, "from -2147483648"),
    ("int", "1", "is text_value, but the column takes int64_value"),
    ("int", 1.0, "is double_value"),
    ("text", 1, "is int64_value"),
    ("float", 2**24 + 1, "exactly"),
    ("double", 2**53 + 1, "exactly"),
    ("varint", V(varint_value=b""), "has no bytes"),
    ("decimal", V(decimal_value=value_pb2.Decimal()), "has no bytes"),
    ("ascii", "ä", "not ASCII"),
    ("uuid", V(uuid_value=b"x"), "a UUID has 16"),
    ("timeuuid", V(uuid_value=uuid.UUID(int=4 << 76).bytes), "version 4"),
    ("timestamp", V(timestamp_value=timestamp_pb2.Timestamp(nanos=1)), "milliseconds"),
    ("timestamp", V(timestamp_value=timestamp_pb2.Timestamp(seconds=253_402_300_800)), "years 1 to 9999"),
    ("timestamp", V(timestamp_value=timestamp_pb2.Timestamp(nanos=-1)), "nanos"),
    ("date", V(date_value=value_pb2.Date(year=2023, month=2, day=29)), "is not a date"),
    ("date", V(date_value=value_pb2.Date(year=6_000_000, month=1, day=1)), "5881580"),
    ("time", V(time_value=value_pb2.Time(hours=24)), "time of day"),
    ("duration", V(duration_value=value_pb2.CalendarDuration(months=1, days=-1)), "different signs"),
    ("inet", V(inet_value=value_pb2.Inet(address=b"123")), "4 or 16"),
    (
        "inet",
        V(inet_value=value_pb2.Inet(address=ipaddress.ip_address("10.0.0.1").packed, prefix_length=8)),
        "prefix length",
    ),
    ("list_date", listed("list_value", [NULL]), "element 0 is null"),
    ("set_int", listed("set_value", [value(1), value(1)]), "twice"),
    ("set_int", listed("list_value", [value(1)]), "is list_value"),
    ("set_int", listed("set_value", [value("x")]), "element 0 is text_value"),
    ("tuple", listed("tuple_value", [value(1)]), "has 1 elements, the column takes 2"),
    ("struct", V(struct_value=value_pb2.StructValue(fields={"nope": value(1)})), "has a field 'nope'"),
    ("vector", V(vector_value=value_pb2.FloatVector(values=[1.0])), "has 1 numbers, the column takes 3"),
    ("map_int_inet", V(map_value=value_pb2.MapValue(entries=[value_pb2.MapEntry(key=NULL, value=NULL)])), "is null"),
]


@pytest.mark.parametrize(("name", "given", "message"), REFUSED)
async def test_what_does_not_fit_is_refused(
    db: Database, every_type: None, name: str, given: Any, message: str
) -> None:
    with pytest.raises(errors.DataInvalid, match=message) as raised:
        await writing.insert_records(db, insertion(TABLE, record(type="no", id=1, **{f"c_{name}": given})))
    assert raised.value.violations[0].field == f"records[0].fields['c_{name}']"
    if name not in ("tuple", "struct"):
        with pytest.raises(errors.DataInvalid):
            where = updating(TABLE, None, setting(f"c_{name}", given))
            where.where.CopyFrom(reading_filter())
            await writing.update_records(db, where)
    assert await select(db, TABLE, Q(where=equals("type", "no"), columns=["id"])) == []


def reading_filter() -> query_pb2.Filter:
    return query_pb2.Filter(all_of=query_pb2.FilterList(filters=[equals("type", "no"), equals("id", 1)]))


async def test_a_value_without_a_kind_is_asked_for(db: Database, every_type: None) -> None:
    with pytest.raises(errors.FieldRequired):
        await writing.insert_records(db, insertion(TABLE, record(type="no", id=1, c_int=V())))


async def test_dates_are_those_of_python_where_it_has_them() -> None:
    for date in (dt.date(1, 1, 1), dt.date(1969, 12, 31), dt.date(2000, 2, 29), dt.date(9999, 12, 31)):
        days = date.toordinal() - dt.date(1970, 1, 1).toordinal()
        proto = value_pb2.Date(year=date.year, month=date.month, day=date.day)
        assert date_from_days(days) == proto
        assert days_from_date(proto) == days
    assert date_from_days(MIN_DAYS) == value_pb2.Date(year=-5877641, month=6, day=23)
    assert date_from_days(MAX_DAYS) == value_pb2.Date(year=5881580, month=7, day=11)


@pytest.mark.parametrize("text", ["vector<text, 3>", "'org.example.Custom'", "list<nope>", "frozen<", "vector<float>"])
async def test_a_type_without_a_kind_is_native(text: str) -> None:
    found = from_cql(text, {})
    assert (found.kind, found.native_type) == (K.TYPE_KIND_NATIVE, text)
    assert codec(found).read(b"\x01\xff").native_value.text == "0x01ff"
    with pytest.raises(ValueError, match="cannot be written"):
        codec(found).write(V(native_value=value_pb2.NativeValue(text="x")))


async def test_types_of_types_are_read_in_any_order(db: Database, every_type: None) -> None:
    await db.session.define(f'CREATE TYPE "{db.keyspace}"."AOuter" (inner frozen<"Address">)')
    found = await catalog.structs(db.session)
    assert found["AOuter"][0].type.struct_name == "Address"
    assert [one.name for one in found["AOuter"][0].type.struct_fields] == ["street", "number", "lines"]
