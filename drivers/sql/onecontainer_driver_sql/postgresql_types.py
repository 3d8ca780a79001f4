"""Column types of PostgreSQL: how each is created, and which codec is for it."""

from __future__ import annotations

import decimal
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from onecontainer.api.db.v1 import table_pb2, value_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.model import Codec, exact_float, exact_float32, identity, int_from_bytes, int_to_bytes
from onecontainer_driver_sql import codecs
from onecontainer_driver_sql import postgresql_times as times
from onecontainer_driver_sql.model import Storage

VARINT_DIGITS = 1000
MAX_PRECISION = 1000

K = table_pb2.TypeKind

_PLAIN: dict[table_pb2.TypeKind.ValueType, tuple[str, Codec]] = {
    K.TYPE_KIND_BOOL: (
        "boolean",
        Codec(
            "bool_value",
            identity,
            lambda stored: value_pb2.Value(bool_value=stored),
            array="bools",
            load_array=identity,
            dump_array=identity,
            filler=False,
        ),
    ),
    K.TYPE_KIND_INT16: ("smallint", codecs.integer(16)),
    K.TYPE_KIND_INT32: ("integer", codecs.integer(32)),
    K.TYPE_KIND_INT64: ("bigint", codecs.integer(64)),
    K.TYPE_KIND_FLOAT: (
        "real",
        Codec(
            "float_value",
            identity,
            lambda stored: value_pb2.Value(float_value=stored),
            from_int=exact_float32,
            array="floats",
            load_array=identity,
            dump_array=identity,
            filler=0.0,
            number=True,
        ),
    ),
    K.TYPE_KIND_DOUBLE: (
        "double precision",
        Codec(
            "double_value",
            identity,
            lambda stored: value_pb2.Value(double_value=stored),
            from_int=exact_float,
            array="doubles",
            load_array=identity,
            dump_array=identity,
            filler=0.0,
            number=True,
        ),
    ),
    K.TYPE_KIND_BYTES: ("bytea", codecs.BYTES),
    K.TYPE_KIND_TIMESTAMP: ("timestamp with time zone", times.TIMESTAMP),
    K.TYPE_KIND_DATETIME: ("timestamp without time zone", times.DATETIME),
    K.TYPE_KIND_DATE: ("date", times.DATE),
    K.TYPE_KIND_TIME: ("time without time zone", times.TIME),
    K.TYPE_KIND_UUID: (
        "uuid",
        Codec(
            "uuid_value",
            codecs.uuid_from_bytes,
            lambda stored: value_pb2.Value(uuid_value=stored.bytes),
            array="blobs",
            load_array=lambda blobs: (
                [codecs.uuid_from_bytes(blob) for blob in blobs] if all(len(blob) == 16 for blob in blobs) else None
            ),
            dump_array=lambda stored: [one.bytes for one in stored],
            filler=codecs.uuid_from_bytes(bytes(16)),
        ),
    ),
    K.TYPE_KIND_DURATION: ("interval", times.DURATION),
    K.TYPE_KIND_INET: ("inet", Codec("inet_value", codecs.inet_from_proto, codecs.inet_to_value)),
    K.TYPE_KIND_JSON: ("jsonb", codecs.json_text(codecs.text_check(None, nul=False), comparable=True)),
}

_TEXTS: dict[table_pb2.TypeKind.ValueType, Callable[[Any], str]] = {
    K.TYPE_KIND_TIMESTAMP: times.timestamp_text,
    K.TYPE_KIND_DATETIME: times.datetime_text,
    K.TYPE_KIND_DATE: times.date_text,
    K.TYPE_KIND_TIME: times.time_text,
}


def _varint() -> Codec:
    def load(number: int) -> decimal.Decimal:
        result = decimal.Decimal(number)
        if result.adjusted() >= VARINT_DIGITS:
            raise ValueError(f"has more than {VARINT_DIGITS} digits")
        return result

    return Codec(
        "varint_value",
        lambda data: load(int_from_bytes(data)),
        lambda stored: (
            value_pb2.Value(varint_value=int_to_bytes(int(stored)))
            if stored.is_finite()
            else codecs.decimal_to_value(stored)
        ),
        from_int=load,
        from_native=_no_number,
        number=True,
    )


def _decimal(precision: int | None, scale: int) -> Codec:
    check = codecs.fitting_decimal(precision, scale)
    return Codec(
        "decimal_value",
        lambda message: check(codecs.decimal_from_proto(message)),
        codecs.decimal_to_value,
        from_int=lambda number: check(decimal.Decimal(number)),
        from_native=_no_number,
        number=True,
    )


def _no_number(text: str) -> decimal.Decimal:
    if text not in ("NaN", "Infinity", "-Infinity"):
        raise ValueError("must be NaN, Infinity or -Infinity; what is a number is a decimal_value")
    return decimal.Decimal(text)


