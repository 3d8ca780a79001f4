"""The database vertical: tables and records, with Python's own types. See values.py for which is which."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2
from onecontainer.api.db.v1.database_pb2_grpc import DatabaseServiceStub
from onecontainer.client.calls import Caller, iterate
from onecontainer.client.names import all_pages, full_name
from onecontainer.client.values import column_type, from_record, from_value, to_record, to_value

Row = Mapping[str, Any]
Where = query_pb2.Filter | Mapping[str, Any] | None
"""A filter, or columns with the values that they must all have (None: null; a list: one of them)."""

INSERT_MODES = {
    "fail": record_pb2.INSERT_MODE_FAIL,
    "if-not-exists": record_pb2.INSERT_MODE_IF_NOT_EXISTS,
    "upsert": record_pb2.INSERT_MODE_UPSERT,
}
BULK_ROWS = 500


class Db:
    """Calls of DatabaseService. Each method takes the service first.

    Attributes:
        stub: the generated DatabaseService stub.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.stub = caller.stub(DatabaseServiceStub, pb.DESCRIPTOR.services_by_name["DatabaseService"])

    async def create_table(
        self,
        service: str,
        table: str,
        columns: Mapping[str, str | table_pb2.ColumnType] | table_pb2.Table,
        *,
        key: Sequence[str] = (),
        if_not_exists: bool = False,
        timeout: float | None = None,
    ) -> table_pb2.Table:
        """Creates a table of columns and their types (`int64`, `text(40)`, `decimal(10,2)` …), or of a whole Table.

        `key` is the primary key: the partition key's one column, then the clustering key.
        """
        if isinstance(columns, table_pb2.Table):
            definition = columns
        else:
            definition = table_pb2.Table(
                columns=[
                    table_pb2.Column(name=name, type=column_type(kind) if isinstance(kind, str) else kind)
                    for name, kind in columns.items()
                ],
                partition_key=key[:1],
                clustering_key=[table_pb2.ClusteringColumn(column=column) for column in key[1:]],
            )
        request = pb.CreateTableRequest(
            service=full_name("services", service), table_id=table, table=definition, if_not_exists=if_not_exists
        )
        return await self._caller.unary(self.stub.CreateTable, request, timeout=timeout)

    async def get_table(self, service: str, table: str, *, timeout: float | None = None) -> table_pb2.Table:
        """A table with its columns and keys."""
        request = pb.GetTableRequest(service=full_name("services", service), table=table)
        return await self._caller.unary(self.stub.GetTable, request, timeout=timeout)

    async def list_tables(
        self, service: str, *, limit: int | None = None, timeout: float | None = None
    ) -> Sequence[table_pb2.Table]:
        """All tables, by name."""

        async def fetch(size: int, token: str) -> tuple[Sequence[table_pb2.Table], str]:
            request = pb.ListTablesRequest(service=full_name("services", service), page_size=size, page_token=token)
            page = await self._caller.unary(self.stub.ListTables, request, timeout=timeout)
            return page.tables, page.next_page_token

        return [table async for table in all_pages(fetch, limit)]

    async def drop_table(
        self, service: str, table: str, *, if_exists: bool = False, timeout: float | None = None
    ) -> None:
        """Drops a table with its records."""
        request = pb.DropTableRequest(service=full_name("services", service), table=table, if_exists=if_exists)
        await self._caller.unary(self.stub.DropTable, request, timeout=timeout)

    async def insert(
        self,
        service: str,
        table: str,
        rows: Row | Sequence[Row],
        *,
        mode: str = "fail",
        returning: Sequence[str] = (),
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> pb.InsertRecordsResponse:
        """Inserts rows, all or none. `mode`: `fail` on one that is there, `if-not-exists` leaves it, `upsert` replaces it."""
        request = pb.InsertRecordsRequest(
            service=full_name("services", service),
            table=table,
            records=[to_record(row) for row in ([rows] if isinstance(rows, Mapping) else rows)],
            mode=INSERT_MODES[mode],
            returning=returning,
            dry_run=dry_run,
        )
        return await self._caller.unary(self.stub.InsertRecords, request, timeout=timeout)

    async def update(
        self,
        service: str,
        table: str,
        changes: Row,
        where: Where = None,
        *,
        all_records: bool = False,
        max_affected: int | None = None,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> pb.UpdateRecordsResponse:
        """Sets columns of the records that `where` takes; of all of them only with `all_records`."""
        request = pb.UpdateRecordsRequest(
            service=full_name("services", service),
            table=table,
            assignments=[record_pb2.Assignment(column=name, set=to_value(value)) for name, value in changes.items()],
            where=to_filter(where),
            all_records=all_records,
            max_affected=max_affected,
            dry_run=dry_run,
        )
        return await self._caller.unary(self.stub.UpdateRecords, request, timeout=timeout)

    async def delete(
        self,
        service: str,
        table: str,
        where: Where = None,
        *,
        all_records: bool = False,
        max_affected: int | None = None,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> pb.DeleteRecordsResponse:
        """Deletes the records that `where` takes; all of them only with `all_records`."""
        request = pb.DeleteRecordsRequest(
            service=full_name("services", service),
            table=table,
            where=to_filter(where),
            all_records=all_records,
            max_affected=max_affected,
            dry_run=dry_run,
        )
        return await self._caller.unary(self.stub.DeleteRecords, request, timeout=timeout)

    async def select(
        self,
        service: str,
        table: str,
        where: Where = None,
        *,
        columns: Sequence[str] = (),
        order_by: Sequence[str] = (),
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Sequence[dict[str, Any]]:
        """Rows as dicts, page by page until `limit`. `order_by` names columns, `-name` for descending."""
        query = to_query(where, columns, order_by, 0)

        async def fetch(size: int, token: str) -> tuple[Sequence[dict[str, Any]], str]:
            request = pb.SelectRecordsRequest(
                service=full_name("services", service), table=table, query=query, page_size=size, page_token=token
            )
            page = await self._caller.unary(self.stub.SelectRecords, request, timeout=timeout)
            order = [column.name for column in page.columns]
            rows = [from_record(record) for record in page.records]
            return [{name: row[name] for name in order or row} for row in rows], page.next_page_token

        return [row async for row in all_pages(fetch, limit)]

    async def stream(
        self,
        service: str,
        table: str,
        where: Where = None,
        *,
        columns: Sequence[str] = (),
        order_by: Sequence[str] = (),
        limit: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[dict[str, Any]]:
        """Rows as dicts, as they come over one stream. `limit` 0: all."""
        request = pb.StreamRecordsRequest(
            service=full_name("services", service),
            table=table,
            query=to_query(where, columns, order_by, limit),
            encoding=record_pb2.BATCH_ENCODING_ROWS,
        )
        async with aclosing(self._caller.stream(self.stub.StreamRecords, request, timeout=timeout)) as answers:
            async for answer in answers:
                for row in answer.batch.rows.rows:
                    yield dict(zip(answer.batch.columns, map(from_value, row.values), strict=True))

    async def bulk_insert(
        self,
        service: str,
        table: str,
        rows: Iterable[Row] | AsyncIterable[Row],
        columns: Sequence[str],
        *,
        mode: str = "fail",
        max_failures: int = 0,
        timeout: float | None = None,
    ) -> pb.BulkInsertResponse:
        """Inserts any number of rows over one stream; each has these columns. What became of them is in the answer."""

        async def requests() -> AsyncGenerator[pb.BulkInsertRequest]:
            head = pb.BulkInsertRequest(
                service=full_name("services", service), table=table, mode=INSERT_MODES[mode], max_failures=max_failures
            )
            batch: list[record_pb2.Row] = []
            first = True
            async for row in iterate(rows):
                batch.append(record_pb2.Row(values=[to_value(row[column]) for column in columns]))
                if len(batch) == BULK_ROWS:
                    yield _bulk(head if first else pb.BulkInsertRequest(), columns, batch)
                    first, batch = False, []
            if batch or first:
                yield _bulk(head if first else pb.BulkInsertRequest(), columns, batch)

        return await self._caller.send(self.stub.BulkInsert, requests(), timeout=timeout)


def _bulk(
    request: pb.BulkInsertRequest, columns: Sequence[str], rows: Sequence[record_pb2.Row]
) -> pb.BulkInsertRequest:
    request.batch.columns.extend(columns)
    request.batch.rows.rows.extend(rows)
    return request


def to_filter(where: Where) -> query_pb2.Filter | None:
    """The filter that `where` stands for."""
    if where is None or isinstance(where, query_pb2.Filter):
        return where
    parts = []
    for column, value in where.items():
        if value is None:
            parts.append(query_pb2.Filter(null_check=query_pb2.NullCheck(column=column)))
        elif isinstance(value, list):
            values = [to_value(item) for item in value]
            parts.append(query_pb2.Filter(membership=query_pb2.Membership(column=column, values=values)))
        else:
            comparison = query_pb2.Comparison(column=column, operator=query_pb2.OPERATOR_EQUAL, value=to_value(value))
            parts.append(query_pb2.Filter(comparison=comparison))
    if len(parts) == 1:
        return parts[0]
    return query_pb2.Filter(all_of=query_pb2.FilterList(filters=parts)) if parts else None


def to_query(where: Where, columns: Sequence[str], order_by: Sequence[str], limit: int) -> query_pb2.Query:
    """A query; `-name` in `order_by` is descending."""
    return query_pb2.Query(
        columns=columns,
        where=to_filter(where),
        order_by=[
            query_pb2.OrderBy(
                column=name.removeprefix("-"),
                order=table_pb2.SORT_ORDER_DESCENDING if name.startswith("-") else table_pb2.SORT_ORDER_ASCENDING,
            )
            for name in order_by
        ],
        limit=limit,
    )
