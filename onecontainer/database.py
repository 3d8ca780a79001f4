"""The gateway's database: many readers, one writer that commits in groups.

Durability costs one fsync a commit. The writer thread therefore takes all the work that has queued up while the last commit
was on its way, runs it in one transaction, and only then answers each caller: group commit, as databases do it inside.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import Connection, Engine

from onecontainer.errors import OneContainerError, QueueCallFailed, QueueUnreachable

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_GROUP = 256
READERS = 4
BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process's lock on SQLite's file; only a tool can have one, and calls have deadlines."""


def open_engine(url: str, busy_timeout: float = BUSY_TIMEOUT) -> Engine:
    """An engine with our settings; for SQLite WAL, synchronous=FULL and explicit transactions."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True, pool_size=READERS + 2, hide_parameters=True)
    # hide_parameters: what callers send stays out of errors and logs.
    engine = sa.create_engine(
        url, poolclass=sa.pool.QueuePool, connect_args={"check_same_thread": False}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # Python's sqlite3 would begin transactions by itself, at the first write only, and so let a read-then-write fail
        # with SQLITE_BUSY_SNAPSHOT; we begin them, IMMEDIATE for writers.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={int(busy_timeout * 1000)}",
            "temp_store=MEMORY",
            # The ledger's hot pages stay in memory, and are copied from the log to the file less often.
            "cache_size=-32768",
            "wal_autocheckpoint=4000",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _began(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("onecontainer_read", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _closed() -> QueueUnreachable:
    return QueueUnreachable("the gateway's database is closed", retry_after=1.0)


def _typed(error: BaseException) -> BaseException:
    """The database's own errors as ours; others as they are."""
    if not isinstance(error, exc.SQLAlchemyError):
        return error
    cause = getattr(error, "orig", None)
    if isinstance(error, exc.TimeoutError) or (
        isinstance(error, exc.OperationalError | exc.InterfaceError)
        # SQLite's name for an error in our own statement, or in the schema.
        and getattr(cause, "sqlite_errorname", "") != "SQLITE_ERROR"
    ):
        typed: OneContainerError = QueueUnreachable(
            f"the gateway's database does not answer: {cause or error}", retry_after=1.0
        )
    else:
        log.error("the database failed in an unforeseen way", exc_info=error)
        typed = QueueCallFailed("the gateway's database failed in an unforeseen way; its log tells more")
    typed.__cause__ = error
    return typed


class _Write:
    __slots__ = ("error", "fn", "future", "loop", "value")

    def __init__(self, fn: Callable[[Connection], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.fn = fn
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.value: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)


class Database:
    """Reads on threads, writes on one thread. An async context manager; schema is the business of migrations.

    A caller that is cancelled while it waits does not undo its write: it may still be committed, as with any remote database.
    """

    def __init__(self, url: str, *, busy_timeout: float = BUSY_TIMEOUT) -> None:
        self.url = url
        self.engine = open_engine(url, busy_timeout)
        self.dialect = self.engine.dialect.name
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-read")
        self._reading = self.engine.execution_options(onecontainer_read=True)
        self._writer = threading.Thread(target=self._write_loop, name="db-write", daemon=True)
        self._open = False

    async def __aenter__(self) -> Database:
        self._open = True
        self._writer.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._open = False
        self._writes.put(None)
        await asyncio.to_thread(self._writer.join)
        self._readers.shutdown(wait=True)
        self.engine.dispose()

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """The result of ``fn`` on a connection in a read transaction.

        Raises:
            QueueUnreachable: the database is closed or out of reach.
            QueueCallFailed: it failed in a way that nobody foresaw.
        """

        if not self._open:
            raise _closed()

        def run() -> T:
            try:
                with self._reading.connect() as connection, connection.begin():
                    return fn(connection)
            except exc.SQLAlchemyError as error:
                raise _typed(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """The result of ``fn`` once it is committed.

        ``fn`` runs on the writer thread, in a transaction with others, and once more if the group had to be rolled back:
        its only effect must be on the connection. What it raises is raised here, and it has then changed nothing.

        Raises:
            QueueUnreachable: the database is closed, out of reach, locked or full.
            QueueCallFailed: it failed in a way that nobody foresaw.
        """
        if not self._open:
            raise _closed()
        write = _Write(fn, asyncio.get_running_loop())
        self._writes.put(write)
        result: T = await write.future
        return result

    def _write_loop(self) -> None:
        running = True
        while running:
            first = self._writes.get()
            if first is None:
                break
            group = [first]
            while len(group) < MAX_GROUP:
                try:
                    more = self._writes.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    running = False
                    break
                group.append(more)
            if not self._commit(group):
                # Something in it failed. Once more, each behind a savepoint, so that it alone is undone.
                self._commit(group, each_alone=True)
            self._settle(group)
        self._refuse_rest()

    def _commit(self, group: list[_Write], *, each_alone: bool = False) -> bool:
        """Runs the group in one transaction. False: it was rolled back, and each has the error that did it."""
        try:
            with self.engine.begin() as connection:
                for write in group:
                    write.error = None
                    if each_alone:
                        self._run_alone(connection, write)
                    else:
                        write.value = write.fn(connection)
        except BaseException as error:
            typed = _typed(error)
            for write in group:
                # What failed before by itself keeps its own reason.
                write.error = write.error or typed
            return False
        return True

    @staticmethod
    def _run_alone(connection: Connection, write: _Write) -> None:
        savepoint = connection.begin_nested()
        try:
            write.value = write.fn(connection)
        except BaseException as error:
            write.error = _typed(error)
            try:
                savepoint.rollback()
            except exc.SQLAlchemyError:
                # The database has given up the whole transaction, as SQLite does when the disk is full.
                raise error from None
        else:
            savepoint.commit()

    @staticmethod
    def _settle(group: list[_Write]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
        for write in group:
            by_loop.setdefault(write.loop, []).append(write)
        for loop, writes in by_loop.items():

            def settle(writes: list[_Write] = writes) -> None:
                for write in writes:
                    write.settle()

            # A loop that was closed meanwhile has nobody who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)

    def _refuse_rest(self) -> None:
        rest: list[_Write] = []
        while True:
            try:
                write = self._writes.get_nowait()
            except queue.Empty:
                break
            if write is not None:
                write.error = _closed()
                rest.append(write)
        self._settle(rest)
