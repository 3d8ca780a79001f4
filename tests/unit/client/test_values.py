"""Python objects there and back through the database contract's values."""

from __future__ import annotations

import datetime as dt
import decimal
import ipaddress
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecontainer.api.db.v1 import table_pb2, value_pb2
from onecontainer.client.values import column_type, from_value, to_value, type_text

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.datetimes()
    | st.datetimes(timezones=st.just(dt.UTC))
    | st.dates()
    | st.times()
    | st.uuids()
    | st.ip_addresses()
)


@given(SCALARS | st.lists(SCALARS, max_size=4) | st.tuples(SCALARS, SCALARS))
def test_a_value_comes_back_as_the_object_it_was(value: Any) -> None:
    back = from_value(value_pb2.Value.FromString(to_value(value).SerializeToString()))
    assert back == value
    assert type(back) is type(value)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_decimals_keep_each_digit(value: decimal.Decimal) -> None:
    # Negative zero has no form in the contract.
    expected = value.copy_abs() if value.is_zero() else value
    assert from_value(to_value(value)).as_tuple() == expected.as_tuple()


@pytest.mark.parametrize(("number", "octets"), [(2**63, "008000000000000000"), (-(2**63) - 1, "ff7fffffffffffffff")])
def test_whole_numbers_beyond_64_bits_are_varint_in_their_shortest_form(number: int, octets: str) -> None:
    assert to_value(number).varint_value.hex() == octets


def test_kinds_have_the_name_that_the_contract_gives_them() -> None:
    assert to_value(True).WhichOneof("kind") == "bool_value"
    assert to_value(1).WhichOneof("kind") == "int64_value"
    assert to_value(dt.datetime(2026, 1, 2, tzinfo=dt.UTC)).WhichOneof("kind") == "timestamp_value"
    assert to_value(dt.datetime(2026, 1, 2)).WhichOneof("kind") == "datetime_value"  # noqa: DTZ001 - that is the case
    assert to_value({1, 2}).WhichOneof("kind") == "set_value"
    assert from_value(to_value({"a": [1, None]})) == {"a": [1, None]}
    assert from_value(to_value(ipaddress.ip_interface("10.0.0.1/8"))) == ipaddress.ip_interface("10.0.0.1/8")
    assert from_value(to_value(uuid.UUID(int=5))) == uuid.UUID(int=5)


def test_what_python_would_cut_stays_a_value() -> None:
    exact = value_pb2.Value()
    exact.timestamp_value.nanos = 1
    assert from_value(exact) == exact
    far = value_pb2.Value(date_value=value_pb2.Date(year=-4000, month=1, day=1))
    assert from_value(far) == far


def test_other_types_are_refused_and_not_turned_into_text() -> None:
    with pytest.raises(TypeError, match="object"):
        to_value(object())


@pytest.mark.parametrize(
    "text",
    ["int64", "text(40)", "decimal(10,2)", "decimal", "list<text>", "map<text,list<int64>>", "vector(3)", "timestamp"],
)
def test_type_texts_come_back(text: str) -> None:
    assert type_text(column_type(text)) == text


def test_type_texts_take_common_words_and_tell_what_there_is() -> None:
    assert column_type(" INTEGER ").kind == table_pb2.TYPE_KIND_INT64
    with pytest.raises(ValueError, match="timestamp"):
        column_type("varchar2")
    with pytest.raises(ValueError, match="no numbers"):
        column_type("int64(4)")
