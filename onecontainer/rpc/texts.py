"""Texts from outside: what drivers say is made fit for the wire."""

from __future__ import annotations


def sendable(text: object) -> str:
    """The text as a protobuf string can hold it.

    A lone surrogate, which Python has in names of files that are not UTF-8, is written as its escape (`\\udc80`): protobuf would
    raise for it, and the error or progress that it is part of would be lost. What is no text is written as `str` writes it.
    """
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
