"""PostgreSQL, through asyncpg: of the two common asyncio drivers the one that is faster for bulk and streams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
import sqlalchemy as sa
from sqlalchemy import PoolProxiedConnection, event, exc
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from onecontainer.api.db.v1 import table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Codec
from onecontainer_driver_sql import ddl
from onecontainer_driver_sql.model import EXPIRY, MAX_STATEMENTS, Storage, Straight, TableInfo
from onecontainer_driver_sql.postgresql_catalog import describe, table_ids
from onecontainer_driver_sql.postgresql_faults import translate
from onecontainer_driver_sql.postgresql_times import TYPES
from onecontainer_driver_sql.postgresql_types import storage
from onecontainer_driver_sql.settings import Settings

_INDEX_METHODS = frozenset({"btree", "hash", "gin", "gist", "spgist", "brin"})
_TABLE_PROPERTIES = frozenset({"fillfactor", "autovacuum_enabled", "parallel_workers", "toast_tuple_target"})
_INDEX_OPTIONS = frozenset({"fillfactor", "fastupdate", "pages_per_range", "deduplicate_items"})
_STATEMENTS = "onecontainer_statements"
"""Where a connection of the pool keeps what it has prepared."""


class PostgresBackend:
    name = "PostgreSQL"
    single_writer = False
    folds_case = False
    nulls_smallest = False
    max_parameters = 32_767
    skips_locked = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._schema = settings.schema or None

    def create_engine(self) -> AsyncEngine:
        settings = self._settings
        url = settings.url.set(drivername="postgresql+asyncpg")
        query = dict(url.query)
        connect: dict[str, Any] = {
            "timeout": settings.connect_timeout,
            "server_settings": {"application_name": "onecontainer", "TimeZone": "UTC"},
        }
        if settings.statement_timeout:
            connect["server_settings"]["statement_timeout"] = str(int(settings.statement_timeout * 1000))
        mode, root = query.pop("sslmode", None), query.pop("sslrootcert", None)
        if root is not None:
            context = ssl.create_default_context(cafile=str(root))
            context.check_hostname = mode == "verify-full"
            connect["ssl"] = context
        elif mode is not None:
            connect["ssl"] = mode
        engine = create_async_engine(
            url.set(query=query),
            pool_size=settings.pool_size,
            max_overflow=0,
            pool_timeout=settings.connect_timeout,
            pool_use_lifo=True,
            connect_args=connect,
            json_deserializer=_same,  # JSON stays text: a float would lose digits
        )
        event.listen(engine.sync_engine, "connect", _on_connect)
        event.listen(engine.sync_engine, "checkout", _on_checkout)
        return engine

    def now(self, seconds: int) -> sa.ColumnElement[Any]:
        moment = sa.func.now()
        return moment + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds) if seconds else moment

    def transaction_options(self, *, write: bool, snapshot: bool, one_write: bool) -> dict[str, Any]:
        if write and not one_write:
            return {}
        if snapshot:
            return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        return {"isolation_level": "AUTOCOMMIT"}

    def storage(self, column_type: table_pb2.ColumnType, path: str) -> Storage:
        return storage(column_type, path)

    def create_statements(self, table_id: str, table: table_pb2.Table) -> list[sa.Executable]:
        with_options = {
            name: ddl.scalar_property(value, f"table.properties[{name!r}]")
            for name, value in ddl.known_properties(table.properties, _TABLE_PROPERTIES, "table.properties").items()
        }
        built = ddl.build_table(
            self, table_id, table, schema=self._schema, comments=True, identity=True, postgresql_with=with_options
        )
        statements: list[sa.Executable] = [sa.schema.CreateTable(built)]
        for number, index in enumerate(table.indexes):
            path = f"table.indexes[{number}]"
            if index.method and index.method not in _INDEX_METHODS:
                raise errors.FieldInvalid(f"{path}.method", f"must be one of {', '.join(sorted(_INDEX_METHODS))}")
            options = {
                name: ddl.scalar_property(value, f"{path}.options[{name!r}]")
                for name, value in ddl.known_properties(index.options, _INDEX_OPTIONS, f"{path}.options").items()
            }
            statements.append(
                ddl.create_index(
                    built, index, path, postgresql_using=index.method or None, postgresql_with=options or None
                )
            )
        if table.expires:
            statements.append(ddl.expiry_index(built))
        if table.comment:
            statements.append(sa.schema.SetTableComment(built))
        statements += [sa.schema.SetColumnComment(column) for column in built.columns if column.comment]
        return statements

    async def table_ids(self, connection: AsyncConnection) -> list[str]:
        return await table_ids(connection, self._schema)

    async def describe(self, connection: AsyncConnection, table_id: str) -> TableInfo | None:
        return await describe(connection, self._schema, table_id)

    def insert(self, table: sa.Table) -> postgresql.Insert:
        return postgresql.insert(table)

    def plus(self, codec: Codec, left: Any, right: Any) -> Any:
        return sa.func.array_cat(left, right) if codec.kind == "list_value" else left + right

    def minus(self, codec: Codec, left: Any, right: Any) -> Any:
        return left - right

    async def copy(
        self, connection: AsyncConnection, table: TableInfo, columns: Sequence[str], rows: list[tuple[Any, ...]]
    ) -> bool:
        if any(table.columns[name].storage.as_text for name in columns if name != EXPIRY):
            return False  # the binary form of such a type is not known here
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.copy_records_to_table(table.id, records=rows, columns=columns, schema_name=table.schema)
        return True

    async def rows(
        self, connection: PoolProxiedConnection, statement: Straight, arguments: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        # asyncpg's own cache would quietly prepare a statement again whose table has other types now, which codecs do not know.
        known: WeakKeyDictionary[Straight, Any] = connection.info.setdefault(_STATEMENTS, WeakKeyDictionary())
        try:
            if statement not in known:
                if len(known) >= MAX_STATEMENTS:
                    known.clear()
                raw: Any = connection.driver_connection
                known[statement] = await raw.prepare(statement.sql)
            return await known[statement].fetch(*arguments)  # type: ignore[no-any-return]
        except (asyncpg.InterfaceError, asyncpg.InternalClientError):
            known.pop(statement, None)  # asyncpg may have closed it
            raise

    async def stream(
        self, connection: AsyncConnection, statement: sa.Select[Any], size: Callable[[], int]
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        compiled = statement.compile(dialect=connection.dialect)
        parameters = compiled.construct_params()
        arguments = [parameters[name] for name in compiled.positiontup or ()]
        await connection.exec_driver_sql("SELECT 1")  # SQLAlchemy begins when it executes, a cursor needs it begun
        raw: Any = (await connection.get_raw_connection()).driver_connection
        cursor = await raw.cursor(str(compiled), *arguments)
        # The server reads one chunk ahead while the caller has the one before.
        ahead = asyncio.ensure_future(cursor.fetch(size()))
        try:
            while rows := await ahead:
                ahead = asyncio.ensure_future(cursor.fetch(size()))
                yield rows
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    def translate(self, error: BaseException) -> errors.OneContainerError | None:
        return translate(error)


def _on_connect(connection: Any, _: Any) -> None:
    # As timedelta, which is asyncpg's own, an interval would lose its months. No round trip is needed for any of these.
    for name in ("interval", *TYPES):
        connection.run_async(partial(_as_tuple, name=name))


async def _as_tuple(raw: Any, *, name: str) -> None:
    # `tuple` gives a tuple as it is, and costs no call of a Python function for each value.
    await raw.set_type_codec(name, schema="pg_catalog", encoder=tuple, decoder=tuple, format="tuple")


def _same(value: Any) -> Any:
    return value


def _on_checkout(connection: Any, _: Any, __: Any) -> None:
    # The event loop has noticed when the server closed it: that costs no round trip to know.
    if connection.driver_connection.is_closed():
        raise exc.DisconnectionError("closed by the server")
