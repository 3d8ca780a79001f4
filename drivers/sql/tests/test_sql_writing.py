"""Inserts, updates, deletes and batches: conditions, rails, and that a write is all or nothing."""

from __future__ import annotations

import asyncio
import decimal
from typing import Any

import pytest
from google.protobuf import duration_pb2, timestamp_pb2
from onecontainer_driver_sql import writing
from onecontainer_driver_sql.database import Database

from drivers.sql.tests.calls import create, page, people, select
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import int_to_bytes
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
    setting,
    unrecord,
    updating,
    value,
)

ADA = {"id": 1, "name": "Ada", "age": 36}
IF_NOT_EXISTS = record_pb2.INSERT_MODE_IF_NOT_EXISTS
UPSERT = record_pb2.INSERT_MODE_UPSERT


def if_fields(filter_: query_pb2.Filter) -> record_pb2.WriteCondition:
    return record_pb2.WriteCondition(if_fields=filter_)


IF_EXISTS = record_pb2.WriteCondition(if_exists=True)


async def insert(
    database: Database, *records: record_pb2.Record, table: str = "people", **more: Any
) -> pb.InsertRecordsResponse:
    return await writing.insert_records(database, insertion(table, *records, **more))


# --- insert ------------------------------------------------------------------------------------------------------


async def test_insert_and_read(db: Database) -> None:
    await people(db)
    done = await insert(db, record(**ADA), record(id=2, name="O'Brien"))
    assert done.applied
    assert done.affected == 2
    assert len(done.results) == 2
    assert await select(db, "people") == [ADA, {"id": 2, "name": "O'Brien", "age": None}]


@pytest.mark.parametrize("mode", [record_pb2.INSERT_MODE_UNSPECIFIED, record_pb2.INSERT_MODE_FAIL])
@pytest.mark.parametrize("returning", [[], ["id"]])
async def test_a_conflict_leaves_nothing_of_the_call(db: Database, mode: int, returning: list[str]) -> None:
    await people(db)
    await insert(db, record(**ADA))
    with pytest.raises(errors.ResourceConflict, match=r"records\[1\]") as raised:
        await insert(db, record(id=2, name="x"), record(id=1, name="y"), mode=mode, returning=returning)
    assert raised.value.metadata["record"] == "1"
    assert await select(db, "people") == [ADA]


async def test_if_not_exists_tells_what_is_there(db: Database) -> None:
    await people(db)
    await insert(db, record(**ADA))
    done = await insert(db, record(id=1, name="Eve"), record(id=2, name="Bob"), mode=IF_NOT_EXISTS)
    assert (done.applied, done.affected) == (False, 1)
    assert [one.applied for one in done.results] == [False, True]
    assert unrecord(done.results[0].current) == ADA
    assert [one["name"] for one in await select(db, "people")] == ["Ada", "Bob"]


async def test_upsert_leaves_other_columns(db: Database) -> None:
    await people(db)
    await insert(db, record(**ADA))
    done = await insert(db, record(id=1, name="Ada L."), record(id=2, name="Bob"), mode=UPSERT, returning=["*"])
    assert done.applied
    assert done.affected == 2
    assert [unrecord(one.record) for one in done.results] == await select(db, "people")
    assert await select(db, "people") == [{**ADA, "name": "Ada L."}, {"id": 2, "name": "Bob", "age": None}]
    again = await insert(db, record(id=1, name="A"), record(id=3, name="C"), mode=UPSERT)
    assert again.affected == 2
    assert [one["name"] for one in await select(db, "people")] == ["A", "Bob", "C"]


async def test_upsert_and_if_not_exists_need_a_key(db: Database) -> None:
    await create(db, "t", column("x", K.TYPE_KIND_INT64))
    for mode in (UPSERT, IF_NOT_EXISTS):
        with pytest.raises(errors.BackendCapabilityMissing, match="no primary key"):
            await insert(db, record(x=1), table="t", mode=mode)


@pytest.mark.parametrize(
    ("fields", "path", "error"),
    [
        ({"id": 1}, "records[0].fields['name']", errors.FieldRequired),
        ({"id": 1, "name": None}, "records[0].fields['name']", errors.DataInvalid),
        ({"name": "x"}, "records[0].fields['id']", errors.FieldRequired),
        ({"id": 1, "name": "x", "nope": 1}, "records[0].fields['nope']", errors.FieldInvalid),
        ({}, "records[0].fields['id']", errors.FieldRequired),
    ],
)
async def test_wrong_records(
    db: Database, fields: dict[str, Any], path: str, error: type[errors.OneContainerError]
) -> None:
    await people(db)
    with pytest.raises(error) as raised:
        await insert(db, record(**fields))
    assert raised.value.violations[0].field == path


