"""Codecs of values that have values inside: each part has its length before it, -1 for null."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from onecontainer.api.db.v1 import value_pb2
from onecontainer.driver.records.model import Codec, MissingKindError

Value = value_pb2.Value
_INT32 = struct.Struct(">i")


def _element(codec: Codec, value: Value, what: str) -> bytes:
    cell = _part(codec, value, what)
    if cell is None:
        raise ValueError(f"{what} is null, which a collection cannot hold")
    return cell


def _part(codec: Codec, value: Value, what: str) -> bytes | None:
    try:
        written: bytes | None = codec.write(value)
    except MissingKindError:
        raise
    except ValueError as error:
        raise ValueError(f"{what} {error}") from None
    return written


def packed(cells: Sequence[bytes | None]) -> bytes:
    return b"".join(_INT32.pack(-1) if cell is None else _INT32.pack(len(cell)) + cell for cell in cells)


def collection(cells: Sequence[bytes]) -> bytes:
    return _INT32.pack(len(cells)) + packed(cells)


def _unpacked(stored: bytes, at: int) -> list[bytes | None]:
    cells: list[bytes | None] = []
    while at < len(stored):
        (size,) = _INT32.unpack_from(stored, at)
        at += 4
        cells.append(None if size < 0 else stored[at : at + size])
        at += max(size, 0)
    return cells


def list_of(element: Codec) -> Codec:
    def load(given: value_pb2.ListValue) -> bytes:
        return collection([_element(element, one, f"element {index}") for index, one in enumerate(given.values)])

    def make(stored: bytes) -> Value:
        return Value(list_value=value_pb2.ListValue(values=[element.read(cell) for cell in _unpacked(stored, 4)]))

    return Codec("list_value", load, make, element=element)


def set_of(element: Codec) -> Codec:
    def load(given: value_pb2.ListValue) -> bytes:
        cells = [_element(element, one, f"element {index}") for index, one in enumerate(given.values)]
        if len(set(cells)) < len(cells):
            raise ValueError("has an element twice")
        return collection(cells)

    def make(stored: bytes) -> Value:
        return Value(set_value=value_pb2.ListValue(values=[element.read(cell) for cell in _unpacked(stored, 4)]))

    return Codec("set_value", load, make, element=element)


def map_of(key: Codec, element: Codec) -> Codec:
    def load(given: value_pb2.MapValue) -> bytes:
        keys = [_element(key, pair.key, f"key {index}") for index, pair in enumerate(given.entries)]
        if len(set(keys)) < len(keys):
            raise ValueError("has a key twice")
        values = [_element(element, pair.value, f"value {index}") for index, pair in enumerate(given.entries)]
        return _INT32.pack(len(keys)) + packed([cell for pair in zip(keys, values, strict=True) for cell in pair])

    def make(stored: bytes) -> Value:
        cells = _unpacked(stored, 4)
        pairs = zip(cells[::2], cells[1::2], strict=True)
        return Value(
            map_value=value_pb2.MapValue(
                entries=[value_pb2.MapEntry(key=key.read(one), value=element.read(other)) for one, other in pairs]
            )
        )

    return Codec("map_value", load, make)


def tuple_of(elements: Sequence[Codec]) -> Codec:
    def load(given: value_pb2.ListValue) -> bytes:
        if len(given.values) != len(elements):
            raise ValueError(f"has {len(given.values)} elements, the column takes {len(elements)}")
        return packed(
            [
                _part(one, value, f"element {i}")
                for i, (one, value) in enumerate(zip(elements, given.values, strict=True))
            ]
        )

    def make(stored: bytes) -> Value:
        values = [codec.read(cell) for codec, cell in zip(elements, _filled(stored, len(elements)), strict=True)]
        return Value(tuple_value=value_pb2.ListValue(values=values))

    return Codec("tuple_value", load, make)


def struct_of(fields: Sequence[tuple[str, Codec]]) -> Codec:
    names = {name for name, _ in fields}

    def load(given: value_pb2.StructValue) -> bytes:
        for name in given.fields:
            if name not in names:
                raise ValueError(f"has a field {name!r}; the type has: {', '.join(sorted(names))}"[:500])
        return packed(
            [
                _part(codec, given.fields[name], f"field {name!r}") if name in given.fields else None
                for name, codec in fields
            ]
        )

    def make(stored: bytes) -> Value:
        cells = _filled(stored, len(fields))
        return Value(
            struct_value=value_pb2.StructValue(
                fields={name: codec.read(cell) for (name, codec), cell in zip(fields, cells, strict=True)}
            )
        )

    return Codec("struct_value", load, make)


def _filled(stored: bytes, count: int) -> list[bytes | None]:
    """A value that was written before its type got more fields ends early: those are null."""
    cells = _unpacked(stored, 0)[:count]
    return cells + [None] * (count - len(cells))