def storage(column_type: table_pb2.ColumnType, path: str) -> Storage:
    """How PostgreSQL keeps that type. Raises BackendCapabilityMissing or FieldInvalid of ``path``."""
    kind = column_type.kind
    if kind in _PLAIN:
        name, codec = _PLAIN[kind]
        return Storage(name, name, codec, text=_TEXTS.get(kind))
    if kind == K.TYPE_KIND_TEXT:
        length = column_type.length if column_type.HasField("length") else None
        if length is not None and not 1 <= length <= 10_485_760:
            raise errors.FieldInvalid(f"{path}.length", "must be from 1 to 10485760")
        codec = codecs.text(codecs.text_check(length, nul=False), length)
        return Storage("text" if length is None else f"character varying({length})", "text", codec)
    if kind == K.TYPE_KIND_VARINT:
        return Storage(f"numeric({VARINT_DIGITS},0)", "numeric", _varint())
    if kind == K.TYPE_KIND_DECIMAL:
        if not column_type.HasField("precision"):
            if column_type.HasField("scale"):
                raise errors.FieldInvalid(f"{path}.scale", "needs a precision")
            return Storage("numeric", "numeric", _decimal(None, 0))
        precision, scale = column_type.precision, column_type.scale
        if not 1 <= precision <= MAX_PRECISION:
            raise errors.FieldInvalid(f"{path}.precision", f"must be from 1 to {MAX_PRECISION}")
        if not -1000 <= scale <= 1000:
            raise errors.FieldInvalid(f"{path}.scale", "must be from -1000 to 1000")
        return Storage(f"numeric({precision},{scale})", "numeric", _decimal(precision, scale))
    if kind == K.TYPE_KIND_LIST:
        if len(column_type.elements) != 1:
            raise errors.FieldInvalid(f"{path}.elements", "a list has one element type")
        element = storage(column_type.elements[0], f"{path}.elements[0]")
        if column_type.elements[0].kind == K.TYPE_KIND_LIST:
            raise errors.BackendCapabilityMissing(f"{path}.elements[0]", "PostgreSQL has no lists of lists; use JSON")
        return Storage(f"{element.ddl}[]", f"{element.bind}[]", codecs.list_of(element.codec))
    if kind == K.TYPE_KIND_UNSPECIFIED:
        raise errors.FieldRequired(f"{path}.kind")
    name = K.Name(kind).removeprefix("TYPE_KIND_")
    raise errors.BackendCapabilityMissing(f"{path}.kind", f"PostgreSQL has no type for {name}{_WAY_OUT.get(kind, '')}")


_WAY_OUT = {
    K.TYPE_KIND_INT8: "; use INT16",
    K.TYPE_KIND_ASCII: "; use TEXT",
    K.TYPE_KIND_TIMEUUID: "; use UUID",
    K.TYPE_KIND_SET: "; use LIST",
    K.TYPE_KIND_MAP: "; use JSON",
    K.TYPE_KIND_TUPLE: "; use JSON",
    K.TYPE_KIND_STRUCT: "; use JSON",
    K.TYPE_KIND_COUNTER: "; use INT64, and `add`",
    K.TYPE_KIND_VECTOR: "; use LIST of FLOAT",
}

# --- what the catalog says ---------------------------------------------------------------------------------------

_FORMATTED = re.compile(
    r"(?P<base>[a-z ]+?)(?:\((?P<args>-?\d+(?:,-?\d+)?)\))?(?P<rest> with(?:out)? time zone)?(?P<array>\[\])?\Z"
)
_COARSE = re.compile(r"(?:timestamp|time|interval)\(([0-6])\)[a-z ]*\Z")
_KINDS: dict[str, table_pb2.TypeKind.ValueType] = {name: kind for kind, (name, _) in _PLAIN.items()} | {
    "text": K.TYPE_KIND_TEXT,
    "character varying": K.TYPE_KIND_TEXT,
    "character": K.TYPE_KIND_TEXT,
    "json": K.TYPE_KIND_JSON,
}


def column_type(formatted: str) -> table_pb2.ColumnType:
    """The type that ``format_type`` wrote so; NATIVE where this contract has none."""
    result = table_pb2.ColumnType(kind=K.TYPE_KIND_NATIVE, native_type=formatted)
    match = _FORMATTED.match(formatted)
    if match is None:
        return result
    if match["array"]:
        element = column_type(formatted.removesuffix("[]"))
        if element.kind != K.TYPE_KIND_NATIVE:
            result.kind = K.TYPE_KIND_LIST
            result.elements.append(element)
        return result
    base = match["base"] + (match["rest"] or "")
    arguments = [int(one) for one in (match["args"] or "").split(",") if one]
    if base == "numeric":
        _numeric(result, arguments)
    elif base in _KINDS:
        result.kind = _KINDS[base]
        if result.kind == K.TYPE_KIND_TEXT and arguments:
            result.length = arguments[0]
    return result


def _numeric(result: table_pb2.ColumnType, arguments: list[int]) -> None:
    if arguments == [VARINT_DIGITS, 0]:
        result.kind = K.TYPE_KIND_VARINT
        return
    result.kind = K.TYPE_KIND_DECIMAL
    if arguments:
        result.precision, result.scale = arguments


def stored_as(column_type: table_pb2.ColumnType) -> Storage:
    """How a column that is there is kept."""
    native = column_type.native_type
    if column_type.kind != K.TYPE_KIND_NATIVE:
        found = storage(column_type, "")
        if native.startswith("json") and not native.startswith("jsonb"):
            return Storage(native, native, codecs.json_text(codecs.text_check(None, nul=False), comparable=False))
        if coarse := _COARSE.match(native):
            exact = _no_finer(found.codec.load, int(coarse[1]))
            return replace(found, codec=replace(found.codec, load=exact, load_array=None))
        return found
    return Storage(native, native, native_codec(native), as_text=True)


def _no_finer(load: Callable[[Any], Any], digits: int) -> Callable[[Any], Any]:
    """PostgreSQL would round what is finer than the column."""

    def check(message: Any) -> Any:
        loaded = load(message)
        if loaded[-1] % 10 ** (6 - digits):
            raise ValueError(f"has more than {digits} digits of a second, which the column takes")
        return loaded

    return check


def native_codec(name: str) -> Codec:
    def load(message: Any) -> str:
        return codecs.text_check(None, nul=False)(message.text)

    return Codec(
        "native_value",
        load,
        lambda stored: value_pb2.Value(native_value=value_pb2.NativeValue(type=name, text=stored)),
        order=False,
    )
