"""Checks a table's definition and turns it into SQLAlchemy's, for CREATE TABLE alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from onecontainer.api.db.v1 import table_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import MissingKindError
from onecontainer.driver.records.requests import check_columns, key_columns
from onecontainer_driver_sql.model import EXPIRY, Backend, ColumnInfo, Storage, Stored
from onecontainer_driver_sql.names import identifier, quoted

K = table_pb2.TypeKind
_NUMBERED: dict[int, type[sa.Integer]] = {
    K.TYPE_KIND_INT16: sa.SmallInteger,
    K.TYPE_KIND_INT32: sa.Integer,
    K.TYPE_KIND_INT64: sa.BigInteger,
}


def build_table(
    backend: Backend,
    table_id: str,
    table: table_pb2.Table,
    *,
    schema: str | None = None,
    comments: bool,
    identity: bool,
    checks: Mapping[int, tuple[int, int]] | None = None,
    **options: Any,
) -> sa.Table:
    """Raises FieldRequired, FieldInvalid, DataInvalid or BackendCapabilityMissing with the path of what is wrong.

    ``comments`` and ``identity`` tell whether the backend has them; ``checks`` has bounds that it does not keep by itself.
    """
    check_columns(table, folds_case=backend.folds_case)
    if table.comment and not comments:
        raise errors.BackendCapabilityMissing("table.comment", f"{backend.name} has no comments")
    key = _primary_key(backend, table)
    columns: list[Any] = []
    bounds: list[sa.CheckConstraint] = []
    for index, column in enumerate(table.columns):
        path = f"table.columns[{index}]"
        if column.name == EXPIRY or (backend.folds_case and column.name.lower() == EXPIRY):
            raise errors.FieldInvalid(f"{path}.name", "is the column of records' time; set `table.expires` instead")
        built = _column(backend, column, key, path, comments=comments, identity=identity)
        columns.append(built)
        if checks and column.type.kind in checks:
            low, high = checks[column.type.kind]
            typed = sa.and_(sa.func.typeof(built) == "integer", built.between(sa.literal(low), sa.literal(high)))
            bounds.append(sa.CheckConstraint(sa.or_(built.is_(None), typed)))
    if table.expires:
        kept = backend.storage(table_pb2.ColumnType(kind=K.TYPE_KIND_TIMESTAMP), "table.expires")
        columns.append(sa.Column(quoted(EXPIRY), Stored(kept.ddl)))
    parts = [sa.PrimaryKeyConstraint(*(quoted(name) for name in key))] if key else []
    return sa.Table(
        identifier(table_id, "table_id"),
        sa.MetaData(),
        *columns,
        *parts,
        *bounds,
        schema=quoted(schema) if schema else None,
        comment=table.comment or None,
        **{name: option for name, option in options.items() if option},
    )


def _primary_key(backend: Backend, table: table_pb2.Table) -> list[str]:
    key = [name for name, _ in key_columns(table)]
    if table.clustering_key and not table.partition_key:
        raise errors.FieldRequired("table.partition_key", "is required with a clustering key")
    for index, clustering in enumerate(table.clustering_key):
        if clustering.order == table_pb2.SORT_ORDER_DESCENDING:
            raise errors.BackendCapabilityMissing(
                f"table.clustering_key[{index}].order",
                f"a key has no order in {backend.name}; add an index with that order",
            )
    return key


def _column(
    backend: Backend, column: table_pb2.Column, key: list[str], path: str, *, comments: bool, identity: bool
) -> sa.Column[Any]:
    name = identifier(column.name, f"{path}.name")
    if not column.HasField("type"):
        raise errors.FieldRequired(f"{path}.type")
    storage = backend.storage(column.type, f"{path}.type")
    if column.is_static:
        raise errors.BackendCapabilityMissing(f"{path}.is_static", f"{backend.name} has no static columns")
    if column.type.frozen:
        raise errors.BackendCapabilityMissing(f"{path}.type.frozen", f"{backend.name} has no frozen types")
    if column.comment and not comments:
        raise errors.BackendCapabilityMissing(f"{path}.comment", f"{backend.name} has no comments")
    default = _default(column, storage, path)
    extras: list[Any] = []
    type_: sa.types.TypeEngine[Any] = Stored(storage.ddl)
    if column.auto_increment:
        if column.type.kind not in _NUMBERED or column.name not in key:
            raise errors.FieldInvalid(f"{path}.auto_increment", "is for an integer column of the primary key")
        if default is not None:
            raise errors.FieldInvalid(f"{path}.default_value", "must not be set with auto_increment")
        if identity:
            extras.append(sa.Identity())
            type_ = _NUMBERED[column.type.kind]()
        elif key != [column.name] or column.type.kind != K.TYPE_KIND_INT64:
            raise errors.BackendCapabilityMissing(
                f"{path}.auto_increment", f"{backend.name} numbers only an INT64 column that is the whole primary key"
            )
        else:
            type_ = sa.Integer()
    return sa.Column(
        name,
        type_,
        *extras,
        nullable=not column.not_null and column.name not in key,
        server_default=default,
        autoincrement=column.auto_increment,
        comment=column.comment or None,
    )


def _default(column: table_pb2.Column, storage: Storage, path: str) -> sa.TextClause | None:
    if not column.HasField("default_value"):
        return None
    path = f"{path}.default_value"
    try:
        value = storage.codec.write(column.default_value)
    except MissingKindError as error:
        raise errors.FieldRequired(path, str(error)) from None
    except ValueError as error:
        raise errors.DataInvalid(path, str(error)) from None
    if value is None:
        return None
    literal = sql_literal(storage.text(value) if storage.text else value)
    if literal is None:
        raise errors.BackendCapabilityMissing(path, "a column of this type cannot have a default here")
    # A colon would be taken for a parameter's mark.
    return sa.text(literal.replace("\\", "\\\\").replace(":", "\\:"))


def sql_literal(value: Any) -> str | None:
    """The value in SQL's own notation, for a default, which cannot be a parameter. None: there is none that is safe everywhere."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if value - value == 0 else None
    if isinstance(value, bytes | tuple | list):
        return None
    # Without standard_conforming_strings a backslash would escape: such text has no notation that is the same everywhere.
    written = str(value)
    if "\\" in written or "\0" in written:
        return None
    return "'" + written.replace("'", "''") + "'"


