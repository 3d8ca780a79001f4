"""Column types of SQLite: what each is declared as, and how values without a type of SQLite's are kept.

SQLite derives a column's affinity from its declared name (https://sqlite.org/datatype3.html, 3.1), so the names are chosen such that
nothing is converted on the way in: what is kept as text has TEXT in its name, what is kept as bytes has neither INT nor CHAR in it,
and floating point numbers have BLOB in it, which leaves them as they are: with REAL affinity whole ones are kept as integers, and −0.0
would come back as 0.0.
All forms but that of DURATION sort as their values do.
"""

from __future__ import annotations

import datetime as dt
import decimal
import ipaddress
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from onecontainer.api.db.v1 import table_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import (
    NULL,
    Codec,
    exact_float,
    exact_float32,
    identity,
    int_from_bytes,
    int_to_bytes,
    uuid_bytes,
)
from onecontainer_driver_sql import codecs
from onecontainer_driver_sql.model import Storage

DECIMAL_COLLATION = "onecontainer_decimal"
K = table_pb2.TypeKind


def decimal_text(number: decimal.Decimal) -> str:
    return format(number, "f")


# --- times as text, which sorts ----------------------------------------------------------------------------------


def _timestamp_text(moment: dt.datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds") + "Z"


def _timestamp(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _datetime_text(moment: dt.datetime) -> str:
    return moment.isoformat(" ", "microseconds")


def _datetime(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is not None:
        raise ValueError("has a time zone")
    return moment


def _duration(text: str) -> codecs.Duration:
    months, days, micros = text.split(":")
    return int(months), int(days), int(micros)


def _inet_bytes(inet: Any) -> bytes:
    """Version, address, prefix length."""
    prefix = (
        inet.network.prefixlen
        if isinstance(inet, ipaddress.IPv4Interface | ipaddress.IPv6Interface)
        else inet.max_prefixlen
    )
    packed: bytes = inet.packed
    return bytes([inet.version]) + packed + bytes([prefix])


def _inet(data: bytes) -> Any:
    address, prefix = data[1:-1], data[-1]
    return ipaddress.ip_address(address) if prefix == len(address) * 8 else ipaddress.ip_interface((address, prefix))


# --- codecs ------------------------------------------------------------------------------------------------------


def _tolerant(codec: Codec, stored: type | tuple[type, ...]) -> Codec:
    """SQLite lets other programs put anything into any column: that is then read as what it is."""
    make = codec.make

    def read(value: Any) -> value_pb2.Value:
        if isinstance(value, stored):
            try:
                return make(value)
            except (ValueError, ArithmeticError, IndexError, struct.error):
                pass
        return as_it_is(value)

    return replace(codec, make=read)


def as_it_is(value: Any) -> value_pb2.Value:
    match value:
        case bool() | int():
            return value_pb2.Value(int64_value=value)
        case float():
            return value_pb2.Value(double_value=value)
        case str():
            return value_pb2.Value(text_value=value)
        case bytes():
            return value_pb2.Value(bytes_value=value)
        case _:
            return NULL


def _plain(types: type | tuple[type, ...]) -> Callable[[list[Any]], list[Any]]:
    """Values for an array, if all are of the column's type; else TypeError, and they go one by one."""

    def dump(stored: list[Any]) -> list[Any]:
        if not all(isinstance(value, types) for value in stored):
            raise TypeError
        return stored

    return dump


def _text_form(
    kind: str,
    load: Callable[[Any], Any],
    to_text: Callable[[Any], str],
    make: Callable[[str], value_pb2.Value],
    **more: Any,
) -> Codec:
    return _tolerant(Codec(kind, lambda message: to_text(load(message)), make, **more), str)


_BOOL = replace(
    _tolerant(Codec("bool_value", identity, lambda stored: value_pb2.Value(bool_value=stored != 0)), int),
    array="bools",
    load_array=identity,
    dump_array=lambda stored: [value != 0 for value in _plain(int)(stored)],
    filler=False,
)
_FLOAT = replace(
    _tolerant(Codec("float_value", codecs.no_nan, lambda stored: value_pb2.Value(float_value=stored)), (float, int)),
    from_int=exact_float32,
    array="floats",
    load_array=lambda values: None if any(value != value for value in values) else values,
    dump_array=_plain((float, int)),
    filler=0.0,
    number=True,
)
_DOUBLE = replace(
    _tolerant(Codec("double_value", codecs.no_nan, lambda stored: value_pb2.Value(double_value=stored)), (float, int)),
    from_int=exact_float,
    array="doubles",
    load_array=lambda values: None if any(value != value for value in values) else values,
    dump_array=_plain((float, int)),
    filler=0.0,
    number=True,
)
_TIMESTAMP = _text_form(
    "timestamp_value",
    codecs.timestamp_from_proto,
    _timestamp_text,
    lambda text: codecs.timestamp_to_value(_timestamp(text)),
    array="timestamps_micros",
    load_array=lambda micros: (
        None
        if (moments := codecs.datetimes_from_micros(micros)) is None
        else [_timestamp_text(moment) for moment in moments]
    ),
    dump_array=lambda stored: codecs.micros_from_datetimes([_timestamp(text) for text in stored]),
    filler=_timestamp_text(codecs.EPOCH),
)
_UUID = _tolerant(
    Codec(
        "uuid_value",
        uuid_bytes,
        lambda stored: value_pb2.Value(uuid_value=uuid_bytes(stored)),
        array="blobs",
        load_array=lambda blobs: blobs if all(len(blob) == 16 for blob in blobs) else None,
        dump_array=_plain(bytes),
        filler=bytes(16),
    ),
    bytes,
)
_VARINT = _text_form(
    "varint_value",
    int_from_bytes,
    lambda number: decimal_text(decimal.Decimal(number)),
    lambda text: value_pb2.Value(varint_value=int_to_bytes(int(decimal.Decimal(text)))),
    from_int=str,
    number=True,
)


def _whole(bits: int) -> Codec:
    codec = codecs.integer(bits)
    return replace(_tolerant(codec, int), dump_array=_plain(int))


_PLAIN: dict[table_pb2.TypeKind.ValueType, tuple[str, Codec]] = {
    K.TYPE_KIND_BOOL: ("BOOLEAN", _BOOL),
    K.TYPE_KIND_INT16: ("SMALLINT", _whole(16)),
    K.TYPE_KIND_INT32: ("INT32", _whole(32)),
    K.TYPE_KIND_INT64: ("BIGINT", _whole(64)),
    K.TYPE_KIND_FLOAT: ("FLOAT_BLOB", _FLOAT),
    K.TYPE_KIND_DOUBLE: ("DOUBLE_BLOB", _DOUBLE),
    K.TYPE_KIND_BYTES: ("BLOB", replace(_tolerant(codecs.BYTES, bytes), dump_array=_plain(bytes))),
    K.TYPE_KIND_TIMESTAMP: ("TIMESTAMP_TEXT", _TIMESTAMP),
    K.TYPE_KIND_DATETIME: (
        "DATETIME_TEXT",
        _text_form(
            "datetime_value",
            codecs.datetime_from_proto,
            _datetime_text,
            lambda text: codecs.datetime_to_value(_datetime(text)),
        ),
    ),
    K.TYPE_KIND_DATE: (
        "DATE_TEXT",
        _text_form(
            "date_value",
            codecs.date_from_proto,
            dt.date.isoformat,
            lambda text: value_pb2.Value(date_value=codecs.date_to_proto(dt.date.fromisoformat(text))),
        ),
    ),
    K.TYPE_KIND_TIME: (
        "TIME_TEXT",
        _text_form(
            "time_value",
            codecs.time_from_proto,
            lambda time: time.isoformat("microseconds"),
            lambda text: value_pb2.Value(time_value=codecs.time_to_proto(dt.time.fromisoformat(text))),
        ),
    ),
    K.TYPE_KIND_UUID: ("UUID_BLOB", _UUID),
    K.TYPE_KIND_VARINT: (f"VARNUM_TEXT COLLATE {DECIMAL_COLLATION}", _VARINT),
    K.TYPE_KIND_DURATION: (
        "DURATION_TEXT",
        _text_form(
            "duration_value",
            codecs.duration_from_proto,
            lambda duration: ":".join(map(str, duration)),
            lambda text: codecs.duration_to_value(_duration(text)),
            order=False,
        ),
    ),
    K.TYPE_KIND_INET: (
        "INET_BLOB",
        _tolerant(
            Codec(
                "inet_value",
                lambda message: _inet_bytes(codecs.inet_from_proto(message)),
                lambda stored: codecs.inet_to_value(_inet(stored)),
            ),
            bytes,
        ),
    ),
    K.TYPE_KIND_JSON: (
        "JSON_TEXT",
        replace(
            _tolerant(codecs.json_text(codecs.text_check(None, nul=True), comparable=False), str),
            dump_array=_plain(str),
        ),
    ),
}


def _decimal(precision: int | None, scale: int) -> Codec:
    check = codecs.fitting_decimal(precision, scale)

    def to_text(number: decimal.Decimal) -> str:
        # With as many digits after the point as declared, as PostgreSQL has it.
        return decimal_text(check(number)) if precision is None else format(check(number), f".{scale}f")

    return _text_form(
        "decimal_value",
        codecs.decimal_from_proto,
        to_text,
        lambda text: codecs.decimal_to_value(decimal.Decimal(text)),
        from_int=lambda number: to_text(decimal.Decimal(number)),
        number=True,
    )


def storage(column_type: table_pb2.ColumnType, path: str) -> Storage:
    """How SQLite keeps that type. Raises BackendCapabilityMissing or FieldInvalid of ``path``."""
    kind = column_type.kind
    if kind in _PLAIN:
        name, codec = _PLAIN[kind]
        return Storage(name, name, codec)
    if kind == K.TYPE_KIND_TEXT:
        length = column_type.length if column_type.HasField("length") else None
        if length is not None and length < 1:
            raise errors.FieldInvalid(f"{path}.length", "must be at least 1")
        codec = codecs.text(codecs.text_check(length, nul=True), length)
        codec = replace(_tolerant(codec, str), dump_array=_plain(str))
        return Storage("TEXT" if length is None else f"VARCHAR({length})", "TEXT", codec)
    if kind == K.TYPE_KIND_DECIMAL:
        if not column_type.HasField("precision"):
            if column_type.HasField("scale"):
                raise errors.FieldInvalid(f"{path}.scale", "needs a precision")
            return Storage(f"DECIMAL_TEXT COLLATE {DECIMAL_COLLATION}", "DECIMAL_TEXT", _decimal(None, 0))
        precision, scale = column_type.precision, column_type.scale
        if not 1 <= precision <= 1000 or not 0 <= scale <= precision:
            raise errors.FieldInvalid(f"{path}.precision", "must be from 1 to 1000, and scale from 0 to precision")
        name = f"DECIMAL_TEXT({precision},{scale})"
        return Storage(f"{name} COLLATE {DECIMAL_COLLATION}", "DECIMAL_TEXT", _decimal(precision, scale))
    if kind == K.TYPE_KIND_UNSPECIFIED:
        raise errors.FieldRequired(f"{path}.kind")
    name = K.Name(kind).removeprefix("TYPE_KIND_")
    raise errors.BackendCapabilityMissing(f"{path}.kind", f"SQLite has no type for {name}{_WAY_OUT.get(kind, '')}")


_WAY_OUT = {
    K.TYPE_KIND_INT8: "; use INT16",
    K.TYPE_KIND_ASCII: "; use TEXT",
    K.TYPE_KIND_TIMEUUID: "; use UUID",
    K.TYPE_KIND_COUNTER: "; use INT64, and `add`",
} | dict.fromkeys(
    (
        K.TYPE_KIND_LIST,
        K.TYPE_KIND_SET,
        K.TYPE_KIND_MAP,
        K.TYPE_KIND_TUPLE,
        K.TYPE_KIND_STRUCT,
        K.TYPE_KIND_VECTOR,
    ),
    "; use JSON",
)

# --- what is declared --------------------------------------------------------------------------------------------

_DECLARED = re.compile(r"(?P<base>[A-Z_0-9 ]+?)\s*(?:\(\s*(?P<args>\d+(?:\s*,\s*\d+)?)\s*\))?\Z")
_OURS: dict[str, table_pb2.TypeKind.ValueType] = {
    **{name.split(" ", 1)[0]: kind for kind, (name, _) in _PLAIN.items()},
    # Tables of before, whose numbers have REAL affinity.
    "REAL32": K.TYPE_KIND_FLOAT,
    "DOUBLE": K.TYPE_KIND_DOUBLE,
}
_AFFINITIES: tuple[tuple[str, table_pb2.TypeKind.ValueType], ...] = (
    ("INT", K.TYPE_KIND_INT64),
    ("CHAR", K.TYPE_KIND_TEXT),
    ("CLOB", K.TYPE_KIND_TEXT),
    ("TEXT", K.TYPE_KIND_TEXT),
    ("BLOB", K.TYPE_KIND_BYTES),
    ("REAL", K.TYPE_KIND_DOUBLE),
    ("FLOA", K.TYPE_KIND_DOUBLE),
    ("DOUB", K.TYPE_KIND_DOUBLE),
)


def column_type(declared: str) -> table_pb2.ColumnType:
    """The type of that declaration: one of ours, else what its affinity keeps; NATIVE where that may be anything."""
    result = table_pb2.ColumnType(kind=K.TYPE_KIND_NATIVE, native_type=declared)
    match = _DECLARED.match(declared.upper().strip())
    base = match["base"] if match else declared.upper()
    arguments = [int(one) for one in (match["args"] or "").split(",") if one] if match else []
    if base in _OURS:
        result.kind = _OURS[base]
    elif base == "DECIMAL_TEXT":
        result.kind = K.TYPE_KIND_DECIMAL
        if len(arguments) == 2:
            result.precision, result.scale = arguments
    else:
        for part, kind in _AFFINITIES:
            if part in base:
                result.kind = kind
                break
        if base == "VARCHAR" and arguments:
            result.length = arguments[0]
    return result


def stored_as(column_type: table_pb2.ColumnType) -> Storage:
    if column_type.kind == K.TYPE_KIND_NATIVE:
        return Storage(column_type.native_type, "BLOB", _NATIVE)
    return storage(column_type, "")


def _native(message: value_pb2.NativeValue) -> str:
    return message.text


_NATIVE = Codec("native_value", _native, as_it_is, order=False)
