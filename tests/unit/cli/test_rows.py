"""JSON and CSV values become what a table's columns want."""

from __future__ import annotations

import datetime as dt
import io
import uuid
from decimal import Decimal

import click
import pytest

from onecontainer.api.db.v1 import table_pb2
from onecontainer.cli.db_values import read_rows, typed
from onecontainer.client import column_type


def table(**columns: str) -> table_pb2.Table:
    found = [table_pb2.Column(name=name, type=column_type(kind)) for name, kind in columns.items()]
    return table_pb2.Table(columns=found)


def test_texts_become_the_columns_types() -> None:
    wanted = table(
        at="timestamp", day="date", id="uuid", price="decimal(10,2)", raw="bytes", n="int32", tags="list<date>"
    )
    assert typed(
        wanted,
        {
            "at": "2026-01-02T03:04:05Z",
            "day": "2026-01-02",
            "id": "00000000-0000-0000-0000-000000000005",
            "price": 9.9,
            "raw": "00ff",
            "n": "7",
            "tags": ["2026-01-02"],
            "other": "left to the driver",
        },
    ) == {
        "at": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        "day": dt.date(2026, 1, 2),
        "id": uuid.UUID(int=5),
        "price": Decimal("9.9"),
        "raw": b"\x00\xff",
        "n": 7,
        "tags": [dt.date(2026, 1, 2)],
        "other": "left to the driver",
    }


@pytest.mark.parametrize(("kind", "value"), [("timestamp", "2026-01-02T03:04:05"), ("uuid", "x"), ("decimal", "1,5")])
def test_a_text_that_is_none_names_the_column(kind: str, value: str) -> None:
    with pytest.raises(click.UsageError, match="column c: "):
        typed(table(c=kind), {"c": value})


def test_csv_and_json_lines() -> None:
    columns, rows = read_rows(io.StringIO("id,name\n1,a\n2,\n"), is_csv=True)
    assert (list(columns), list(rows)) == (["id", "name"], [{"id": "1", "name": "a"}, {"id": "2", "name": None}])
    columns, rows = read_rows(io.StringIO('{"id": 1}\n\n{"id": 2, "b": true}\n'), is_csv=False)
    assert (list(columns), list(rows)) == (["id", "b"], [{"id": 1, "b": None}, {"id": 2, "b": True}])