def create_index(built: sa.Table, index: table_pb2.Index, path: str, **options: Any) -> sa.schema.CreateIndex:
    if not index.columns:
        raise errors.FieldRequired(f"{path}.columns")
    columns: list[Any] = []
    for number, one in enumerate(index.columns):
        column = built.columns.get(one.column)
        if column is None:
            raise errors.FieldInvalid(
                f"{path}.columns[{number}].column", f"{one.column!r} is not a column of the table"
            )
        if one.part != table_pb2.COLLECTION_PART_UNSPECIFIED:
            raise errors.BackendCapabilityMissing(
                f"{path}.columns[{number}].part", "an index is over whole values here; see `method` gin for lists"
            )
        columns.append(column.desc() if one.order == table_pb2.SORT_ORDER_DESCENDING else column)
    name = index.name or "_".join([str(built.name), *(one.column for one in index.columns), "idx"])[:63]
    named = identifier(name, f"{path}.name")
    return sa.schema.CreateIndex(
        sa.Index(named, *columns, unique=index.unique, **{key: option for key, option in options.items() if option})
    )


# --- expiry ------------------------------------------------------------------------------------------------------


def expiry_index(built: sa.Table) -> sa.schema.CreateIndex:
    """By which what is over is found."""
    name = f"{str(built.name)[:50]}_expire_idx"
    return sa.schema.CreateIndex(sa.Index(quoted(name), built.columns[EXPIRY]))


def take_expiry(columns: dict[str, ColumnInfo]) -> Storage | None:
    """Takes the column of records' time out of those that are shown. None: records do not expire."""
    found = columns.get(EXPIRY)
    if found is None or found.proto.type.kind != K.TYPE_KIND_TIMESTAMP:
        return None
    return columns.pop(EXPIRY).storage


def is_of_expiry(index: table_pb2.Index) -> bool:
    return [column.column for column in index.columns] == [EXPIRY]


def known_properties(
    given: Mapping[str, value_pb2.Value], known: frozenset[str], path: str
) -> dict[str, value_pb2.Value]:
    for name in given:
        if name not in known:
            has = f"it has: {', '.join(sorted(known))}" if known else "it has none"
            raise errors.FieldInvalid(f"{path}[{name!r}]", f"the backend has no such property; {has}")
    return dict(given)


def scalar_property(value: value_pb2.Value, path: str) -> str:
    """A storage parameter, which is a whole number or a boolean: nothing else reaches the statement."""
    kind = value.WhichOneof("kind")
    if kind == "int64_value":
        return str(value.int64_value)
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    raise errors.FieldInvalid(path, "must be an int64_value or a bool_value")
