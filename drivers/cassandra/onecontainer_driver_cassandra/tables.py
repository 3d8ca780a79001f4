"""CreateTable, GetTable, ListTables and DropTable."""

from __future__ import annotations

from google.protobuf import empty_pb2

from onecontainer.api.db.v1 import database_pb2, table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records import tables as answers
from onecontainer.driver.records.names import check_identifier
from onecontainer_driver_cassandra import catalog
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.ddl import create_statements
from onecontainer_driver_cassandra.model import TableInfo, quoted


async def create_table(database: Database, request: database_pb2.CreateTableRequest) -> table_pb2.Table:
    if not request.HasField("table"):
        raise errors.FieldRequired("table")
    async with database.defining:
        structs = await catalog.structs(database.session)
        statements, made = create_statements(database.keyspace, request.table_id, request.table, structs)
        found = await catalog.describe(database.session, request.table_id)
        if found is None:
            if request.validate_only:
                return answers.named(request.service, made)
            try:
                await _create(database, statements, made)
            except errors.ResourceConflict:
                # Two gateways that create it at once both find that it is not there.
                if not request.if_not_exists:
                    raise
            found = await catalog.describe(database.session, request.table_id)
        elif not request.if_not_exists:
            raise answers.taken(request.table_id)
        database.changed(request.table_id)
        return answers.named(request.service, database.tables.found(request.table_id, found))


async def _create(database: Database, statements: list[str], made: TableInfo) -> None:
    await database.session.define(statements[0])
    try:
        for statement in statements[1:]:
            await database.session.define(statement)
    except errors.OneContainerError:
        # All or nothing: a table without an index that was asked for is not what was asked for.
        await database.session.define(f"DROP TABLE IF EXISTS {made.cql}")
        raise


async def get_table(database: Database, request: database_pb2.GetTableRequest) -> table_pb2.Table:
    return answers.named(request.service, await database.fresh_table(request.table))


async def list_tables(database: Database, request: database_pb2.ListTablesRequest) -> database_pb2.ListTablesResponse:
    return await answers.list_tables(
        request,
        lambda: catalog.table_ids(database.session),
        lambda table_id: catalog.describe(database.session, table_id),
    )


async def drop_table(database: Database, request: database_pb2.DropTableRequest) -> empty_pb2.Empty:
    check_identifier(request.table, "table")
    async with database.defining:
        if await catalog.describe(database.session, request.table) is None:
            database.changed(request.table)
            if not request.if_exists:
                database.tables.found(request.table, None)
        else:
            await database.session.define(f"DROP TABLE IF EXISTS {quoted(database.keyspace)}.{quoted(request.table)}")
    database.changed(request.table)
    return empty_pb2.Empty()
