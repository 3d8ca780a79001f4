"""Tables: created as asked, described as they are."""

from __future__ import annotations

import asyncio
import datetime as dt

import asyncpg
import pytest
from onecontainer_driver_sql import tables, writing
from onecontainer_driver_sql.database import Database

from drivers.sql.tests.calls import create, page
from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import record_pb2, table_pb2, value_pb2
from onecontainer.driver import errors
from tests.fixtures.records import SERVICE, K, column, insertion, record, value


async def get(database: Database, table: str) -> table_pb2.Table:
    return await tables.get_table(database, pb.GetTableRequest(service=SERVICE, table=table))


async def test_a_table_comes_back_as_it_was_created(db: Database) -> None:
    created = await create(
        db,
        "Orders",
        column("id", K.TYPE_KIND_INT64),
        column("line", K.TYPE_KIND_INT16),
        column("customer", K.TYPE_KIND_TEXT, length=40, not_null=True, default_value=value("it's me")),
        column("price", K.TYPE_KIND_DECIMAL, precision=10, scale=2),
        column("big", K.TYPE_KIND_VARINT),
        column("ref", K.TYPE_KIND_UUID),
        column("paid", K.TYPE_KIND_BOOL, default_value=value(True)),
        column("count", K.TYPE_KIND_INT32, default_value=value(-5)),
        key=["id"],
        clustering_key=[table_pb2.ClusteringColumn(column="line")],
        indexes=[
            table_pb2.Index(
                name="by_customer",
                columns=[
                    table_pb2.IndexColumn(column="customer"),
                    table_pb2.IndexColumn(column="price", order=table_pb2.SORT_ORDER_DESCENDING),
                ],
                unique=True,
            )
        ],
    )
    assert created.name == f"{SERVICE}/tables/Orders"
    assert created == await get(db, "Orders")
    assert list(created.partition_key) == ["id", "line"]
    by_name = {one.name: one for one in created.columns}
    assert list(by_name) == ["id", "line", "customer", "price", "big", "ref", "paid", "count"]
    assert [one.type.kind for one in created.columns] == [
        K.TYPE_KIND_INT64,
        K.TYPE_KIND_INT16,
        K.TYPE_KIND_TEXT,
        K.TYPE_KIND_DECIMAL,
        K.TYPE_KIND_VARINT,
        K.TYPE_KIND_UUID,
        K.TYPE_KIND_BOOL,
        K.TYPE_KIND_INT32,
    ]
    assert by_name["customer"].type.length == 40
    assert by_name["customer"].not_null
    assert by_name["id"].not_null
    assert by_name["customer"].default_value == value("it's me")
    assert by_name["paid"].default_value == value(True)
    assert by_name["count"].default_value == value(-5)
    assert (by_name["price"].type.precision, by_name["price"].type.scale) == (10, 2)
    (index,) = created.indexes
    assert (index.name, index.unique) == ("by_customer", True)
    assert [(one.column, one.order) for one in index.columns] == [
        ("customer", table_pb2.SORT_ORDER_ASCENDING),
        ("price", table_pb2.SORT_ORDER_DESCENDING),
    ]


async def test_creating_again_is_a_conflict_or_the_table_that_is_there(db: Database) -> None:
    first = await create(db, "t", column("id", K.TYPE_KIND_INT64), key=["id"])
    with pytest.raises(errors.ResourceConflict):
        await create(db, "t", column("id", K.TYPE_KIND_INT64), key=["id"])
    other = table_pb2.Table(columns=[column("other", K.TYPE_KIND_TEXT)])
    again = await tables.create_table(
        db, pb.CreateTableRequest(service=SERVICE, table_id="t", table=other, if_not_exists=True)
    )
    assert again == first


