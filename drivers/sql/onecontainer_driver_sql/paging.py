"""Paging behind the last record of a page: its place in the order is in the token, bound to the query by a digest."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import DecodeError

from onecontainer.api.db.v1 import query_pb2, value_pb2
from onecontainer.driver.records import tokens
from onecontainer.driver.records.model import Column, parameter
from onecontainer_driver_sql.filters import Condition
from onecontainer_driver_sql.model import TableInfo

_REMAINING = struct.Struct(">q")


@dataclass(frozen=True, slots=True)
class Key:
    """One column of the order. ``nulls_first`` is None where there are no nulls."""

    column: Column
    descending: bool
    nulls_first: bool | None

    def clause(self, table: TableInfo) -> sa.ColumnElement[Any]:
        column = table.sa.columns[self.column.name]
        ordered = column.desc() if self.descending else column.asc()
        if self.nulls_first is None:
            return ordered
        return ordered.nulls_first() if self.nulls_first else ordered.nulls_last()


@dataclass(frozen=True, slots=True)
class Position:
    """Where the next page begins: behind ``values``, with ``remaining`` records to go (None: all)."""

    remaining: int | None
    values: tuple[value_pb2.Value, ...]


def after(table: TableInfo, keys: Sequence[Key], position: Position) -> Condition:
    """The condition of a record that comes after that position in that order."""
    if len(position.values) != len(keys):
        raise tokens.not_of_this_query()
    values = [
        parameter(key.column.codec, value, "page_token") for key, value in zip(keys, position.values, strict=True)
    ]
    columns = [table.sa.columns[key.column.name] for key in keys]
    bound = [
        sa.bindparam(None, value, type_=column.type, unique=True) for value, column in zip(values, columns, strict=True)
    ]
    if all(key.nulls_first is None for key in keys) and len({key.descending for key in keys}) == 1:
        # Compared as rows, so that the index of the key is used to the full.
        if len(keys) == 1:
            return columns[0] < bound[0] if keys[0].descending else columns[0] > bound[0]
        left, right = sa.tuple_(*columns), sa.tuple_(*bound)
        return left < right if keys[0].descending else left > right
    alternatives: list[Condition] = []
    equal: list[Condition] = []
    for key, column, value, parameter_ in zip(keys, columns, values, bound, strict=True):
        behind = _behind(key, column, value, parameter_)
        alternatives.append(sa.and_(sa.true(), *equal, behind))
        equal.append(column.is_(None) if value is None else column == parameter_)
    return sa.or_(sa.false(), *alternatives)


def _behind(key: Key, column: sa.Column[Any], value: Any, bound: sa.BindParameter[Any]) -> Condition:
    if value is None:
        return column.is_not(None) if key.nulls_first else sa.false()
    behind = column < bound if key.descending else column > bound
    return sa.or_(behind, column.is_(None)) if key.nulls_first is False else behind


def write_token(service: str, table_id: str, query: query_pb2.Query, position: Position) -> str:
    remaining = -1 if position.remaining is None else position.remaining
    payload = _REMAINING.pack(remaining) + value_pb2.ListValue(values=position.values).SerializeToString()
    return tokens.write_token(service, table_id, query, payload)


def read_token(service: str, table_id: str, query: query_pb2.Query, token: str) -> Position:
    """Raises FieldInvalid of ``page_token`` for anything that `write_token` did not write for this very query."""
    payload = tokens.read_token(service, table_id, query, token)
    try:
        (remaining,) = _REMAINING.unpack_from(payload)
        values = value_pb2.ListValue.FromString(payload[_REMAINING.size :]).values
    except (struct.error, DecodeError):
        raise tokens.not_of_this_query() from None
    return Position(None if remaining < 0 else remaining, tuple(values))
