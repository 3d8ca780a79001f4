"""Selects that differ from an earlier one in the compared values alone: small reads by key, whose statement costs more to make than to run.

Their SQL is kept with the table, and goes with the values straight to the database's own client.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from onecontainer.api.db.v1 import database_pb2, query_pb2
from onecontainer_driver_sql.filters import compared, operation
from onecontainer_driver_sql.model import ColumnInfo, Straight, straight
from onecontainer_driver_sql.planning import Plan

Compared = tuple[query_pb2.Comparison, str]
"""A comparison and its path in the request."""
MAX_COMPARED = 32
ROWS = "rows"


@dataclass(frozen=True, slots=True)
class Prepared:
    """The plan of all selects of one shape, their statement, and the column of each compared value."""

    plan: Plan
    statement: Straight
    compared: tuple[ColumnInfo, ...]

    def arguments(self, comparisons: list[Compared], rows: int) -> list[Any]:
        """The statement's parameters, for at most so many rows. Raises FieldRequired or DataInvalid with the path of a value."""
        values: dict[str, Any] = {ROWS: rows}
        for index, (column, (node, path)) in enumerate(zip(self.compared, comparisons, strict=True)):
            values[_name(index)] = compared(column, node.value, f"{path}.value")
        return self.statement.arguments(values)


def _name(index: int) -> str:
    return f"value_{index}"


def comparisons_of(request: database_pb2.SelectRecordsRequest) -> list[Compared]:
    """All that the request asks of a record, as comparisons that must hold; empty if it is not of that kind."""
    node = request.query.where
    match node.WhichOneof("node"):
        case "comparison":
            found = [(node.comparison, "query.where.comparison")]
        case "all_of":
            below = "query.where.all_of.filters"
            if not 0 < len(node.all_of.filters) <= MAX_COMPARED:
                return []
            if any(one.WhichOneof("node") != "comparison" for one in node.all_of.filters):
                return []
            found = [(one.comparison, f"{below}[{i}].comparison") for i, one in enumerate(node.all_of.filters)]
        case _:
            return []
    return [] if request.page_token or any(one.HasField("element") for one, _ in found) else found


def shape_of(query: query_pb2.Query, comparisons: list[Compared]) -> tuple[Any, ...]:
    """The same for all queries that differ in compared values alone."""
    others = query_pb2.Query()
    others.CopyFrom(query)
    others.ClearField("where")
    whole = others.SerializeToString(deterministic=True)
    return whole, *((path, node.column, node.operator) for node, path in comparisons)


def prepare(plan: Plan, dialect: sa.Dialect, comparisons: list[Compared]) -> Prepared:
    """Of a plan that was made of the same query, so that the comparisons are known to be right."""
    table = plan.table
    columns = tuple(table.columns[node.column] for node, _ in comparisons)
    conditions = [
        operation(table, column, node.operator, sa.bindparam(_name(index), type_=table.sa.columns[column.name].type))
        for index, (column, (node, _)) in enumerate(zip(columns, comparisons, strict=True))
    ]
    alike = replace(plan, where=sa.and_(*conditions))
    statement = alike.statement().limit(sa.bindparam(ROWS, type_=sa.Integer))
    names = [ROWS, *(_name(index) for index in range(len(columns)))]
    return Prepared(alike, straight(statement, dialect, names), columns)
