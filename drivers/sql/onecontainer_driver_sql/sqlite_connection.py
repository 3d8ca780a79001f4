"""Connections to an SQLite file: with what the stored forms need, and with statements that end when their caller goes."""

from __future__ import annotations

import asyncio
import ctypes
import decimal
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import aiosqlite

from onecontainer_driver_sql.codecs import EXACT
from onecontainer_driver_sql.sqlite_types import DECIMAL_COLLATION, decimal_text

BUSY_TIMEOUT_MS = 5000
LOOK_UP_STEPS = 100_000
"""Instructions of SQLite's machine between two looks at whether the caller is still there: about a millisecond."""


class StoredFormsConnection(sqlite3.Connection):
    """A connection with what the stored forms need, made in the thread that the connection lives in."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.create_collation(DECIMAL_COLLATION, _compare)
        self.create_function("onecontainer_decimal_add", 2, _add, deterministic=True)
        self.create_function("onecontainer_decimal_subtract", 2, _subtract, deterministic=True)
        self.create_function("onecontainer_float32", 1, _float32, deterministic=True)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "case_sensitive_like = ON",
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
        ):
            self.execute(f"PRAGMA {pragma}")


def _compare(left: str, right: str) -> int:
    try:
        a, b = decimal.Decimal(left), decimal.Decimal(right)
    except decimal.InvalidOperation:  # text that another program put there
        return (left > right) - (left < right)
    return (a > b) - (a < b)


def _add(left: str | None, right: str | None) -> str | None:
    if left is None or right is None:
        return None
    return decimal_text(EXACT.add(decimal.Decimal(left), decimal.Decimal(right)))


def _float32(number: float | None) -> float | None:
    return None if number is None else ctypes.c_float(number).value


def _subtract(left: str | None, right: str | None) -> str | None:
    if left is None or right is None:
        return None
    return decimal_text(EXACT.subtract(decimal.Decimal(left), decimal.Decimal(right)))


class Calls:
    """Which call the connection's thread is at, and which one has been left by its caller."""

    def __init__(self) -> None:
        self.running: object = None
        self.abandoned: object = None

    def is_abandoned(self) -> bool:
        return self.abandoned is not None and self.abandoned is self.running


class WholeCursor:
    """What SQLAlchemy uses of a cursor: a statement and its rows are one visit to the connection's thread instead of four, and each visit
    costs more than a small statement does.
    """

    def __init__(self, connection: InterruptibleConnection) -> None:
        self._connection = connection
        self._cursor: sqlite3.Cursor | None = None
        self._rows: list[Any] = []

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        await self._connection._execute(self._run, sql, parameters)

    async def executemany(self, sql: str, parameters: Iterable[Sequence[Any]]) -> None:
        self._cursor = await self._connection._execute(self._connection._conn.executemany, sql, parameters)

    def _run(self, sql: str, parameters: Sequence[Any]) -> None:
        self._cursor = self._connection._conn.execute(sql, parameters)
        self._rows = self._cursor.fetchall()  # to the end, which lets go of the statement

    async def fetchall(self) -> list[Any]:
        return self._rows

    async def close(self) -> None:
        self._rows = []

    @property
    def description(self) -> Any:
        return None if self._cursor is None else self._cursor.description

    @property
    def rowcount(self) -> int:
        return -1 if self._cursor is None else self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return None if self._cursor is None else self._cursor.lastrowid


class InterruptibleConnection(aiosqlite.Connection):
    """aiosqlite leaves the statement of a cancelled call running in its thread, and all that follows waits for it.

    sqlite3_interrupt would miss a statement that is about to start, so SQLite asks now and then whether to go on. `_execute` is what
    every call of aiosqlite goes through.
    """

    def __init__(self, database: str) -> None:
        calls = Calls()

        def connector() -> sqlite3.Connection:
            raw = sqlite3.connect(
                database, factory=StoredFormsConnection, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000
            )
            raw.set_progress_handler(calls.is_abandoned, LOOK_UP_STEPS)
            return raw

        super().__init__(connector, iter_chunk_size=64)
        self._calls = calls
        self._thread.daemon = True  # as SQLAlchemy does it for connections that it opens itself

    async def rows(self, sql: str, parameters: Sequence[Any], *, write: bool) -> list[Any]:
        """All rows of a statement that is a transaction of its own, in one visit to the thread."""
        found: list[Any] = await self._execute(self._write if write else self._execute_fetchall, sql, parameters)
        return found

    def _write(self, sql: str, parameters: Sequence[Any]) -> Any:
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            rows = self._execute_fetchall(sql, parameters)
            # Another program may have held the file for seconds: who has been told meanwhile that nothing came of it must be right.
            if self._calls.is_abandoned():
                raise sqlite3.OperationalError("the call was left")
            self._conn.execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            raise
        return rows

    def cursor(self) -> WholeCursor:  # type: ignore[override]  # not aiosqlite's, which visits the thread for everything
        return WholeCursor(self)

    async def rollback(self) -> None:
        """Visits the thread only if there may be something to undo: a call that was left may still begin a transaction."""
        if self._calls.abandoned is not None or self.in_transaction:
            await super().rollback()

    async def _connect(self) -> aiosqlite.Connection:
        try:
            return await super()._connect()
        except BaseException:
            # The thread has been told to end, and tells the loop so: it must not find the loop closed.
            await asyncio.to_thread(self._thread.join)
            raise

    async def _execute(self, fn: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        call = object()

        def guarded() -> Any:
            self._calls.running = call
            try:
                return fn(*arguments, **options)
            finally:
                self._calls.running = None

        try:
            return await super()._execute(guarded)  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self._calls.abandoned = call
            raise


def open_connection(database: str, **_: Any) -> InterruptibleConnection:
    """For SQLAlchemy, which awaits it. Its own arguments are for sqlite3 and are set here."""
    return InterruptibleConnection(database)
