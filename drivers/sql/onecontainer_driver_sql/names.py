"""Names of tables and columns: the identifiers of the contract, and nothing else, reach a statement, always quoted."""

from __future__ import annotations

import re

from sqlalchemy.sql import quoted_name

from onecontainer.driver import errors

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}\Z")


def is_identifier(name: str) -> bool:
    return _IDENTIFIER.match(name) is not None


def identifier(name: str, field: str) -> quoted_name:
    """The name, to be quoted wherever it is rendered. Raises FieldRequired or FieldInvalid of ``field``."""
    if not name:
        raise errors.FieldRequired(field)
    if not is_identifier(name):
        raise errors.FieldInvalid(
            field, "must be a letter or `_`, then letters, digits and `_`, at most 63 characters in all"
        )
    return quoted(name)


def quoted(name: str) -> quoted_name:
    """A name that the backend itself gave, to be quoted wherever it is rendered."""
    return quoted_name(name, quote=True)
