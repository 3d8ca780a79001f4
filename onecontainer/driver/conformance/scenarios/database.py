"""DatabaseService: a table of the kit's own, with a few records, which is dropped in the end."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from google.protobuf import empty_pb2
from google.protobuf.message import Message

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2, value_pb2
from onecontainer.driver.conformance.expect import refused, require
from onecontainer.driver.conformance.scenarios.work import Work, Works
from onecontainer.driver.conformance.session import SERVICE, Sample, Session
from onecontainer.errors import Code, Reason

NAME = "onecontainer.api.db.v1.DatabaseService"
RECORDS, BULK_RECORDS = 12, 300
KEY, TEXT, NUMBER = "id", "text", "number"


def value(content: int | str) -> value_pb2.Value:
    return value_pb2.Value(int64_value=content) if isinstance(content, int) else value_pb2.Value(text_value=content)


def text_of(key: int) -> str:
    """With a quote and letters beyond ASCII: it is bound as a value, never put into a statement."""
    return f"O'Brien № {key}"


def record(key: int) -> record_pb2.Record:
    return record_pb2.Record(fields={KEY: value(key), TEXT: value(text_of(key)), NUMBER: value(key * 10)})


def where(key: int) -> query_pb2.Filter:
    return query_pb2.Filter(comparison=query_pb2.Comparison(column=KEY, value=value(key)))


def column(name: str, kind: table_pb2.TypeKind.ValueType) -> table_pb2.Column:
    return table_pb2.Column(name=name, type=table_pb2.ColumnType(kind=kind))


def creation(table: str) -> pb.CreateTableRequest:
    """The kit's table, with a key."""
    kinds = (
        (KEY, table_pb2.TYPE_KIND_INT64),
        (TEXT, table_pb2.TYPE_KIND_TEXT),
        (NUMBER, table_pb2.TYPE_KIND_INT64),
    )
    definition = table_pb2.Table(columns=[column(*kind) for kind in kinds], partition_key=[KEY])
    return pb.CreateTableRequest(service=SERVICE, table_id=table, table=definition)


_ALL = query_pb2.Filter(all_of=query_pb2.FilterList())
EMPTY = (_ALL, query_pb2.Filter(all_of=query_pb2.FilterList(filters=[_ALL, _ALL])))
"""Filters that every record passes, for they ask nothing."""


