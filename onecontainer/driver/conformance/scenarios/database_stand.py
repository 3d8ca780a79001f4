"""How a feature of a DatabaseService is shown: a table with records, and the call that decides."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2, value_pb2
from onecontainer.driver.conformance.expect import require
from onecontainer.driver.conformance.scenarios.database import KEY, NAME, TEXT, column, record, value, where
from onecontainer.driver.conformance.session import SERVICE, Session
from onecontainer.driver.conformance.wire import Answer

FIRST_KEY = 100_000
CONTENT = "content"
_RESPONSES: dict[str, Callable[[bytes], Any]] = {
    "CreateTable": table_pb2.Table.FromString,
    "InsertRecords": pb.InsertRecordsResponse.FromString,
    "UpdateRecords": pb.UpdateRecordsResponse.FromString,
    "DeleteRecords": pb.DeleteRecordsResponse.FromString,
    "SelectRecords": pb.SelectRecordsResponse.FromString,
    "ExecuteBatch": pb.ExecuteBatchResponse.FromString,
}


class Refusal(Exception):
    """The call that decides was refused."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(str(answer))
        self.answer = answer


class Stand:
    """The kit's table, with a way to make the calls."""

    def __init__(self, session: Session, table: str, keys: Iterator[int]) -> None:
        self.session = session
        self.table = table
        self._keys = keys

    async def ask(self, method: str, request: Message) -> Any:
        """The response of the call that decides. Raises Refusal."""
        answer = await self.session.call(f"{NAME}/{method}", request)
        if not answer.ok:
            raise Refusal(answer)
        return _RESPONSES[method](answer.message)

    async def put(self, **values: Any) -> int:
        """Writes a new record; its key."""
        key = next(self._keys)
        made = record(key)
        for name, given in values.items():
            made.fields[name].CopyFrom(value(given))
        request = pb.InsertRecordsRequest(service=SERVICE, table=self.table, records=[made])
        await self.session.one_as(f"{NAME}/InsertRecords", request, pb.InsertRecordsResponse)
        return key

    def key(self) -> int:
        """One that no record has."""
        return next(self._keys)

    async def holds(self, key: int, **values: Any) -> None:
        """The record must be there with these values. Raises Failed."""
        found = await self.found(key)
        sent = f"SelectRecords where {KEY} = {key}, afterwards"
        require(found is not None, sent, "it is not there")
        for name, given in values.items():
            require(found is not None and found.fields[name] == value(given), sent, f"{found}; wanted {name} = {given}")

    async def found(self, key: int) -> record_pb2.Record | None:
        request = pb.SelectRecordsRequest(service=SERVICE, table=self.table, query=query_pb2.Query(where=where(key)))
        answer = await self.session.one_as(f"{NAME}/SelectRecords", request, pb.SelectRecordsResponse)
        return answer.records[0] if answer.records else None

    async def other_table(self, content: table_pb2.ColumnType) -> str:
        """A table `id`, `content` of this type; empty where the backend does not have the type."""
        table_id = f"conformance_{secrets.token_hex(4)}"
        columns = [column(KEY, table_pb2.TYPE_KIND_INT64), table_pb2.Column(name=CONTENT, type=content)]
        table = table_pb2.Table(columns=columns, partition_key=[KEY])
        request = pb.CreateTableRequest(service=SERVICE, table_id=table_id, table=table)
        answer = await self.session.call(f"{NAME}/CreateTable", request)
        if not answer.ok:
            return ""
        if self.session.claims(f"{NAME}/DropTable"):
            gone = pb.DropTableRequest(service=SERVICE, table=table_id, if_exists=True)
            self.session.cleaning.append((f"{NAME}/DropTable", gone))
        return table_id

    # --- requests ------------------------------------------------------------------------------------------------------

    def insert(self, key: int, text: str = "new", **more: Any) -> pb.InsertRecordsRequest:
        made = record_pb2.Record(fields={KEY: value(key), TEXT: value(text)})
        return pb.InsertRecordsRequest(service=SERVICE, table=self.table, records=[made], **more)

    def update(self, key: int, text: str = "new", **more: Any) -> pb.UpdateRecordsRequest:
        fields: dict[str, Any] = {
            "assignments": [record_pb2.Assignment(column=TEXT, set=value(text))],
            "where": where(key),
        }
        return pb.UpdateRecordsRequest(service=SERVICE, table=self.table, **(fields | more))

    def delete(self, key: int, **more: Any) -> pb.DeleteRecordsRequest:
        fields: dict[str, Any] = {"where": where(key)} | more
        return pb.DeleteRecordsRequest(service=SERVICE, table=self.table, **fields)

    async def select(self, query: query_pb2.Query) -> list[int]:
        """The keys that a query chooses. Raises Refusal."""
        request = pb.SelectRecordsRequest(service=SERVICE, table=self.table, query=query, page_size=10_000)
        page: pb.SelectRecordsResponse = await self.ask("SelectRecords", request)
        return [one.fields[KEY].int64_value for one in page.records]


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that a backend may have or not.

    Attributes:
        name: as manifests list it; before the point the method.
        title: for people.
        field: how the path begins that a refusal names.
        show: makes the call and sees that it did what it says. Raises Refusal or Failed.
    """

    name: str
    title: str
    field: str
    show: Callable[[Stand], Awaitable[None]]

    @property
    def method(self) -> str:
        return self.name.partition(".")[0]


# --- parts of requests -------------------------------------------------------------------------------------------------

Show = Callable[[Stand], Awaitable[None]]
LIST = table_pb2.ColumnType(
    kind=table_pb2.TYPE_KIND_LIST, elements=[table_pb2.ColumnType(kind=table_pb2.TYPE_KIND_INT64)]
)


def collecting(features: list[Feature]) -> Callable[[str, str, str], Callable[[Show], Show]]:
    """A decorator that keeps what it stands before as a feature of that name, title and field."""

    def feature(name: str, title: str, field: str) -> Callable[[Show], Show]:
        def keep(show: Show) -> Show:
            features.append(Feature(name, title, field, show))
            return show

        return keep

    return feature


def compared(operator: query_pb2.Operator.ValueType, text: str) -> query_pb2.Filter:
    comparison = query_pb2.Comparison(column=TEXT, operator=operator, value=value(text))
    return query_pb2.Filter(comparison=comparison)


def list_of(*numbers: int) -> value_pb2.Value:
    return value_pb2.Value(list_value=value_pb2.ListValue(values=[value(number) for number in numbers]))


def text_is(text: str) -> query_pb2.Filter:
    return compared(query_pb2.OPERATOR_EQUAL, text)


def either(*filters: query_pb2.Filter) -> query_pb2.Filter:
    return query_pb2.Filter(any_of=query_pb2.FilterList(filters=filters))


async def put_list(stand: Stand, table: str, key: int, *numbers: int) -> None:
    made = record_pb2.Record(fields={KEY: value(key), CONTENT: list_of(*numbers)})
    await stand.ask("InsertRecords", pb.InsertRecordsRequest(service=SERVICE, table=table, records=[made]))
