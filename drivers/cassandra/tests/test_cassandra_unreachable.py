"""The driver as a sidecar of its own process, and a cluster that goes away and comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cassandra.io.asyncioreactor import AsyncioConnection
from onecontainer_driver_cassandra import session as session_module
from onecontainer_driver_cassandra import tables
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.settings import read_settings

from drivers.cassandra.tests.calls import INT, TEXT, create, definition, load, select, typed
from drivers.cassandra.tests.conftest import ACCOUNT
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import database_pb2_grpc, record_pb2
from onecontainer.api.driver.v1 import driver_pb2, driver_pb2_grpc
from onecontainer.driver import errors
from tests.fixtures.cassandra import CassandraNode
from tests.fixtures.processes import free_port
from tests.fixtures.records import (
    SERVICE,
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
from tests.fixtures.stalls import stalls

pytestmark = pytest.mark.asyncio(loop_scope="session")
DRIVER = Path(__file__).parents[1]
PEOPLE = definition(typed("id", INT), typed("name", TEXT), key=["id"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def channel(node: CassandraNode) -> AsyncIterator[grpc.aio.Channel]:
    place = {"one": node.address}
    async with sidecar(DRIVER) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await attach(opened, "cassandra", "5.0", place, {"keyspace": "not a name"})
        assert details(raised.value)[1] == ["options.keyspace"]
        await attach(opened, "cassandra", "5.0", place, ACCOUNT | {"keyspace": "wire", "request_timeout": "20s"})
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def stub(channel: grpc.aio.Channel) -> Any:
    return database_pb2_grpc.DatabaseServiceStub(channel)


async def test_every_method_over_the_wire(stub: Any, channel: grpc.aio.Channel) -> None:
    probe: Any = driver_pb2_grpc.DriverServiceStub(channel)
    probed = await probe.Probe(driver_pb2.ProbeRequest())
    assert probed.ready
    assert probed.backend_version.startswith("5.")
    await stub.CreateTable(pb.CreateTableRequest(service=SERVICE, table_id="people", table=PEOPLE))
    listed = await stub.ListTables(pb.ListTablesRequest(service=SERVICE))
    assert [one.name for one in listed.tables] == [f"{SERVICE}/tables/people"]
    assert (await stub.GetTable(pb.GetTableRequest(service=SERVICE, table="people"))).partition_key == ["id"]
    assert (await stub.InsertRecords(insertion("people", record(id=1, name="a"), record(id=2, name="b")))).affected == 2
    assert (await stub.UpdateRecords(updating("people", equals("id", 1), setting("name", "A")))).applied
    assert (await stub.DeleteRecords(deletion("people", equals("id", 2)))).applied
    statement = pb.BatchStatement(insert=insertion("people", record(id=3, name="c")))
    assert (await stub.ExecuteBatch(pb.ExecuteBatchRequest(service=SERVICE, statements=[statement]))).applied

    async def rows() -> AsyncIterator[pb.BulkInsertRequest]:
        yield pb.BulkInsertRequest(service=SERVICE, table="people")
        for start in range(10, 2010, 500):
            made = [[index, f"n{index}"] for index in range(start, start + 500)]
            yield pb.BulkInsertRequest(batch=rows_batch(["id", "name"], made))

    assert (await stub.BulkInsert(rows())).inserted == 2000
    selected = await stub.SelectRecords(pb.SelectRecordsRequest(service=SERVICE, table="people", page_size=2))
    assert len(selected.records) == 2
    assert selected.next_page_token
    request = pb.StreamRecordsRequest(service=SERVICE, table="people", encoding=record_pb2.BATCH_ENCODING_COLUMNS)
    assert sum([one.batch.column_list.row_count async for one in stub.StreamRecords(request)]) == 2002
    left = stub.StreamRecords(pb.StreamRecordsRequest(service=SERVICE, table="people", batch_size=1))
    await left.read()
    left.cancel()
    for call, code, reason, paths in [
        (stub.GetTable(pb.GetTableRequest(service=SERVICE, table="nope")), "NOT_FOUND", "RESOURCE_NOT_FOUND", []),
        (
            stub.InsertRecords(insertion("people", record(id=1, name="a"), mode=record_pb2.INSERT_MODE_FAIL)),
            *("ALREADY_EXISTS", "RESOURCE_CONFLICT", []),
        ),
        (
            stub.InsertRecords(insertion("people", record(id=2, name=3))),
            *("INVALID_ARGUMENT", "DATA_INVALID", ["records[0].fields['name']"]),
        ),
        (
            stub.UpdateRecords(updating("people", None, setting("name", "x"))),
            *("INVALID_ARGUMENT", "FIELD_REQUIRED", ["where"]),
        ),
        (
            stub.SelectRecords(
                pb.SelectRecordsRequest(service=SERVICE, table="people", query={"where": equals("name", "c")})
            ),
            *("FAILED_PRECONDITION", "BACKEND_CAPABILITY_MISSING", ["query.where"]),
        ),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        info, found = details(raised.value)
        assert (raised.value.code().name, info.reason, found) == (code, reason, paths)


async def test_the_asyncio_reactor_serves_where_libev_is_missing(
    db: Database, node: CassandraNode, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12 and later have no asyncore, so without libev it is the only one."""
    monkeypatch.setattr(session_module, "connection_class", lambda: AsyncioConnection)
    async with Database(
        read_settings(ACCOUNT | {"keyspace": "Tests", "request_timeout": TIMEOUT}, {"one": node.address})
    ) as other:
        await create(other, table, typed("id", INT), typed("name", TEXT), key=["id"])
        assert (await load(other, table, ["id", "name"], [[n, str(n)] for n in range(1000)])).inserted == 1000
        assert len(await select(other, table)) == 1000