async def test_insert_wants_one_to_a_thousand_records(db: Database) -> None:
    await people(db)
    with pytest.raises(errors.FieldRequired, match="records"):
        await insert(db)
    with pytest.raises(errors.FieldInvalid, match="at most 1000"):
        await insert(db, *(record(id=index, name="x") for index in range(1001)))
    assert (await insert(db, *(record(id=index, name="x") for index in range(1000)))).affected == 1000


# --- update and delete -------------------------------------------------------------------------------------------


async def test_update(db: Database) -> None:
    await people(db, 4)
    done = await writing.update_records(
        db,
        updating(
            "people",
            compare("id", query_pb2.OPERATOR_GREATER, 1),
            setting("age", 50),
            setting("name", "x"),
            returning=["id", "age"],
        ),
    )
    assert done.applied
    assert done.affected == 2
    assert sorted(unrecord(one)["id"] for one in done.records) == [2, 3]
    assert [one["age"] for one in await select(db, "people")] == [0, 1, 50, 50]
    none = await writing.update_records(db, updating("people", equals("id", 99), setting("age", 1)))
    assert none.applied
    assert none.affected == 0


async def test_add_and_subtract(db: Database) -> None:
    await create(
        db,
        "t",
        column("id", K.TYPE_KIND_INT64),
        column("i", K.TYPE_KIND_INT32),
        column("d", K.TYPE_KIND_DECIMAL),
        column("v", K.TYPE_KIND_VARINT),
        column("f", K.TYPE_KIND_FLOAT),
        key=["id"],
    )
    big = 10**40
    await insert(
        db,
        record(id=1, i=5, d=decimal.Decimal("0.1"), v=value_pb2.Value(varint_value=int_to_bytes(big)), f=1),
        table="t",
    )
    add = [
        record_pb2.Assignment(column="i", subtract=value(7)),
        record_pb2.Assignment(column="d", add=value(decimal.Decimal("0.2"))),
        record_pb2.Assignment(column="v", add=value(1)),
        record_pb2.Assignment(column="f", add=value_pb2.Value(float_value=0.1)),
    ]
    await writing.update_records(db, updating("t", equals("id", 1), *add))
    fields = (await page(db, "t")).records[0].fields
    assert fields["i"] == value(-2)
    assert fields["d"] == value(decimal.Decimal("0.3"))
    assert fields["v"].varint_value == int_to_bytes(big + 1)
    assert fields["f"].float_value == pytest.approx(1.1, abs=1e-6)
    with pytest.raises(errors.OneContainerError) as raised:
        await writing.update_records(
            db,
            updating(
                "t",
                equals("id", 1),
                record_pb2.Assignment(column="i", add=value(2**31 - 1)),
                record_pb2.Assignment(column="d", add=value(1)),
            ),
        ) and await writing.update_records(
            db, updating("t", equals("id", 1), record_pb2.Assignment(column="i", add=value(2**31 - 1)))
        )
    assert raised.value.code in (errors.Code.FAILED_PRECONDITION, errors.Code.INVALID_ARGUMENT)


async def test_lists_grow_in_postgresql(pg: Database) -> None:
    await create(
        pg,
        "t",
        column("id", K.TYPE_KIND_INT64),
        column("tags", K.TYPE_KIND_LIST, elements=[table_pb2.ColumnType(kind=K.TYPE_KIND_TEXT)]),
        key=["id"],
    )
    await insert(pg, record(id=1, tags=["b"]), table="t")
    for change in (
        record_pb2.Assignment(column="tags", add=value(["c"])),
        record_pb2.Assignment(column="tags", prepend=value(["a"])),
    ):
        await writing.update_records(pg, updating("t", equals("id", 1), change))
    assert (await select(pg, "t"))[0]["tags"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("assignments", "path", "error"),
    [
        ([], "assignments", errors.FieldRequired),
        ([record_pb2.Assignment(column="age")], "assignments[0].set", errors.FieldRequired),
        ([setting("nope", 1)], "assignments[0].column", errors.FieldInvalid),
        ([setting("id", 1)], "assignments[0].column", errors.FieldInvalid),
        ([setting("age", 1), setting("age", 2)], "assignments[1].column", errors.FieldInvalid),
        ([setting("name", None)], "assignments[0].set", errors.DataInvalid),
        ([setting("age", "x")], "assignments[0].set", errors.DataInvalid),
        ([record_pb2.Assignment(column="name", add=value("x"))], "assignments[0].add", errors.BackendCapabilityMissing),
        ([record_pb2.Assignment(column="age", add=value(None))], "assignments[0].add", errors.DataInvalid),
    ],
)
async def test_wrong_assignments(
    db: Database, assignments: list[record_pb2.Assignment], path: str, error: type[errors.OneContainerError]
) -> None:
    await people(db, 1)
    with pytest.raises(error) as raised:
        await writing.update_records(db, updating("people", equals("id", 0), *assignments))
    assert raised.value.violations[0].field == path


