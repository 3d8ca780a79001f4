"""Inserts, updates, deletes, their conditions and their rails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from onecontainer_driver_cassandra import tables, writing
from onecontainer_driver_cassandra.database import Database

from drivers.cassandra.tests.calls import FAIL, IF_NOT_EXISTS, INT, TEXT, Q, create, events, here, of, select, typed
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2
from onecontainer.driver import errors
from tests.fixtures.records import (
    SERVICE,
    K,
    all_of,
    column,
    compare,
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
A = record_pb2.Assignment
NOT_EQUAL, LESS, GREATER = query_pb2.OPERATOR_NOT_EQUAL, query_pb2.OPERATOR_LESS, query_pb2.OPERATOR_GREATER
EXISTS = record_pb2.WriteCondition(if_exists=True)


def event(at: int = 1, kind: str = "k", **more: Any) -> record_pb2.Record:
    return record(place="here", day=1, at=at, kind=kind, **more)


def one(at: int = 1, kind: str = "k") -> query_pb2.Filter:
    return here(at=at, kind=kind)


def fields(node: query_pb2.Filter) -> record_pb2.WriteCondition:
    return record_pb2.WriteCondition(if_fields=node)


def options(**given: Any) -> record_pb2.WriteOptions:
    return record_pb2.WriteOptions(**given)


def seconds(count: int) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=count)


async def notes(db: Database, table: str) -> dict[int, Any]:
    return {row["at"]: row["note"] for row in await select(db, table)}


# --- insert ------------------------------------------------------------------------------------------------------


async def test_insert_modes(db: Database, table: str) -> None:
    await events(db, table)
    done = await writing.insert_records(db, insertion(table, event(1, note="a"), event(2, note="b")))
    assert (done.applied, done.affected, len(done.results)) == (True, 2, 2)
    await writing.insert_records(db, insertion(table, event(1, score=7)))
    assert (await select(db, table, Q(where=one())))[0] | {"head": None} == {
        "place": "here",
        "day": 1,
        "at": 1,
        "kind": "k",
        "note": "a",
        "score": 7,
        "head": None,
    }
    left = await writing.insert_records(
        db, insertion(table, event(1, note="c"), event(3, note="d"), mode=IF_NOT_EXISTS)
    )
    assert (left.applied, left.affected) == (False, 1)
    assert [result.applied for result in left.results] == [False, True]
    assert unrecord(left.results[0].current)["note"] == "a"
    with pytest.raises(errors.ResourceConflict, match=r"records\[1\].*1 of 2 were written"):
        await writing.insert_records(db, insertion(table, event(4), event(1, note="c"), mode=FAIL))
    # Of two records of one key the latter stays.
    same = [event(9, note=str(index)) for index in range(30)]
    await writing.insert_records(db, insertion(table, *same))
    assert await notes(db, table) == {1: "a", 2: "b", 3: "d", 4: None, 9: "29"}
    # A dry run checks, counts, and writes nothing.
    dry = await writing.insert_records(
        db, insertion(table, event(1, note="x"), event(5, note="x"), mode=IF_NOT_EXISTS, dry_run=True)
    )
    assert [result.applied for result in dry.results] == [False, True]
    assert unrecord(dry.results[0].current)["note"] == "a"
    with pytest.raises(errors.ResourceConflict):
        await writing.insert_records(db, insertion(table, event(1), mode=FAIL, dry_run=True))
    # Of two records of one key the latter would find the former.
    twice = (event(6, note="first"), event(6, note="second"))
    with pytest.raises(errors.ResourceConflict, match=r"records\[1\]"):
        await writing.insert_records(db, insertion(table, *twice, mode=FAIL, dry_run=True))
    dry = await writing.insert_records(db, insertion(table, *twice, mode=IF_NOT_EXISTS, dry_run=True))
    assert sorted(await notes(db, table)) == [1, 2, 3, 4, 9]
    assert dry == await writing.insert_records(db, insertion(table, *twice, mode=IF_NOT_EXISTS))
    await writing.delete_records(db, deletion(table, one(6)))
    assert sorted(await notes(db, table)) == [1, 2, 3, 4, 9]


async def test_static_columns_are_the_partitions(db: Database, table: str) -> None:
    await events(db, table)
    await writing.insert_records(db, insertion(table, record(place="here", day=1, head="H")))
    await writing.insert_records(db, insertion(table, event(1), event(2)))
    assert {row["head"] for row in await select(db, table)} == {"H"}
    await writing.update_records(db, updating(table, here(), setting("head", "I")))
    found = await select(db, table, Q(columns=["place", "day", "head"], distinct=True))
    assert found == [{"place": "here", "day": 1, "head": "I"}]
    await writing.delete_records(db, deletion(table, here(), columns=["head"]))
    assert {row["head"] for row in await select(db, table)} == {None}


@pytest.mark.parametrize(
    ("bad", "kind", "path"),
    [
        (record(place="here", day=1, at=1), errors.FieldRequired, "records[0].fields['kind']"),
        (record(place=None, day=1, at=1, kind="k"), errors.DataInvalid, "records[0].fields['place']"),
        (event(nope=1), errors.FieldInvalid, "records[0].fields['nope']"),
        (event(note=1), errors.DataInvalid, "records[0].fields['note']"),
        (event(kind="x" * 70_000), errors.DataInvalid, "records[0].fields['kind']"),
    ],
)
async def test_wrong_records_are_refused(shared: str, db: Database, bad: Any, kind: Any, path: str) -> None:
    with pytest.raises(kind) as raised:
        await writing.insert_records(db, insertion(shared, bad))
    assert raised.value.violations[0].field == path


@pytest.fixture(scope="module")
def shared_id() -> str:
    return "Shared"


@pytest.fixture
async def shared(db: Database, shared_id: str) -> str:
    """A table for what is refused before it reaches Cassandra."""
    if db.tables.get(shared_id) is None:
        await tables.drop_table(db, pb.DropTableRequest(service=SERVICE, table=shared_id, if_exists=True))
        await events(db, shared_id)
    return shared_id


# --- ttl, timestamp, consistency -----------------------------------------------------------------------------------


async def test_ttl_timestamp_and_consistency(db: Database, table: str) -> None:
    await events(db, table)
    late = timestamp_pb2.Timestamp(seconds=4_000_000_000, nanos=5000)
    await writing.insert_records(
        db,
        insertion(table, event(1, note="late"), options=options(timestamp=late, consistency=query_pb2.CONSISTENCY_ALL)),
    )
    await writing.update_records(db, updating(table, one(), setting("note", "now")))
    assert await notes(db, table) == {1: "late"}
    await writing.delete_records(db, deletion(table, one(), options=options(timestamp=late)))
    assert await notes(db, table) == {}
    await writing.insert_records(db, insertion(table, event(2, note="short"), options=options(ttl=seconds(1000))))
    await writing.update_records(db, updating(table, one(2), setting("score", 5), options=options(ttl=seconds(2000))))
    name = (await db.table(table)).cql
    left = await db.session.ask(f"SELECT TTL(note), TTL(score) FROM {name} WHERE place = 'here' AND day = 1")
    found = [int.from_bytes(cell or b"", "big") for cell in left[0]]
    assert 900 < found[0] <= 1000 < 1900 < found[1] <= 2000


LATER = timestamp_pb2.Timestamp(seconds=1)


@pytest.mark.parametrize(
    ("request_", "kind", "path"),
    [
        (
            insertion("Shared", event(), options=options(ttl=duration_pb2.Duration(seconds=0))),
            errors.FieldInvalid,
            "options.ttl",
        ),
        (
            insertion("Shared", event(), options=options(ttl=duration_pb2.Duration(nanos=5))),
            errors.FieldInvalid,
            "options.ttl",
        ),
        (insertion("Shared", event(), options=options(ttl=seconds(630_720_001))), errors.FieldInvalid, "options.ttl"),
        (
            insertion("Shared", event(), options=options(timestamp=timestamp_pb2.Timestamp(nanos=1))),
            errors.FieldInvalid,
            "options.timestamp",
        ),
        (
            insertion("Shared", event(), options=options(timestamp=LATER), mode=IF_NOT_EXISTS),
            errors.FieldInvalid,
            "options.timestamp",
        ),
        (
            insertion("Shared", event(), options=options(consistency=query_pb2.CONSISTENCY_SERIAL)),
            errors.FieldInvalid,
            "options.consistency",
        ),
        (
            insertion("Shared", event(), options=options(serial_consistency=query_pb2.CONSISTENCY_ONE)),
            errors.FieldInvalid,
            "options.serial_consistency",
        ),
        (insertion("Shared", event(), returning=["*"]), errors.BackendCapabilityMissing, "returning"),
        (insertion("Shared", event(), mode=9), errors.FieldInvalid, "mode"),
        (insertion("Shared"), errors.FieldRequired, "records"),
        (updating("Shared", None, setting("note", "x")), errors.FieldRequired, "where"),
        (
            updating("Shared", all_of(), setting("note", "x")),
            errors.FieldRequired,
            "where",
        ),
        (
            updating("Shared", None, setting("note", "x"), all_records=True),
            errors.BackendCapabilityMissing,
            "all_records",
        ),
        (updating("Shared", here(), setting("note", "x")), errors.BackendCapabilityMissing, "where"),
        (updating("Shared", here(at=1), setting("note", "x"), condition=EXISTS), errors.FieldInvalid, "where"),
        (updating("Shared", one(), setting("at", 2)), errors.FieldInvalid, "assignments[0].column"),
        (
            updating("Shared", one(), setting("note", "x"), setting("note", "y")),
            errors.FieldInvalid,
            "assignments[1].column",
        ),
        (updating("Shared", one()), errors.FieldRequired, "assignments"),
        (updating("Shared", one(), A(column="note")), errors.FieldRequired, "assignments[0].set"),
        (
            updating("Shared", one(), A(column="score", add=value(1))),
            errors.BackendCapabilityMissing,
            "assignments[0].add",
        ),
        (updating("Shared", one(), setting("note", "x"), max_affected=0), errors.FieldInvalid, "max_affected"),
        (
            updating("Shared", one(), setting("note", "x"), returning=["note"]),
            errors.BackendCapabilityMissing,
            "returning",
        ),
        (
            updating("Shared", one(), setting("note", "x"), condition=record_pb2.WriteCondition(if_exists=False)),
            errors.FieldInvalid,
            "condition.if_exists",
        ),
        (
            updating("Shared", one(), setting("note", "x"), condition=fields(equals("at", 1))),
            errors.BackendCapabilityMissing,
            "condition.if_fields.comparison.column",
        ),
        (
            updating("Shared", one(), setting("note", "x"), condition=fields(compare("note", NOT_EQUAL, "a"))),
            errors.BackendCapabilityMissing,
            "condition.if_fields",
        ),
        (deletion("Shared", None), errors.FieldRequired, "where"),
        (deletion("Shared", one(), options=options(ttl=seconds(5))), errors.FieldInvalid, "options.ttl"),
        (deletion("Shared", equals("note", "x")), errors.BackendCapabilityMissing, "where.comparison"),
        (deletion("Shared", here(), max_affected=5), errors.BackendCapabilityMissing, "max_affected"),
        (deletion("Shared", here(at=1), condition=EXISTS), errors.FieldInvalid, "where"),
        (deletion("Shared", one(), columns=["at"]), errors.FieldInvalid, "columns[0]"),
        (deletion("Shared", None, all_records=True, max_affected=1), errors.BackendCapabilityMissing, "max_affected"),
        (deletion("Shared", one(), all_records=True), errors.FieldInvalid, "all_records"),
        (deletion("Shared", all_of()), errors.FieldRequired, "where"),
        (deletion("Shared", all_of(all_of())), errors.FieldRequired, "where"),
        (deletion("Shared", equals("place", "here")), errors.BackendCapabilityMissing, "where"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_path(
    shared: str, db: Database, request_: Any, kind: Any, path: str
) -> None:
    calls: dict[type, Any] = {
        pb.InsertRecordsRequest: writing.insert_records,
        pb.UpdateRecordsRequest: writing.update_records,
        pb.DeleteRecordsRequest: writing.delete_records,
    }
    with pytest.raises(kind) as raised:
        await calls[type(request_)](db, request_)
    assert raised.value.violations[0].field == path
    assert await select(db, shared) == []


# --- conditions ----------------------------------------------------------------------------------------------------

CONDITIONS = [
    (EXISTS, True),
    (fields(equals("note", "a")), True),
    (fields(equals("note", "b")), False),
    (fields(all_of(compare("note", NOT_EQUAL, "b"), equals("score", 5))), True),
    (fields(all_of(compare("note", NOT_EQUAL, "a"), equals("score", 5))), False),
    (fields(all_of(compare("head", NOT_EQUAL, "b"), equals("score", 5))), True),
    (fields(all_of(equals("note", "a"), compare("score", GREATER, 4))), True),
    (fields(all_of(equals("note", "a"), compare("score", LESS, 5))), False),
    (fields(query_pb2.Filter(membership=query_pb2.Membership(column="score", values=[value(1), value(5)]))), True),
    (fields(query_pb2.Filter(membership=query_pb2.Membership(column="score", values=[value(1)]))), False),
    (
        fields(
            query_pb2.Filter(range=query_pb2.Range(column="score", lower=value(5), upper=value(6), upper_open=True))
        ),
        True,
    ),
    (fields(query_pb2.Filter(range=query_pb2.Range(column="score", lower=value(5), lower_open=True))), False),
]


async def test_conditions_hold_or_show_the_record(db: Database, table: str) -> None:
    """A dry run judges by itself what Cassandra judges: the two must agree."""
    await events(db, table)
    for condition, expected in CONDITIONS:
        await writing.insert_records(db, insertion(table, event(1, note="a", score=5)))
        request = updating(table, one(), setting("note", "a"), condition=condition)
        dry = pb.UpdateRecordsRequest()
        dry.CopyFrom(request)
        dry.dry_run = True
        foreseen = await writing.update_records(db, dry)
        done = await writing.update_records(db, request)
        assert (foreseen.applied, done.applied, done.affected) == (expected, expected, int(expected)), condition
        if not expected:
            assert unrecord(done.current).items() >= {"place": "here", "at": 1}.items()
            assert unrecord(foreseen.current)["note"] == "a"
        else:
            assert not done.HasField("current")
        absent = await writing.update_records(db, updating(table, one(99), setting("note", "x"), condition=condition))
        assert (absent.applied, absent.HasField("current")) == (False, False)
    gone = await writing.delete_records(db, deletion(table, one(), condition=fields(equals("score", 4))))
    assert (gone.applied, unrecord(gone.current)["score"]) == (False, 5)
    assert (await writing.delete_records(db, deletion(table, one(), condition=EXISTS, dry_run=True))).applied
    assert (await writing.delete_records(db, deletion(table, one(), condition=EXISTS))).affected == 1
    assert not (await writing.delete_records(db, deletion(table, one(), condition=EXISTS))).applied


async def test_of_20_concurrent_conditional_updates_exactly_one_applies(db: Database, table: str) -> None:
    await events(db, table)
    await writing.insert_records(db, insertion(table, event(1, score=0)))
    contenders = [
        writing.update_records(
            db,
            updating(table, one(), setting("score", 1), setting("note", str(n)), condition=fields(equals("score", 0))),
        )
        for n in range(20)
    ]
    done = await asyncio.gather(*contenders)
    assert sum(one_.applied for one_ in done) == 1
    (winner,) = [str(n) for n, one_ in enumerate(done) if one_.applied]
    assert await notes(db, table) == {1: winner}
    assert all(unrecord(one_.current)["score"] == 1 for one_ in done if not one_.applied)
    inserts = [writing.insert_records(db, insertion(table, event(2), mode=IF_NOT_EXISTS)) for _ in range(20)]
    assert sum(one_.applied for one_ in await asyncio.gather(*inserts)) == 1


# --- update and delete -------------------------------------------------------------------------------------------


async def test_collections_and_structs_change_in_part(db: Database, table: str) -> None:
    if not await db.session.ask(
        "SELECT type_name FROM system_schema.types WHERE keyspace_name = ? AND type_name = ?", b"Tests", b"Point"
    ):
        await db.session.define('CREATE TYPE "Tests"."Point" ("X" int, y int)')
    await create(
        db,
        table,
        typed("id", INT),
        typed("l", of(K.TYPE_KIND_LIST, INT)),
        typed("s", of(K.TYPE_KIND_SET, TEXT)),
        typed("m", of(K.TYPE_KIND_MAP, TEXT, INT)),
        typed("p", of(K.TYPE_KIND_STRUCT, struct_name="Point")),
        key=["id"],
    )
    key = equals("id", 1)

    async def change(*assignments: record_pb2.Assignment) -> None:
        await writing.update_records(db, updating(table, key, *assignments))

    def element(name: str, place: Any, what: Any) -> record_pb2.Assignment:
        return A(column=name, element=record_pb2.ElementAssignment(key=value(place), value=value(what)))

    # Without a condition a record that is not there is created.
    await change(setting("l", [2]), setting("s", {"a"}), setting("m", {"k": 1}))
    await change(A(column="l", add=value([3])), A(column="s", add=value({"b"})), A(column="m", add=value({"n": 2})))
    await change(A(column="l", prepend=value([1])), A(column="s", subtract=value({"a"})), element("m", "k", 5))
    await change(element("l", 1, 20), A(column="m", subtract=value({"n"})), element("p", "X", 1))
    await change(
        A(column="l", subtract=value([3])), element("m", "z", None), element("m", "y", 7), element("p", "y", 2)
    )

    async def row() -> dict[str, Any]:
        return (await select(db, table, Q(columns=["l", "s", "m"])))[0]

    assert await row() == {"l": [1, 20], "s": {"b"}, "m": {"k": 5, "y": 7}}
    held = query_pb2.Filter(comparison=query_pb2.Comparison(column="m", element=value("k"), value=value(5)))
    done = await writing.update_records(db, updating(table, key, setting("l", [9]), condition=fields(held)))
    assert done.applied
    dry = updating(table, key, setting("l", [8]), condition=fields(held), dry_run=True)
    assert (await writing.update_records(db, dry)).applied
    assert (await row())["l"] == [9]
    for bad, path in [
        (element("m", 1, 1), "assignments[0].element.key"),
        (element("l", -1, 1), "assignments[0].element.key"),
        (element("p", "x", 1), "assignments[0].element.key"),
        (element("s", "a", 1), "assignments[0].element.key"),
        (A(column="l", add=value(None)), "assignments[0].add"),
        (A(column="m", prepend=value([1])), "assignments[0].prepend"),
    ]:
        with pytest.raises((errors.DataInvalid, errors.FieldInvalid, errors.BackendCapabilityMissing)) as raised:
            await change(bad)
        assert raised.value.violations[0].field == path


async def test_counters(db: Database, table: str) -> None:
    await create(db, table, typed("id", INT), column("n", K.TYPE_KIND_COUNTER), key=["id"])
    for change in (A(column="n", add=value(5)), A(column="n", add=value(2)), A(column="n", subtract=value(10))):
        await writing.update_records(db, updating(table, equals("id", 1), change))
    assert await select(db, table) == [{"id": 1, "n": -3}]
    with pytest.raises(errors.BackendCapabilityMissing, match="use UpdateRecords"):
        await writing.insert_records(db, insertion(table, record(id=1, n=1)))
    with pytest.raises(errors.BackendCapabilityMissing, match="use add"):
        await writing.update_records(db, updating(table, equals("id", 1), setting("n", 1)))
    with pytest.raises(errors.BackendCapabilityMissing):
        late = options(timestamp=LATER)
        await writing.update_records(db, updating(table, equals("id", 1), A(column="n", add=value(1)), options=late))


async def test_deletes_by_key_range_and_all(db: Database, table: str) -> None:
    await events(db, table, 20)
    assert not (await writing.delete_records(db, deletion(table, one(0)))).HasField("affected")
    between = query_pb2.Filter(range=query_pb2.Range(column="at", lower=value(5), upper=value(10), upper_open=True))
    assert (await writing.delete_records(db, deletion(table, all_of(here(), between), dry_run=True))).applied
    await writing.delete_records(db, deletion(table, all_of(here(), between)))
    await writing.delete_records(db, deletion(table, one(19), columns=["note"]))
    found = await notes(db, table)
    assert sorted(found) == [1, 2, 3, 4, *range(10, 20)]
    assert found[19] is None
    none = query_pb2.Filter(membership=query_pb2.Membership(column="at"))
    assert (await writing.delete_records(db, deletion(table, all_of(here(), none)))).affected == 0
    several = query_pb2.Filter(membership=query_pb2.Membership(column="at", values=[value(1), value(2)]))
    await writing.delete_records(db, deletion(table, all_of(here(), several)))
    assert 1 not in await notes(db, table)
    await writing.delete_records(db, deletion(table, None, all_records=True, dry_run=True))
    assert await notes(db, table)
    await writing.delete_records(db, deletion(table, None, all_records=True))
    assert await notes(db, table) == {}


async def test_a_table_changed_by_others_is_read_again(db: Database, table: str) -> None:
    await events(db, table)
    await writing.insert_records(db, insertion(table, event(1, note="a")))
    name = (await db.table(table)).cql
    await db.session.define(f"ALTER TABLE {name} ADD extra text")
    request = insertion(table, event(1, extra="E"))
    assert (await db.tables.with_fresh([table], lambda: writing.insert_records(db, request))).applied
    await db.session.define(f"ALTER TABLE {name} DROP note")
    with pytest.raises(errors.FieldInvalid, match="no column 'note'"):
        gone = insertion(table, event(1, note="a"))
        await db.tables.with_fresh([table], lambda: writing.insert_records(db, gone))
    await db.session.define(f"DROP TABLE {name}")
    with pytest.raises(errors.ResourceNotFound):
        await db.tables.with_fresh([table], lambda: writing.insert_records(db, request))