class Database:
    """The works of a DatabaseService."""

    def __init__(self) -> None:
        self.table = f"conformance_{secrets.token_hex(4)}"

    def works(self) -> Works:
        insert = ("CreateTable", "InsertRecords")
        return _full(
            {
                "CreateTable": Work(self.create),
                "GetTable": Work(self.get, ("CreateTable",)),
                "ListTables": Work(self.list_tables, ("CreateTable",)),
                "InsertRecords": Work(self.insert, ("CreateTable",)),
                "SelectRecords": Work(self.select, insert),
                "StreamRecords": Work(self.stream, insert),
                "UpdateRecords": Work(self.update, (*insert, "SelectRecords")),
                "DeleteRecords": Work(self.delete, (*insert, "SelectRecords")),
                "BulkInsert": Work(self.bulk, ("CreateTable", "SelectRecords")),
                "ExecuteBatch": Work(self.batch, (*insert, "SelectRecords")),
                "DropTable": Work(self.drop, ("CreateTable",)),
            }
        )

    # --- tables --------------------------------------------------------------------------------------------------------

    async def create(self, session: Session) -> None:
        request = creation(self.table)
        made = await session.one_as(f"{NAME}/CreateTable", request, table_pb2.Table)
        if session.claims(f"{NAME}/DropTable"):
            gone = pb.DropTableRequest(service=SERVICE, table=self.table, if_exists=True)
            session.cleaning.append((f"{NAME}/DropTable", gone))
        self._is_ours(made, "CreateTable")
        again = await session.call(f"{NAME}/CreateTable", request)
        refused(again, f"CreateTable of {self.table} again", Code.ALREADY_EXISTS, Reason.RESOURCE_CONFLICT)

    def _is_ours(self, table: table_pb2.Table, sent: str) -> None:
        wanted = f"{SERVICE}/tables/{self.table}"
        require(table.name == wanted, sent, f"name {table.name!r} instead of {wanted!r}")
        columns = {column.name: column.type.kind for column in table.columns}
        require(columns.keys() == {KEY, TEXT, NUMBER}, sent, f"the columns {sorted(columns)}")
        require(list(table.partition_key) == [KEY], sent, f"the partition key {list(table.partition_key)}")

    async def get(self, session: Session) -> None:
        request = pb.GetTableRequest(service=SERVICE, table=self.table)
        self._is_ours(await session.one_as(f"{NAME}/GetTable", request, table_pb2.Table), "GetTable")
        missing = pb.GetTableRequest(service=SERVICE, table=f"{self.table}_none")
        answer = await session.call(f"{NAME}/GetTable", missing)
        refused(answer, "GetTable of a table that is not there", Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)
        session.samples.append(Sample(session.contract[f"{NAME}/GetTable"], request))

    async def list_tables(self, session: Session) -> None:
        names: list[str] = []
        token = ""
        while True:
            request = pb.ListTablesRequest(service=SERVICE, page_size=1000, page_token=token)
            page = await session.one_as(f"{NAME}/ListTables", request, pb.ListTablesResponse)
            names += [table.name for table in page.tables]
            token = page.next_page_token
            if not token:
                break
        require(f"{SERVICE}/tables/{self.table}" in names, "ListTables", f"{len(names)} tables without {self.table}")
        require(names == sorted(names), "ListTables", "not in the order of their ids")

    async def drop(self, session: Session) -> None:
        # Another one: what comes after reads the table with the records.
        name = f"{self.table}_gone"
        await session.one_as(f"{NAME}/CreateTable", creation(name), table_pb2.Table)
        request = pb.DropTableRequest(service=SERVICE, table=name)
        await session.one_as(f"{NAME}/DropTable", request, empty_pb2.Empty)
        answer = await session.call(f"{NAME}/DropTable", request)
        refused(answer, "DropTable of a table that is gone", Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)

    # --- records -------------------------------------------------------------------------------------------------------

    async def insert(self, session: Session) -> None:
        request = pb.InsertRecordsRequest(
            service=SERVICE, table=self.table, records=[record(key) for key in range(RECORDS)]
        )
        answer = await session.one_as(f"{NAME}/InsertRecords", request, pb.InsertRecordsResponse)
        told = f"applied {answer.applied}, affected {answer.affected}, {len(answer.results)} results"
        right = answer.applied and answer.affected == RECORDS and len(answer.results) == RECORDS
        require(right, f"InsertRecords of {RECORDS} records", told)

    def _selection(self, key: int) -> pb.SelectRecordsRequest:
        return pb.SelectRecordsRequest(service=SERVICE, table=self.table, query=query_pb2.Query(where=where(key)))

    async def _selected(self, session: Session, key: int) -> list[record_pb2.Record]:
        answer = await session.one_as(f"{NAME}/SelectRecords", self._selection(key), pb.SelectRecordsResponse)
        return list(answer.records)

    async def select(self, session: Session) -> None:
        for key in (0, 7):
            found = await self._selected(session, key)
            require(found == [record(key)], f"SelectRecords where {KEY} = {key}", _told(found))
        require(not await self._selected(session, -1), f"SelectRecords where {KEY} = -1", "records")
        keys: list[int] = []
        token = ""
        while True:
            request = pb.SelectRecordsRequest(service=SERVICE, table=self.table, page_size=5, page_token=token)
            page = await session.one_as(f"{NAME}/SelectRecords", request, pb.SelectRecordsResponse)
            keys += [one.fields[KEY].int64_value for one in page.records]
            token = page.next_page_token
            if not token:
                break
        require(sorted(keys) == list(range(RECORDS)), "SelectRecords, page by page of 5", f"the keys {keys}")
        answer = await session.call(
            f"{NAME}/SelectRecords", pb.SelectRecordsRequest(service=SERVICE, table=f"{self.table}_none")
        )
        refused(answer, "SelectRecords of a table that is not there", Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)
        method = session.contract[f"{NAME}/SelectRecords"]
        session.samples += [Sample(method, self._selection(key), _records) for key in range(6)]

    async def stream(self, session: Session) -> None:
        request = pb.StreamRecordsRequest(service=SERVICE, table=self.table, batch_size=5)
        messages = await session.ask_as(f"{NAME}/StreamRecords", request, pb.StreamRecordsResponse)
        sent = "StreamRecords in batches of 5"
        columns = [column.name for column in messages[0].columns] if messages else []
        require(KEY in columns, sent, f"no columns in the first of {len(messages)} messages")
        place = columns.index(KEY)
        keys = [row.values[place].int64_value for message in messages for row in message.batch.rows.rows]
        require(sorted(keys) == list(range(RECORDS)), sent, f"the keys {keys}")

    async def update(self, session: Session) -> None:
        change = record_pb2.Assignment(column=TEXT, set=value("changed"))
        request = pb.UpdateRecordsRequest(service=SERVICE, table=self.table, assignments=[change], where=where(9))
        answer = await session.one_as(f"{NAME}/UpdateRecords", request, pb.UpdateRecordsResponse)
        told = f"applied {answer.applied}, affected {answer.affected}"
        require(answer.applied and (not answer.HasField("affected") or answer.affected == 1), "UpdateRecords", told)
        await self._holds(session, 9, "changed", "UpdateRecords")
        await self._holds(session, 8, text_of(8), "UpdateRecords of another record")
        answer_without = await session.call(
            f"{NAME}/UpdateRecords", pb.UpdateRecordsRequest(service=SERVICE, table=self.table, assignments=[change])
        )
        refused(answer_without, "UpdateRecords without `where`", Code.INVALID_ARGUMENT, Reason.FIELD_REQUIRED)
        for empty in EMPTY:
            request = pb.UpdateRecordsRequest(service=SERVICE, table=self.table, assignments=[change], where=empty)
            await self._refused_as_empty(session, "UpdateRecords", request)
        await self._holds(session, 8, text_of(8), "UpdateRecords that was refused")

    async def _refused_as_empty(self, session: Session, method: str, request: Message) -> None:
        answer = await session.call(f"{NAME}/{method}", request)
        sent = f"{method} whose `where` has no condition"
        refused(answer, sent, Code.INVALID_ARGUMENT, Reason.FIELD_REQUIRED)

    async def _holds(self, session: Session, key: int, text: str, after: str) -> None:
        found = [one.fields[TEXT].text_value for one in await self._selected(session, key)]
        require(found == [text], f"SelectRecords where {KEY} = {key}, after {after}", f"{found} instead of {[text]}")

    async def delete(self, session: Session) -> None:
        request = pb.DeleteRecordsRequest(service=SERVICE, table=self.table, where=where(10))
        for sent in ("DeleteRecords", "DeleteRecords again"):
            answer = await session.call(f"{NAME}/DeleteRecords", request)
            require(answer.ok, sent, str(answer))
        require(
            not await self._selected(session, 10), "SelectRecords of a record that was deleted", "it is still there"
        )
        for empty in EMPTY:
            request = pb.DeleteRecordsRequest(service=SERVICE, table=self.table, where=empty)
            await self._refused_as_empty(session, "DeleteRecords", request)
        require(await self._selected(session, 8), "SelectRecords of another record", "it is gone too")

    async def bulk(self, session: Session) -> None:
        method = f"{NAME}/BulkInsert"
        first, half = 1000, BULK_RECORDS // 2
        batches = [_rows(range(first, first + half)), _rows([*range(first + half, first + BULK_RECORDS), first])]
        requests: list[Message] = [
            pb.BulkInsertRequest(
                service=SERVICE, table=self.table, mode=record_pb2.INSERT_MODE_UPSERT, batch=batches[0]
            ),
            pb.BulkInsertRequest(batch=batches[1]),
        ]
        answer = await session.one_as(method, requests, pb.BulkInsertResponse)
        told = f"received {answer.received}, inserted {answer.inserted}, failed {answer.failed}"
        covered = sum(status.row_count for status in answer.row_statuses)
        right = answer.received == BULK_RECORDS + 1 == covered and not answer.failed
        require(right, f"BulkInsert of {BULK_RECORDS + 1} rows", f"{told}, statuses for {covered}")
        await self._holds(session, first + BULK_RECORDS - 1, text_of(first + BULK_RECORDS - 1), "BulkInsert")
        session.holding[method] = pb.BulkInsertRequest(service=SERVICE, table=self.table).SerializeToString()

    async def batch(self, session: Session) -> None:
        insert = pb.InsertRecordsRequest(table=self.table, records=[record(500)])
        delete = pb.DeleteRecordsRequest(table=self.table, where=where(11))
        statements = [pb.BatchStatement(insert=insert), pb.BatchStatement(delete=delete)]
        request = pb.ExecuteBatchRequest(service=SERVICE, statements=statements)
        answer = await session.one_as(f"{NAME}/ExecuteBatch", request, pb.ExecuteBatchResponse)
        told = f"applied {answer.applied}, {len(answer.results)} results"
        require(answer.applied and len(answer.results) == 2, "ExecuteBatch of an insert and a delete", told)
        await self._holds(session, 500, text_of(500), "ExecuteBatch")
        require(
            not await self._selected(session, 11), "SelectRecords of what ExecuteBatch deleted", "it is still there"
        )


def _full(works: Works) -> Works:
    return {
        f"{NAME}/{method}": Work(work.run, tuple(f"{NAME}/{needed}" for needed in work.needs))
        for method, work in works.items()
    }


def _rows(keys: Iterable[int]) -> record_pb2.RecordBatch:
    rows = [record_pb2.Row(values=[value(key), value(text_of(key)), value(key * 10)]) for key in keys]
    return record_pb2.RecordBatch(columns=[KEY, TEXT, NUMBER], rows=record_pb2.RowList(rows=rows))


def _records(response: Message) -> object:
    """What of a page is compared."""
    page = pb.SelectRecordsResponse.FromString(response.SerializeToString())
    return [sorted((name, str(one)) for name, one in row.fields.items()) for row in page.records]


def _told(records: list[record_pb2.Record]) -> str:
    return f"{len(records)} records: {'; '.join(str(one) for one in records[:2])}"
