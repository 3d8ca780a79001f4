"""Selects, their pages and streams; and what Cassandra has no way to, with the ways out."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio
from onecontainer_driver_cassandra import reading, writing
from onecontainer_driver_cassandra.database import Database

from drivers.cassandra.tests.calls import INT, TEXT, Q, create, events, here, load, of, page, select, typed
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records import batches
from tests.fixtures.records import SERVICE, K, all_of, any_of, compare, equals, insertion, record, unrecord, value

pytestmark = pytest.mark.asyncio(loop_scope="session")
Filter = query_pb2.Filter
TABLE, COUNT = "Events", 250


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(db: Database) -> None:
    await events(db, TABLE, COUNT)
    rows = [[f"p{index}", 1, 0, "k", "other"] for index in range(30)]
    await load(db, TABLE, ["place", "day", "at", "kind", "note"], rows)


def by(column: str, *, descending: bool = False, **more: Any) -> query_pb2.OrderBy:
    order = table_pb2.SORT_ORDER_DESCENDING if descending else table_pb2.SORT_ORDER_ASCENDING
    return query_pb2.OrderBy(column=column, order=order, **more)


async def ats(db: Database, query: query_pb2.Query) -> list[int]:
    return [row["at"] for row in await select(db, TABLE, query)]


async def test_filters_order_limit_and_projection(db: Database, filled: None) -> None:
    assert await ats(db, Q(where=here(), limit=3)) == [249, 248, 247]
    assert await ats(db, Q(where=here(), order_by=[by("at")], limit=3)) == [0, 1, 2]
    turned = [by("at"), by("kind", descending=True)]
    assert await ats(db, Q(where=here(), order_by=turned, limit=2)) == [0, 1]
    between = Filter(range=query_pb2.Range(column="at", lower=value(10), lower_open=True, upper=value(13)))
    assert await ats(db, Q(where=all_of(here(), between))) == [13, 12, 11]
    assert await ats(db, Q(where=all_of(here(), compare("at", query_pb2.OPERATOR_LESS, 2)))) == [1, 0]
    several = Filter(membership=query_pb2.Membership(column="at", values=[value(5), value(7), value(5)]))
    assert await ats(db, Q(where=all_of(here(), several))) == [7, 5]
    assert await ats(db, Q(where=all_of(here(), Filter(membership=query_pb2.Membership(column="at"))))) == []
    found = await select(db, TABLE, Q(where=here(at=4, kind="k"), columns=["note", "score"]))
    assert found == [{"note": "note-4", "score": 4}]
    distinct = await select(db, TABLE, Q(columns=["place", "day"], distinct=True))
    assert len(distinct) == 31


async def test_filtering_is_done_only_when_it_is_asked_for(db: Database, filled: None) -> None:
    query = Q(where=equals("note", "note-7"))
    with pytest.raises(errors.BackendCapabilityMissing, match=r"index.*allow_filtering") as raised:
        await page(db, TABLE, query)
    assert raised.value.violations[0].field == "query.where"
    query.allow_filtering = True
    assert await ats(db, query) == [7]
    query.where.CopyFrom(all_of(here(), compare("score", query_pb2.OPERATOR_GREATER_OR_EQUAL, 3)))
    assert len(await ats(db, query)) == COUNT // 5 * 2


@pytest.mark.parametrize(
    ("query", "kind", "path"),
    [
        (Q(where=any_of(equals("at", 1))), errors.BackendCapabilityMissing, "query.where.any_of"),
        (Q(where=Filter(negation=equals("at", 1))), errors.BackendCapabilityMissing, "query.where.negation"),
        (
            Q(where=Filter(null_check=query_pb2.NullCheck(column="note"))),
            errors.BackendCapabilityMissing,
            "query.where.null_check",
        ),
        (
            Q(where=Filter(pattern=query_pb2.Pattern(column="note", like="x%"))),
            errors.BackendCapabilityMissing,
            "query.where.pattern",
        ),
        (
            Q(where=compare("at", query_pb2.OPERATOR_NOT_EQUAL, 1)),
            errors.BackendCapabilityMissing,
            "query.where.comparison.operator",
        ),
        (Q(where=all_of(equals("at", 1), Filter())), errors.FieldRequired, "query.where.all_of.filters[1]"),
        (Q(where=equals("at", "x")), errors.DataInvalid, "query.where.comparison.value"),
        (Q(where=equals("at", None)), errors.DataInvalid, "query.where.comparison.value"),
        (Q(where=equals("nope", 1)), errors.FieldInvalid, "query.where.comparison.column"),
        (
            Q(where=Filter(contains=query_pb2.Contains(column="note", value=value("x")))),
            errors.FieldInvalid,
            "query.where.contains.column",
        ),
        (Q(where=Filter(range=query_pb2.Range(column="at"))), errors.FieldRequired, "query.where.range.lower"),
        (Q(columns=["at", "at"]), errors.FieldInvalid, "query.columns[1]"),
        (Q(limit=-1), errors.FieldInvalid, "query.limit"),
        (Q(columns=["at"], distinct=True), errors.BackendCapabilityMissing, "query.distinct"),
        (Q(where=here(), order_by=[by("note")]), errors.BackendCapabilityMissing, "query.order_by[0].column"),
        (Q(where=here(), order_by=[by("kind")]), errors.BackendCapabilityMissing, "query.order_by[0].column"),
        (Q(where=here(), order_by=[by("at"), by("kind")]), errors.BackendCapabilityMissing, "query.order_by"),
        (Q(order_by=[by("at")]), errors.BackendCapabilityMissing, "query.order_by"),
        (
            Q(where=here(), order_by=[by("at", nulls=query_pb2.NULLS_ORDER_FIRST)]),
            errors.BackendCapabilityMissing,
            "query.order_by[0].nulls",
        ),
        (Q(consistency=query_pb2.CONSISTENCY_ANY), errors.FieldInvalid, "query.consistency"),
    ],
)
async def test_what_cannot_be_asked_is_refused_with_its_path(
    db: Database, filled: None, query: query_pb2.Query, kind: Any, path: str
) -> None:
    with pytest.raises(kind) as raised:
        await page(db, TABLE, query)
    assert raised.value.violations[0].field == path


async def test_nesting_has_an_end(db: Database, filled: None) -> None:
    deep = equals("at", 1)
    for _ in range(40):
        deep = all_of(deep)
    with pytest.raises(errors.FieldInvalid, match="32 levels"):
        await page(db, TABLE, Q(where=deep))


async def test_a_consistent_read(db: Database, filled: None) -> None:
    found = await ats(db, Q(where=here(at=1, kind="k"), consistency=query_pb2.CONSISTENCY_SERIAL))
    assert found == [1]


async def test_pages_go_through_everything_once(db: Database, filled: None) -> None:
    for query, expected in [
        (Q(where=here()), COUNT),
        (Q(), COUNT + 30),
        (Q(where=here(), limit=95), 95),
        (Q(where=equals("score", 2), allow_filtering=True), COUNT // 5),
    ]:
        seen: list[tuple[str, int]] = []
        token = ""
        for _ in range(40):
            found = await page(db, TABLE, query, page_size=20, page_token=token)
            assert len(found.records) <= 20
            seen += [(unrecord(one)["place"], unrecord(one)["at"]) for one in found.records]
            token = found.next_page_token
            if not token:
                break
        assert (len(seen), len(set(seen))) == (expected, expected)


async def test_a_token_belongs_to_its_query(db: Database, filled: None) -> None:
    token = (await page(db, TABLE, Q(where=here()), page_size=10)).next_page_token
    for query, given in [
        (Q(where=equals("place", "here")), token),
        (Q(where=here(), limit=5), token),
        (Q(where=here()), token[:-4] + "AAAA"),
        (Q(where=here()), "nonsense"),
        (Q(where=here()), "é"),
    ]:
        with pytest.raises(errors.FieldInvalid) as raised:
            await page(db, TABLE, query, page_token=given)
        assert raised.value.violations[0].field == "page_token"
    with pytest.raises(errors.FieldInvalid, match="page_size|from 0"):
        await page(db, TABLE, Q(), page_size=10_001)


async def test_indexes_and_collections(db: Database, table: str) -> None:
    text_map = of(K.TYPE_KIND_MAP, TEXT, INT)
    await create(
        db,
        table,
        typed("id", INT),
        typed("name", TEXT),
        typed("tags", of(K.TYPE_KIND_SET, TEXT)),
        typed("m", text_map),
        key=["id"],
        indexes=[
            table_pb2.Index(
                columns=[table_pb2.IndexColumn(column="name")], method="sai", options={"case_sensitive": value(False)}
            ),
            table_pb2.Index(columns=[table_pb2.IndexColumn(column="tags")], name="By_tag"),
            table_pb2.Index(
                columns=[table_pb2.IndexColumn(column="m", part=table_pb2.COLLECTION_PART_ENTRIES)], method="sai"
            ),
        ],
    )
    told = {one.name: one for one in (await db.fresh_table(table)).proto.indexes}
    assert {one.method for one in told.values()} == {"sai", "2i"}
    assert told[f"{table}_m_idx"].columns[0].part == table_pb2.COLLECTION_PART_ENTRIES
    assert told[f"{table}_name_idx"].options["case_sensitive"].text_value == "false"
    rows = [record(id=index, name=f"Name{index % 2}", tags={f"t{index}", "all"}, m={"k": index}) for index in range(6)]
    await writing.insert_records(db, insertion(table, *rows))

    async def ids(node: Filter, **more: Any) -> list[int]:
        return sorted(row["id"] for row in await select(db, table, Q(where=node, columns=["id"], **more)))

    assert await ids(equals("name", "name1")) == [1, 3, 5]
    assert await ids(Filter(contains=query_pb2.Contains(column="tags", value=value("t4")))) == [4]
    assert await ids(Filter(contains=query_pb2.Contains(column="m", key=value("k"), value=value(3)))) == [3]
    element = Filter(comparison=query_pb2.Comparison(column="m", element=value("k"), value=value(2)))
    assert await ids(element) == [2]
    keys = Filter(contains=query_pb2.Contains(column="m", key=value("k")))
    assert len(await ids(keys, allow_filtering=True)) == 6


@pytest.mark.parametrize("encoding", [record_pb2.BATCH_ENCODING_ROWS, record_pb2.BATCH_ENCODING_COLUMNS])
async def test_streams_have_every_record_in_bounded_messages(db: Database, table: str, encoding: int) -> None:
    await create(db, table, typed("p", INT), typed("c", INT), typed("v", TEXT), key=["p"], order=["c"])
    rows = [[0, index, "x" * (20 if index < 2500 else 20_000)] for index in range(2700)]
    assert (await load(db, table, ["p", "c", "v"], rows)).inserted == len(rows)
    request = pb.StreamRecordsRequest(
        service=SERVICE,
        table=table,
        encoding=encoding,
        batch_size=300,
        query=Q(where=equals("p", 0), columns=["c", "v"]),
    )
    responses = [response async for response in reading.stream_records(db, request)]
    assert [one.name for one in responses[0].columns] == list(responses[0].batch.columns) == ["c", "v"]
    assert not any(one.columns or one.batch.columns for one in responses[1:])
    assert max(one.ByteSize() for one in responses) < 2 * batches.MAX_MESSAGE_BYTES
    seen: list[int] = []
    for one in responses:
        if encoding == record_pb2.BATCH_ENCODING_ROWS:
            found = [row.values[0].int64_value for row in one.batch.rows.rows]
        else:
            found = list(one.batch.column_list.columns[0].int64s.values)
        assert len(found) <= 300
        seen += found
    assert seen == list(range(2700))
    request.query.limit = 5
    assert len([response async for response in reading.stream_records(db, request)]) == 1
    request.query.where.CopyFrom(equals("p", 1))
    (empty,) = [response async for response in reading.stream_records(db, request)]
    assert len(empty.columns) == 2
    request.batch_size = -1
    with pytest.raises(errors.FieldInvalid):
        await anext(reading.stream_records(db, request))