async def test_nobody_there(tmp_path: Path) -> None:
    async with Database(read_settings({"keyspace": "k"}, {"one": f"127.0.0.1:{free_port()}"})) as database:
        for _ in range(2):
            with pytest.raises(errors.BackendUnreachable) as raised:
                await database.version()
            assert raised.value.retry_after is not None
        waiting = [asyncio.ensure_future(database.version()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # the others go on
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in done] == [
            *(asyncio.CancelledError, errors.BackendUnreachable, errors.BackendUnreachable)
        ]


async def test_what_is_not_answered_in_time_ends_in_time(db: Database, node: CassandraNode, stub: Any) -> None:
    """A node that hangs holds no call longer than its deadline, or without one the service's timeout."""
    hasty = Database(read_settings(ACCOUNT | {"keyspace": "Tests", "request_timeout": 1.0}, {"one": node.address}))
    async with hasty:
        await _until_it_works(hasty.version)
        select_one = pb.SelectRecordsRequest(service=SERVICE, table="people", page_size=1)
        await stub.SelectRecords(select_one)
        os.kill(node.pid, signal.SIGSTOP)
        try:
            with stalls() as still:
                began = time.monotonic()
                with pytest.raises(errors.DeadlineExceeded, match="in time"):
                    await hasty.version()
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.SelectRecords(select_one, timeout=1)
                took = time.monotonic() - began - still.seconds
            assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert took < 15
        finally:
            os.kill(node.pid, signal.SIGCONT)
        await _until_it_works(lambda: stub.SelectRecords(select_one, timeout=TIMEOUT))


async def _until_it_works(call: Any) -> Any:
    end = time.monotonic() + TIMEOUT
    while True:
        try:
            return await call()
        except (grpc.aio.AioRpcError, errors.OneContainerError):
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)


async def _why(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return str(raised.value.details())


async def test_a_cluster_that_was_killed_and_came_back_is_used_again(
    db: Database, node: CassandraNode, stub: Any
) -> None:
    await stub.InsertRecords(insertion("people", record(id=9999, name="before")))
    found = pb.SelectRecordsRequest(service=SERVICE, table="people", query={"where": equals("id", 9999)})
    assert (await stub.SelectRecords(found)).records[0].fields["name"] == value("before")
    await asyncio.to_thread(node.kill)
    for call in (
        lambda: stub.SelectRecords(found),
        lambda: stub.InsertRecords(insertion("people", record(id=100, name="x"))),
        lambda: stub.GetTable(pb.GetTableRequest(service=SERVICE, table="people")),
        lambda: stub.StreamRecords(pb.StreamRecordsRequest(service=SERVICE, table="people")).read(),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call()
        assert (raised.value.code().name, details(raised.value)[0].reason) == ("UNAVAILABLE", "BACKEND_UNREACHABLE")
    # cassandra-driver knows now that it is down, asks it no more, and does not say why.
    end = time.monotonic() + TIMEOUT
    while f"{node.address}: " not in (told := await _why(stub.SelectRecords(found))) or "refused" not in told:
        assert time.monotonic() < end, told
        await asyncio.sleep(0.1)
    assert "Unable to complete" not in told
    await asyncio.to_thread(node.start)
    answer = await _until_it_works(lambda: stub.SelectRecords(found))
    assert answer.records[0].fields["name"] == value("before")
    await stub.InsertRecords(insertion("people", record(id=100, name="after")))
    await _until_it_works(db.version)
    assert await tables.list_tables(db, pb.ListTablesRequest(service=SERVICE))
