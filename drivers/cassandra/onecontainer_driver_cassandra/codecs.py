"""Between ``db.v1.Value`` and the bytes of CQL's binary protocol (its specification, v5, section 6)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from cassandra.marshal import vints_pack, vints_unpack
from google.protobuf import timestamp_pb2

from onecontainer.api.db.v1 import value_pb2
from onecontainer.driver.records.model import (
    NULL,
    Codec,
    address_bytes,
    exact_float,
    exact_float32,
    identity,
    int_from_bytes,
    int_to_bytes,
    uuid_bytes,
)
from onecontainer_driver_cassandra.calendar import date_from_days, days_from_date

Value = value_pb2.Value
_INT32 = struct.Struct(">i")
_INT64 = struct.Struct(">q")
_FORMATS = {8: ">b", 16: ">h", 32: ">i", 64: ">q"}
_NANOS_OF_DAY = 86_400 * 10**9
_MAX_SECONDS = 253_402_300_799  # the last of year 9999
_MIN_SECONDS = -62_135_596_800  # the first of year 1
INT32_MAX = 2**31 - 1


def _fixed(codec_struct: struct.Struct, kind: str, array: str, check: Callable[[Any], Any], **more: Any) -> Codec:
    """Of a type whose values all have one size. An empty cell, which CQL allows for old times' sake, is null."""
    size = codec_struct.size
    pack, unpack, letter = codec_struct.pack, codec_struct.unpack, codec_struct.format[-1]

    def load_array(values: list[Any]) -> list[bytes] | None:
        try:
            packed = struct.pack(f">{len(values)}{letter}", *values)
        except (struct.error, OverflowError):
            return None
        return [packed[at : at + size] for at in range(0, len(packed), size)]

    def dump_array(stored: list[bytes]) -> list[Any]:
        if any(len(cell) != size for cell in stored):
            raise ValueError("an empty cell")
        return list(struct.unpack(f">{len(stored)}{letter}", b"".join(stored)))

    return Codec(
        kind,
        lambda given: pack(check(given)),
        lambda stored: Value(**{kind: unpack(stored)[0]}) if stored else NULL,
        array=array,
        load_array=load_array,
        dump_array=dump_array,
        filler=bytes(size),
        **more,
    )


def integer(bits: int, *, counter: bool = False) -> Codec:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def check(number: int) -> int:
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return _fixed(struct.Struct(_FORMATS[bits]), "int64_value", "int64s", check, number=counter)


def _float32(number: int) -> bytes:
    return struct.pack(">f", exact_float32(number))


FLOAT = _fixed(struct.Struct(">f"), "float_value", "floats", identity, from_int=_float32)
DOUBLE = _fixed(
    struct.Struct(">d"),
    "double_value",
    "doubles",
    identity,
    from_int=lambda number: struct.pack(">d", exact_float(number)),
)
BOOL = Codec(
    "bool_value",
    lambda given: b"\1" if given else b"\0",
    lambda stored: Value(bool_value=stored != b"\0") if stored else NULL,
    array="bools",
    load_array=lambda given: [b"\1" if one else b"\0" for one in given],
    dump_array=lambda stored: [cell != b"\0" for cell in stored],
    filler=b"\0",
)


def _varint(data: bytes) -> bytes:
    return int_to_bytes(int_from_bytes(data))


VARINT = Codec(
    "varint_value",
    _varint,
    lambda stored: Value(varint_value=_varint(stored)) if stored else NULL,
    from_int=int_to_bytes,
)
DECIMAL = Codec(
    "decimal_value",
    lambda given: _INT32.pack(given.scale) + _varint(given.unscaled),
    lambda stored: (
        Value(decimal_value=value_pb2.Decimal(scale=_INT32.unpack_from(stored)[0], unscaled=_varint(stored[4:])))
        if stored
        else NULL
    ),
    from_int=lambda number: _INT32.pack(0) + int_to_bytes(number),
)


# --- text and bytes ----------------------------------------------------------------------------------------------


def _ascii(given: str) -> bytes:
    if not given.isascii():
        raise ValueError("has characters that are not ASCII")
    return given.encode()


def _text(encode: Callable[[str], bytes]) -> Codec:
    def load_array(given: list[str]) -> list[bytes] | None:
        try:
            return [encode(one) for one in given]
        except ValueError:
            return None

    return Codec(
        "text_value",
        encode,
        lambda stored: Value(text_value=stored.decode()),
        array="texts",
        load_array=load_array,
        dump_array=lambda stored: [cell.decode() for cell in stored],
        filler=b"",
    )


TEXT = _text(str.encode)
ASCII = _text(_ascii)
BYTES = Codec(
    "bytes_value",
    identity,
    lambda stored: Value(bytes_value=stored),
    array="blobs",
    load_array=identity,
    dump_array=identity,
    filler=b"",
)


