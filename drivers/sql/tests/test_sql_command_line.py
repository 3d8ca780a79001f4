"""`oca db` against the driver's own service: what its options send, and what it shows of the answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf.message import Message
from onecontainer_driver_sql import bulk, reading, tables, writing
from onecontainer_driver_sql.database import Database

from drivers.sql.tests.calls import create, select
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import database_pb2_grpc
from onecontainer.cli.main import cli
from onecontainer.driver import errors
from onecontainer.rpc import status
from onecontainer.rpc.channel import server_options
from tests.fixtures.records import K, column

Ask = Callable[..., Awaitable[Result]]
HANDLERS: dict[str, Callable[[Database, Any], Awaitable[Any]]] = {
    "CreateTable": tables.create_table,
    "GetTable": tables.get_table,
    "ListTables": tables.list_tables,
    "InsertRecords": writing.insert_records,
    "UpdateRecords": writing.update_records,
    "DeleteRecords": writing.delete_records,
    "SelectRecords": reading.select_records,
}


class Served(database_pb2_grpc.DatabaseServiceServicer):
    """DatabaseService of one database; the requests that came, and an error that the next read raises."""

    def __init__(self, database: Database) -> None:
        self.requests: list[Message] = []
        self.error: errors.OneContainerError | None = None
        for name, handler in HANDLERS.items():
            setattr(self, name, self._unary(database, name, handler))

        async def insert_in_bulk(requests: AsyncIterator[pb.BulkInsertRequest], context: Any) -> pb.BulkInsertResponse:
            async def kept() -> AsyncIterator[pb.BulkInsertRequest]:
                async for request in requests:
                    self.requests.append(request)
                    yield request

            return await bulk.bulk_insert(database, kept())

        self.BulkInsert = insert_in_bulk

    def _unary(self, database: Database, name: str, handler: Callable[[Database, Any], Awaitable[Any]]) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            self.requests.append(request)
            try:
                if self.error is not None and name == "SelectRecords":
                    raise self.error
                return await handler(database, request)
            except errors.OneContainerError as error:
                await status.abort(context, error, hop="sidecar")

        return answer


@pytest.fixture
async def served(lite: Database, tmp_path: Path) -> AsyncIterator[tuple[Served, Ask]]:
    server = grpc.aio.server(options=server_options())
    servicer = Served(lite)
    database_pb2_grpc.add_DatabaseServiceServicer_to_server(servicer, server)
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()

    async def ask(*words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, cli, ["db", *words, "--address", address])

    try:
        yield servicer, ask
    finally:
        await server.stop(None)


async def done(asked: Awaitable[Result]) -> str:
    result = await asked
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
async def cups(lite: Database) -> None:
    columns = (column("id", K.TYPE_KIND_INT64), column("name", K.TYPE_KIND_TEXT))
    await create(lite, "cups", *columns, key=["id"], expires=True)


async def test_dry_runs_and_bounds_leave_everything(lite: Database, served: tuple[Served, Ask], cups: None) -> None:
    _, ask = served
    rows = json.dumps([{"id": index, "name": f"n{index}"} for index in range(3)])
    assert "would be inserted  3" in await done(ask("insert", "db", "cups", rows, "--dry-run"))
    assert await select(lite, "cups") == []
    await done(ask("insert", "db", "cups", rows))
    assert "would be changed  3" in await done(ask("update", "db", "cups", "--set", "name=x", "--all", "--dry-run"))
    assert "would be deleted  1" in await done(ask("delete", "db", "cups", "--where", "id=1", "--dry-run"))
    refused = await ask("delete", "db", "cups", "--all", "--max-affected", "2")
    assert refused.exit_code == 1
    assert "at most 2" in refused.stderr
    assert [row["name"] for row in await select(lite, "cups")] == ["n0", "n1", "n2"]
    assert "deleted  3" in await done(ask("delete", "db", "cups", "--all", "--max-affected", "3"))


async def test_conditions(lite: Database, served: tuple[Served, Ask], cups: None) -> None:
    _, ask = served
    await done(ask("insert", "db", "cups", '{"id": 1, "name": "cup"}'))
    renamed = ("update", "db", "cups", "--set", "name=pot", "--where", "id=1")
    shown = await done(ask(*renamed, "--if", "name=mug"))
    assert "does not hold" in shown
    assert "cup" in shown
    assert "changed  1" in await done(ask(*renamed, "--if", "name=cup"))
    assert "no such record" in await done(ask("delete", "db", "cups", "--where", "id=2", "--if-exists"))
    assert "does not hold" in await done(ask("delete", "db", "cups", "--where", "id=1", "--if", "name=cup"))
    assert "deleted  1" in await done(ask("delete", "db", "cups", "--where", "id=1", "--if-exists"))
    both = await ask(*renamed, "--if", "name=pot", "--if-exists")
    assert both.exit_code == 2
    assert await select(lite, "cups") == []


async def test_time_to_live(served: tuple[Served, Ask], cups: None, tmp_path: Path) -> None:
    servicer, ask = served
    (tmp_path / "cups.csv").write_text("id,name\n2,pot\n")
    await done(ask("insert", "db", "cups", '{"id": 1, "name": "cup"}', "--ttl", "1h"))
    await done(ask("update", "db", "cups", "--where", "id=1", "--set", "name=mug", "--ttl", "90"))
    await done(ask("import", "db", "cups", str(tmp_path / "cups.csv"), "--ttl", "2d"))
    options = [one.options for one in servicer.requests if hasattr(one, "options")]
    assert [one.ttl.seconds for one in options if one.HasField("ttl")] == [3600, 90, 172_800]
    await done(ask("create-table", "db", "mugs", "-c", "id=int64", "--key", "id", "--expires"))
    made = [one for one in servicer.requests if isinstance(one, pb.CreateTableRequest)]
    assert made[-1].table.expires


async def test_pages(served: tuple[Served, Ask], cups: None) -> None:
    _, ask = served
    await done(ask("insert", "db", "cups", json.dumps([{"id": index, "name": "n"} for index in range(250)])))
    assert len(json.loads(await done(ask("select", "db", "cups", "-o", "json")))) == 100
    assert len(json.loads(await done(ask("select", "db", "cups", "--limit", "220", "-o", "json")))) == 220
    seen: list[int] = []
    token: list[str] = []
    while True:
        words = ("--where", "name=n", "--page-size", "100", *token, "-o", "json")
        page = json.loads(await done(ask("select", "db", "cups", *words)))
        seen += [row["id"] for row in page["rows"]]
        if not page["next_page_token"]:
            break
        token = ["--page-token", page["next_page_token"]]
    assert seen == list(range(250))
    last = (await done(ask("select", "db", "cups", "--page-size", "1"))).splitlines()[-1]
    again = last.partition("--page-token ")[2]
    second = await done(ask("select", "db", "cups", "--page-size", "1", "--page-token", again))
    assert second.splitlines()[1].split() == ["1", "n"]


async def test_filtering_is_asked_for_and_its_error_says_how(served: tuple[Served, Ask], cups: None) -> None:
    servicer, ask = served
    await done(ask("select", "db", "cups", "--where", "name=x", "--allow-filtering"))
    assert isinstance(servicer.requests[-1], pb.SelectRecordsRequest)
    assert servicer.requests[-1].query.allow_filtering
    servicer.error = errors.BackendCapabilityMissing("query.where", "needs an index; or set `allow_filtering`")
    result = await ask("select", "db", "cups", "--where", "name=x")
    assert isinstance(servicer.requests[-1], pb.SelectRecordsRequest)
    assert not servicer.requests[-1].query.allow_filtering
    assert "→ Add --allow-filtering" in result.stderr
    servicer.error = None
    assert "oca db tables SERVICE" in (await ask("select", "db", "nope")).stderr
