"""One session with the cluster: connected when it is first needed, and shared by all calls.

cassandra-driver has threads of its own, which read from the nodes and call back; an answer is handed to the asyncio loop from there, so
that no call waits in a thread. Only connecting and preparing, which block, are done in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from cassandra import ConsistencyLevel
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.cluster import Session as DriverSession
from cassandra.policies import (
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    FallthroughRetryPolicy,
    TokenAwarePolicy,
)
from cassandra.query import BoundStatement, PreparedStatement, SimpleStatement, Statement

from onecontainer.driver import errors
from onecontainer_driver_cassandra.faults import translate
from onecontainer_driver_cassandra.settings import Settings
from onecontainer_driver_cassandra.wire import Cell, RawProtocolHandler, Rows

MAX_IN_FLIGHT = 1024
"""Requests at once: below what one connection takes, for cassandra-driver would block the loop to wait for a free place."""
MAX_PREPARED = 1000
PROTOCOL_VERSION = 5
LOOK_TIMEOUT = 1.0
MAX_LOOKED_AT = 10

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextlib.contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """What is asked of Cassandra inside has at most so long. None: only the service's own timeout bounds it."""
    token = _deadline.set(None if seconds is None else asyncio.get_running_loop().time() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except (errors.OneContainerError, asyncio.CancelledError):
        raise
    except Exception as error:
        found = translate(error)
        if found is None:
            raise
        raise found from error


def connection_class() -> Any:
    """libev's where its extension is there; Python 3.12 and later have no asyncore, which would be the other choice."""
    try:
        from cassandra.io.libevreactor import LibevConnection
    except Exception:  # noqa: BLE001 - cassandra-driver raises its own error for an extension that is missing
        from cassandra.io.asyncioreactor import AsyncioConnection

        return AsyncioConnection
    return LibevConnection


def bound(
    statement: PreparedStatement,
    values: Sequence[Cell],
    *,
    consistency: int | None = None,
    serial_consistency: int | None = None,
    fetch_size: int | None = None,
) -> BoundStatement:
    """The values are bytes already: codecs have made them."""
    made = BoundStatement(statement)
    made.values = values
    made.raw_values = ()  # what the driver would show of it in a log
    if consistency is not None:
        made.consistency_level = consistency
    if serial_consistency is not None:
        made.serial_consistency_level = serial_consistency
    if fetch_size is not None:
        made.fetch_size = fetch_size
    return made


class Session:
    """Raises typed errors of what cassandra-driver raises."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._cluster: Cluster | None = None
        self._session: DriverSession | None = None
        self._connecting: asyncio.Task[DriverSession] | None = None
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._prepared: OrderedDict[str, asyncio.Task[PreparedStatement]] = OrderedDict()

    async def close(self) -> None:
        if self._connecting is not None:
            await asyncio.gather(self._connecting, return_exceptions=True)
        cluster, self._cluster, self._session = self._cluster, None, None
        self._prepared.clear()
        if cluster is not None:
            await asyncio.to_thread(cluster.shutdown)

    # --- asking --------------------------------------------------------------------------------------------------------

    async def run(self, statement: Statement, paging_state: bytes | None = None) -> Rows:
        """The answer's rows; none for what has no answer. A cancelled call stops waiting: Cassandra cannot be told to stop."""
        session = await self.connected()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Rows | None] = loop.create_future()

        def settle(set_it: Callable[[Any], None], what: Any) -> None:
            if not answer.done():
                set_it(what)

        def told(set_it: Callable[[Any], None]) -> Callable[[Any], None]:
            def tell(what: Any) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                    loop.call_soon_threadsafe(settle, set_it, what)

            return tell

        async with self._in_flight, self._asking():
            with translated():
                future = session.execute_async(statement, timeout=self.timeout(), paging_state=paging_state)
                future.add_callbacks(told(answer.set_result), told(answer.set_exception))
                rows = await answer
        return rows if isinstance(rows, Rows) else NO_ROWS

    def timeout(self) -> float:
        """Seconds until the call's deadline, or the service's own timeout."""
        deadline = _deadline.get()
        most = self.settings.request_timeout
        if deadline is None:
            return most
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise errors.DeadlineExceeded("there was no time left to ask Cassandra")
        return min(most, left)

    async def define(self, cql: str) -> None:
        """Runs a statement that cannot be prepared: CREATE, DROP and TRUNCATE, of checked names alone."""
        await self.run(SimpleStatement(cql))

    async def ask(self, cql: str, *values: Cell) -> list[list[Cell]]:
        """All rows of a statement with few of them."""
        statement = bound(await self.prepare(cql), values, fetch_size=5000)
        rows = await self.run(statement)
        cells = rows.cells()
        while rows.paging_state is not None:
            rows = await self.run(statement, rows.paging_state)
            cells += rows.cells()
        return cells

    async def prepare(self, cql: str) -> PreparedStatement:
        """Prepared once and kept; callers that want the same one at once share the work."""
        found = self._prepared.get(cql)
        if found is None:
            found = asyncio.create_task(self._prepare(cql))
            self._prepared[cql] = found
            found.add_done_callback(lambda task: self._forget_failed(cql, task))
            while len(self._prepared) > MAX_PREPARED:
                self._prepared.popitem(last=False)
        else:
            self._prepared.move_to_end(cql)
        # Another caller may wait for it, too: it goes on when this one is cancelled.
        return await asyncio.shield(found)

    async def _prepare(self, cql: str) -> PreparedStatement:
        session = await self.connected()
        async with self._asking():
            with translated():
                return await asyncio.to_thread(session.prepare, cql)

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """cassandra-driver asks no node that it has found down, and then does not tell why: each is looked at, to say it."""
        try:
            yield
        except errors.BackendUnreachable as error:
            cause = error.__cause__
            if isinstance(cause, NoHostAvailable) and not cause.errors and self._cluster is not None:
                nodes = [node.endpoint for node in self._cluster.metadata.all_hosts()]
                seen = await asyncio.gather(*(look_at(node.address, node.port) for node in nodes[:MAX_LOOKED_AT]))
                error.message = f"no node of Cassandra can be reached: {'; '.join(sorted(seen))}"
            raise

    def _forget_failed(self, cql: str, task: asyncio.Task[PreparedStatement]) -> None:
        if (task.cancelled() or task.exception() is not None) and self._prepared.get(cql) is task:
            del self._prepared[cql]

    def forget(self) -> None:
        """After a table was changed: statements are prepared anew."""
        self._prepared.clear()

    def replica_of(self, routing_key: bytes | None) -> object:
        """A node that has the key, the same for all keys that have the same nodes; None where there is but one."""
        assert self._cluster is not None
        metadata = self._cluster.metadata
        if routing_key is None or metadata.token_map is None or len(metadata.all_hosts()) == 1:
            return None
        replicas = metadata.get_replicas(self.settings.keyspace, routing_key)
        return tuple(sorted(str(node.endpoint) for node in replicas))

    # --- the connection ------------------------------------------------------------------------------------------------

    async def connected(self) -> DriverSession:
        """The session. One that was made once stays: cassandra-driver connects to the nodes again by itself."""
        if self._session is not None:
            return self._session
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect_once())
            self._connecting.add_done_callback(_look_at)
        # Others may wait for it, too, and what a thread has made must not be lost: it goes on when this call is cancelled.
        return await asyncio.shield(self._connecting)

    async def _connect_once(self) -> DriverSession:
        with translated():
            self._cluster, self._session = await asyncio.to_thread(self._connect)
        return self._session

    def _connect(self) -> tuple[Cluster, DriverSession]:
        settings = self.settings
        profile = ExecutionProfile(
            load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.local_datacenter)),
            # Who calls decides what is done again: a write may have happened.
            retry_policy=FallthroughRetryPolicy(),
            consistency_level=ConsistencyLevel.name_to_value[settings.consistency],
            serial_consistency_level=ConsistencyLevel.name_to_value[settings.serial_consistency],
            request_timeout=settings.request_timeout,
            row_factory=_as_they_are,
        )
        cluster = Cluster(
            contact_points=list(settings.contact_points),
            port=settings.contact_points[0][1],
            auth_provider=PlainTextAuthProvider(settings.user, settings.password) if settings.user else None,
            ssl_context=settings.tls,
            connect_timeout=settings.connect_timeout,
            control_connection_timeout=settings.connect_timeout,
            connection_class=connection_class(),
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            reconnection_policy=ExponentialReconnectionPolicy(0.25, 4.0),
            idle_heartbeat_interval=10,
            application_name="onecontainer",
        )
        cluster.protocol_version = PROTOCOL_VERSION  # where the negotiation begins; older servers bring it down
        try:
            session = cluster.connect()
            session.use_client_timestamp = False  # the backend's clock decides, as the contract says
            self._create_keyspace(session)
            session.client_protocol_handler = RawProtocolHandler
        except BaseException:
            cluster.shutdown()
            raise
        return cluster, session

    def _create_keyspace(self, session: DriverSession) -> None:
        keyspace = self.settings.keyspace
        # Asked first: an account that may not create keyspaces is enough where it is there.
        there = session.prepare("SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?")
        if not list(session.execute(there, (keyspace,))):
            replication = map_literal(self.settings.replication)
            session.execute(f'CREATE KEYSPACE IF NOT EXISTS "{keyspace}" WITH replication = {replication}')


async def look_at(host: str, port: int) -> str:
    """The address, and what comes of connecting to it."""
    try:
        async with asyncio.timeout(LOOK_TIMEOUT):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"{host}:{port}: does not answer in {LOOK_TIMEOUT:g} s"
    except OSError as error:
        return f"{host}:{port}: {os.strerror(error.errno) if error.errno else error}"
    writer.close()
    return f"{host}:{port}: is back, and is being connected to again"


NO_ROWS = Rows((), 0, b"", None)


def _look_at(task: asyncio.Task[DriverSession]) -> None:
    """Who waited for it has its error; if nobody did, nobody misses it."""
    if not task.cancelled():
        task.exception()


def _as_they_are(_: Any, rows: Any) -> Any:
    return rows


def map_literal(pairs: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{text_literal(name)}: {text_literal(text)}" for name, text in pairs.items()) + "}"


def text_literal(text: str) -> str:
    """CQL's own notation, in which only the quote itself is special."""
    return "'" + text.replace("'", "''") + "'"