async def test_of_many_who_create_it_at_once_all_get_it(db: Database) -> None:
    table = table_pb2.Table(columns=[column("id", K.TYPE_KIND_INT64)], partition_key=["id"])
    request = pb.CreateTableRequest(service=SERVICE, table_id="t", table=table, if_not_exists=True)
    created = await asyncio.gather(*(tables.create_table(db, request) for _ in range(8)))
    assert all(one == created[0] for one in created)


async def test_names_that_differ_in_case_only(db: Database) -> None:
    """Two names in PostgreSQL, one in SQLite: there it is said before it is tried."""
    columns = [column("a", K.TYPE_KIND_INT64), column("b", K.TYPE_KIND_INT64), column("A", K.TYPE_KIND_TEXT)]
    if db.backend.folds_case:
        with pytest.raises(errors.FieldInvalid, match="same name") as raised:
            await create(db, "t", *columns, key=["a"])
        assert raised.value.violations[0].field == "table.columns[2].name"
        with pytest.raises(errors.FieldInvalid, match="expires"):
            await create(db, "t", *columns[:2], column("OneContainer_Expire_Time", K.TYPE_KIND_TIMESTAMP), expires=True)
    else:
        created = await create(db, "t", *columns, key=["a"])
        assert [one.name for one in created.columns] == ["a", "b", "A"]


async def test_validate_only_creates_nothing(db: Database) -> None:
    table = table_pb2.Table(columns=[column("id", K.TYPE_KIND_INT64)], partition_key=["id"])
    shown = await tables.create_table(
        db, pb.CreateTableRequest(service=SERVICE, table_id="t", table=table, validate_only=True)
    )
    assert shown.columns[0].name == "id"
    with pytest.raises(errors.ResourceNotFound):
        await get(db, "t")


async def test_drop(db: Database) -> None:
    await create(db, "t", column("id", K.TYPE_KIND_INT64), key=["id"])
    await tables.drop_table(db, pb.DropTableRequest(service=SERVICE, table="t"))
    with pytest.raises(errors.ResourceNotFound) as raised:
        await tables.drop_table(db, pb.DropTableRequest(service=SERVICE, table="t"))
    assert raised.value.resource == ("onecontainer.dev/Table", "t")
    await tables.drop_table(db, pb.DropTableRequest(service=SERVICE, table="t", if_exists=True))


async def test_tables_are_listed_in_pages(db: Database) -> None:
    names = ["B", "a", "a_1", "c", "d"]
    for name in reversed(names):
        await create(db, name, column("id", K.TYPE_KIND_INT64), key=["id"])
    seen: list[str] = []
    token = ""
    while True:
        listed = await tables.list_tables(db, pb.ListTablesRequest(service=SERVICE, page_size=2, page_token=token))
        seen += [one.name.rpartition("/")[2] for one in listed.tables]
        token = listed.next_page_token
        if not token:
            break
    assert seen == names
    with pytest.raises(errors.FieldInvalid, match="page_token"):
        await tables.list_tables(db, pb.ListTablesRequest(service=SERVICE, page_token="nonsense"))


async def test_numbering(db: Database) -> None:
    created = await create(
        db, "t", column("id", K.TYPE_KIND_INT64, auto_increment=True), column("x", K.TYPE_KIND_TEXT), key=["id"]
    )
    assert created.columns[0].auto_increment
    request = insertion("t", record(x="a"), record(x="b"), returning=["id"])
    done = await writing.insert_records(db, request)
    assert [one.record.fields["id"].int64_value for one in done.results] == [1, 2]