async def test_delete_records_and_columns(db: Database) -> None:
    await people(db, 4)
    done = await writing.delete_records(db, deletion("people", equals("id", 1), returning=["name"]))
    assert done.applied
    assert done.affected == 1
    assert unrecord(done.records[0]) == {"name": "name-1"}
    await writing.delete_records(db, deletion("people", equals("id", 2), columns=["age"]))
    assert [(one["id"], one["age"]) for one in await select(db, "people")] == [(0, 0), (2, None), (3, None)]
    for name in ("id", "name"):
        with pytest.raises(errors.FieldInvalid, match=r"columns\[0\]"):
            await writing.delete_records(db, deletion("people", equals("id", 2), columns=[name]))


async def test_every_record_only_when_asked(db: Database) -> None:
    await people(db, 4)
    with pytest.raises(errors.FieldRequired, match="all_records"):
        await writing.delete_records(db, deletion("people", None))
    with pytest.raises(errors.FieldRequired, match="all_records"):
        await writing.update_records(db, updating("people", None, setting("age", 1)))
    with pytest.raises(errors.FieldInvalid, match="all_records"):
        await writing.delete_records(db, deletion("people", equals("id", 1), all_records=True))
    for empty in (all_of(), all_of(all_of()), any_of(all_of(), equals("id", 1))):
        statements = [pb.BatchStatement(delete=deletion("people", empty))]
        for write, at in (
            (writing.delete_records(db, deletion("people", empty)), ""),
            (writing.update_records(db, updating("people", empty, setting("age", 1))), ""),
            (
                writing.execute_batch(db, pb.ExecuteBatchRequest(service=SERVICE, statements=statements)),
                "statements[0].delete.",
            ),
        ):
            with pytest.raises(errors.FieldRequired, match="no condition") as raised:
                await write
            assert raised.value.violations[0].field == f"{at}where"
    assert (
        await writing.update_records(db, updating("people", None, setting("age", 1), all_records=True))
    ).affected == 4
    assert (await writing.delete_records(db, deletion("people", None, all_records=True))).affected == 4


async def test_max_affected(db: Database) -> None:
    await people(db, 4)
    where = compare("id", query_pb2.OPERATOR_LESS, 3)
    with pytest.raises(errors.StateInvalid, match="3 records"):
        await writing.delete_records(db, deletion("people", where, max_affected=2))
    with pytest.raises(errors.StateInvalid):
        await writing.update_records(
            db, updating("people", where, setting("name", "x"), max_affected=2, returning=["id"])
        )
    assert [one["name"] for one in await select(db, "people")] == [f"name-{index}" for index in range(4)]
    assert (await writing.delete_records(db, deletion("people", where, max_affected=3))).affected == 3


async def test_dry_run(db: Database) -> None:
    await people(db, 4)
    inserted = await insert(db, record(id=9, name="x"), dry_run=True, returning=["id"])
    assert inserted.affected == 1
    assert unrecord(inserted.results[0].record) == {"id": 9}
    with pytest.raises(errors.ResourceConflict):
        await insert(db, record(id=1, name="x"), dry_run=True)
    assert (
        await writing.update_records(db, updating("people", equals("id", 1), setting("age", 9), dry_run=True))
    ).affected == 1
    assert (await writing.delete_records(db, deletion("people", None, all_records=True, dry_run=True))).affected == 4
    assert [one["age"] for one in await select(db, "people")] == [0, 1, 2, None]


# --- conditions --------------------------------------------------------------------------------------------------


