"""A column's codec, and what the shared parts ask of a driver's tables and columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf import struct_pb2

from onecontainer.api.db.v1 import record_pb2, table_pb2, value_pb2
from onecontainer.errors import DataInvalid, FieldInvalid, FieldRequired

NULL = value_pb2.Value(null_value=struct_pb2.NULL_VALUE)
MAX_UNSCALED_BYTES = 32_768


class MissingKindError(ValueError):
    """A Value with none of its kinds set."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How one column's values cross, between ``db.v1.Value`` and what the database's client takes and gives.

    ``write`` takes a Value and gives the parameter, or raises ValueError with what is wrong with it; ``read`` takes what the
    backend gave. Nothing is rounded, cut or guessed: what does not fit is refused.

    Attributes:
        kind: the field of Value.
        load: the parameter of that field's content.
        make: a Value of what the backend gave, which is not null.
        from_int: the parameter of an ``int64_value``, None where it is not allowed.
        from_native: the parameter of a ``native_value``'s text, where some values of the type have no other form.
        array: the field of ColumnValues.
        load_array: parameters of a whole array's values; None when one of them may not fit and each must be looked at.
        dump_array: the array's values of what the backend gave, none of them null.
        filler: stands in an array where a row is null.
        equality, order, number: whether the column can be compared, ordered, and added to.
        element: of a list, the codec of its elements.
    """

    kind: str
    load: Callable[[Any], Any]
    make: Callable[[Any], value_pb2.Value]
    from_int: Callable[[int], Any] | None = None
    from_native: Callable[[str], Any] | None = None
    array: str = "values"
    load_array: Callable[[list[Any]], list[Any] | None] | None = None
    dump_array: Callable[[list[Any]], list[Any]] | None = None
    filler: Any = None
    equality: bool = True
    order: bool = True
    number: bool = False
    element: Codec | None = None

    def write(self, value: value_pb2.Value) -> Any:
        kind = value.WhichOneof("kind")
        if kind is None:
            raise MissingKindError("no kind of value is set; null is null_value")
        if kind == self.kind:
            return self.load(getattr(value, kind))
        if kind == "null_value":
            return None
        if kind == "int64_value" and self.from_int is not None:
            return self.from_int(value.int64_value)
        if kind == "native_value" and self.from_native is not None:
            return self.from_native(value.native_value.text)
        raise ValueError(f"is {kind}, but the column takes {self.kind}")

    def read(self, stored: Any) -> value_pb2.Value:
        return NULL if stored is None else self.make(stored)


def identity(value: Any) -> Any:
    return value


class Column(Protocol):
    """A column of a driver's table."""

    @property
    def name(self) -> str: ...

    @property
    def proto(self) -> table_pb2.Column: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def generated(self) -> bool:
        """Whether the backend computes it, so that it is never written."""
        ...


class Table(Protocol):
    """A driver's table."""

    def column(self, name: str, path: str) -> Column:
        """The column of that name. Raises FieldRequired or FieldInvalid of ``path``."""
        ...


def unknown_column(table_id: str, columns: Mapping[str, object], name: str, path: str) -> FieldRequired | FieldInvalid:
    """The error of a name that is none of the table's columns."""
    if not name:
        return FieldRequired(path)
    names = ", ".join(list(columns)[:50])
    return FieldInvalid(path, f"table {table_id!r} has no column {name!r}; it has: {names}"[:1000])


def parameter(codec: Codec, value: value_pb2.Value, path: str) -> Any:
    """Raises FieldRequired for a Value without a kind, DataInvalid for one that the column does not take."""
    try:
        return codec.write(value)
    except MissingKindError as error:
        raise FieldRequired(path, str(error)) from None
    except (ValueError, ArithmeticError) as error:
        raise DataInvalid(path, str(error)) from None


def record(columns: Sequence[Column], row: Iterable[Any]) -> record_pb2.Record:
    """What an answer shows of a row of the backend's values."""
    return record_pb2.Record(
        fields={column.name: column.codec.read(stored) for column, stored in zip(columns, row, strict=True)}
    )


# --- what several databases' codecs check ------------------------------------------------------------------------


def int_to_bytes(number: int) -> bytes:
    """Two's complement, big-endian, shortest form."""
    bits = number.bit_length() if number >= 0 else (number + 1).bit_length()
    return number.to_bytes(bits // 8 + 1, "big", signed=True)


def int_from_bytes(data: bytes) -> int:
    if not data:
        raise ValueError("has no bytes; zero is one byte 0x00")
    if len(data) > MAX_UNSCALED_BYTES:
        raise ValueError(f"has {len(data)} bytes, at most {MAX_UNSCALED_BYTES} are allowed")
    return int.from_bytes(data, "big", signed=True)


def exact_float(number: int) -> float:
    result = float(number)
    if int(result) != number:
        raise ValueError("cannot be a floating point number exactly")
    return result


def exact_float32(number: int) -> float:
    if abs(number) > 2**24:
        raise ValueError("cannot be a 32-bit floating point number exactly; send float_value")
    return float(number)


def uuid_bytes(data: bytes) -> bytes:
    if len(data) != 16:
        raise ValueError(f"has {len(data)} bytes, a UUID has 16")
    return data


def address_bytes(inet: value_pb2.Inet) -> bytes:
    """The address alone, 4 or 16 bytes; the prefix is checked and left to the caller."""
    size = len(inet.address)
    if size not in (4, 16):
        raise ValueError(f"has {size} bytes, an address has 4 or 16")
    if inet.HasField("prefix_length") and not 0 <= inet.prefix_length <= size * 8:
        raise ValueError(f"prefix_length must be from 0 to {size * 8}")
    return inet.address
