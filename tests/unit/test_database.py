"""The group-committing database, on SQLite files."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from onecontainer.database import READERS, Database
from onecontainer.errors import LimitExceeded, QueueCallFailed, QueueUnreachable, StateInvalid

metadata = sa.MetaData()
things = sa.Table("things", metadata, sa.Column("name", sa.Text, primary_key=True))


def insert(name: str) -> Callable[[sa.Connection], str]:
    def run(connection: sa.Connection) -> str:
        connection.execute(things.insert(), [{"name": name}])
        return name

    return run


def names(connection: sa.Connection) -> list[str]:
    return list(connection.scalars(sa.select(things.c.name).order_by(things.c.name)))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/gateway.db"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with Database(url, busy_timeout=0.05) as database:
        metadata.create_all(database.engine)
        yield database


class Group:
    """Writes that are committed together: the first one is held until all are queued."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._go = threading.Event()
        self._held = threading.Event()

    async def run(self, *writes: Callable[[sa.Connection], Any]) -> list[Any]:
        def hold(_connection: sa.Connection) -> None:
            self._held.set()
            self._go.wait()

        first = asyncio.create_task(self._database.write(hold))
        await asyncio.to_thread(self._held.wait)
        rest = [asyncio.create_task(self._database.write(write)) for write in writes]
        # Each needs one turn of the loop to queue up.
        await asyncio.sleep(0)
        assert self._database._writes.qsize() == len(writes)
        self._go.set()
        await first
        return await asyncio.gather(*rest, return_exceptions=True)


def commits(database: Database) -> list[object]:
    seen: list[object] = []
    sa.event.listen(database.engine, "commit", seen.append)
    return seen


async def test_what_is_answered_is_committed(database: Database, url: str) -> None:
    assert await database.write(insert("a")) == "a"
    with sqlite3.connect(url.removeprefix("sqlite:///")) as other:
        assert other.execute("SELECT name FROM things").fetchall() == [("a",)]
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_the_settings_that_durability_rests_on(database: Database) -> None:
    def pragmas(connection: sa.Connection) -> list[Any]:
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "foreign_keys")]

    assert await database.read(pragmas) == [2, 1]
    assert await database.write(pragmas) == [2, 1]


async def test_what_queues_up_is_one_transaction(database: Database) -> None:
    seen = commits(database)
    results = await Group(database).run(*(insert(f"n{number}") for number in range(50)))
    assert results == [f"n{number}" for number in range(50)]
    assert len(seen) == 2, "the held one, and all the others"


