"""SQLite, in a file: the embedded default, which needs no server."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import PoolProxiedConnection, event, exc
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from onecontainer.api.db.v1 import table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Codec
from onecontainer.driver.records.names import is_identifier
from onecontainer_driver_sql import ddl
from onecontainer_driver_sql.model import ColumnInfo, Storage, Stored, Straight, TableInfo
from onecontainer_driver_sql.names import quoted
from onecontainer_driver_sql.settings import Settings
from onecontainer_driver_sql.sqlite_connection import open_connection
from onecontainer_driver_sql.sqlite_types import column_type, storage, stored_as

K = table_pb2.TypeKind
_BOUNDS: dict[int, tuple[int, int]] = {
    kind: (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for kind, bits in ((K.TYPE_KIND_INT16, 16), (K.TYPE_KIND_INT32, 32), (K.TYPE_KIND_INT64, 64))
}
_LITERAL = re.compile(r"'(?:[^']|'')*'|-?\d+(?:\.\d+)?(?:e[+-]?\d+)?|TRUE|FALSE", re.IGNORECASE)


class SqliteBackend:
    name = "SQLite"
    single_writer = True
    folds_case = True
    nulls_smallest = True
    max_parameters = 32_766
    skips_locked = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def create_engine(self) -> AsyncEngine:
        url = self._settings.url.set(drivername="sqlite+aiosqlite")
        folder = Path(url.database or "").parent
        if not folder.is_dir():
            raise errors.FieldInvalid("options.url", f"folder {str(folder)!r} is not there")
        engine = create_async_engine(
            url,
            pool_size=self._settings.pool_size,
            max_overflow=0,
            pool_timeout=self._settings.connect_timeout,
            connect_args={"async_creator_fn": open_connection},
        )
        event.listen(engine.sync_engine, "begin", _on_begin)
        return engine

    def now(self, seconds: int) -> sa.ColumnElement[Any]:
        moment = ["now", f"+{seconds} seconds"] if seconds else ["now"]
        return sa.func.strftime("%Y-%m-%d %H:%M:%f000Z", *moment)

    def transaction_options(self, *, write: bool, snapshot: bool, one_write: bool) -> dict[str, Any]:
        return {"begin": "BEGIN IMMEDIATE" if write else "BEGIN" if snapshot else ""}

    def storage(self, column_type: table_pb2.ColumnType, path: str) -> Storage:
        return storage(column_type, path)

    def create_statements(self, table_id: str, table: table_pb2.Table) -> list[sa.Executable]:
        ddl.known_properties(table.properties, frozenset(), "table.properties")
        counts = any(column.auto_increment for column in table.columns)
        built = ddl.build_table(
            self, table_id, table, comments=False, identity=False, checks=_BOUNDS, sqlite_autoincrement=counts
        )
        statements: list[sa.Executable] = [sa.schema.CreateTable(built)]
        for number, index in enumerate(table.indexes):
            path = f"table.indexes[{number}]"
            if index.method:
                raise errors.BackendCapabilityMissing(f"{path}.method", "SQLite has one kind of index; leave it away")
            ddl.known_properties(index.options, frozenset(), f"{path}.options")
            statements.append(ddl.create_index(built, index, path))
        if table.expires:
            statements.append(ddl.expiry_index(built))
        return statements

    async def table_ids(self, connection: AsyncConnection) -> list[str]:
        rows = await connection.execute(
            sa.text(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
            )
        )
        return [row[0] for row in rows if is_identifier(row[0])]

    async def describe(self, connection: AsyncConnection, table_id: str) -> TableInfo | None:
        rows = (
            await connection.execute(
                sa.text(
                    'SELECT x.name, x.type, x."notnull", x.dflt_value, x.pk, x.hidden FROM sqlite_schema s, pragma_table_xinfo(s.name) x '
                    "WHERE s.type = 'table' AND s.name = :table ORDER BY x.cid"
                ),
                {"table": table_id},
            )
        ).all()
        if not rows:
            return None
        keys = sorted((row.pk, row.name) for row in rows if row.pk)
        primary = tuple(name for _, name in keys)
        columns: dict[str, ColumnInfo] = {}
        for row in rows:
            if row.hidden == 1:
                continue
            counts = len(primary) == 1 and row.pk == 1 and row.type.upper() == "INTEGER"
            type_ = column_type(row.type)
            kept = stored_as(type_)
            type_.native_type = row.type
            proto = table_pb2.Column(
                name=row.name, type=type_, not_null=bool(row.notnull) or counts, auto_increment=counts
            )
            if row.dflt_value is not None and _LITERAL.fullmatch(row.dflt_value):
                text = sa.text(row.dflt_value.replace("\\", "\\\\").replace(":", "\\:"))
                value = await connection.scalar(sa.select(sa.type_coerce(text, Stored("BLOB"))))
                proto.default_value.CopyFrom(kept.codec.read(value))
            columns[row.name] = ColumnInfo(
                proto, kept, has_default=counts or row.dflt_value is not None, generated=row.hidden in (2, 3)
            )
        expiry = ddl.take_expiry(columns)
        described = table_pb2.Table(
            columns=[column.proto for column in columns.values()], partition_key=primary, expires=expiry is not None
        )
        described.indexes.extend(
            index for index in await self._indexes(connection, table_id) if not ddl.is_of_expiry(index)
        )
        return TableInfo(table_id, columns, primary, described, expiry=expiry)

    async def _indexes(self, connection: AsyncConnection, table_id: str) -> list[table_pb2.Index]:
        rows = await connection.execute(
            sa.text(
                'SELECT l.name, l."unique", x.name AS "column", x."desc" FROM pragma_index_list(:table) l, pragma_index_xinfo(l.name) x '
                "WHERE l.origin = 'c' AND x.key = 1 ORDER BY l.name, x.seqno"
            ),
            {"table": table_id},
        )
        indexes: dict[str, table_pb2.Index] = {}
        expressions: set[str] = set()
        for row in rows:
            index = indexes.setdefault(row.name, table_pb2.Index(name=row.name, unique=bool(row.unique)))
            if row.column is None:
                expressions.add(row.name)
                continue
            order = table_pb2.SORT_ORDER_DESCENDING if row.desc else table_pb2.SORT_ORDER_ASCENDING
            index.columns.add(column=row.column, order=order)
        return [index for name, index in indexes.items() if name not in expressions]

    def insert(self, table: sa.Table) -> sqlite.Insert:
        return sqlite.insert(table)

    def plus(self, codec: Codec, left: Any, right: Any) -> Any:
        # Kept as text, SQLite would add them as floating point numbers.
        if codec.kind in ("decimal_value", "varint_value"):
            return sa.func.onecontainer_decimal_add(left, right)
        return sa.func.onecontainer_float32(left + right) if codec.kind == "float_value" else left + right

    def minus(self, codec: Codec, left: Any, right: Any) -> Any:
        if codec.kind in ("decimal_value", "varint_value"):
            return sa.func.onecontainer_decimal_subtract(left, right)
        return sa.func.onecontainer_float32(left - right) if codec.kind == "float_value" else left - right

    async def copy(
        self, connection: AsyncConnection, table: TableInfo, columns: Sequence[str], rows: list[tuple[Any, ...]]
    ) -> bool:
        prepare = connection.dialect.identifier_preparer
        names = ", ".join(prepare.quote(quoted(name)) for name in columns)
        marks = ", ".join("?" for _ in columns)
        raw: Any = (await connection.get_raw_connection()).driver_connection
        target = prepare.quote(quoted(table.id))
        await raw.executemany(f"INSERT INTO {target} ({names}) VALUES ({marks})", rows)  # noqa: S608  # quoted names only
        return True

    async def rows(
        self, connection: PoolProxiedConnection, statement: Straight, arguments: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        raw: Any = connection.driver_connection
        return await raw.rows(statement.sql, arguments, write=statement.writes)  # type: ignore[no-any-return]

    async def stream(
        self, connection: AsyncConnection, statement: sa.Select[Any], size: Callable[[], int]
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        compiled = statement.compile(dialect=connection.dialect)
        parameters = compiled.construct_params()
        arguments = [parameters[name] for name in compiled.positiontup or ()]
        raw: Any = (await connection.get_raw_connection()).driver_connection
        async with raw.execute(str(compiled), arguments) as cursor:
            while rows := await cursor.fetchmany(size()):
                yield rows

    def translate(self, error: BaseException) -> errors.OneContainerError | None:
        return translate(error)


def _on_begin(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later would fail when another writer came between.
    begin = connection.get_execution_options().get("begin", "BEGIN")
    if begin:  # without, each statement is a transaction of its own
        connection.exec_driver_sql(begin)


# --- errors ------------------------------------------------------------------------------------------------------

_CONFLICTS = ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_ROWID")
_CODES = (
    ("SQLITE_CONSTRAINT", errors.Code.FAILED_PRECONDITION),
    ("SQLITE_FULL", errors.Code.RESOURCE_EXHAUSTED),
    ("SQLITE_NOMEM", errors.Code.RESOURCE_EXHAUSTED),
    ("SQLITE_TOOBIG", errors.Code.RESOURCE_EXHAUSTED),
    ("SQLITE_READONLY", errors.Code.PERMISSION_DENIED),
    ("SQLITE_PERM", errors.Code.PERMISSION_DENIED),
    ("SQLITE_AUTH", errors.Code.PERMISSION_DENIED),
    ("SQLITE_BUSY", errors.Code.ABORTED),
    ("SQLITE_LOCKED", errors.Code.ABORTED),
    ("SQLITE_CORRUPT", errors.Code.DATA_LOSS),
    ("SQLITE_NOTADB", errors.Code.DATA_LOSS),
)


def translate(error: BaseException) -> errors.OneContainerError | None:
    """SQLite's errors as typed ones, by its result codes (https://sqlite.org/rescode.html)."""
    if isinstance(error, exc.TimeoutError):
        return errors.LimitExceeded("every connection of the pool is busy; raise `pool_size`", retry_after=1.0)
    cause = error.orig if isinstance(error, exc.DBAPIError) else error
    if not isinstance(cause, sqlite3.Error):
        return None
    name = getattr(cause, "sqlite_errorname", "") or ""
    text = str(cause)
    message = f"SQLite: {text}"[:1000]
    common: dict[str, Any] = {"metadata": {"backend_code": name}, "hop": "backend"}
    if name in _CONFLICTS or "already exists" in text:
        return errors.ResourceConflict(message, **common)
    if text.startswith("no such table"):
        return errors.ResourceNotFound(message, **common)
    if name == "SQLITE_INTERRUPT":
        return errors.Cancelled(message, **common)
    if name == "SQLITE_CONSTRAINT_NOTNULL":
        return errors.DataInvalid(text.rpartition(".")[2], message, **common)
    if name.startswith("SQLITE_CANTOPEN"):
        return errors.BackendUnreachable(message, retry_after=1.0, **common)
    for prefix, code in _CODES:
        if name.startswith(prefix):
            return errors.BackendExecutionFailed(message, code=code, **common)
    return errors.BackendExecutionFailed(message, code=errors.Code.INTERNAL, **common)
