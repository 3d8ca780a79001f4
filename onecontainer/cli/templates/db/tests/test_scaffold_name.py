"""Tests of the driver without a gateway: `pytest` in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onecontainer_driver_scaffold_name import ScaffoldNameDriver

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2, record_pb2, table_pb2
from onecontainer.api.db.v1.value_pb2 import Value
from onecontainer.driver import errors
from onecontainer.driver.testing import attachment_of

FOLDER = Path(__file__).parent.parent
CONTEXT: Any = SimpleNamespace(service="services/test")


def column(name: str, kind: table_pb2.TypeKind.ValueType) -> table_pb2.Column:
    return table_pb2.Column(name=name, type=table_pb2.ColumnType(kind=kind))


CITIES = table_pb2.Table(
    columns=[column("id", table_pb2.TYPE_KIND_INT64), column("name", table_pb2.TYPE_KIND_TEXT)], partition_key=["id"]
)


def city(number: int, name: str) -> record_pb2.Record:
    return record_pb2.Record(fields={"id": Value(int64_value=number), "name": Value(text_value=name)})


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[ScaffoldNameDriver]:
    found = ScaffoldNameDriver()
    found.attach(attachment_of(FOLDER, tmp_path))
    found.create_table(pb.CreateTableRequest(table_id="cities", table=CITIES), CONTEXT)
    yield found
    found.detach()


def insert(driver: ScaffoldNameDriver, *records: record_pb2.Record, **more: Any) -> pb.InsertRecordsResponse:
    return driver.insert_records(pb.InsertRecordsRequest(table="cities", records=records, **more), CONTEXT)


def select(driver: ScaffoldNameDriver, **more: Any) -> pb.SelectRecordsResponse:
    return driver.select_records(pb.SelectRecordsRequest(table="cities", **more), CONTEXT)


def names(response: pb.SelectRecordsResponse) -> list[str]:
    return [record.fields["name"].text_value for record in response.records]


def test_records_come_back_page_by_page(driver: ScaffoldNameDriver) -> None:
    assert insert(driver, *(city(number, f"c{number}") for number in range(5))).affected == 5
    first = select(driver, page_size=3)
    assert names(first) == ["c0", "c1", "c2"]
    # What is written between two pages is seen if it lies behind.
    insert(driver, city(9, "c9"))
    second = select(driver, page_size=3, page_token=first.next_page_token)
    assert names(second) == ["c3", "c4", "c9"]
    assert second.next_page_token == ""
    where = query_pb2.Filter(
        comparison=query_pb2.Comparison(
            column="name", operator=query_pb2.OPERATOR_GREATER, value=Value(text_value="c3")
        )
    )
    assert names(select(driver, query=query_pb2.Query(where=where))) == ["c4", "c9"]
    with pytest.raises(errors.FieldInvalid, match="page_token"):
        select(driver, query=query_pb2.Query(where=where), page_token=first.next_page_token)


def test_a_key_that_is_there_is_told(driver: ScaffoldNameDriver) -> None:
    insert(driver, city(1, "one"))
    with pytest.raises(errors.ResourceConflict):
        insert(driver, city(2, "two"), city(1, "again"))
    assert names(select(driver)) == ["one"]
    left = insert(driver, city(1, "again"), city(2, "two"), mode=record_pb2.INSERT_MODE_IF_NOT_EXISTS)
    assert [result.applied for result in left.results] == [False, True]
    assert left.results[0].current == city(1, "one")
    insert(driver, city(1, "again"), mode=record_pb2.INSERT_MODE_UPSERT)
    assert names(select(driver)) == ["again", "two"]
    insert(driver, city(3, "three"), dry_run=True)
    assert len(names(select(driver))) == 2


def test_deleting_is_bounded(driver: ScaffoldNameDriver) -> None:
    insert(driver, city(1, "one"), city(2, "two"))
    with pytest.raises(errors.FieldRequired, match="where"):
        driver.delete_records(pb.DeleteRecordsRequest(table="cities"), CONTEXT)
    with pytest.raises(errors.StateInvalid):
        driver.delete_records(pb.DeleteRecordsRequest(table="cities", all_records=True, max_affected=1), CONTEXT)
    assert driver.delete_records(pb.DeleteRecordsRequest(table="cities", all_records=True), CONTEXT).affected == 2


def test_what_is_wrong_is_typed(driver: ScaffoldNameDriver) -> None:
    with pytest.raises(errors.ResourceNotFound):
        driver.get_table(pb.GetTableRequest(table="towns"), CONTEXT)
    with pytest.raises(errors.DataInvalid, match=r"records\[0\]\.fields\.id"):
        insert(driver, record_pb2.Record(fields={"id": Value(text_value="1")}))
    with pytest.raises(errors.BackendCapabilityMissing, match=r"query\.order_by"):
        select(driver, query=query_pb2.Query(order_by=[query_pb2.OrderBy(column="name")]))


def test_tables_survive_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        driver = ScaffoldNameDriver()
        driver.attach(attachment_of(FOLDER, tmp_path))
        driver.create_table(pb.CreateTableRequest(table_id="cities", table=CITIES, if_not_exists=True), CONTEXT)
        insert(driver, city(1, "one"), mode=record_pb2.INSERT_MODE_UPSERT)
        assert names(select(driver)) == ["one"]
        driver.detach()
