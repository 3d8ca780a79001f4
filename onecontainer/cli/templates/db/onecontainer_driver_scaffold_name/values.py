"""Typed values between messages and SQLite: which there are, and what is wrong with one."""

from __future__ import annotations

from typing import NamedTuple

from onecontainer.api.db.v1 import table_pb2
from onecontainer.api.db.v1.value_pb2 import Value
from onecontainer.driver import errors

Native = bool | int | float | str | bytes | None


class Kind(NamedTuple):
    """A column's type in SQLite, and the field of Value that holds it."""

    sql: str
    field: str


KINDS = {
    table_pb2.TYPE_KIND_BOOL: Kind("BOOLEAN", "bool_value"),
    table_pb2.TYPE_KIND_INT64: Kind("INTEGER", "int64_value"),
    table_pb2.TYPE_KIND_DOUBLE: Kind("REAL", "double_value"),
    table_pb2.TYPE_KIND_TEXT: Kind("TEXT", "text_value"),
    table_pb2.TYPE_KIND_BYTES: Kind("BLOB", "bytes_value"),
}


def to_native(value: Value, column: table_pb2.Column, path: str) -> Native:
    """What SQLite gets. Raises FieldRequired for a Value without a kind, and DataInvalid for one of another type."""
    kind = value.WhichOneof("kind")
    if kind is None:
        raise errors.FieldRequired(path)
    if kind == "null_value":
        return None
    wanted = KINDS[column.type.kind].field
    if kind != wanted:
        raise errors.DataInvalid(path, f"is a {kind}, the column {column.name} has {wanted}")
    native: Native = getattr(value, kind)
    return native


def to_value(native: Native, column: table_pb2.Column) -> Value:
    """The message of what SQLite gave."""
    if native is None:
        return Value(null_value=0)  # type: ignore[arg-type]
    field = KINDS[column.type.kind].field
    return Value(**{field: bool(native) if field == "bool_value" else native})  # type: ignore[arg-type]