def _uuid(check: Callable[[bytes], bytes]) -> Codec:
    def load_array(given: list[bytes]) -> list[bytes] | None:
        try:
            return [check(one) for one in given]
        except ValueError:
            return None

    return Codec(
        "uuid_value",
        check,
        lambda stored: Value(uuid_value=stored) if stored else NULL,
        array="blobs",
        load_array=load_array,
        dump_array=identity,
        filler=b"",
    )


def _timeuuid(data: bytes) -> bytes:
    if uuid_bytes(data)[6] >> 4 != 1:
        raise ValueError(f"is a UUID of version {data[6] >> 4}, the column takes version 1")
    return data


UUID, TIMEUUID = _uuid(uuid_bytes), _uuid(_timeuuid)


# --- time --------------------------------------------------------------------------------------------------------


def _timestamp(given: timestamp_pb2.Timestamp) -> bytes:
    if not 0 <= given.nanos < 10**9:
        raise ValueError("nanos must be from 0 to 999999999")
    if given.nanos % 1_000_000:
        raise ValueError("has more digits than milliseconds, which is this backend's resolution")
    if not _MIN_SECONDS <= given.seconds <= _MAX_SECONDS:
        raise ValueError("must be in the years 1 to 9999")
    return _INT64.pack(given.seconds * 1000 + given.nanos // 1_000_000)


def _timestamp_value(stored: bytes) -> Value:
    if not stored:
        return NULL
    seconds, millis = divmod(_INT64.unpack(stored)[0], 1000)
    return Value(timestamp_value=timestamp_pb2.Timestamp(seconds=seconds, nanos=millis * 1_000_000))


def _timestamps(micros: list[int]) -> list[bytes] | None:
    if any(one % 1000 or not _MIN_SECONDS <= one // 1_000_000 <= _MAX_SECONDS for one in micros):
        return None
    return [_INT64.pack(one // 1000) for one in micros]


TIMESTAMP = Codec(
    "timestamp_value",
    _timestamp,
    _timestamp_value,
    array="timestamps_micros",
    load_array=_timestamps,
    dump_array=lambda stored: [_INT64.unpack(cell)[0] * 1000 for cell in stored],
    filler=bytes(8),
)


def _time(given: value_pb2.Time) -> bytes:
    parts = ((given.hours, 24), (given.minutes, 60), (given.seconds, 60), (given.nanos, 10**9))
    if not all(0 <= part < end for part, end in parts):
        raise ValueError("is not a time of day")
    return _INT64.pack(((given.hours * 60 + given.minutes) * 60 + given.seconds) * 10**9 + given.nanos)


def _time_value(stored: bytes) -> Value:
    if not stored:
        return NULL
    seconds, nanos = divmod(_INT64.unpack(stored)[0] % _NANOS_OF_DAY, 10**9)
    return Value(
        time_value=value_pb2.Time(hours=seconds // 3600, minutes=seconds // 60 % 60, seconds=seconds % 60, nanos=nanos)
    )


def _duration(given: value_pb2.CalendarDuration) -> bytes:
    parts = (given.months, given.days, given.nanos)
    if any(part < 0 for part in parts) and any(part > 0 for part in parts):
        raise ValueError("has parts of different signs")
    return bytes(vints_pack(parts))


def _duration_value(stored: bytes) -> Value:
    if not stored:
        return NULL
    months, days, nanos = vints_unpack(stored)
    return Value(duration_value=value_pb2.CalendarDuration(months=months, days=days, nanos=nanos))


DATE = Codec(
    "date_value",
    lambda given: struct.pack(">I", days_from_date(given) + 2**31),
    lambda stored: Value(date_value=date_from_days(struct.unpack(">I", stored)[0] - 2**31)) if stored else NULL,
)
TIME = Codec("time_value", _time, _time_value)
DURATION = Codec("duration_value", _duration, _duration_value, order=False)


def _inet(given: value_pb2.Inet) -> bytes:
    data = address_bytes(given)
    if given.HasField("prefix_length") and given.prefix_length != len(data) * 8:
        raise ValueError("has a prefix length, which an inet of this backend has not")
    return data


INET = Codec("inet_value", _inet, lambda stored: Value(inet_value=value_pb2.Inet(address=stored)) if stored else NULL)


def vector_of(dimension: int) -> Codec:
    shape = struct.Struct(f">{dimension}f")

    def load(given: value_pb2.FloatVector) -> bytes:
        if len(given.values) != dimension:
            raise ValueError(f"has {len(given.values)} numbers, the column takes {dimension}")
        return shape.pack(*given.values)

    def make(stored: bytes) -> Value:
        return Value(vector_value=value_pb2.FloatVector(values=shape.unpack(stored)))

    return Codec("vector_value", load, make)


def native(name: str) -> Codec:
    """Of a type that the contract has no kind for: shown in CQL's notation for bytes, never written."""

    def load(given: value_pb2.NativeValue) -> bytes:
        raise ValueError(f"of type {name} cannot be written here")

    def make(stored: bytes) -> Value:
        return Value(native_value=value_pb2.NativeValue(type=name, text=f"0x{stored.hex()}"))

    return Codec("native_value", load, make, equality=False, order=False)
