"""Values and column types of the database contract from Python's own, and back.

| Python | Value |
| --- | --- |
| None, bool, int, float, str, bytes | null, bool, int64 (varint beyond 64 bits), double, text, bytes |
| decimal.Decimal | decimal |
| datetime with / without time zone, date, time | timestamp / datetime, date, time |
| uuid.UUID, ipaddress address or interface | uuid, inet |
| list, set or frozenset, tuple, dict | list, set, tuple, map |

Kinds without such a type (struct, duration, json, vector, native) are passed, and come back, as their `Value`.
"""

from __future__ import annotations

import datetime as dt
import decimal
import ipaddress
import re
import uuid
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from onecontainer.api.db.v1 import record_pb2, table_pb2, value_pb2

INT64 = range(-(2**63), 2**63)
_TYPE = re.compile(r"^(?P<kind>[a-z0-9]+)(?:\((?P<numbers>\d+(?:,\d+)?)\)|<(?P<elements>.+)>)?$")
_TYPE_WORDS = {
    "integer": "int64",
    "int": "int64",
    "string": "text",
    "blob": "bytes",
    "boolean": "bool",
    "real": "double",
}


def to_value(value: Any) -> value_pb2.Value:
    """The Value of a Python object. Raises TypeError for a type that is not in the table above."""
    out = value_pb2.Value()
    match value:
        case value_pb2.Value():
            return value
        case None:
            out.null_value = struct_pb2.NULL_VALUE
        case bool():
            out.bool_value = value
        case int() if value in INT64:
            out.int64_value = value
        case int():
            out.varint_value = _twos_complement(value)
        case float():
            out.double_value = value
        case str():
            out.text_value = value
        case bytes():
            out.bytes_value = value
        case decimal.Decimal():
            out.decimal_value.CopyFrom(_decimal(value))
        case dt.datetime() if value.tzinfo is not None:
            out.timestamp_value.FromDatetime(value)
        case dt.datetime():
            out.datetime_value.date.CopyFrom(_date(value))
            out.datetime_value.time.CopyFrom(_time(value.time()))
        case dt.date():
            out.date_value.CopyFrom(_date(value))
        case dt.time() if value.tzinfo is None:
            out.time_value.CopyFrom(_time(value))
        case uuid.UUID():
            out.uuid_value = value.bytes
        case ipaddress.IPv4Interface() | ipaddress.IPv6Interface():
            out.inet_value.address = value.packed
            out.inet_value.prefix_length = value.network.prefixlen
        case ipaddress.IPv4Address() | ipaddress.IPv6Address():
            out.inet_value.address = value.packed
        case list():
            out.list_value.CopyFrom(_list(value))
        case tuple():
            out.tuple_value.CopyFrom(_list(value))
        case set() | frozenset():
            out.set_value.CopyFrom(_list(value))
        case Mapping():
            entries = [value_pb2.MapEntry(key=to_value(k), value=to_value(v)) for k, v in value.items()]
            out.map_value.CopyFrom(value_pb2.MapValue(entries=entries))
        case _:
            raise TypeError(f"a {type(value).__name__} has no kind of Value; pass a db.v1.Value")
    return out


def from_value(value: value_pb2.Value) -> Any:
    """The Python object of a Value; the Value itself where there is no such type, or where Python's would lose digits."""
    kind = value.WhichOneof("kind")
    match kind:
        case "null_value" | None:
            return None
        case "bool_value" | "int64_value" | "double_value" | "float_value" | "text_value" | "bytes_value":
            return getattr(value, kind)
        case "varint_value":
            return int.from_bytes(value.varint_value, "big", signed=True)
        case "decimal_value":
            unscaled = int.from_bytes(value.decimal_value.unscaled, "big", signed=True)
            sign, digits = int(unscaled < 0), tuple(int(digit) for digit in str(abs(unscaled)))
            return decimal.Decimal((sign, digits, -value.decimal_value.scale))
        case "timestamp_value":
            return value if value.timestamp_value.nanos % 1000 else value.timestamp_value.ToDatetime(tzinfo=dt.UTC)
        case "datetime_value":
            date, time = _python_date(value.datetime_value.date), _python_time(value.datetime_value.time)
            return value if date is None or time is None else dt.datetime.combine(date, time)
        case "date_value":
            found = _python_date(value.date_value)
            return value if found is None else found
        case "time_value":
            moment = _python_time(value.time_value)
            return value if moment is None else moment
        case "uuid_value":
            return uuid.UUID(bytes=value.uuid_value)
        case "inet_value":
            address = ipaddress.ip_address(value.inet_value.address)
            prefixed = value.inet_value.HasField("prefix_length")
            return ipaddress.ip_interface((address, value.inet_value.prefix_length)) if prefixed else address
        case "list_value" | "set_value" | "tuple_value":
            # A set may hold what Python cannot hash, so it comes as a list, in the answer's order.
            values = [from_value(item) for item in getattr(value, kind).values]
            return tuple(values) if kind == "tuple_value" else values
        case "map_value":
            return {_key(from_value(entry.key)): from_value(entry.value) for entry in value.map_value.entries}
        case _:
            return value


