"""Base class of database drivers: the methods of `onecontainer.api.db.v1.DatabaseService`. Override those that the driver has."""

from __future__ import annotations

from typing import ClassVar

from google.protobuf import empty_pb2
from google.protobuf.descriptor import ServiceDescriptor

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import table_pb2
from onecontainer.driver.context import Context
from onecontainer.driver.driver import Answer, Answers, Driver
from onecontainer.driver.isolation import Requests
from onecontainer.driver.methods import not_implemented


class DatabaseDriver(Driver):
    """Tables and records. What each method does and raises is told in the proto."""

    services: ClassVar[tuple[ServiceDescriptor, ...]] = (pb.DESCRIPTOR.services_by_name["DatabaseService"],)

    @not_implemented
    def create_table(self, request: pb.CreateTableRequest, context: Context) -> Answer[table_pb2.Table]:
        """Creates a table."""
        raise NotImplementedError

    @not_implemented
    def get_table(self, request: pb.GetTableRequest, context: Context) -> Answer[table_pb2.Table]:
        """A table with its columns."""
        raise NotImplementedError

    @not_implemented
    def list_tables(self, request: pb.ListTablesRequest, context: Context) -> Answer[pb.ListTablesResponse]:
        """The tables, by name."""
        raise NotImplementedError

    @not_implemented
    def drop_table(self, request: pb.DropTableRequest, context: Context) -> Answer[empty_pb2.Empty]:
        """Removes a table with its records."""
        raise NotImplementedError

    @not_implemented
    def insert_records(self, request: pb.InsertRecordsRequest, context: Context) -> Answer[pb.InsertRecordsResponse]:
        """Adds records."""
        raise NotImplementedError

    @not_implemented
    def update_records(self, request: pb.UpdateRecordsRequest, context: Context) -> Answer[pb.UpdateRecordsResponse]:
        """Changes the records that a filter selects."""
        raise NotImplementedError

    @not_implemented
    def delete_records(self, request: pb.DeleteRecordsRequest, context: Context) -> Answer[pb.DeleteRecordsResponse]:
        """Removes the records that a filter selects."""
        raise NotImplementedError

    @not_implemented
    def select_records(self, request: pb.SelectRecordsRequest, context: Context) -> Answer[pb.SelectRecordsResponse]:
        """A page of the records that a filter selects."""
        raise NotImplementedError

    @not_implemented
    def stream_records(self, request: pb.StreamRecordsRequest, context: Context) -> Answers[pb.StreamRecordsResponse]:
        """All records that a filter selects, as they are read."""
        raise NotImplementedError

    @not_implemented
    def bulk_insert(self, requests: Requests[pb.BulkInsertRequest], context: Context) -> Answer[pb.BulkInsertResponse]:
        """Adds many records; tells which rows failed."""
        raise NotImplementedError

    @not_implemented
    def execute_batch(self, request: pb.ExecuteBatchRequest, context: Context) -> Answer[pb.ExecuteBatchResponse]:
        """Several writes as one."""
        raise NotImplementedError
