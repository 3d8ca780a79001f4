"""Leadership by an advisory lock of PostgreSQL. A session holds it, so it is free again when its gateway is killed."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
from sqlalchemy.engine import Engine

from onecontainer.cluster.leadership import Work
from onecontainer.cluster.postgresql import RECONNECT_INTERVAL, connect, ping

log = logging.getLogger(__name__)

LOCK = 0x6F636C64
"""The lock's first number; the second is the schema's, so that two installations in one database have two leaders."""
TRY_INTERVAL = 0.5
PING_INTERVAL = 1.0
_TRY = "SELECT pg_try_advisory_lock(%s::int, hashtext(current_schema()))"


class AdvisoryLeadership:
    """`Leadership` among the gateways of a database. A task: `run`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._gained = asyncio.Event()
        self._lost = asyncio.Event()
        self._lost.set()

    @property
    def held(self) -> bool:
        return self._gained.is_set()

    async def run(self) -> None:
        """Tries to lead until it is cancelled."""
        while True:
            try:
                async with await connect(self._engine) as connection:
                    await self._hold(connection)
            except (psycopg.Error, OSError, TimeoutError) as error:
                log.warning("this gateway cannot lead until the database answers again: %s", error)
            finally:
                self._gained.clear()
                self._lost.set()
            await asyncio.sleep(RECONNECT_INTERVAL)

    async def _hold(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            if await self._try(connection):
                break
            await asyncio.sleep(
                TRY_INTERVAL
            )  # PostgreSQL could wait for the lock itself, but not be asked whether it is alive
        log.info("this gateway leads: it sweeps, and publishes jobs if there is a broker")
        self._lost.clear()
        self._gained.set()
        while True:
            await asyncio.sleep(PING_INTERVAL)
            await ping(connection)

    async def _try(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        async with asyncio.timeout(10):
            row = await (await connection.execute(_TRY, (LOCK,))).fetchone()
        return row is not None and bool(row[0])

    async def lead(self, work: Work) -> None:
        while True:
            await self._gained.wait()
            working = asyncio.ensure_future(work())
            lost = asyncio.ensure_future(self._lost.wait())
            try:
                await asyncio.wait((working, lost), return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    return working.result()
            finally:
                working.cancel()
                lost.cancel()
                await asyncio.gather(working, lost, return_exceptions=True)
