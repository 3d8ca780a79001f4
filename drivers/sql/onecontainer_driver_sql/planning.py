"""What a query is to a table as it is: its columns, its order, its condition; everything it may not ask is refused here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from onecontainer.api.db.v1 import query_pb2, table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Column
from onecontainer.driver.records.requests import chosen_columns
from onecontainer_driver_sql import expiry
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.filters import Condition, condition
from onecontainer_driver_sql.model import TableInfo
from onecontainer_driver_sql.paging import Key


@dataclass(slots=True)
class Plan:
    """A query against the table as it is: its columns, its order, its condition."""

    table: TableInfo
    columns: list[Column]
    order: list[Key]
    where: Condition | None
    alive: Condition | None
    distinct: bool
    limit: int | None
    hidden: list[Column] = field(default_factory=list)
    """Columns of the order that are not shown."""
    is_total: bool = False
    """Whether no two records are equal in the order."""

    def statement(self) -> sa.Select[Any]:
        chosen = [self.table.sa.columns[column.name] for column in [*self.columns, *self.hidden]]
        # Two columns whose names differ in case only have one name as SQLAlchemy's labels; these are by position.
        statement = sa.select(*chosen).select_from(self.table.sa)
        statement = statement.where(*(one for one in (self.where, self.alive) if one is not None))
        if self.distinct:
            statement = statement.distinct()
        return statement.order_by(*(key.clause(self.table) for key in self.order))


def plan(database: Database, table: TableInfo, query: query_pb2.Query) -> Plan:
    if query.consistency:
        raise errors.BackendCapabilityMissing("query.consistency", f"{database.backend.name} has no consistency levels")
    if query.limit < 0:
        raise errors.FieldInvalid("query.limit", "must not be negative")
    columns = chosen_columns(table, query.columns, "query.columns") or list(table.columns.values())
    order: list[Key] = []
    for index, one in enumerate(query.order_by):
        path = f"query.order_by[{index}].column"
        column = table.column(one.column, path)
        if any(key.column.name == column.name for key in order):
            raise errors.FieldInvalid(path, f"{column.name!r} is there twice")
        if not column.codec.order:
            raise errors.BackendCapabilityMissing(
                path, f"columns of type {column.proto.type.native_type} have no order here"
            )
        if query.distinct and column not in columns:
            raise errors.FieldInvalid(path, "must be one of `columns` with distinct")
        order.append(_key(database, column, one.order == table_pb2.SORT_ORDER_DESCENDING, one.nulls))
    where = condition(table, query.where, "query.where") if query.HasField("where") else None
    alive = expiry.alive(database.backend, table) if table.expires else None
    return Plan(table, columns, order, where, alive, query.distinct, query.limit or None)


def _key(database: Database, column: Column, descending: bool, nulls: int = 0) -> Key:
    if column.proto.not_null:
        return Key(column, descending, None)
    if nulls == query_pb2.NULLS_ORDER_UNSPECIFIED:
        return Key(column, descending, database.backend.nulls_smallest != descending)
    return Key(column, descending, nulls == query_pb2.NULLS_ORDER_FIRST)


def total(database: Database, made: Plan) -> Plan:
    """The same plan, whose order becomes one in which no two records are equal, if the table has a key to do that with."""
    if made.distinct:
        ties = made.columns
    elif made.table.primary_key:
        ties = [made.table.columns[name] for name in made.table.primary_key]
    else:
        return made
    ordered = {key.column.name for key in made.order}
    # In the direction of what is asked for, one index can serve both.
    descending = bool(made.order) and all(key.descending for key in made.order)
    made.order += [_key(database, column, descending) for column in ties if column.name not in ordered]
    shown = {column.name for column in made.columns}
    made.hidden = [key.column for key in made.order if key.column.name not in shown]
    made.is_total = True
    return made