async def test_conditions(db: Database) -> None:
    await people(db)
    await insert(db, record(**ADA))
    held = await writing.update_records(
        db, updating("people", equals("id", 1), setting("age", 37), condition=if_fields(equals("age", 36)))
    )
    assert held.applied
    assert held.affected == 1
    assert not held.HasField("current")
    refused = await writing.update_records(
        db, updating("people", equals("id", 1), setting("age", 38), condition=if_fields(equals("age", 36)))
    )
    assert not refused.applied
    assert refused.affected == 0
    assert unrecord(refused.current) == {**ADA, "age": 37}
    missing = await writing.update_records(
        db, updating("people", equals("id", 9), setting("age", 1), condition=IF_EXISTS)
    )
    assert not missing.applied
    assert not missing.HasField("current")
    kept = await writing.delete_records(
        db, deletion("people", equals("id", 1), condition=if_fields(equals("name", "Eve")))
    )
    assert not kept.applied
    assert unrecord(kept.current) == {**ADA, "age": 37}
    gone = await writing.delete_records(db, deletion("people", all_of(equals("id", 1)), condition=IF_EXISTS))
    assert gone.applied
    assert await select(db, "people") == []


@pytest.mark.parametrize(
    ("where", "condition", "path"),
    [
        (equals("name", "x"), IF_EXISTS, "where"),
        (compare("id", query_pb2.OPERATOR_LESS, 3), IF_EXISTS, "where"),
        (all_of(equals("id", 1), equals("age", 2)), IF_EXISTS, "where"),
        (equals("id", 1), record_pb2.WriteCondition(if_exists=False), "condition.if_exists"),
        (equals("id", 1), record_pb2.WriteCondition(), "condition"),
        (equals("id", 1), if_fields(equals("nope", 1)), "condition.if_fields.comparison.column"),
    ],
)
async def test_wrong_conditions(
    db: Database, where: query_pb2.Filter, condition: record_pb2.WriteCondition, path: str
) -> None:
    await people(db, 3)
    with pytest.raises((errors.FieldInvalid, errors.FieldRequired)) as raised:
        await writing.update_records(db, updating("people", where, setting("age", 1), condition=condition))
    assert raised.value.violations[0].field == path


async def test_of_twenty_concurrent_conditional_updates_one_applies(db: Database) -> None:
    await people(db)
    await insert(db, record(**ADA))

    async def claim(age: int) -> bool:
        request = updating("people", equals("id", 1), setting("age", age), condition=if_fields(equals("age", 36)))
        return (await writing.update_records(db, request)).applied

    applied = await asyncio.gather(*(claim(100 + index) for index in range(20)))
    assert sum(applied) == 1
    assert (await select(db, "people"))[0]["age"] == 100 + applied.index(True)


async def test_of_twenty_concurrent_inserts_one_applies(db: Database) -> None:
    await people(db)

    async def claim(index: int) -> bool:
        return (await insert(db, record(id=1, name=f"n{index}"), mode=IF_NOT_EXISTS)).applied

    applied = await asyncio.gather(*(claim(index) for index in range(20)))
    assert sum(applied) == 1


async def test_twenty_concurrent_additions_all_count(db: Database) -> None:
    await people(db)
    await insert(db, record(**ADA))
    request = updating("people", equals("id", 1), record_pb2.Assignment(column="age", add=value(1)))
    await asyncio.gather(*(writing.update_records(db, request) for _ in range(20)))
    assert (await select(db, "people"))[0]["age"] == 56


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (record_pb2.WriteOptions(ttl=duration_pb2.Duration(seconds=1)), "options.ttl"),
        (record_pb2.WriteOptions(timestamp=timestamp_pb2.Timestamp(seconds=1)), "options.timestamp"),
        (record_pb2.WriteOptions(consistency=query_pb2.CONSISTENCY_ONE), "options.consistency"),
        (record_pb2.WriteOptions(serial_consistency=query_pb2.CONSISTENCY_SERIAL), "options.serial_consistency"),
    ],
)
async def test_options_that_sql_has_not_are_not_ignored(
    db: Database, options: record_pb2.WriteOptions, path: str
) -> None:
    await people(db, 1)
    calls = [
        lambda: insert(db, record(id=5, name="x"), options=options),
        lambda: writing.update_records(db, updating("people", equals("id", 0), setting("age", 1), options=options)),
        lambda: writing.delete_records(db, deletion("people", equals("id", 0), options=options)),
    ]
    for call in calls:
        with pytest.raises((errors.BackendCapabilityMissing, errors.FieldInvalid)) as raised:
            await call()
        assert raised.value.violations[0].field == path
    assert len(await select(db, "people")) == 1


async def test_a_timestamp_on_a_conditional_write_is_invalid_everywhere(db: Database) -> None:
    await people(db, 1)
    options = record_pb2.WriteOptions(timestamp=timestamp_pb2.Timestamp(seconds=1))
    with pytest.raises(errors.FieldInvalid, match="conditional"):
        await insert(db, record(id=5, name="x"), options=options, mode=IF_NOT_EXISTS)


