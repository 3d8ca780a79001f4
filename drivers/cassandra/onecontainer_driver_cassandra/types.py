"""Column types: CQL's notation, the contract's `ColumnType`, and the codec of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onecontainer.api.db.v1 import table_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Codec
from onecontainer.driver.records.names import is_identifier
from onecontainer_driver_cassandra import codecs, composites

K = table_pb2.TypeKind
MAX_DEPTH = 16
MAX_DIMENSION = 8192
COLLECTIONS = (K.TYPE_KIND_LIST, K.TYPE_KIND_SET, K.TYPE_KIND_MAP)

_SCALARS: dict[table_pb2.TypeKind.ValueType, tuple[str, Codec]] = {
    K.TYPE_KIND_BOOL: ("boolean", codecs.BOOL),
    K.TYPE_KIND_INT8: ("tinyint", codecs.integer(8)),
    K.TYPE_KIND_INT16: ("smallint", codecs.integer(16)),
    K.TYPE_KIND_INT32: ("int", codecs.integer(32)),
    K.TYPE_KIND_INT64: ("bigint", codecs.integer(64)),
    K.TYPE_KIND_VARINT: ("varint", codecs.VARINT),
    K.TYPE_KIND_FLOAT: ("float", codecs.FLOAT),
    K.TYPE_KIND_DOUBLE: ("double", codecs.DOUBLE),
    K.TYPE_KIND_DECIMAL: ("decimal", codecs.DECIMAL),
    K.TYPE_KIND_TEXT: ("text", codecs.TEXT),
    K.TYPE_KIND_ASCII: ("ascii", codecs.ASCII),
    K.TYPE_KIND_BYTES: ("blob", codecs.BYTES),
    K.TYPE_KIND_TIMESTAMP: ("timestamp", codecs.TIMESTAMP),
    K.TYPE_KIND_DATE: ("date", codecs.DATE),
    K.TYPE_KIND_TIME: ("time", codecs.TIME),
    K.TYPE_KIND_UUID: ("uuid", codecs.UUID),
    K.TYPE_KIND_TIMEUUID: ("timeuuid", codecs.TIMEUUID),
    K.TYPE_KIND_DURATION: ("duration", codecs.DURATION),
    K.TYPE_KIND_INET: ("inet", codecs.INET),
    K.TYPE_KIND_COUNTER: ("counter", codecs.integer(64, counter=True)),
}
_BY_NAME = {name: kind for kind, (name, _) in _SCALARS.items()} | {"varchar": K.TYPE_KIND_TEXT}
_ELEMENTS = {K.TYPE_KIND_LIST: ("list", 1), K.TYPE_KIND_SET: ("set", 1), K.TYPE_KIND_MAP: ("map", 2)}
_WAYS_OUT = {
    K.TYPE_KIND_DATETIME: "Cassandra has no time without a zone; use TIMESTAMP",
    K.TYPE_KIND_JSON: "Cassandra has no JSON; use TEXT",
    K.TYPE_KIND_NATIVE: "a type without a kind of its own can be read, not created",
}

Structs = Mapping[str, Sequence[table_pb2.StructField]]
"""The keyspace's user-defined types: their fields by name."""


# --- reading what the backend has --------------------------------------------------------------------------------

_TOKENS = re.compile(r'\s*("(?:[^"]|"")*"|\'(?:[^\']|\'\')*\'|[A-Za-z0-9_.]+|[<>,])')


def from_cql(text: str, structs: Structs) -> table_pb2.ColumnType:
    """The type that `system_schema` writes so. What is not known is NATIVE."""
    tokens = _TOKENS.findall(text)
    found, end = _parse(tokens, 0, structs)
    if found is None or end != len(tokens) or text.count("<") > MAX_DEPTH:
        found = table_pb2.ColumnType(kind=K.TYPE_KIND_NATIVE)
    found.native_type = text
    return found


def _parse(tokens: Sequence[str], at: int, structs: Structs) -> tuple[table_pb2.ColumnType | None, int]:
    if at >= len(tokens):
        return None, at
    name = tokens[at]
    if at + 1 < len(tokens) and tokens[at + 1] == "<":
        return _parse_parameters(name, tokens, at + 2, structs)
    struct = name[1:-1].replace('""', '"') if name.startswith('"') else name
    if name in _BY_NAME:
        return table_pb2.ColumnType(kind=_BY_NAME[name]), at + 1
    if struct in structs:
        return table_pb2.ColumnType(kind=K.TYPE_KIND_STRUCT, struct_name=struct, struct_fields=structs[struct]), at + 1
    return None, at


def _parse_parameters(
    name: str, tokens: Sequence[str], at: int, structs: Structs
) -> tuple[table_pb2.ColumnType | None, int]:
    inner: list[table_pb2.ColumnType] = []
    number = 0
    while at < len(tokens):
        if tokens[at].isdigit():
            number, at = int(tokens[at]), at + 1
        else:
            one, at = _parse(tokens, at, structs)
            if one is None:
                return None, at
            inner.append(one)
        if at < len(tokens) and tokens[at] == ">":
            return _with_parameters(name, inner, number), at + 1
        at += 1  # a comma
    return None, at


