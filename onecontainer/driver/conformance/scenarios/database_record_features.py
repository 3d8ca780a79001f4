"""Features of reads and writes of records."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2
from onecontainer.driver.conformance.expect import require
from onecontainer.driver.conformance.scenarios.database import NUMBER, TEXT, value, where
from onecontainer.driver.conformance.scenarios.database_stand import Feature, Stand
from onecontainer.driver.conformance.session import SERVICE
from onecontainer.driver.conformance.waiting import until

Show = Callable[[Stand], Awaitable[None]]
RECORDS: list[Feature] = []
OLD, NEW = timestamp_pb2.Timestamp(seconds=1_000_000_000), timestamp_pb2.Timestamp(seconds=4_000_000_000)
Write = Callable[..., Message]


def _feature(name: str, title: str, field: str) -> Callable[[Show], Show]:
    def keep(show: Show) -> Show:
        RECORDS.append(Feature(name, title, field, show))
        return show

    return keep


def _text(operator: query_pb2.Operator.ValueType, text: str) -> query_pb2.Filter:
    comparison = query_pb2.Comparison(column=TEXT, operator=operator, value=value(text))
    return query_pb2.Filter(comparison=comparison)


def _is(text: str) -> query_pb2.Filter:
    return _text(query_pb2.OPERATOR_EQUAL, text)


def _either(*filters: query_pb2.Filter) -> query_pb2.Filter:
    return query_pb2.Filter(any_of=query_pb2.FilterList(filters=filters))


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
    answer = await stand.ask("UpdateRecords", stand.update(0, where=_is(mark)))
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
    await _conditional(stand, "UpdateRecords", stand.update, _is("there"), _is("elsewhere"))


@_feature("UpdateRecords.condition.any_of", "any filter as a `condition`", "condition")
async def _update_any_condition(stand: Stand) -> None:
    held, refused = _either(_is("a"), _is("there")), _either(_is("a"), _is("b"))
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


# --- deletes -----------------------------------------------------------------------------------------------------------


@_feature("DeleteRecords.where", "`where` on any column", "where")
async def _delete_where(stand: Stand) -> None:
    mark = f"mark-{stand.key()}"
    keys = [await stand.put(text=mark) for _ in range(2)]
    answer = await stand.ask("DeleteRecords", stand.delete(0, where=_is(mark)))
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
    await _conditional(stand, "DeleteRecords", stand.delete, _is("there"), _is("elsewhere"))


# --- reads -------------------------------------------------------------------------------------------------------------


def _selects(name: str, title: str, field: str, query: Callable[[str, str], query_pb2.Query]) -> None:
    """Of three records the query chooses the first two."""

    @_feature(f"SelectRecords.{name}", title, f"query.{field}")
    async def show(stand: Stand) -> None:
        texts = [f"{letter}-{stand.key()}" for letter in "abc"]
        keys = [await stand.put(text=text) for text in texts]
        made = query(texts[0], texts[1])
        chosen = set(await stand.select(made)) & set(keys)
        require(chosen == set(keys[:2]), f"SelectRecords {{{made}}}", f"{len(chosen)} records, not the two of three")


def _member(*texts: str) -> query_pb2.Filter:
    return query_pb2.Filter(membership=query_pb2.Membership(column=TEXT, values=[value(text) for text in texts]))


def _range(lower: str, upper: str) -> query_pb2.Filter:
    return query_pb2.Filter(range=query_pb2.Range(column=TEXT, lower=value(lower), upper=value(upper)))


def _like(text: str) -> query_pb2.Filter:
    return query_pb2.Filter(pattern=query_pb2.Pattern(column=TEXT, like=f"%{text[1:]}"))


_selects(
    "where",
    "`where` on any column without `allow_filtering`",
    "where",
    lambda first, second: query_pb2.Query(where=_range(first, second)),
)
_selects(
    "where.allow_filtering",
    "comparisons of any column with `allow_filtering`",
    "where",
    lambda first, second: query_pb2.Query(where=_range(first, second), allow_filtering=True),
)
_selects(
    "where.any_of",
    "`any_of`",
    "where.any_of",
    lambda first, second: query_pb2.Query(where=_either(_is(first), _is(second)), allow_filtering=True),
)
_selects(
    "where.negation",
    "`negation`",
    "where",
    lambda first, second: query_pb2.Query(
        where=query_pb2.Filter(negation=query_pb2.Filter(negation=_member(first, second))), allow_filtering=True
    ),
)
_selects(
    "where.pattern",
    "`pattern`",
    "where",
    lambda first, second: query_pb2.Query(where=_either(_like(first), _like(second)), allow_filtering=True),
)


@_feature("SelectRecords.where.null_check", "`null_check`", "query.where.null_check")
async def _null_check(stand: Stand) -> None:
    key = await stand.put()
    node = query_pb2.Filter(null_check=query_pb2.NullCheck(column=TEXT, negated=True))
    query = query_pb2.Query(where=node, allow_filtering=True)
    require(key in await stand.select(query), f"SelectRecords {{{query}}}", "without a record that is not null")


@_feature("SelectRecords.order_by", "`order_by` any column", "query.order_by")
async def _order_by(stand: Stand) -> None:
    keys = [await stand.put(text=text) for text in ("order-b", "order-a", "order-c")]
    found = await stand.select(query_pb2.Query(order_by=[query_pb2.OrderBy(column=TEXT)]))
    order = [keys.index(key) for key in found if key in keys]
    require(order == [1, 0, 2], f"SelectRecords ordered by {TEXT}", f"the order {order} instead of [1, 0, 2]")


@_feature("SelectRecords.distinct", "`distinct` of any columns", "query.distinct")
async def _distinct(stand: Stand) -> None:
    mark = f"mark-{stand.key()}"
    for _ in range(2):
        await stand.put(text=mark)
    query = query_pb2.Query(columns=[TEXT], distinct=True)
    request = pb.SelectRecordsRequest(service=SERVICE, table=stand.table, query=query, page_size=10_000)
    page: Any = await stand.ask("SelectRecords", request)
    count = sum(one.fields[TEXT] == value(mark) for one in page.records)
    require(count == 1, f"SelectRecords of each {TEXT} once", f"{count} times")


@_feature("SelectRecords.consistency", "`consistency`", "query.consistency")
async def _select_consistency(stand: Stand) -> None:
    key = await stand.put()
    query = query_pb2.Query(where=where(key), consistency=query_pb2.CONSISTENCY_ONE)
    require(await stand.select(query) == [key], f"SelectRecords {{{query}}}", "without the record")


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
