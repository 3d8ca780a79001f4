"""A table of the keyspace, as calls need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onecontainer.api.db.v1 import table_pb2
from onecontainer.driver.records.model import Codec, unknown_column
from onecontainer_driver_cassandra import types

K = table_pb2.TypeKind


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    proto: table_pb2.Column
    codec: Codec
    generated: bool = False

    @property
    def name(self) -> str:
        return self.proto.name

    @property
    def cql(self) -> str:
        return quoted(self.proto.name)

    @property
    def type(self) -> table_pb2.ColumnType:
        return self.proto.type

    def of_elements(self) -> tuple[Codec | None, Codec | None]:
        """Of a collection: the codec of its keys (a map's) and of its values."""
        inner = [types.codec(one) for one in self.type.elements]
        if self.type.kind == K.TYPE_KIND_MAP:
            return inner[0], inner[1]
        return None, inner[0] if self.type.kind in types.COLLECTIONS else None

    def of_field(self, name: str) -> Codec | None:
        """Of a struct: the codec of one field."""
        return next((types.codec(one.type) for one in self.type.struct_fields if one.name == name), None)


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table as the backend has it. ``proto`` has no name: that needs the service's."""

    id: str
    keyspace: str
    columns: dict[str, ColumnInfo]
    proto: table_pb2.Table
    partition_key: tuple[str, ...] = field(init=False)
    clustering_key: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "partition_key", tuple(self.proto.partition_key))
        object.__setattr__(self, "clustering_key", tuple(one.column for one in self.proto.clustering_key))

    @property
    def primary_key(self) -> tuple[str, ...]:
        return self.partition_key + self.clustering_key

    @property
    def cql(self) -> str:
        return f"{quoted(self.keyspace)}.{quoted(self.id)}"

    @property
    def is_counter(self) -> bool:
        return any(column.type.kind == K.TYPE_KIND_COUNTER for column in self.columns.values())

    def column(self, name: str, path: str) -> ColumnInfo:
        """The column of that name. Raises FieldRequired or FieldInvalid of ``path``."""
        found = self.columns.get(name)
        if found is None:
            raise unknown_column(self.id, self.columns, name, path)
        return found


def names_in_cql(names: Sequence[str]) -> str:
    return ", ".join(quoted(name) for name in names)
