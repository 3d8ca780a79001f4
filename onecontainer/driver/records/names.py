"""Identifiers of the contract: what a table or a column may be called."""

from __future__ import annotations

import re

from onecontainer.errors import FieldInvalid, FieldRequired

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
MAX_CHARACTERS = 63


def is_identifier(name: str, most: int = MAX_CHARACTERS) -> bool:
    return len(name) <= most and _IDENTIFIER.match(name) is not None


def check_identifier(name: str, field: str, most: int = MAX_CHARACTERS) -> str:
    """The name. Raises FieldRequired or FieldInvalid of ``field``."""
    if not name:
        raise FieldRequired(field)
    if not is_identifier(name, most):
        raise FieldInvalid(
            field, f"must be a letter or `_`, then letters, digits and `_`, at most {most} characters in all"
        )
    return name
