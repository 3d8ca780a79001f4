"""Names of tables and columns: the identifiers of the contract, and nothing else, reach a statement, always quoted."""

from __future__ import annotations

from sqlalchemy.sql import quoted_name

from onecontainer.driver.records.names import check_identifier


def identifier(name: str, field: str) -> quoted_name:
    """The name, to be quoted wherever it is rendered. Raises FieldRequired or FieldInvalid of ``field``."""
    return quoted(check_identifier(name, field))


def quoted(name: str) -> quoted_name:
    """A name that the backend itself gave, to be quoted wherever it is rendered."""
    return quoted_name(name, quote=True)