def _with_parameters(name: str, inner: list[table_pb2.ColumnType], number: int) -> table_pb2.ColumnType | None:
    if name == "frozen" and len(inner) == 1:
        inner[0].frozen = True
        return inner[0]
    if name == "vector" and number and [one.kind for one in inner] == [K.TYPE_KIND_FLOAT]:
        return table_pb2.ColumnType(kind=K.TYPE_KIND_VECTOR, dimension=number)
    if name == "tuple" and inner:
        return table_pb2.ColumnType(kind=K.TYPE_KIND_TUPLE, elements=inner)
    for kind, (word, count) in _ELEMENTS.items():
        if name == word and len(inner) == count:
            return table_pb2.ColumnType(kind=kind, elements=inner)
    return None


# --- the contract's types ----------------------------------------------------------------------------------------


def to_cql(given: table_pb2.ColumnType, structs: Structs, path: str, depth: int = 0) -> str:
    """CQL's notation. Raises FieldRequired, FieldInvalid or BackendCapabilityMissing of what is wrong."""
    if depth > MAX_DEPTH:
        raise errors.FieldInvalid(path, f"is nested more than {MAX_DEPTH} levels deep")
    kind = given.kind
    if kind == K.TYPE_KIND_UNSPECIFIED or kind not in K.values():
        raise errors.FieldRequired(f"{path}.kind")
    if kind in _WAYS_OUT:
        raise errors.BackendCapabilityMissing(f"{path}.kind", _WAYS_OUT[kind])
    for name in ("length", "precision", "scale"):
        if given.HasField(name):
            raise errors.BackendCapabilityMissing(f"{path}.{name}", f"Cassandra has no {name} of a type; leave it away")
    if given.HasField("dimension") != (kind == K.TYPE_KIND_VECTOR):
        raise errors.FieldInvalid(f"{path}.dimension", "is for a VECTOR, which needs it")
    if bool(given.struct_name) != (kind == K.TYPE_KIND_STRUCT):
        raise errors.FieldInvalid(f"{path}.struct_name", "is for a STRUCT, which needs it")
    if kind in _SCALARS:
        _count(given, 0, path)
        if given.frozen:
            raise errors.FieldInvalid(f"{path}.frozen", "is for collections, tuples and structs")
        if kind == K.TYPE_KIND_COUNTER and depth:
            raise errors.FieldInvalid(f"{path}.kind", "a counter cannot be inside another type")
        return _SCALARS[kind][0]
    # Inside another type only frozen ones can be.
    frozen = given.frozen or (depth > 0 and kind in (*COLLECTIONS, K.TYPE_KIND_STRUCT))
    text = _composed(given, structs, path, depth)
    return f"frozen<{text}>" if frozen and kind != K.TYPE_KIND_VECTOR else text


def _composed(given: table_pb2.ColumnType, structs: Structs, path: str, depth: int) -> str:
    kind = given.kind
    if kind == K.TYPE_KIND_VECTOR:
        _count(given, 0, path)
        if not 1 <= given.dimension <= MAX_DIMENSION:
            raise errors.FieldInvalid(f"{path}.dimension", f"must be from 1 to {MAX_DIMENSION}")
        return f"vector<float, {given.dimension}>"
    if kind == K.TYPE_KIND_STRUCT:
        _count(given, 0, path)
        if given.struct_name not in structs or not is_identifier(given.struct_name):
            known = ", ".join(sorted(structs)) or "none"
            raise errors.FieldInvalid(
                f"{path}.struct_name", f"{given.struct_name!r} is no type of the keyspace; it has: {known}"[:1000]
            )
        return f'"{given.struct_name}"'
    if kind == K.TYPE_KIND_TUPLE:
        if not given.elements:
            raise errors.FieldRequired(f"{path}.elements")
        word = "tuple"
    else:
        word, count = _ELEMENTS[kind]
        _count(given, count, path)
    inner = [to_cql(one, structs, f"{path}.elements[{i}]", depth + 1) for i, one in enumerate(given.elements)]
    return f"{word}<{', '.join(inner)}>"


def _count(given: table_pb2.ColumnType, count: int, path: str) -> None:
    if len(given.elements) != count:
        raise errors.FieldInvalid(f"{path}.elements", f"has {len(given.elements)}, the type has {count}")


def codec(given: table_pb2.ColumnType) -> Codec:
    """Of a type that `from_cql` made."""
    kind = given.kind
    if kind in _SCALARS:
        return _SCALARS[kind][1]
    inner = [codec(one) for one in given.elements]
    if kind == K.TYPE_KIND_LIST:
        return composites.list_of(inner[0])
    if kind == K.TYPE_KIND_SET:
        return composites.set_of(inner[0])
    if kind == K.TYPE_KIND_MAP:
        return composites.map_of(inner[0], inner[1])
    if kind == K.TYPE_KIND_TUPLE:
        return composites.tuple_of(inner)
    if kind == K.TYPE_KIND_STRUCT:
        return composites.struct_of([(field.name, codec(field.type)) for field in given.struct_fields])
    if kind == K.TYPE_KIND_VECTOR:
        return codecs.vector_of(given.dimension)
    return codecs.native(given.native_type)
