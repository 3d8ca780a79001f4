"""Texts from outside: what drivers say is made fit for the wire, what callers say is checked before it reaches the database."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
# C1 too: some terminals take U+009B for ESC [.
_NOT_FOR_READERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
_CONTROLS_BUT_LAYOUT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def sendable(text: object) -> str:
    """The text as a protobuf string can hold it.

    A lone surrogate, which Python has in names of files that are not UTF-8, is written as its escape (`\\udc80`): protobuf would
    raise for it, and the error or progress that it is part of would be lost. What is no text is written as `str` writes it.
    Control characters but tabs and ends of lines are written as their escapes, too (`\\x1b`): what a backend says is not to move the
    cursor of whoever reads it.
    """
    return _NOT_FOR_READERS.sub(_escaped, str(text).encode("utf-8", "backslashreplace").decode("utf-8"))


def _escaped(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]):02x}"


def control_problem(text: str, *, layout: bool = False) -> str:
    """What is wrong with a text that has control characters, empty if it has none. `layout`: tabs and ends of lines are allowed.

    PostgreSQL takes no NUL in a text, and SQLite does: so it is refused for both, before either sees it.
    """
    found = (_CONTROLS_BUT_LAYOUT if layout else _CONTROLS).search(text)
    return "" if found is None else f"has the control character U+{ord(found[0]):04X} at position {found.start() + 1}"
