"""Notices by PostgreSQL's LISTEN and NOTIFY: one statement in a transaction that has something to tell, one connection that listens.

A NOTIFY is delivered when its transaction commits, and not at all if it does not. It is lost for whoever is not connected at that
moment: after each connect everybody is asked to look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from onecontainer.cluster.notices import Hear

log = logging.getLogger(__name__)

CHANNEL = "onecontainer"
MAX_PAYLOAD = 7900
"""Bytes; PostgreSQL takes fewer than 8000."""
MAX_PAYLOADS = 16
"""A transaction that would have to send more of a topic says "look for yourself" instead."""
PING_INTERVAL = 5.0
PING_TIMEOUT = 10.0
RECONNECT_INTERVAL = 1.0
_PENDING, _MARKS = "onecontainer_notices", "onecontainer_notice_marks"
_NOTIFY = "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload"
# A host that vanishes without a word is given up after some ten seconds, on both sides.
_KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "connect_timeout": 10}
_SERVER_KEEPALIVE = "SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3"


async def connect(engine: Engine) -> psycopg.AsyncConnection[Any]:
    """A connection of its own to the engine's database, in autocommit."""
    _, arguments = engine.dialect.create_connect_args(engine.url)
    connection = await psycopg.AsyncConnection.connect(autocommit=True, **{**_KEEPALIVE, **arguments})
    try:
        await connection.execute(_SERVER_KEEPALIVE)
    except BaseException:
        await connection.close()  # also when the gateway stops just then: nobody else has it
        raise
    return connection


async def ping(connection: psycopg.AsyncConnection[Any]) -> None:
    """Raises TimeoutError or psycopg.Error if the connection is of no use any more."""
    async with asyncio.timeout(PING_TIMEOUT):
        await connection.execute("SELECT 1")


class PostgresNotices:
    """`Notices` of one gateway. A task: `run`."""

    def __init__(self, engine: Engine, gateway: str) -> None:
        """``gateway`` names this process; what it tells itself is not heard."""
        self._engine = engine
        self._gateway = gateway
        self._subscribers: dict[str, list[Hear]] = {}
        self.listening = asyncio.Event()
        event.listen(engine, "commit", self._commit)
        event.listen(engine, "rollback", self._rollback)
        event.listen(engine, "savepoint", self._savepoint)
        event.listen(engine, "rollback_savepoint", self._rollback_savepoint)

    # --- telling -----------------------------------------------------------------------------------------------------

    def add(self, connection: Connection, topic: str, item: str) -> None:
        connection.info.setdefault(_PENDING, []).append((topic, item))

    def _commit(self, connection: Connection) -> None:
        pending: list[tuple[str, str]] | None = connection.info.pop(_PENDING, None)
        connection.info.pop(_MARKS, None)
        if pending:
            # A dict keeps the order, and what is told twice once.
            by_topic: dict[str, dict[str, None]] = {}
            for topic, item in pending:
                by_topic.setdefault(topic, {})[item] = None
            connection.exec_driver_sql(_NOTIFY, (CHANNEL, payloads(self._gateway, by_topic)))

    def _rollback(self, connection: Connection) -> None:
        connection.info.pop(_PENDING, None)
        connection.info.pop(_MARKS, None)

    def _savepoint(self, connection: Connection, name: str) -> None:
        connection.info.setdefault(_MARKS, {})[name] = len(connection.info.get(_PENDING, ()))

    def _rollback_savepoint(self, connection: Connection, name: str, _context: object) -> None:
        del connection.info.get(_PENDING, [])[connection.info.get(_MARKS, {}).get(name, 0) :]

    # --- being told --------------------------------------------------------------------------------------------------

    def subscribe(self, topic: str, hear: Hear) -> None:
        self._subscribers.setdefault(topic, []).append(hear)

    async def run(self) -> None:
        """Listens until it is cancelled; a database that is away is tried again and again."""
        while True:
            try:
                async with await connect(self._engine) as connection:
                    await self._listen(connection)
            except (psycopg.Error, OSError, TimeoutError) as error:
                log.warning("nothing is heard of the other gateways until the database answers again: %s", error)
            finally:
                self.listening.clear()
            await asyncio.sleep(RECONNECT_INTERVAL)

    async def _listen(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute(f"LISTEN {CHANNEL}".encode())
        for topic in self._subscribers:
            self._tell(topic, None)
        self.listening.set()
        while True:
            async for notice in connection.notifies(timeout=PING_INTERVAL):
                self._hear(notice.payload)
            await ping(connection)

    def _hear(self, payload: str) -> None:
        header, _, body = payload.partition("\n")
        sender, _, topic = header.partition(" ")
        if sender != self._gateway:
            self._tell(topic, body.split("\n") if body else None)

    def _tell(self, topic: str, items: list[str] | None) -> None:
        for hear in self._subscribers.get(topic, ()):
            try:
                hear(items)
            except Exception:  # one listener's trouble must not make the others deaf
                log.exception("a notice about %s could not be taken", topic)


def payloads(gateway: str, pending: Mapping[str, Iterable[str]]) -> list[str]:
    """What is sent: ``GATEWAY TOPIC``, then an item a line. Without items it means "look for yourself"."""
    found: list[str] = []
    for topic, items in pending.items():
        header = f"{gateway} {topic}"
        packed = _packed(header, items)
        found += packed if packed is not None else [header]
    return found


def _packed(header: str, items: Iterable[str]) -> list[str] | None:
    """None: it would be too much."""
    found: list[str] = []
    lines, size = [header], len(header.encode())
    for item in items:
        length = len(item.encode()) + 1
        if size + length > MAX_PAYLOAD:
            if len(lines) == 1 or len(found) + 1 == MAX_PAYLOADS:
                return None
            found.append("\n".join(lines))
            lines, size = [header], len(header.encode())
            if size + length > MAX_PAYLOAD:
                return None
        lines.append(item)
        size += length
    return [*found, "\n".join(lines)]
