"""CreateTable, GetTable, ListTables and DropTable."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from google.protobuf import empty_pb2

from onecontainer.api.db.v1 import database_pb2, table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.requests import DEFAULT_TABLES, MAX_TABLES, page_size
from onecontainer.driver.records.tokens import read_list_token, write_list_token
from onecontainer_driver_sql.database import Database, Rollback
from onecontainer_driver_sql.model import TableInfo
from onecontainer_driver_sql.names import identifier, quoted


def to_proto(service: str, table: TableInfo) -> table_pb2.Table:
    named = table_pb2.Table(name=f"{service}/tables/{table.id}")
    named.MergeFrom(table.proto)
    return named


async def create_table(database: Database, request: database_pb2.CreateTableRequest) -> table_pb2.Table:
    identifier(request.table_id, "table_id")
    if not request.HasField("table"):
        raise errors.FieldRequired("table")
    statements = database.backend.create_statements(request.table_id, request.table)
    try:
        found = await _create(database, request, statements)
    except errors.ResourceConflict:
        # Two who create it at once both find that it is not there.
        if not request.if_not_exists:
            raise
        found = await _create(database, request, statements)
    database.tables.forget(request.table_id)
    return to_proto(request.service, found)


async def _create(
    database: Database, request: database_pb2.CreateTableRequest, statements: Sequence[sa.Executable]
) -> TableInfo:
    async with database.transaction() as connection:
        found = await database.backend.describe(connection, request.table_id)
        if found is None:
            for statement in statements:
                await connection.execute(statement)
            found = await database.backend.describe(connection, request.table_id)
            assert found is not None
        elif not request.if_not_exists:
            raise errors.ResourceConflict(
                f"there is a table {request.table_id!r} already", resource=("onecontainer.dev/Table", request.table_id)
            )
        if request.validate_only:
            raise Rollback
    return found


async def get_table(database: Database, request: database_pb2.GetTableRequest) -> table_pb2.Table:
    async with database.reading() as connection:
        return to_proto(request.service, await database.fresh_table(connection, request.table))


async def list_tables(database: Database, request: database_pb2.ListTablesRequest) -> database_pb2.ListTablesResponse:
    size = page_size(request.page_size, DEFAULT_TABLES, MAX_TABLES)
    after = read_list_token(request.page_token)
    response = database_pb2.ListTablesResponse()
    async with database.reading() as connection:
        ids = [one for one in await database.backend.table_ids(connection) if one > after]
        for table_id in ids[:size]:
            found = await database.backend.describe(connection, table_id)
            if found is not None:  # dropped since the list was made
                response.tables.append(to_proto(request.service, found))
    if len(ids) > size:
        response.next_page_token = write_list_token(ids[size - 1])
    return response


async def drop_table(database: Database, request: database_pb2.DropTableRequest) -> empty_pb2.Empty:
    identifier(request.table, "table")
    async with database.transaction() as connection:
        try:
            table = await database.fresh_table(connection, request.table)
        except errors.ResourceNotFound:
            if not request.if_exists:
                raise
        else:
            schema = quoted(table.schema) if table.schema else None
            await connection.execute(sa.schema.DropTable(sa.Table(quoted(table.id), sa.MetaData(), schema=schema)))
    database.tables.forget(request.table)
    return empty_pb2.Empty()