async def test_one_that_fails_harms_no_other_and_changes_nothing(database: Database) -> None:
    seen = commits(database)

    def half(connection: sa.Connection) -> None:
        connection.execute(things.insert(), [{"name": "half"}])
        raise StateInvalid("no")

    def broken(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SELECT * FROM nowhere")

    results = await Group(database).run(insert("a"), half, insert("b"), insert("a"), broken, insert("c"))
    assert results[0] == "a"
    assert isinstance(results[1], StateInvalid)
    assert results[2] == "b"
    assert isinstance(results[3], QueueCallFailed), "a is there already"
    assert isinstance(results[4], QueueCallFailed)
    assert results[5] == "c"
    assert len(seen) == 2, "however many fail, the others share one commit"
    assert await database.read(names) == ["a", "b", "c"]


async def test_a_write_may_run_twice_but_counts_once(database: Database) -> None:
    runs: list[int] = []

    def counted(connection: sa.Connection) -> int:
        runs.append(1)
        return insert("a")(connection) and len(names(connection))

    def bad(_connection: sa.Connection) -> None:
        raise ValueError("a defect")

    results = await Group(database).run(counted, bad)
    assert results[0] == 1
    assert isinstance(results[1], ValueError)
    assert len(runs) == 2


async def test_later_writes_see_earlier_ones_of_their_group(database: Database) -> None:
    assert (await Group(database).run(insert("a"), names))[1] == ["a"]


async def test_readers_do_not_wait_for_the_writer(database: Database) -> None:
    await database.write(insert("a"))
    held, go = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        insert("b")(connection)
        held.set()
        go.wait()

    writing = asyncio.create_task(database.write(slow))
    await asyncio.to_thread(held.wait)
    assert await database.read(names) == ["a"]
    go.set()
    await writing
    assert await database.read(names) == ["a", "b"]


async def test_reads_share_a_transaction_and_fail_alone(database: Database) -> None:
    await database.write(insert("a"))
    held, go = [threading.Event() for _ in range(READERS)], threading.Event()

    def hold(number: int) -> Callable[[sa.Connection], None]:
        def run(_connection: sa.Connection) -> None:
            held[number].set()
            go.wait()

        return run

    def defect(_connection: sa.Connection) -> None:
        raise ValueError("a defect")

    def broken(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SELECT * FROM nowhere")

    holding = []
    for number in range(READERS):
        holding.append(asyncio.create_task(database.read(hold(number))))
        await asyncio.to_thread(held[number].wait)
    begun: list[object] = []
    sa.event.listen(database.engine, "begin", begun.append)
    reads = [asyncio.create_task(database.read(fn)) for fn in (names, defect, names, broken, names)]
    await asyncio.sleep(0)
    go.set()
    results = await asyncio.gather(*reads, return_exceptions=True)
    await asyncio.gather(*holding)
    assert [results[0], results[2], results[4]] == [["a"]] * 3
    assert isinstance(results[1], ValueError)
    assert isinstance(results[3], QueueCallFailed)
    assert len(begun) < len(reads)


async def test_a_read_sees_what_was_committed_before_it_was_asked(database: Database) -> None:
    for number in range(20):
        await database.write(insert(f"n{number}"))
        assert len(await database.read(names)) == number + 1


async def test_a_caller_that_leaves_disturbs_nobody(database: Database) -> None:
    leaving = asyncio.create_task(database.write(insert("a")))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert await database.write(insert("b")) == "b"


async def test_a_closed_database_says_so(url: str) -> None:
    database = Database(url)
    with pytest.raises(QueueUnreachable):
        await database.write(names)
    async with database:
        metadata.create_all(database.engine)
    for call in (database.write(names), database.read(names)):
        with pytest.raises(QueueUnreachable) as caught:
            await call
        assert caught.value.retry_after is not None


async def test_what_was_queued_before_the_close_is_still_written(url: str) -> None:
    async with Database(url) as database:
        metadata.create_all(database.engine)
        writes = [asyncio.create_task(database.write(insert(f"n{number}"))) for number in range(10)]
        await asyncio.sleep(0)
    assert [await write for write in writes] == [f"n{number}" for number in range(10)]


async def test_a_locked_database_is_typed_and_passes(database: Database, url: str) -> None:
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(QueueUnreachable) as caught:
        await database.write(insert("a"))
    assert "locked" in caught.value.message
    assert caught.value.retry_after is not None
    other.execute("ROLLBACK")
    other.close()
    assert await database.write(insert("a")) == "a"


async def test_a_full_disk_is_typed_and_passes(database: Database) -> None:
    def bound(connection: sa.Connection, pages: int) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill(connection: sa.Connection) -> None:
        connection.execute(things.insert(), [{"name": f"{number}" + "x" * 4000} for number in range(50)])

    await database.write(lambda connection: bound(connection, 10))
    results = await Group(database).run(insert("a"), fill, insert("b"))
    assert isinstance(results[1], LimitExceeded)
    assert "make room" in results[1].message
    await database.write(lambda connection: bound(connection, 1_000_000))
    await database.write(fill)


async def test_what_callers_send_stays_out_of_errors_and_logs(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await database.write(insert("hunter2"))
    with pytest.raises(QueueCallFailed) as caught:
        await database.write(insert("hunter2"))
    assert "unforeseen" in caplog.text
    assert "hunter2" not in caplog.text + caught.value.message


async def test_a_file_that_is_no_database_is_typed(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database, but text" * 100)
    async with Database(f"sqlite:///{tmp_path}/broken.db") as database:
        with pytest.raises((QueueCallFailed, QueueUnreachable)):
            await database.read(names)
