"""CreateTable, GetTable, ListTables and DropTable."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from google.protobuf import empty_pb2

from onecontainer.api.db.v1 import database_pb2, table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records import tables as answers
from onecontainer_driver_sql.database import Database, Rollback
from onecontainer_driver_sql.model import TableInfo
from onecontainer_driver_sql.names import identifier, quoted


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
    return answers.named(request.service, found)


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
            raise answers.taken(request.table_id)
        if request.validate_only:
            raise Rollback
    return found


async def get_table(database: Database, request: database_pb2.GetTableRequest) -> table_pb2.Table:
    async with database.reading() as connection:
        return answers.named(request.service, await database.fresh_table(connection, request.table))


async def list_tables(database: Database, request: database_pb2.ListTablesRequest) -> database_pb2.ListTablesResponse:
    async with database.reading() as connection:
        return await answers.list_tables(
            request,
            lambda: database.backend.table_ids(connection),
            lambda table_id: database.backend.describe(connection, table_id),
        )


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
