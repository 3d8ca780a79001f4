"""Notices on a real PostgreSQL: sent with the commit, heard by the others, and "look for yourself" when something was missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from onecontainer.cluster.postgresql import MAX_PAYLOAD, PostgresNotices, payloads
from onecontainer.database import Database
from onecontainer.errors import StateInvalid

TOPIC = "jobs"
Heard = Sequence[str] | None


class Ear:
    """What a gateway hears of the topic, in order."""

    def __init__(self, notices: PostgresNotices) -> None:
        self.heard: asyncio.Queue[Heard] = asyncio.Queue()
        self.notices = notices
        notices.subscribe(TOPIC, self.heard.put_nowait)

    async def next(self) -> Heard:
        async with asyncio.timeout(120):
            return await self.heard.get()


@pytest.fixture
async def ears(databases: tuple[Database, Database]) -> AsyncIterator[tuple[Ear, Ear]]:
    async with AsyncExitStack() as stack:
        found = tuple(
            Ear(PostgresNotices(database.engine, f"gateways/{number}")) for number, database in enumerate(databases)
        )
        for ear in found:
            task = asyncio.create_task(ear.notices.run())
            stack.push_async_callback(_end, task)
            await ear.notices.listening.wait()
            assert await ear.next() is None  # what was told before nobody here heard
        yield found[0], found[1]


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def tell(database: Database, ear: Ear, *items: str) -> None:
    def run(connection: Connection) -> None:
        for item in items:
            ear.notices.add(connection, TOPIC, item)

    await database.write(run)


async def test_the_others_hear_what_is_committed(databases: tuple[Database, Database], ears: tuple[Ear, Ear]) -> None:
    await tell(databases[0], ears[0], "one", "two", "one")
    assert await ears[1].next() == ["one", "two"]
    await tell(databases[1], ears[1], "three")
    # Not its own: that it knows.
    assert await ears[0].next() == ["three"]


async def test_what_is_rolled_back_is_not_told(databases: tuple[Database, Database], ears: tuple[Ear, Ear]) -> None:
    def fail(connection: Connection) -> None:
        ears[0].notices.add(connection, TOPIC, "never happened")
        raise StateInvalid("not this time")

    with pytest.raises(StateInvalid):
        await databases[0].write(fail)
    await tell(databases[0], ears[0], "happened")
    assert await ears[1].next() == ["happened"]


async def test_much_comes_in_parts_and_too_much_as_look_for_yourself(
    databases: tuple[Database, Database], ears: tuple[Ear, Ear]
) -> None:
    many = [f"{number:0100}" for number in range(500)]
    await tell(databases[0], ears[0], *many)
    found: list[str] = []
    while len(found) < len(many):
        part = await ears[1].next()
        assert part is not None
        found += part
    assert found == many
    await tell(databases[0], ears[0], *(f"{number:0100}" for number in range(5000)))
    assert await ears[1].next() is None


async def test_after_a_broken_connection_everybody_looks(
    databases: tuple[Database, Database], ears: tuple[Ear, Ear]
) -> None:
    # The last that one who listens has asked: after some seconds it looks whether the connection is of use.
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE (query LIKE 'LISTEN%' OR query = 'SELECT 1') AND pid <> pg_backend_pid()"
    )
    await databases[0].write(lambda c: c.execute(sa.text(kill)))
    assert await ears[1].next() is None
    await tell(databases[0], ears[0], "again")
    assert await ears[1].next() == ["again"]


def test_payloads_are_small_enough_for_postgresql() -> None:
    pending = {"jobs": [f"{'é' * 40} {number}" for number in range(300)], "work": ["uid"]}
    found = payloads("gateways/one", pending)
    assert all(len(payload.encode()) <= MAX_PAYLOAD for payload in found)
    assert [line for payload in found[:-1] for line in payload.split("\n")[1:]] == pending["jobs"]
    assert found[-1] == "gateways/one work\nuid"
    assert payloads("g", {"jobs": ["x" * 9000]}) == ["g jobs"]
    assert payloads("g", {"jobs": ["fits", "x" * 9000]}) == ["g jobs"]