# --- batch -------------------------------------------------------------------------------------------------------


def batch(*statements: Any, **more: Any) -> pb.ExecuteBatchRequest:
    kinds = {pb.InsertRecordsRequest: "insert", pb.UpdateRecordsRequest: "update", pb.DeleteRecordsRequest: "delete"}
    made = [pb.BatchStatement(**{kinds[type(one)]: one}) for one in statements]
    return pb.ExecuteBatchRequest(service=SERVICE, statements=made, **more)


async def test_a_batch_is_done_in_order(db: Database) -> None:
    await people(db)
    done = await writing.execute_batch(
        db,
        batch(
            insertion("people", record(**ADA), record(id=2, name="Bob")),
            updating("people", equals("id", 1), setting("age", 1)),
            deletion("people", equals("id", 2)),
        ),
    )
    assert done.applied
    assert [one.WhichOneof("result") for one in done.results] == ["insert", "update", "delete"]
    assert await select(db, "people") == [{**ADA, "age": 1}]


async def test_a_batch_that_fails_leaves_nothing_and_says_which(db: Database) -> None:
    await people(db)
    await insert(db, record(**ADA))
    with pytest.raises(errors.ResourceConflict) as raised:
        await writing.execute_batch(
            db, batch(insertion("people", record(id=2, name="Bob")), insertion("people", record(id=1, name="Eve")))
        )
    assert raised.value.metadata["statement"] == "1"
    with pytest.raises(errors.DataInvalid) as invalid:
        await writing.execute_batch(
            db,
            batch(
                insertion("people", record(id=2, name="Bob")), updating("people", equals("id", "x"), setting("age", 1))
            ),
        )
    assert invalid.value.violations[0].field == "statements[1].update.where.comparison.value"
    assert await select(db, "people") == [ADA]


async def test_a_condition_in_a_batch_undoes_all_of_it(db: Database) -> None:
    await people(db)
    await insert(db, record(**ADA))
    done = await writing.execute_batch(
        db,
        batch(
            insertion("people", record(id=2, name="Bob")),
            updating("people", equals("id", 1), setting("age", 1), condition=if_fields(equals("age", 99))),
            deletion("people", equals("id", 1)),
        ),
    )
    assert not done.applied
    assert len(done.results) == 2
    assert unrecord(done.results[1].update.current) == ADA
    assert await select(db, "people") == [ADA]


async def test_what_a_batch_refuses(db: Database) -> None:
    await people(db)
    one = insertion("people", record(**ADA))
    for request, path in (
        (batch(), "statements"),
        (batch(one, kind=pb.BATCH_KIND_LOGGED), "kind"),
        (batch(one, kind=pb.BATCH_KIND_UNLOGGED), "kind"),
        (batch(one, kind=pb.BATCH_KIND_COUNTER), "kind"),
        (pb.ExecuteBatchRequest(statements=[pb.BatchStatement()]), "statements[0]"),
        (batch(insertion("people", record(**ADA), dry_run=True)), "statements[0].insert.dry_run"),
        (
            pb.ExecuteBatchRequest(service="services/other", statements=batch(one).statements),
            "statements[0].insert.service",
        ),
    ):
        with pytest.raises((errors.FieldRequired, errors.FieldInvalid, errors.BackendCapabilityMissing)) as raised:
            await writing.execute_batch(db, request)
        assert raised.value.violations[0].field == path
    dry = await writing.execute_batch(db, batch(one, dry_run=True, kind=pb.BATCH_KIND_TRANSACTION))
    assert dry.applied
    assert await select(db, "people") == []


async def test_a_constraint_of_others_is_told(db: Database) -> None:
    await people(db, 1)
    async with db.transaction() as connection:
        target = (await db.table(connection, "people")).sa
        name = connection.dialect.identifier_preparer.format_table(target)
        schema = f"{target.schema}." if target.schema else ""
        await connection.exec_driver_sql(
            f"CREATE TABLE {schema}pets (id bigint PRIMARY KEY, owner bigint REFERENCES {name} (id), at timestamp)"
        )
    await insert(db, record(id=1, owner=0), table="pets")
    with pytest.raises(errors.BackendExecutionFailed, match=r"(?i)foreign key") as raised:
        await writing.delete_records(db, deletion("people", equals("id", 0)))
    assert raised.value.code == errors.Code.FAILED_PRECONDITION
    assert raised.value.metadata["backend_code"]
