"""Features of reads of records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2
from onecontainer.driver.conformance.expect import require
from onecontainer.driver.conformance.scenarios.database import KEY, TEXT, value, where
from onecontainer.driver.conformance.scenarios.database_stand import (
    CONTENT,
    LIST,
    Feature,
    Stand,
    collecting,
    either,
    put_list,
    text_is,
)
from onecontainer.driver.conformance.session import SERVICE

READS: list[Feature] = []
_feature = collecting(READS)


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
    lambda first, second: query_pb2.Query(where=either(text_is(first), text_is(second)), allow_filtering=True),
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
    lambda first, second: query_pb2.Query(where=either(_like(first), _like(second)), allow_filtering=True),
)


@_feature("SelectRecords.where.null_check", "`null_check`", "query.where.null_check")
async def _null_check(stand: Stand) -> None:
    key = await stand.put()
    node = query_pb2.Filter(null_check=query_pb2.NullCheck(column=TEXT, negated=True))
    query = query_pb2.Query(where=node, allow_filtering=True)
    require(key in await stand.select(query), f"SelectRecords {{{query}}}", "without a record that is not null")


@_feature("SelectRecords.where.contains", "`contains`, with `allow_filtering`", "query.where.contains")
async def _contains(stand: Stand) -> None:
    table = await stand.other_table(LIST)
    if table:
        for key, number in ((1, 5), (2, 6)):
            await put_list(stand, table, key, number, 7)
    node = query_pb2.Contains(column=CONTENT if table else TEXT, value=value(5 if table else "5"))
    query = query_pb2.Query(where=query_pb2.Filter(contains=node), allow_filtering=True)
    request = pb.SelectRecordsRequest(service=SERVICE, table=table or stand.table, query=query)
    page = await stand.ask("SelectRecords", request)
    keys = [one.fields[KEY].int64_value for one in page.records]
    require(keys == [1], f"SelectRecords {{{query}}}", f"the keys {keys} instead of [1]")


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
