"""The backend away, in the way, or gone between two calls: typed errors, and everything works again afterwards."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from pathlib import Path

import asyncpg
import pytest
from onecontainer_driver_sql import writing
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.driver import open_database
from onecontainer_driver_sql.settings import read_settings
from sqlalchemy import event
from sqlalchemy.engine import make_url

from drivers.sql.tests.calls import create, people, select
from onecontainer.api.db.v1 import query_pb2
from onecontainer.driver import errors
from tests.fixtures.records import K, column, equals, insertion, record, setting, updating


async def test_probing_asks_the_backend(db: Database) -> None:
    assert (await db.version())[0].isdigit()


async def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: the connection is refused
        url = f"postgresql://u:hunter2@127.0.0.1:{taken.getsockname()[1]}/d"
        async with open_database(read_settings({"url": url}, {}, tmp_path)) as database:
            with pytest.raises(errors.BackendUnreachable) as raised:
                await database.version()
    assert raised.value.retry_after
    assert raised.value.hop == "backend"
    assert "hunter2" not in str(raised.value)


async def test_somebody_listens_and_says_nothing(tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"postgresql://u@127.0.0.1:{mute.getsockname()[1]}/d"
        settings = read_settings({"url": url, "connect_timeout": 0.2}, {}, tmp_path)
        async with open_database(settings) as database:
            with pytest.raises(errors.BackendUnreachable):
                await database.version()


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"username": "nobody"}, errors.BackendExecutionFailed, errors.Code.PERMISSION_DENIED),
        ({"database": "nope"}, errors.BackendExecutionFailed, errors.Code.FAILED_PRECONDITION),
    ],
)
async def test_wrong_account_or_database(
    postgres: str, tmp_path: Path, change: dict[str, str], error: type[Exception], code: errors.Code
) -> None:
    url = make_url(postgres).set(**change).render_as_string(hide_password=False)
    async with open_database(read_settings({"url": url}, {}, tmp_path)) as database:
        with pytest.raises(error) as raised:
            await database.version()
    assert isinstance(raised.value, errors.OneContainerError)
    assert raised.value.code == code


async def test_connections_that_the_server_closed_are_replaced(pg: Database, postgres: str) -> None:
    pooled: set[asyncpg.Connection] = set()
    for happening in ("connect", "checkout"):
        event.listen(pg._engine.sync_engine, happening, lambda connection, *_: pooled.add(connection.driver_connection))
    await people(pg, 3)
    await asyncio.gather(*(select(pg, "people") for _ in range(5)))
    raw = await asyncpg.connect(postgres)
    try:
        await raw.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'onecontainer'"
        )
        # The server says so first and closes after: a call between the two is told to try again, as below.
        while not all(connection.is_closed() for connection in pooled):
            await raw.fetchval("SELECT 1")
    finally:
        await raw.close()
    assert len(pooled) >= 2
    assert len(await select(pg, "people")) == 3


async def test_a_connection_lost_in_the_middle(pg: Database, postgres: str) -> None:
    await people(pg, 3)
    raw = await asyncpg.connect(postgres)
    try:
        with pytest.raises(errors.BackendUnreachable) as raised:
            async with pg.transaction() as connection:
                pid = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
                await raw.fetch("SELECT pg_terminate_backend($1)", pid)
                await connection.exec_driver_sql("SELECT 1")
    finally:
        await raw.close()
    assert raised.value.retry_after
    assert len(await select(pg, "people")) == 3


async def test_a_lack_of_rights(pg: Database, postgres: str, schema: str, tmp_path: Path) -> None:
    await people(pg, 1)
    raw = await asyncpg.connect(postgres)
    try:
        await raw.execute(f"CREATE ROLE reader_{schema} LOGIN; GRANT USAGE ON SCHEMA {schema} TO reader_{schema}")
        url = postgres.replace("tester@", f"reader_{schema}@")
        async with open_database(read_settings({"url": url, "schema": schema}, {}, tmp_path)) as database:
            with pytest.raises(errors.BackendExecutionFailed) as raised:
                await select(database, "people")
        assert raised.value.code == errors.Code.PERMISSION_DENIED
        assert raised.value.metadata["backend_code"] == "42501"
    finally:
        await raw.execute(f"DROP OWNED BY reader_{schema}; DROP ROLE reader_{schema}")
        await raw.close()


async def test_a_statement_timeout_is_a_deadline(postgres: str, schema: str, tmp_path: Path) -> None:
    settings = read_settings({"url": postgres, "schema": schema, "statement_timeout": 0.05}, {}, tmp_path)
    async with open_database(settings) as database:
        with pytest.raises(errors.DeadlineExceeded):
            async with database.reading() as connection:
                await connection.exec_driver_sql("SELECT pg_sleep(60)")


async def test_a_deadlock_is_aborted(pg: Database) -> None:
    await people(pg, 2)
    both = asyncio.Barrier(2)

    async def cross(first: int, second: int) -> None:
        async with pg.transaction() as connection:
            table = await pg.table(connection, "people")
            name = connection.dialect.identifier_preparer.format_table(table.sa)
            await connection.exec_driver_sql(f"UPDATE {name} SET age = 1 WHERE id = {first}")
            await both.wait()
            await connection.exec_driver_sql(f"UPDATE {name} SET age = 1 WHERE id = {second}")

    outcomes = await asyncio.gather(cross(0, 1), cross(1, 0), return_exceptions=True)
    (failed,) = [one for one in outcomes if one is not None]
    assert isinstance(failed, errors.BackendExecutionFailed)
    assert failed.code == errors.Code.ABORTED


async def test_a_busy_pool_is_told(postgres: str, schema: str, tmp_path: Path) -> None:
    options = {"url": postgres, "schema": schema, "pool_size": 1, "connect_timeout": 3.0}
    async with open_database(read_settings(options, {}, tmp_path)) as database, database.reading():
        with pytest.raises(errors.LimitExceeded, match="pool_size"):
            await database.version()


async def test_an_sqlite_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database, certainly not" * 100)
    async with open_database(read_settings({"url": f"sqlite:///{tmp_path}/x.db"}, {}, tmp_path)) as database:
        with pytest.raises(errors.BackendExecutionFailed) as raised:
            await database.version()
    assert raised.value.code == errors.Code.DATA_LOSS


async def test_another_program_holds_the_sqlite_file(lite: Database, tmp_path: Path) -> None:
    await people(lite, 2)
    other = sqlite3.connect(tmp_path / "database.sqlite3", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE people SET age = 7 WHERE id = 0")
        # Readers go on, and see what was there before.
        assert [one["age"] for one in await select(lite, "people")] == [0, 1]
        write = asyncio.create_task(
            writing.update_records(lite, updating("people", equals("id", 1), setting("age", 8)))
        )
        other.execute("COMMIT")
        assert (await write).affected == 1
    finally:
        other.close()
    assert [one["age"] for one in await select(lite, "people")] == [7, 8]


async def test_what_is_committed_is_there_after_opening_again(tmp_path: Path) -> None:
    for count in (1, 2):
        async with open_database(read_settings({}, {}, tmp_path)) as database:
            if count == 1:
                await create(database, "t", column("id", K.TYPE_KIND_INT64), key=["id"])
            await writing.insert_records(database, insertion("t", record(id=count)))
            assert len(await select(database, "t", query_pb2.Query())) == count
