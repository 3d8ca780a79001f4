"""Features of writes of records, one by one and in batches."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2
from onecontainer.driver.conformance.expect import require
from onecontainer.driver.conformance.scenarios.database import NUMBER, TEXT, value, where
from onecontainer.driver.conformance.scenarios.database_stand import (
    CONTENT,
    LIST,
    Feature,
    Stand,
    collecting,
    either,
    list_of,
    put_list,
    text_is,
)
from onecontainer.driver.conformance.session import SERVICE
from onecontainer.driver.conformance.waiting import until

WRITES: list[Feature] = []
_feature = collecting(WRITES)
OLD, NEW = timestamp_pb2.Timestamp(seconds=1_000_000_000), timestamp_pb2.Timestamp(seconds=4_000_000_000)
Write = Callable[..., Message]
_COUNTER = table_pb2.ColumnType(kind=table_pb2.TYPE_KIND_COUNTER)


def _set(text: str) -> record_pb2.Assignment:
    return record_pb2.Assignment(column=TEXT, set=value(text))


# --- options of writes -------------------------------------------------------------------------------------------------


def _consistency(method: str, write: Callable[[Stand, int], Callable[..., Message]]) -> None:
    @_feature(f"{method}.consistency", "`options.consistency`", "options.consistency")
    async def show(stand: Stand) -> None:
        key = await stand.put()
        options = record_pb2.WriteOptions(consistency=query_pb2.CONSISTENCY_ONE)
        answer = await stand.ask(method, write(stand, key)(key, options=options))
        require(answer.applied, f"{method} with consistency ONE", "not applied")


def _timestamp(method: str, write: Callable[[Stand, int], Callable[..., Message]]) -> None:
    @_feature(f"{method}.timestamp", "`options.timestamp`", "options.timestamp")
    async def show(stand: Stand) -> None:
        key = await stand.put(text="now")
        # Older than what is there: it loses.
        await stand.ask(method, write(stand, key)(key, options=record_pb2.WriteOptions(timestamp=OLD)))
        await stand.holds(key, text="now")


def _ttl(method: str, write: Callable[[Stand, int], Callable[..., Message]]) -> None:
    @_feature(f"{method}.ttl", "`options.ttl`, in a table with `expires`", "options.ttl")
    async def show(stand: Stand) -> None:
        key = await stand.put() if method != "InsertRecords" else stand.key()
        options = record_pb2.WriteOptions(ttl=duration_pb2.Duration(seconds=1))
        await stand.ask(method, write(stand, key)(key, options=options))

        async def over() -> bool | None:
            found = await stand.found(key)
            # What was written goes: the record, or of it the column.
            return True if found is None or found.fields[TEXT] != value("new") else None

        require(await until(over, stand.session.timeout), f"{method} with a ttl of 1 s", "what it wrote stays")


for _method, _write in (
    ("InsertRecords", lambda stand, _key: stand.insert),
    ("UpdateRecords", lambda stand, _key: stand.update),
    ("DeleteRecords", lambda stand, _key: stand.delete),
):
    _consistency(_method, _write)
    _timestamp(_method, _write)
    if _method != "DeleteRecords":
        _ttl(_method, _write)


# --- inserts -----------------------------------------------------------------------------------------------------------


@_feature("InsertRecords.returning", "`returning`", "returning")
async def _insert_returning(stand: Stand) -> None:
    answer = await stand.ask("InsertRecords", stand.insert(stand.key(), returning=[TEXT]))
    shown = [dict(one.record.fields) for one in answer.results]
    require(shown == [{TEXT: value("new")}], f"InsertRecords returning {TEXT}", f"{shown}")


@_feature("InsertRecords.IF_NOT_EXISTS", "mode IF_NOT_EXISTS, with the record that is there", "mode")
async def _if_not_exists(stand: Stand) -> None:
    key = await stand.put(text="there")
    sent = "InsertRecords of a record that is there, IF_NOT_EXISTS"
    answer = await stand.ask("InsertRecords", stand.insert(key, mode=record_pb2.INSERT_MODE_IF_NOT_EXISTS))
    require(not answer.applied and not answer.affected, sent, f"{{{answer}}}")
    shown = answer.results[0].current.fields.get(TEXT) if answer.results else None
    require(shown == value("there"), sent, f"the current record {{{shown}}}")
    await stand.holds(key, text="there")


@_feature("InsertRecords.UPSERT", "mode UPSERT", "mode")
async def _upsert(stand: Stand) -> None:
    key = await stand.put(text="there")
    await stand.ask("InsertRecords", stand.insert(key, mode=record_pb2.INSERT_MODE_UPSERT))
    await stand.holds(key, text="new", number=key * 10)


# --- updates -----------------------------------------------------------------------------------------------------------


@_feature("UpdateRecords.where", "`where` on any column, which chooses any number of records", "where")
async def _update_where(stand: Stand) -> None:
    mark = f"mark-{stand.key()}"
    keys = [await stand.put(text=mark) for _ in range(2)]
    answer = await stand.ask("UpdateRecords", stand.update(0, where=text_is(mark)))
    require(answer.affected == 2, "UpdateRecords that chooses two records", f"affected {answer.affected}")
    for key in keys:
        await stand.holds(key, text="new")


@_feature("UpdateRecords.all_records", "`all_records`", "all_records")
async def _update_all(stand: Stand) -> None:
    await stand.put()
    request = pb.UpdateRecordsRequest(
        service=SERVICE, table=stand.table, assignments=[_set("new")], all_records=True, dry_run=True
    )
    answer = await stand.ask("UpdateRecords", request)
    require(answer.affected, "UpdateRecords of all records, dry_run", f"affected {answer.affected}")


@_feature("UpdateRecords.returning", "`returning`", "returning")
async def _update_returning(stand: Stand) -> None:
    answer = await stand.ask("UpdateRecords", stand.update(await stand.put(), returning=[TEXT]))
    shown = [dict(one.fields) for one in answer.records]
    require(shown == [{TEXT: value("new")}], f"UpdateRecords returning {TEXT}", f"{shown}")


@_feature("UpdateRecords.add", "`add` to and `subtract` from a number that is no counter", "assignments[0].add")
async def _update_add(stand: Stand) -> None:
    key = await stand.put()
    assignment = record_pb2.Assignment(column=NUMBER, add=value(5))
    await stand.ask("UpdateRecords", stand.update(key, assignments=[assignment]))
    await stand.holds(key, number=key * 10 + 5)


@_feature("UpdateRecords.condition", "`condition`: the record is there, or a column has a value", "condition")
async def _update_condition(stand: Stand) -> None:
    await _conditional(stand, "UpdateRecords", stand.update, text_is("there"), text_is("elsewhere"))


@_feature("UpdateRecords.condition.any_of", "any filter as a `condition`", "condition")
async def _update_any_condition(stand: Stand) -> None:
    held, refused = either(text_is("a"), text_is("there")), either(text_is("a"), text_is("b"))
    await _conditional(stand, "UpdateRecords", stand.update, held, refused)


async def _conditional(
    stand: Stand, method: str, write: Write, held: query_pb2.Filter, refused: query_pb2.Filter
) -> None:
    """One whose condition does not hold shows the record, one whose condition holds is done."""
    key = await stand.put(text="there")
    answer = await stand.ask(method, write(key, condition=record_pb2.WriteCondition(if_fields=refused)))
    sent = f"{method} under a condition that does not hold"
    require(not answer.applied and answer.current.fields[TEXT] == value("there"), sent, f"{{{answer}}}")
    await stand.holds(key, text="there")
    for condition in (record_pb2.WriteCondition(if_exists=True), record_pb2.WriteCondition(if_fields=held)):
        key = await stand.put(text="there")
        answer = await stand.ask(method, write(key, condition=condition))
        require(answer.applied, f"{method} under a condition that holds", f"{{{answer}}}")


@_feature("UpdateRecords.add.LIST", "`add` to a list", "assignments[0].add")
async def _update_add_list(stand: Stand) -> None:
    table = await stand.other_table(LIST)
    key = stand.key()
    added = record_pb2.Assignment(column=CONTENT if table else TEXT, add=list_of(2))
    if not table:  # no lists: nothing can be added to a text either
        await stand.ask("UpdateRecords", stand.update(await stand.put(), assignments=[added]))
        return
    await put_list(stand, table, key, 1)
    request = pb.UpdateRecordsRequest(service=SERVICE, table=table, assignments=[added], where=where(key))
    await stand.ask("UpdateRecords", request)
    page = await stand.ask("SelectRecords", pb.SelectRecordsRequest(service=SERVICE, table=table))
    shown = [one.fields[CONTENT] for one in page.records]
    require(shown == [list_of(1, 2)], "UpdateRecords that adds 2 to the list [1]", f"{shown}")


# --- deletes -----------------------------------------------------------------------------------------------------------


@_feature("DeleteRecords.where", "`where` on any column", "where")
async def _delete_where(stand: Stand) -> None:
    mark = f"mark-{stand.key()}"
    keys = [await stand.put(text=mark) for _ in range(2)]
    answer = await stand.ask("DeleteRecords", stand.delete(0, where=text_is(mark)))
    require(answer.affected == 2, "DeleteRecords that chooses two records", f"affected {answer.affected}")
    for key in keys:
        require(await stand.found(key) is None, "SelectRecords of what was deleted", "it is still there")


@_feature("DeleteRecords.max_affected", "`max_affected` over more than one record", "max_affected")
async def _delete_max_affected(stand: Stand) -> None:
    request = pb.DeleteRecordsRequest(
        service=SERVICE, table=stand.table, all_records=True, max_affected=1_000_000, dry_run=True
    )
    await stand.put()
    answer = await stand.ask("DeleteRecords", request)
    require(answer.affected, "DeleteRecords of all records, dry_run", f"affected {answer.affected}")


@_feature("DeleteRecords.all_records", "`all_records`", "all_records")
async def _delete_all(stand: Stand) -> None:
    key = await stand.put()
    request = pb.DeleteRecordsRequest(service=SERVICE, table=stand.table, all_records=True, dry_run=True)
    answer = await stand.ask("DeleteRecords", request)
    require(answer.applied, "DeleteRecords of all records, dry_run", f"{{{answer}}}")
    await stand.holds(key)


@_feature("DeleteRecords.returning", "`returning`", "returning")
async def _delete_returning(stand: Stand) -> None:
    answer = await stand.ask("DeleteRecords", stand.delete(await stand.put(text="old"), returning=[TEXT]))
    shown = [dict(one.fields) for one in answer.records]
    require(shown == [{TEXT: value("old")}], f"DeleteRecords returning {TEXT}", f"{shown}")


@_feature("DeleteRecords.condition", "`condition`: the record is there, or a column has a value", "condition")
async def _delete_condition(stand: Stand) -> None:
    await _conditional(stand, "DeleteRecords", stand.delete, text_is("there"), text_is("elsewhere"))


# --- batches -----------------------------------------------------------------------------------------------------------


def _batch(kind: pb.BatchKind.ValueType, name: str, title: str) -> None:
    @_feature(f"ExecuteBatch.{name}", title, "kind")
    async def show(stand: Stand) -> None:
        gone, new = await stand.put(), stand.key()
        statements = [pb.BatchStatement(insert=stand.insert(new)), pb.BatchStatement(delete=stand.delete(gone))]
        answer = await stand.ask(
            "ExecuteBatch", pb.ExecuteBatchRequest(service=SERVICE, statements=statements, kind=kind)
        )
        require(answer.applied, f"ExecuteBatch of kind {name}", f"{{{answer}}}")
        await stand.holds(new, text="new")
        require(await stand.found(gone) is None, f"ExecuteBatch of kind {name}", "what it deletes is still there")


_batch(pb.BATCH_KIND_TRANSACTION, "TRANSACTION", "kind TRANSACTION: all or nothing, and nobody sees a part")
_batch(pb.BATCH_KIND_LOGGED, "LOGGED", "kind LOGGED: all or nothing in the end")
_batch(pb.BATCH_KIND_UNLOGGED, "UNLOGGED", "kind UNLOGGED: sent together")


@_feature("ExecuteBatch.COUNTER", "kind COUNTER: changes of counters", "kind")
async def _counter_batch(stand: Stand) -> None:
    table = await stand.other_table(_COUNTER)
    added = record_pb2.Assignment(column=CONTENT if table else NUMBER, add=value(3))
    update = pb.UpdateRecordsRequest(
        service=SERVICE, table=table or stand.table, assignments=[added], where=where(stand.key())
    )
    request = pb.ExecuteBatchRequest(
        service=SERVICE, statements=[pb.BatchStatement(update=update)], kind=pb.BATCH_KIND_COUNTER
    )
    await stand.ask("ExecuteBatch", request)
    page = await stand.ask("SelectRecords", pb.SelectRecordsRequest(service=SERVICE, table=table or stand.table))
    shown = [one.fields[CONTENT] for one in page.records]
    require(shown == [value(3)], "ExecuteBatch that adds 3 to a counter", f"{shown}")
