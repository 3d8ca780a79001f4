"""Texts from outside: what is made of them for the wire."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onecontainer.rpc.texts import sendable


@given(st.text())
def test_what_utf_8_can_hold_stays_as_it_is(text: str) -> None:
    assert sendable(text) == text


@given(st.text(st.characters(categories=["Cs", "Lu"])))
def test_whatever_it_is_it_can_be_sent(text: str) -> None:
    sendable(text).encode("utf-8")


def test_what_it_cannot_hold_is_written_as_its_escape() -> None:
    assert sendable("a\udc80b") == "a\\udc80b"
    assert sendable(5) == "5"
