"""What the driver knows of a table, and the port that PostgreSQL and SQLite fill."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import Column, PoolProxiedConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from onecontainer.api.db.v1 import table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Codec, unknown_column
from onecontainer_driver_sql.names import quoted

EXPIRY = "onecontainer_expire_time"
"""The column with a record's end, null for none: a table that has one of type TIMESTAMP has records that expire."""
MAX_STATEMENTS = 100
"""Of one table that are kept."""
T = TypeVar("T")


class Stored(sa.types.UserDefinedType[Any]):
    """A column type by its name in the backend. Values pass as they are: codecs have made them."""

    cache_ok = True
    render_bind_cast = True  # asyncpg is told each parameter's type; sqlite3 needs none and gets none

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def get_col_spec(self, **_: Any) -> str:
        return self.spec


class StoredAsText(Stored):
    """A column type that there is no codec for: values pass as text, which the backend casts."""

    cache_ok = True
    render_bind_cast = False

    def bind_expression(self, bindvalue: sa.BindParameter[Any]) -> sa.ColumnElement[Any]:
        return sa.cast(sa.type_coerce(bindvalue, sa.Text), Stored(self.spec))

    def column_expression(self, colexpr: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.cast(colexpr, sa.Text)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Straight:
    """A statement that goes straight to the backend's own client: SQLAlchemy's layers take more time than a small one does.

    It stands for one table as it was described, so that what a connection prepares for it is not used for the table as it is later.
    """

    sql: str
    names: tuple[str, ...]
    """Of the parameters, in the SQL's order."""
    constants: Mapping[str, Any]
    writes: bool

    def arguments(self, given: Mapping[str, Any]) -> list[Any]:
        parameters = {**self.constants, **given}
        return [parameters[name] for name in self.names]


def straight(statement: sa.ClauseElement, dialect: sa.Dialect, given: Iterable[str]) -> Straight:
    """``given`` are the names of the parameters that differ from call to call."""
    compiled: Any = statement.compile(dialect=dialect)
    constants = compiled.construct_params(dict.fromkeys(given))
    return Straight(str(compiled), tuple(compiled.positiontup or ()), constants, isinstance(statement, sa.UpdateBase))


@dataclass(frozen=True, slots=True)
class Storage:
    """How a column type is kept: ``ddl`` creates it, ``bind`` is its name without length and precision, ``text`` writes a parameter
    as the backend does where Python's own text is not that.

    A parameter cast to a type with a length would be cut to it, silently; codecs check it instead.
    """

    ddl: str
    bind: str
    codec: Codec
    as_text: bool = False
    text: Callable[[Any], str] | None = None

    @property
    def type(self) -> Stored:
        return StoredAsText(self.bind) if self.as_text else Stored(self.bind)


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    proto: table_pb2.Column
    storage: Storage
    has_default: bool = False
    generated: bool = False

    @property
    def name(self) -> str:
        return self.proto.name

    @property
    def codec(self) -> Codec:
        return self.storage.codec


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table as the backend has it. ``proto`` has no name: that needs the service's.

    ``sa`` has one column more than ``columns`` where records expire.
    """

    id: str
    columns: dict[str, ColumnInfo]
    primary_key: tuple[str, ...]
    proto: table_pb2.Table
    schema: str | None = None
    expiry: Storage | None = None
    sa: sa.Table = field(init=False)
    statements: dict[Any, Any] = field(init=False, default_factory=dict, compare=False, repr=False)
    """Statements that were made of it, by what they are for."""

    def __post_init__(self) -> None:
        columns = [
            sa.Column(
                quoted(column.name),
                column.storage.type,
                primary_key=column.name in self.primary_key,
                # The backend's own defaults fill in what is not given; SQLAlchemy must not think of any.
                autoincrement=False,
                nullable=True,
            )
            for column in self.columns.values()
        ]
        if self.expiry is not None:
            columns.append(sa.Column(quoted(EXPIRY), self.expiry.type))
        schema = quoted(self.schema) if self.schema else None
        object.__setattr__(self, "sa", sa.Table(quoted(self.id), sa.MetaData(), *columns, schema=schema))

    def kept(self, key: object, make: Callable[[], T]) -> T:
        """The statement for ``key``, made now if it is not there. There are as many as callers think of, so that few are kept."""
        if key not in self.statements:
            if len(self.statements) >= MAX_STATEMENTS:
                self.statements.clear()
            self.statements[key] = make()
        found: T = self.statements[key]
        return found

    @property
    def expires(self) -> bool:
        return self.expiry is not None

    @property
    def visible(self) -> list[Column[Any]]:
        """SQLAlchemy's columns of ``columns``, in order."""
        return [self.sa.columns[name] for name in self.columns]

    def column(self, name: str, path: str) -> ColumnInfo:
        """The column of that name. Raises FieldRequired or FieldInvalid of ``path``."""
        found = self.columns.get(name)
        if found is None:
            raise unknown_column(self.id, self.columns, name, path)
        return found


class Backend(Protocol):
    """What differs between the databases."""

    name: str
    single_writer: bool
    """True: writes of this process wait for one another here instead of in the backend."""
    folds_case: bool
    """True: names that differ in case only are one name."""
    nulls_smallest: bool
    """True: nulls come first in an ascending order, unless asked otherwise."""
    max_parameters: int
    skips_locked: bool
    """True: FOR UPDATE SKIP LOCKED leaves out what others are changing."""

    def now(self, seconds: int) -> sa.ColumnElement[Any]:
        """So many seconds after now, by the backend's clock, as a TIMESTAMP column keeps it."""
        ...

    def create_engine(self) -> AsyncEngine: ...

    def transaction_options(self, *, write: bool, snapshot: bool, one_write: bool) -> dict[str, Any]:
        """SQLAlchemy's execution options of a connection for that use."""
        ...

    def storage(self, column_type: table_pb2.ColumnType, path: str) -> Storage:
        """Raises BackendCapabilityMissing or FieldInvalid of ``path``."""
        ...

    def create_statements(self, table_id: str, table: table_pb2.Table) -> list[sa.Executable]:
        """Statements that create the table; the definition is checked here, against what the backend can do."""
        ...

    async def table_ids(self, connection: AsyncConnection) -> list[str]: ...

    async def describe(self, connection: AsyncConnection, table_id: str) -> TableInfo | None: ...

    def insert(self, table: sa.Table) -> Any:
        """The dialect's INSERT, which has ON CONFLICT."""
        ...

    def plus(self, codec: Codec, left: Any, right: Any) -> Any:
        """Sum of two columns of that codec."""
        ...

    def minus(self, codec: Codec, left: Any, right: Any) -> Any: ...

    async def copy(
        self, connection: AsyncConnection, table: TableInfo, columns: Sequence[str], rows: list[tuple[Any, ...]]
    ) -> bool:
        """Inserts the rows the fast way. False: there is none for this table."""
        ...

    async def rows(
        self, connection: PoolProxiedConnection, statement: Straight, arguments: Sequence[Any]
    ) -> Sequence[Sequence[Any]]:
        """All rows of a statement that is a transaction of its own."""
        ...

    def stream(
        self, connection: AsyncConnection, statement: sa.Select[Any], size: Callable[[], int]
    ) -> AsyncGenerator[Sequence[Sequence[Any]], None]:
        """Chunks of ``size()`` rows from a cursor of the backend, read as they are asked for."""
        ...

    def translate(self, error: BaseException) -> errors.OneContainerError | None:
        """The typed error of what a database driver raised. None: not one of its."""
        ...
