"""The driver itself: which call goes where."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from google.protobuf import empty_pb2

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import table_pb2
from onecontainer.driver import Attachment, Context, DatabaseDriver, ProbeResult, errors
from onecontainer.driver.records.requests import touched
from onecontainer_driver_sql import bulk, reading, tables, writing
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.postgresql import PostgresBackend
from onecontainer_driver_sql.settings import Settings, read_settings
from onecontainer_driver_sql.sqlite import SqliteBackend


def open_database(settings: Settings) -> Database:
    """Connects when it is first asked something. Raises FieldInvalid if the place of an SQLite file is not there."""
    return Database(PostgresBackend(settings) if settings.is_postgres else SqliteBackend(settings))


class SqlDriver(DatabaseDriver):
    """PostgreSQL by URL or endpoint; without one, SQLite in the service's state folder."""

    _database: Database | None = None

    async def attach(self, attachment: Attachment) -> None:
        self._database = open_database(read_settings(attachment.options, attachment.endpoints, attachment.state_dir))

    async def detach(self) -> None:
        if self._database is not None:
            await self._database.close()
            self._database = None

    async def probe(self) -> ProbeResult:
        version = await self._db.version()
        return ProbeResult(ready=True, backend_version=version, backend=self._db.backend.name)

    @property
    def _db(self) -> Database:
        if self._database is None:
            raise errors.NotAttached("the driver is not attached to a service")
        return self._database

    async def create_table(self, request: pb.CreateTableRequest, context: Context) -> table_pb2.Table:
        return await tables.create_table(self._db, request)

    async def get_table(self, request: pb.GetTableRequest, context: Context) -> table_pb2.Table:
        return await tables.get_table(self._db, request)

    async def list_tables(self, request: pb.ListTablesRequest, context: Context) -> pb.ListTablesResponse:
        return await tables.list_tables(self._db, request)

    async def drop_table(self, request: pb.DropTableRequest, context: Context) -> empty_pb2.Empty:
        return await tables.drop_table(self._db, request)

    async def insert_records(self, request: pb.InsertRecordsRequest, context: Context) -> pb.InsertRecordsResponse:
        return await self._db.tables.with_fresh([request.table], lambda: writing.insert_records(self._db, request))

    async def update_records(self, request: pb.UpdateRecordsRequest, context: Context) -> pb.UpdateRecordsResponse:
        return await self._db.tables.with_fresh([request.table], lambda: writing.update_records(self._db, request))

    async def delete_records(self, request: pb.DeleteRecordsRequest, context: Context) -> pb.DeleteRecordsResponse:
        return await self._db.tables.with_fresh([request.table], lambda: writing.delete_records(self._db, request))

    async def execute_batch(self, request: pb.ExecuteBatchRequest, context: Context) -> pb.ExecuteBatchResponse:
        return await self._db.tables.with_fresh(touched(request), lambda: writing.execute_batch(self._db, request))

    async def select_records(self, request: pb.SelectRecordsRequest, context: Context) -> pb.SelectRecordsResponse:
        return await self._db.tables.with_fresh([request.table], lambda: reading.select_records(self._db, request))

    async def stream_records(
        self, request: pb.StreamRecordsRequest, context: Context
    ) -> AsyncIterator[pb.StreamRecordsResponse]:
        async with contextlib.aclosing(reading.stream_records(self._db, request)) as responses:
            async for response in responses:
                yield response

    async def bulk_insert(
        self, requests: AsyncIterator[pb.BulkInsertRequest], context: Context
    ) -> pb.BulkInsertResponse:
        return await bulk.bulk_insert(self._db, requests)