@pytest.mark.parametrize(
    ("table", "path"),
    [
        (table_pb2.Table(), "table.columns"),
        (table_pb2.Table(columns=[column("1a", K.TYPE_KIND_TEXT)]), "table.columns[0].name"),
        (table_pb2.Table(columns=[column("a", 0)]), "table.columns[0].type.kind"),
        (table_pb2.Table(columns=[table_pb2.Column(name="a")]), "table.columns[0].type"),
        (table_pb2.Table(columns=[column("a", K.TYPE_KIND_MAP)]), "table.columns[0].type.kind"),
        (table_pb2.Table(columns=[column("a", K.TYPE_KIND_COUNTER)]), "table.columns[0].type.kind"),
        (table_pb2.Table(columns=[column("a", K.TYPE_KIND_DECIMAL, scale=2)]), "table.columns[0].type.scale"),
        (table_pb2.Table(columns=[column("a", K.TYPE_KIND_TEXT, is_static=True)]), "table.columns[0].is_static"),
        (
            table_pb2.Table(columns=[column("a", K.TYPE_KIND_INT32, default_value=value("x"))]),
            "table.columns[0].default_value",
        ),
        (
            table_pb2.Table(columns=[column("a", K.TYPE_KIND_INT32), column("a", K.TYPE_KIND_INT32)]),
            "table.columns[1].name",
        ),
        (
            table_pb2.Table(columns=[column("a", K.TYPE_KIND_INT32)], partition_key=["b"]),
            "table.partition_key[0]",
        ),
        (
            table_pb2.Table(
                columns=[column("a", K.TYPE_KIND_INT32), column("b", K.TYPE_KIND_INT32)],
                partition_key=["a"],
                clustering_key=[table_pb2.ClusteringColumn(column="b", order=table_pb2.SORT_ORDER_DESCENDING)],
            ),
            "table.clustering_key[0].order",
        ),
        (
            table_pb2.Table(
                columns=[column("a", K.TYPE_KIND_INT32)], properties={"fillfactor; DROP TABLE x": value(70)}
            ),
            "table.properties['fillfactor; DROP TABLE x']",
        ),
        (
            table_pb2.Table(columns=[column("a", K.TYPE_KIND_INT32)], indexes=[table_pb2.Index()]),
            "table.indexes[0].columns",
        ),
    ],
)
async def test_what_is_wrong_with_a_table_is_told_by_its_path(db: Database, table: table_pb2.Table, path: str) -> None:
    with pytest.raises(
        (errors.FieldRequired, errors.FieldInvalid, errors.DataInvalid, errors.BackendCapabilityMissing)
    ) as raised:
        await tables.create_table(db, pb.CreateTableRequest(service=SERVICE, table_id="t", table=table))
    assert [one.field for one in raised.value.violations] == [path]


async def test_postgresql_has_comments_and_storage_parameters(pg: Database) -> None:
    created = await create(
        pg,
        "t",
        column("id", K.TYPE_KIND_INT64, comment="a 'number'"),
        column("tags", K.TYPE_KIND_LIST, elements=[table_pb2.ColumnType(kind=K.TYPE_KIND_TEXT)]),
        key=["id"],
        comment="people's",
        properties={"fillfactor": value(70)},
        indexes=[table_pb2.Index(columns=[table_pb2.IndexColumn(column="tags")], method="gin")],
    )
    assert created.comment == "people's"
    assert created.columns[0].comment == "a 'number'"
    assert created.properties["fillfactor"] == value(70)
    assert (created.indexes[0].name, created.indexes[0].method) == ("t_tags_idx", "gin")


async def test_sqlite_refuses_what_it_has_not(lite: Database) -> None:
    for more in (
        {"comment": "x"},
        {"indexes": [table_pb2.Index(columns=[table_pb2.IndexColumn(column="id")], method="hash")]},
    ):
        with pytest.raises(errors.BackendCapabilityMissing):
            await create(lite, "t", column("id", K.TYPE_KIND_INT64), key=["id"], **more)


