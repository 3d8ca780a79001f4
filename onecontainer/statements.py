"""SQL of the hot path: statements for many rows without SQLAlchemy's work on each, and lists as one parameter."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class Bulk:
    """A statement that is run for many rows, compiled once: SQLAlchemy's own work for each row costs more than the database's.

    Rows are mappings from the names of its parameters to values that the driver takes as they are.
    """

    def __init__(self, statement: sa.Insert | sa.Update) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {}

    def run(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        dialect = connection.dialect
        known = self._compiled.get(dialect.name)
        if known is None:
            compiled = self._statement.compile(dialect=dialect)
            order = compiled.positiontup
            known = self._compiled[dialect.name] = (str(compiled), dict if order is None else _values_of(order))
        text, values_of = known
        connection.exec_driver_sql(text, [values_of(row) for row in rows])


class Query:
    """A query whose rows are named tuples: an attribute of SQLAlchemy's own rows takes ten times as long, and a job has many."""

    def __init__(self, select: sa.Select[Any]) -> None:
        self.select = select
        self._row: Any = namedtuple("Row", [column.name for column in select.selected_columns])  # type: ignore[misc]

    def all(self, connection: Connection, parameters: Mapping[str, Any]) -> list[Any]:
        """Its rows."""
        make = self._row._make
        return [make(row) for row in connection.execute(self.select, parameters).all()]


def _values_of(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Any]:
    if len(names) == 1:
        return lambda row: (row[names[0]],)
    return itemgetter(*names)


class Texts(sa.TypeDecorator[Any]):
    """A list of texts as one parameter, so that a statement stays the same however many they are. Used by `among`."""

    impl = sa.Text
    of: Any = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        kind: Any = sa.ARRAY(self.of) if dialect.name == "postgresql" else sa.Text()
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return list(value) if dialect.name == "postgresql" else json.dumps(list(value))


class Numbers(Texts):
    """The same with whole numbers."""

    of = sa.BigInteger
    cache_ok = True


def among(column: sa.Column[Any], values: sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    """The column's value is one of those in a parameter of the type Texts or Numbers."""
    condition: Any = _Among(column, values)
    found: sa.ColumnElement[bool] = condition
    return found


class _Among(FunctionElement[int]):
    # Not Boolean: SQLAlchemy would write `= 1` behind it, and SQLite then use no index.
    type = sa.Integer()
    inherit_cache = True


@compiles(_Among, "sqlite")
def _among_sqlite(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = element.clauses
    listed = compiler.process(values, **options)
    return " ".join((compiler.process(column, **options), "IN (SELECT value FROM json_each(", listed, "))"))


@compiles(_Among, "postgresql")
def _among_postgresql(element: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **options)} = ANY({compiler.process(values, **options)})"