def to_record(fields: Mapping[str, Any]) -> record_pb2.Record:
    """A Record of columns and Python objects."""
    return record_pb2.Record(fields={name: to_value(value) for name, value in fields.items()})


def from_record(record: record_pb2.Record) -> dict[str, Any]:
    """Columns and Python objects of a Record."""
    return {name: from_value(value) for name, value in record.fields.items()}


def column_type(text: str) -> table_pb2.ColumnType:
    """The type that a short text names: `int64`, `text(40)`, `decimal(10,2)`, `list<text>`, `map<text,int64>`, `vector(3)`.

    Raises ValueError with the list of names.
    """
    match = _TYPE.match(re.sub(r"\s", "", text).lower())
    word = _TYPE_WORDS.get(match["kind"], match["kind"]) if match else ""
    kinds = {name.removeprefix("TYPE_KIND_").lower(): number for name, number in table_pb2.TypeKind.items() if number}
    if match is None or word not in kinds:
        raise ValueError(f"{text!r} is no column type; the types are {', '.join(kinds)}")
    found = table_pb2.ColumnType(kind=kinds[word])
    numbers = [int(number) for number in (match["numbers"] or "").split(",") if number]
    if numbers and word == "decimal":
        found.precision = numbers[0]
        if len(numbers) > 1:
            found.scale = numbers[1]
    elif numbers and word in ("text", "vector") and len(numbers) == 1:
        setattr(found, "length" if word == "text" else "dimension", numbers[0])
    elif numbers:
        raise ValueError(f"{text!r}: {word} takes no numbers like that")
    if match["elements"]:
        found.elements.extend(column_type(element) for element in _split(match["elements"]))
    return found


def type_text(column: table_pb2.ColumnType) -> str:
    """The short text of a column's type."""
    word = table_pb2.TypeKind.Name(column.kind).removeprefix("TYPE_KIND_").lower()
    if column.elements:
        return f"{word}<{','.join(type_text(element) for element in column.elements)}>"
    if column.HasField("precision"):
        return (
            f"{word}({column.precision},{column.scale})" if column.HasField("scale") else f"{word}({column.precision})"
        )
    for field in ("length", "dimension"):
        if column.HasField(field):
            return f"{word}({getattr(column, field)})"
    return column.native_type if word == "native" else word


def _split(text: str) -> list[str]:
    """Parts between commas that are in no brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "<(") - (char in ">)")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _list(values: Any) -> value_pb2.ListValue:
    return value_pb2.ListValue(values=[to_value(value) for value in values])


def _twos_complement(value: int) -> bytes:
    return value.to_bytes((value if value >= 0 else ~value).bit_length() // 8 + 1, "big", signed=True)


def _decimal(value: decimal.Decimal) -> value_pb2.Decimal:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise TypeError(f"{value} is no number that a column can hold")
    unscaled = int("".join(map(str, digits)) or "0") * (-1 if sign else 1)
    return value_pb2.Decimal(unscaled=_twos_complement(unscaled), scale=-exponent)


def _date(value: dt.date) -> value_pb2.Date:
    return value_pb2.Date(year=value.year, month=value.month, day=value.day)


def _time(value: dt.time) -> value_pb2.Time:
    return value_pb2.Time(hours=value.hour, minutes=value.minute, seconds=value.second, nanos=value.microsecond * 1000)


def _python_date(value: value_pb2.Date) -> dt.date | None:
    return dt.date(value.year, value.month, value.day) if 1 <= value.year <= 9999 else None


def _python_time(value: value_pb2.Time) -> dt.time | None:
    if value.nanos % 1000:
        return None
    return dt.time(value.hours, value.minutes, value.seconds, value.nanos // 1000)


def _key(value: Any) -> Any:
    """A map's key that Python can hash."""
    if isinstance(value, list):
        return tuple(value)
    return value.SerializeToString() if isinstance(value, value_pb2.Value) else value
