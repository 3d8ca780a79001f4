from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecontainer.errors import FieldInvalid
from onecontainer.rpc.filters import micros_of, parse_filter
from onecontainer.rpc.pages import page_position, page_size, page_token

FIELDS = ("service", "state")


def test_terms_are_read_in_order() -> None:
    text = 'service = "services/a" AND state=READY AND labels.team = "x y" AND create_time > "2026-01-31T12:00:00Z"'
    terms = parse_filter(text, FIELDS, times=("create_time",), labels=True)
    assert [tuple(term) for term in terms] == [
        ("service", "=", "services/a"),
        ("state", "=", "READY"),
        ("labels.team", "=", "x y"),
        ("create_time", ">", "2026-01-31T12:00:00Z"),
    ]
    assert terms[3].micros == 1_769_860_800_000_000


def test_an_empty_filter_has_no_terms() -> None:
    assert parse_filter("  ", FIELDS) == []


# What no label, name or state can have is no value to look for: it would reach a database that takes no NUL.
VALUES = st.text(st.characters(exclude_characters=[*map(chr, range(32)), "\x7f"], exclude_categories=["Cs"]))


@pytest.mark.parametrize("character", ["\0", "\x01", "\x1b", "\x7f"])
@pytest.mark.parametrize("term", ['state = "a{}"', "labels.team = a{}", 'labels.team = "{}"'])
def test_control_characters_are_refused(term: str, character: str) -> None:
    with pytest.raises(FieldInvalid, match="control character") as caught:
        parse_filter(term.format(character), FIELDS, labels=True)
    assert caught.value.violations[0].field == "filter"


@given(VALUES)
def test_any_quoted_value_comes_back(value: str) -> None:
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if len(quoted) < 4000:
        assert parse_filter(f"state = {quoted}", FIELDS)[0].value == value


@given(st.text(max_size=60))
def test_rubbish_is_refused_or_read_but_never_breaks(text: str) -> None:
    with contextlib.suppress(FieldInvalid):
        parse_filter(text, FIELDS, times=("create_time",), labels=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('colour = "red"', "has no field colour; there are: create_time, labels.KEY, service, state"),
        ('state = "a" state = "b"', "needs AND"),
        ("state =", "in the middle"),
        ('state < "a"', "by = only"),
        ('create_time = "2026-01-31T12:00:00Z"', "compare it by"),
        ('create_time > "yesterday"', "is not a time"),
        ('state = "a', "not closed"),
        ("= = =", "not a term"),
        ('state = "a" OR state = "b"', "needs AND before 'OR'"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        parse_filter(text, FIELDS, times=("create_time",), labels=True)
    assert said in caught.value.violations[0].description


def test_times_without_offset_are_utc() -> None:
    assert micros_of("1970-01-01T00:00:01") == micros_of("1970-01-01T01:00:01+01:00") == 1_000_000


def test_a_page_token_goes_with_its_filter_only() -> None:
    token = page_token("ListX", 'state = "a"', "pos")
    assert page_position(token, "ListX", 'state = "a"') == "pos"
    for method, text in (("ListY", 'state = "a"'), ("ListX", "")):
        with pytest.raises(FieldInvalid, match="another method or filter"):
            page_position(token, method, text)
    assert page_position("", "ListX", "") is None


@given(st.text(max_size=40))
def test_a_forged_page_token_is_refused(token: str) -> None:
    if token:
        with pytest.raises(FieldInvalid):
            page_position(token, "ListX", "")


def test_page_sizes() -> None:
    assert (page_size(0), page_size(7), page_size(10**6)) == (50, 7, 1000)
    with pytest.raises(FieldInvalid):
        page_size(-1)