async def test_tables_of_others_in_postgresql(pg: Database, postgres: str, schema: str) -> None:
    raw = await asyncpg.connect(postgres, server_settings={"search_path": schema})
    try:
        await raw.execute("""
            CREATE TYPE mood AS ENUM ('sad', 'ok');
            CREATE TABLE theirs (
                "the id" serial PRIMARY KEY, m mood DEFAULT 'ok', v tsvector, t timestamptz DEFAULT now(),
                g int GENERATED ALWAYS AS (1 + 1) STORED, a int[], n numeric, c char(3), j json);
            INSERT INTO theirs (m, v, a, n, c, j) VALUES ('sad', 'cat rat', '{{1,2},{3,null}}', 'NaN', 'x', '{"b":1,  "a":2}');
        """)
    finally:
        await raw.close()
    table = await get(pg, "theirs")
    kinds = {one.name: one.type.kind for one in table.columns}
    assert kinds["m"] == K.TYPE_KIND_TEXT
    assert kinds["v"] == K.TYPE_KIND_NATIVE
    assert kinds["a"] == K.TYPE_KIND_LIST
    assert {one.name: one for one in table.columns}["m"].default_value == value("ok")
    assert table.columns[0].auto_increment
    await writing.insert_records(pg, insertion("theirs", record(m="ok", v=native("tsvector", "'dog'"), a=[5], n=1)))
    with pytest.raises(errors.FieldInvalid, match="generated"):
        await writing.insert_records(pg, insertion("theirs", record(g=3)))
    first, second = await select_raw(pg, "theirs")
    assert first.fields["m"] == value("sad")
    assert first.fields["v"].native_value.text == "'cat' 'rat'"
    assert first.fields["a"] == value([[1, 2], [3, None]])
    assert first.fields["n"].native_value.text == "NaN"
    assert first.fields["j"].json_value == '{"b":1,  "a":2}'
    assert second.fields["m"] == value("ok")
    assert second.fields["g"] == value(2)
    assert second.fields["v"].native_value.text == "'dog'"


async def test_times_are_not_rounded_to_a_coarser_column(pg: Database, schema: str) -> None:
    async with pg.transaction() as connection:
        await connection.exec_driver_sql(
            f"CREATE TABLE {schema}.coarse (id int PRIMARY KEY, a timestamptz(3), b time(0), c interval(1), d timestamp(2))"
        )
    fine = dt.datetime(2020, 1, 1, 0, 0, 0, 123_000, tzinfo=dt.UTC)
    await writing.insert_records(pg, insertion("coarse", record(id=1, a=fine)))
    time = value_pb2.Value(time_value=value_pb2.Time(hours=1, nanos=500_000_000))
    interval = value_pb2.Value(duration_value=value_pb2.CalendarDuration(nanos=10_000_000))
    for name, bad in (("a", fine + dt.timedelta(microseconds=1)), ("b", time), ("c", interval)):
        with pytest.raises(errors.DataInvalid, match="digits of a second"):
            await writing.insert_records(pg, insertion("coarse", record(id=2, **{name: bad})))
    assert (await select_raw(pg, "coarse"))[0].fields["a"] == value(fine)


async def test_tables_of_others_in_sqlite(lite: Database) -> None:
    await create(lite, "ours", column("id", K.TYPE_KIND_INT64), key=["id"])
    async with lite.transaction() as connection:
        await connection.exec_driver_sql("CREATE TABLE theirs (id INTEGER PRIMARY KEY, n NUMERIC, d DATE, x, s TEXT)")
        await connection.exec_driver_sql("INSERT INTO theirs VALUES (1, 1.5, '2020-01-01', x'00ff', 7)")
    rows = await select_raw(lite, "theirs")
    assert rows[0].fields["n"] == value(1.5)
    assert rows[0].fields["d"] == value("2020-01-01")
    assert rows[0].fields["x"] == value(b"\x00\xff")
    assert rows[0].fields["s"] == value("7")


def native(type_: str, text: str) -> value_pb2.Value:
    return value_pb2.Value(native_value=value_pb2.NativeValue(type=type_, text=text))


async def select_raw(database: Database, table: str) -> list[record_pb2.Record]:
    return list((await page(database, table)).records)
