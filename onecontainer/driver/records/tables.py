"""Answers of the methods of tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from onecontainer.api.db.v1 import database_pb2, table_pb2
from onecontainer.driver.records.requests import DEFAULT_TABLES, MAX_TABLES, page_size
from onecontainer.driver.records.tokens import read_list_token, write_list_token
from onecontainer.errors import ResourceConflict


class Described(Protocol):
    """A table of a driver; its ``proto`` has no name, which needs the service's."""

    @property
    def id(self) -> str: ...

    @property
    def proto(self) -> table_pb2.Table: ...


def named(service: str, table: Described) -> table_pb2.Table:
    made = table_pb2.Table(name=f"{service}/tables/{table.id}")
    made.MergeFrom(table.proto)
    return made


def taken(table_id: str) -> ResourceConflict:
    return ResourceConflict(f"there is a table {table_id!r} already", resource=("onecontainer.dev/Table", table_id))


async def list_tables(
    request: database_pb2.ListTablesRequest,
    table_ids: Callable[[], Awaitable[Iterable[str]]],
    describe: Callable[[str], Awaitable[Described | None]],
) -> database_pb2.ListTablesResponse:
    """``table_ids`` has them in order; ``describe`` gives None for one that was dropped since."""
    size = page_size(request.page_size, DEFAULT_TABLES, MAX_TABLES)
    after = read_list_token(request.page_token)
    response = database_pb2.ListTablesResponse()
    ids = [one for one in await table_ids() if one > after]
    for table_id in ids[:size]:
        found = await describe(table_id)
        if found is not None:
            response.tables.append(named(request.service, found))
    if len(ids) > size:
        response.next_page_token = write_list_token(ids[size - 1])
    return response
