"""The database vertical: tables and records, with Python's own types. See values.py for which is which."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2
from onecontainer.api.db.v1.database_pb2_grpc import DatabaseServiceStub
from onecontainer.client.calls import Caller, iterate
from onecontainer.client.names import all_pages, full_name, seconds
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


class Page(NamedTuple):
    """Rows, and the token of the next page; empty: there are no more."""

    rows: Sequence[dict[str, Any]]
    next_page_token: str


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
        expires: bool = False,
        if_not_exists: bool = False,
        timeout: float | None = None,
    ) -> table_pb2.Table:
        """Creates a table of columns and their types (`int64`, `text(40)`, `decimal(10,2)` …), or of a whole Table.

        `key` is the primary key: the partition key's one column, then the clustering key. In SQL only a table with `expires` takes
        records with a `ttl`.
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
                expires=expires,
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
        ttl: float | None = None,
        returning: Sequence[str] = (),
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> pb.InsertRecordsResponse:
        """Inserts rows, all or none. `mode`: `fail` on one that is there, `if-not-exists` leaves it, `upsert` replaces it.

        They go by themselves after `ttl` whole seconds. With `dry_run` it is told what would happen, and nothing is written.
        """
        request = pb.InsertRecordsRequest(
            service=full_name("services", service),
            table=table,
            records=[to_record(row) for row in ([rows] if isinstance(rows, Mapping) else rows)],
            mode=INSERT_MODES[mode],
            options=write_options(ttl),
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
        if_exists: bool = False,
        if_fields: Where = None,
        ttl: float | None = None,
        max_affected: int | None = None,
        returning: Sequence[str] = (),
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> pb.UpdateRecordsResponse:
        """Sets columns of the records that `where` takes; of all of them only with `all_records`.

        A condition is for one record, whose whole key is in `where`: that it is there (`if_exists`), or has these values besides
        (`if_fields`). Where it does not hold, the answer's `applied` is false and `current` shows the record.
        """
        request = pb.UpdateRecordsRequest(
            service=full_name("services", service),
            table=table,
            assignments=[record_pb2.Assignment(column=name, set=to_value(value)) for name, value in changes.items()],
            where=to_filter(where),
            all_records=all_records,
            condition=write_condition(if_exists=if_exists, if_fields=if_fields),
            options=write_options(ttl),
            max_affected=max_affected,
            returning=returning,
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
        if_exists: bool = False,
        if_fields: Where = None,
        max_affected: int | None = None,
        returning: Sequence[str] = (),
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> pb.DeleteRecordsResponse:
        """Deletes the records that `where` takes; all of them only with `all_records`. A condition is as with `update`."""
        request = pb.DeleteRecordsRequest(
            service=full_name("services", service),
            table=table,
            where=to_filter(where),
            all_records=all_records,
            condition=write_condition(if_exists=if_exists, if_fields=if_fields),
            max_affected=max_affected,
            returning=returning,
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
        allow_filtering: bool = False,
        timeout: float | None = None,
    ) -> Sequence[dict[str, Any]]:
        """Rows as dicts, page by page until `limit`. `order_by` names columns, `-name` for descending.

        With `allow_filtering` Cassandra may read records and discard them to find these, which may be slow.
        """
        query = to_query(where, columns, order_by, 0, allow_filtering=allow_filtering)

        async def fetch(size: int, token: str) -> Page:
            return await self._page(service, table, query, size, token, timeout)

        return [row async for row in all_pages(fetch, limit)]

    async def select_page(
        self,
        service: str,
        table: str,
        where: Where = None,
        *,
        columns: Sequence[str] = (),
        order_by: Sequence[str] = (),
        limit: int = 0,
        allow_filtering: bool = False,
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> Page:
        """One page of `select`, and the token of the next one, which goes with the very same query. `page_size` 0: 100 rows; `limit`
        is over all pages, 0: no bound."""
        query = to_query(where, columns, order_by, limit, allow_filtering=allow_filtering)
        return await self._page(service, table, query, page_size, page_token, timeout)

    async def _page(
        self, service: str, table: str, query: query_pb2.Query, size: int, token: str, timeout: float | None
    ) -> Page:
        request = pb.SelectRecordsRequest(
            service=full_name("services", service), table=table, query=query, page_size=size, page_token=token
        )
        page = await self._caller.unary(self.stub.SelectRecords, request, timeout=timeout)
        order = [column.name for column in page.columns]
        rows = [from_record(record) for record in page.records]
        return Page([{name: row[name] for name in order or row} for row in rows], page.next_page_token)

    async def stream(
        self,
        service: str,
        table: str,
        where: Where = None,
        *,
        columns: Sequence[str] = (),
        order_by: Sequence[str] = (),
        limit: int = 0,
        allow_filtering: bool = False,
        timeout: float | None = None,
    ) -> AsyncGenerator[dict[str, Any]]:
        """Rows as dicts, as they come over one stream. `limit` 0: all."""
        request = pb.StreamRecordsRequest(
            service=full_name("services", service),
            table=table,
            query=to_query(where, columns, order_by, limit, allow_filtering=allow_filtering),
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
        ttl: float | None = None,
        max_failures: int = 0,
        timeout: float | None = None,
    ) -> pb.BulkInsertResponse:
        """Inserts any number of rows over one stream; each has these columns. What became of them is in the answer."""

        async def requests() -> AsyncGenerator[pb.BulkInsertRequest]:
            head = pb.BulkInsertRequest(
                service=full_name("services", service),
                table=table,
                mode=INSERT_MODES[mode],
                options=write_options(ttl),
                max_failures=max_failures,
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


def write_options(ttl: float | None) -> record_pb2.WriteOptions | None:
    """Options of a write. None: nothing is said."""
    return None if ttl is None else record_pb2.WriteOptions(ttl=seconds(ttl))


def write_condition(*, if_exists: bool, if_fields: Where) -> record_pb2.WriteCondition | None:
    """The condition of a write. None: there is none. Raises ValueError for both: a record that has values is there."""
    if if_exists and if_fields is not None:
        raise ValueError("give if_exists or if_fields: a record that has these values is there")
    if if_exists:
        return record_pb2.WriteCondition(if_exists=True)
    return None if if_fields is None else record_pb2.WriteCondition(if_fields=to_filter(if_fields))


def to_query(
    where: Where, columns: Sequence[str], order_by: Sequence[str], limit: int, *, allow_filtering: bool = False
) -> query_pb2.Query:
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
        allow_filtering=allow_filtering,
    )
