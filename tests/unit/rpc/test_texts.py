"""Texts from outside: what is made of them for the wire, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecontainer.rpc.texts import control_problem, sendable


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from("\t\n")))
def test_what_utf_8_can_hold_stays_as_it_is(text: str) -> None:
    assert sendable(text) == text


@given(st.text(st.characters(categories=["Cs", "Lu"])))
def test_whatever_it_is_it_can_be_sent(text: str) -> None:
    sendable(text).encode("utf-8")


def test_what_it_cannot_hold_is_written_as_its_escape() -> None:
    assert sendable("a\udc80b") == "a\\udc80b"
    assert sendable(5) == "5"


def test_control_characters_are_written_as_their_escapes() -> None:
    assert sendable("\x1b[2Jgone\x9b1m\0\x7f") == "\\x1b[2Jgone\\x9b1m\\x00\\x7f"
    assert sendable("over\rwritten\r\nline\ttab") == "over\\x0dwritten\r\nline\ttab"


@pytest.mark.parametrize("text", ["", "Käse", "a b", "\x80"])
def test_texts_without_control_characters(text: str) -> None:
    assert control_problem(text) == ""


def test_the_first_control_character_is_named_and_its_place() -> None:
    assert control_problem("ab\0\x01") == "has the control character U+0000 at position 3"
    assert control_problem("\x7f") == "has the control character U+007F at position 1"


def test_layout_is_allowed_where_it_makes_sense() -> None:
    assert control_problem("a\tb\r\nc", layout=True) == ""
    assert "U+000A" in control_problem("a\nb")
    assert "U+0000" in control_problem("a\n\0", layout=True)
