"""The gateway's database: many readers, one writer that commits in groups.

Durability costs one fsync a commit. The writer thread therefore takes all the work that has queued up while the last commit
was on its way, runs it in one transaction, and only then answers each caller: group commit, as databases do it inside. Reads
that wait for a thread share a transaction in the same way.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import Connection, Engine

from onecontainer.errors import LimitExceeded, OneContainerError, QueueCallFailed, QueueUnreachable

log = logging.getLogger(__name__)

T = TypeVar("T")
MAX_GROUP = 256
MAX_READ_GROUP = 32
READERS = 2
"""More threads would not read more, they would wait for each other and for the interpreter."""
DEADLOCK_TRIES = 5
"""Times that a write is tried once more that the database gave up since another program and it waited for each other's rows."""
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
        if getattr(cause, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
            # Trying again does not help until somebody has made room.
            typed = LimitExceeded(
                "the disk with the gateway's data folder is full, so nothing can be recorded: make room on it, then try again"
            )
    else:
        log.error("the database failed in an unforeseen way", exc_info=error)
        typed = QueueCallFailed("the gateway's database failed in an unforeseen way; its log tells more")
    typed.__cause__ = error
    return typed


def _is_deadlock(error: BaseException | None) -> bool:
    """Whether PostgreSQL gave it up in favour of another one that waited for it as well: nothing is wrong with it."""
    cause = error.__cause__ if error is not None else None
    return getattr(getattr(cause, "orig", None), "sqlstate", None) == "40P01"


class _Task:
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
        self._writes: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._reading = self.engine.execution_options(onecontainer_read=True)
        self._threads = [
            threading.Thread(target=self._write_loop, name="db-write", daemon=True),
            *(threading.Thread(target=self._read_loop, name=f"db-read-{n}", daemon=True) for n in range(READERS)),
        ]
        self._open = False

    async def __aenter__(self) -> Database:
        self._open = True
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._open = False
        self._writes.put(None)
        for _ in range(READERS):
            self._reads.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self.engine.dispose()

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """The result of ``fn`` on a connection in a read transaction, which may be shared with other reads.

        Raises:
            QueueUnreachable: the database is closed or out of reach.
            QueueCallFailed: it failed in a way that nobody foresaw.
        """
        return await self._done(self._reads, fn)

    async def _done(self, tasks: queue.SimpleQueue[_Task | None], fn: Callable[[Connection], T]) -> T:
        if not self._open:
            raise _closed()
        task = _Task(fn, asyncio.get_running_loop())
        tasks.put(task)
        result: T = await task.future
        return result

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """The result of ``fn`` once it is committed.

        ``fn`` runs on the writer thread, in a transaction with others, and once more if the group had to be rolled back:
        its only effect must be on the connection. What it raises is raised here, and it has then changed nothing.

        Raises:
            QueueUnreachable: the database is closed, out of reach or locked.
            LimitExceeded: its disk is full.
            QueueCallFailed: it failed in a way that nobody foresaw.
        """
        return await self._done(self._writes, fn)

    def _read_loop(self) -> None:
        running = True
        while running:
            group, running = _take(self._reads, MAX_READ_GROUP)
            waiting = deque(group)
            while waiting:
                self._read(waiting)
            self._settle(group)

    def _read(self, waiting: deque[_Task]) -> None:
        """Runs reads in one transaction. One that fails in the database ends it: the rest is for the next one."""
        try:
            with self._reading.connect() as connection, connection.begin():
                while waiting:
                    task = waiting[0]
                    try:
                        task.value = task.fn(connection)
                    except exc.SQLAlchemyError:
                        raise
                    except BaseException as error:
                        task.error = error
                    waiting.popleft()
        except BaseException as error:
            if waiting:
                waiting.popleft().error = _typed(error)

    def _write_loop(self) -> None:
        running = True
        while running:
            group, running = _take(self._writes, MAX_GROUP)
            if group and not self._commit(group):
                if not any(_is_deadlock(write.error) for write in group):
                    # Something in it failed. Once more, each behind a savepoint, so that it alone is undone.
                    self._commit(group, each_alone=True)
                for write in group:
                    self._try_again(write)
            self._settle(group)

    def _try_again(self, write: _Task) -> None:
        """A write that was given up for a deadlock, in a transaction of its own: in a group it holds rows that others want meanwhile."""
        for _ in range(DEADLOCK_TRIES):
            if not _is_deadlock(write.error):
                return
            self._commit([write])

    def _commit(self, group: list[_Task], *, each_alone: bool = False) -> bool:
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
    def _run_alone(connection: Connection, write: _Task) -> None:
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
    def _settle(group: list[_Task]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[_Task]] = {}
        for write in group:
            by_loop.setdefault(write.loop, []).append(write)
        for loop, writes in by_loop.items():

            def settle(writes: list[_Task] = writes) -> None:
                for write in writes:
                    write.settle()

            # A loop that was closed meanwhile has nobody who waits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)


def _take(tasks: queue.SimpleQueue[_Task | None], most: int) -> tuple[list[_Task], bool]:
    """Waits for a task, and takes what has queued up behind it. False: there will be no more for this thread."""
    group: list[_Task] = []
    task = tasks.get()
    while task is not None:
        group.append(task)
        if len(group) == most:
            return group, True
        try:
            task = tasks.get_nowait()
        except queue.Empty:
            return group, True
    return group, False
