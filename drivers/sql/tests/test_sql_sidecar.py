"""The driver as a sidecar of its own process: every method over the wire, and errors as callers get them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import pytest_asyncio

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import database_pb2_grpc, query_pb2, record_pb2, table_pb2
from onecontainer.api.driver.v1 import driver_pb2, driver_pb2_grpc
from tests.fixtures.records import (
    SERVICE,
    K,
    column,
    deletion,
    equals,
    insertion,
    record,
    rows_batch,
    setting,
    updating,
    value,
)
from tests.fixtures.sidecar import TIMEOUT, attach, details, sidecar

pytestmark = pytest.mark.asyncio(loop_scope="module")
DRIVER = Path(__file__).parents[1]
PEOPLE = table_pb2.Table(
    columns=[column("id", K.TYPE_KIND_INT64), column("name", K.TYPE_KIND_TEXT, not_null=True)], partition_key=["id"]
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process() -> AsyncIterator[grpc.aio.Channel]:
    async with sidecar(DRIVER) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def channel(process: grpc.aio.Channel) -> AsyncIterator[grpc.aio.Channel]:
    """The same sidecar for each test, attached to nothing."""
    yield process
    driver: Any = driver_pb2_grpc.DriverServiceStub(process)
    await driver.Detach(driver_pb2.DetachRequest())


@pytest_asyncio.fixture(loop_scope="module")
async def stub(channel: grpc.aio.Channel, options: dict[str, str], tmp_path: Path) -> Any:
    # Not the state folder's file, which is the same for all tests.
    await attach(channel, "sql", "1", {}, options or {"url": f"sqlite:///{tmp_path}/own.sqlite3"})
    return database_pb2_grpc.DatabaseServiceStub(channel)


async def create(stub: Any) -> None:
    await stub.CreateTable(pb.CreateTableRequest(service=SERVICE, table_id="people", table=PEOPLE))


async def test_every_method(stub: Any) -> None:
    await create(stub)
    listed = await stub.ListTables(pb.ListTablesRequest(service=SERVICE))
    assert [one.name for one in listed.tables] == [f"{SERVICE}/tables/people"]
    table = await stub.GetTable(pb.GetTableRequest(service=SERVICE, table="people"))
    assert list(table.partition_key) == ["id"]
    inserted = await stub.InsertRecords(insertion("people", record(id=1, name="a"), record(id=2, name="b")))
    assert inserted.affected == 2
    updated = await stub.UpdateRecords(updating("people", equals("id", 1), setting("name", "A")))
    assert updated.affected == 1
    deleted = await stub.DeleteRecords(deletion("people", equals("id", 2)))
    assert deleted.affected == 1
    batch = pb.ExecuteBatchRequest(
        service=SERVICE, statements=[pb.BatchStatement(insert=insertion("people", record(id=3, name="c")))]
    )
    assert (await stub.ExecuteBatch(batch)).applied

    async def rows() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table="people")
        for start in range(10, 5010, 500):
            made = [[index, f"n{index}"] for index in range(start, start + 500)]
            yield pb.BulkInsertRequest(batch=rows_batch(["id", "name"], [*made, [1, "taken"]]))

    done = await stub.BulkInsert(rows())
    assert (done.inserted, done.failed) == (5000, 10)
    selected = await stub.SelectRecords(pb.SelectRecordsRequest(service=SERVICE, table="people", page_size=2))
    assert [one.fields["name"] for one in selected.records] == [value("A"), value("c")]
    assert selected.next_page_token
    request = pb.StreamRecordsRequest(
        service=SERVICE, table="people", encoding=record_pb2.BATCH_ENCODING_COLUMNS, batch_size=100
    )
    count = 0
    async for response in stub.StreamRecords(request):
        count += response.batch.column_list.row_count
    assert count == 5002
    await stub.DropTable(pb.DropTableRequest(service=SERVICE, table="people"))
    assert not (await stub.ListTables(pb.ListTablesRequest(service=SERVICE))).tables


async def test_errors(stub: Any) -> None:
    await create(stub)
    await stub.InsertRecords(insertion("people", record(id=1, name="a")))
    cases = [
        (stub.GetTable(pb.GetTableRequest(service=SERVICE, table="nope")), "NOT_FOUND", "RESOURCE_NOT_FOUND", []),
        (
            stub.InsertRecords(insertion("people", record(id=1, name="a"))),
            "ALREADY_EXISTS",
            "RESOURCE_CONFLICT",
            [],
        ),
        (
            stub.InsertRecords(insertion("people", record(id=2, name=3))),
            "INVALID_ARGUMENT",
            "DATA_INVALID",
            ["records[0].fields['name']"],
        ),
        (
            stub.SelectRecords(
                pb.SelectRecordsRequest(service=SERVICE, table="people", query=query_pb2.Query(consistency=1))
            ),
            "FAILED_PRECONDITION",
            "BACKEND_CAPABILITY_MISSING",
            ["query.consistency"],
        ),
    ]
    for call, code, reason, paths in cases:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert raised.value.code().name == code
        info, found = details(raised.value)
        assert (info.reason, info.domain, found) == (reason, "onecontainer.dev", paths)
    stream = stub.StreamRecords(pb.StreamRecordsRequest(service=SERVICE, table="nope"))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_deadline_ends_the_statement_in_postgresql(
    channel: grpc.aio.Channel, postgres: str, schema: str
) -> None:
    await attach(channel, "sql", "1", {}, {"url": postgres, "schema": schema})
    stub: Any = database_pb2_grpc.DatabaseServiceStub(channel)
    await create(stub)
    await stub.InsertRecords(insertion("people", record(id=1, name="a")))
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'onecontainer' AND state <> 'idle' "
        "AND query LIKE '%' || $1 || '%'"
    )
    # Two: inside a transaction the view stays as it was first seen.
    other, watching = await asyncpg.connect(postgres), await asyncpg.connect(postgres)

    async def ended() -> None:
        async with asyncio.timeout(TIMEOUT):
            while await watching.fetchval(waiting, schema):  # noqa: ASYNC110 - only a look tells it
                await asyncio.sleep(0.02)

    try:
        async with other.transaction():
            await other.execute(f"SELECT * FROM {schema}.people WHERE id = 1 FOR UPDATE")
            seen = 0
            for timeout in (3, 15, 60):  # as long as it takes this machine to get there, and to see it
                call = stub.UpdateRecords(updating("people", equals("id", 1), setting("name", "b")), timeout=timeout)
                while not call.done():
                    seen = max(seen, await watching.fetchval(waiting, schema))
                    await asyncio.sleep(0.02)
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call
                assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                if seen:
                    break
                await ended()  # it is not to be counted with that of the next try
            assert seen == 1  # it was there, and waited for the lock that is still held
            await ended()
    finally:
        await asyncio.gather(other.close(), watching.close())
    selected = await stub.SelectRecords(pb.SelectRecordsRequest(service=SERVICE, table="people"))
    assert selected.records[0].fields["name"] == value("a")


async def test_a_stream_that_is_left_lets_go_of_its_connection(stub: Any) -> None:
    await create(stub)

    async def rows() -> AsyncIterator[pb.BulkInsertRequest]:
        made = [[index, "x" * 1000] for index in range(5000)]
        yield pb.BulkInsertRequest(service=SERVICE, table="people", batch=rows_batch(["id", "name"], made))

    assert (await stub.BulkInsert(rows())).inserted == 5000
    for _ in range(15):  # more than the pool has connections
        call = stub.StreamRecords(pb.StreamRecordsRequest(service=SERVICE, table="people"), timeout=180)
        await call.read()
        call.cancel()
    selected = await stub.SelectRecords(pb.SelectRecordsRequest(service=SERVICE, table="people"), timeout=180)
    assert len(selected.records) == 100


async def test_probe_and_wrong_options(channel: grpc.aio.Channel, postgres: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await attach(channel, "sql", "1", {}, {"url": "mysql://u:hunter2@h/d"})
    assert details(raised.value)[1] == ["options.url"]
    assert "hunter2" not in str(raised.value.details())
    driver = await attach(channel, "sql", "1", {}, {"url": postgres})
    probed = await driver.Probe(driver_pb2.ProbeRequest())
    assert probed.ready
    assert probed.backend_version.startswith("1")
