"""Between ``db.v1.Value`` and what the database drivers take and give."""

from __future__ import annotations

import datetime as dt
import decimal
import ipaddress
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

from google.protobuf import timestamp_pb2

from onecontainer.api.db.v1 import value_pb2
from onecontainer.driver.records.model import (
    Codec,
    MissingKindError,
    address_bytes,
    identity,
    int_from_bytes,
    int_to_bytes,
    uuid_bytes,
)

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
EXACT = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
MAX_SCALE = 16_383
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Inet = ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Interface | ipaddress.IPv6Interface
Duration = tuple[int, int, int]
"""Months, days, microseconds."""


# --- numbers -----------------------------------------------------------------------------------------------------


def integer(bits: int) -> Codec:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def load(number: int) -> int:
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    def load_array(numbers: list[int]) -> list[int] | None:
        if bits == 64 or not numbers or (min(numbers) >= low and max(numbers) <= high):
            return numbers
        return None

    return Codec(
        "int64_value",
        load,
        lambda stored: value_pb2.Value(int64_value=stored),
        array="int64s",
        load_array=load_array,
        dump_array=identity,
        filler=0,
        number=True,
    )


def decimal_from_proto(message: value_pb2.Decimal) -> decimal.Decimal:
    if abs(message.scale) > MAX_SCALE:
        raise ValueError(f"scale must be from {-MAX_SCALE} to {MAX_SCALE}")
    return EXACT.scaleb(decimal.Decimal(int_from_bytes(message.unscaled)), -message.scale)


def decimal_to_value(number: decimal.Decimal) -> value_pb2.Value:
    exponent = number.as_tuple().exponent
    if not isinstance(
        exponent, int
    ):  # numeric of PostgreSQL has NaN and infinities, which Decimal of the contract has not
        return value_pb2.Value(native_value=value_pb2.NativeValue(type="numeric", text=str(number)))
    unscaled = int(EXACT.scaleb(number, -exponent))
    return value_pb2.Value(
        decimal_value=value_pb2.Decimal(unscaled=int_to_bytes(unscaled), scale=-exponent),
    )


def fitting_decimal(precision: int | None, scale: int) -> Callable[[decimal.Decimal], decimal.Decimal]:
    """Checks that a number fits DECIMAL(precision, scale) without being rounded."""

    def check(number: decimal.Decimal) -> decimal.Decimal:
        if precision is None or not number:
            return number
        digits = number.normalize(EXACT)
        exponent = digits.as_tuple().exponent
        assert isinstance(exponent, int)
        if exponent < -scale:
            raise ValueError(f"has more than {scale} digits after the point")
        if digits.adjusted() >= precision - scale:
            raise ValueError(f"has more than {precision - scale} digits before the point")
        return number

    return check


def no_nan(number: float) -> float:
    if math.isnan(number):
        raise ValueError("is not a number (NaN), which this backend would store as null")
    return number


# --- text and bytes ----------------------------------------------------------------------------------------------


def text_check(length: int | None, *, nul: bool) -> Callable[[str], str]:
    """Checks the length in characters, and NUL where the backend does not have it."""

    def check(text: str) -> str:
        if length is not None and len(text) > length:
            raise ValueError(f"has {len(text)} characters, the column takes {length}")
        if not nul and "\0" in text:
            raise ValueError("has a NUL character, which this backend cannot store")
        return text

    return check


def text(check: Callable[[str], str], length: int | None) -> Codec:
    return Codec(
        "text_value",
        check,
        lambda stored: value_pb2.Value(text_value=stored),
        array="texts",
        # A NUL is left to the backend here, which refuses it.
        load_array=lambda texts: texts if length is None or max(map(len, texts), default=0) <= length else None,
        dump_array=identity,
        filler="",
    )


def json_text(check: Callable[[str], str], *, comparable: bool) -> Codec:
    def refuse(constant: str) -> None:
        raise ValueError(f"is not JSON: {constant}")

    def load(document: str) -> str:
        try:
            json.loads(document, parse_constant=refuse, parse_int=identity, parse_float=identity)
        except RecursionError:
            raise ValueError("is nested too deeply") from None
        return check(document)

    return Codec(
        "json_value",
        load,
        lambda stored: value_pb2.Value(json_value=stored),
        array="texts",
        load_array=lambda texts: [load(text) for text in texts] if _all_load(load, texts) else None,
        dump_array=identity,
        filler="null",
        equality=comparable,
        order=False,
    )


def _all_load(load: Callable[[Any], Any], values: list[Any]) -> bool:
    try:
        for value in values:
            load(value)
    except ValueError:
        return False
    return True


BYTES = Codec(
    "bytes_value",
    identity,
    lambda stored: value_pb2.Value(bytes_value=stored),
    array="blobs",
    load_array=identity,
    dump_array=identity,
    filler=b"",
)


def uuid_from_bytes(data: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=uuid_bytes(data))


# --- time --------------------------------------------------------------------------------------------------------


def micros(nanos: int) -> int:
    """Raises ValueError where that would cut digits off."""
    if nanos % 1000:
        raise ValueError("has more digits than microseconds, which is this backend's resolution")
    return nanos // 1000


def timestamp_from_proto(message: timestamp_pb2.Timestamp) -> dt.datetime:
    if not 0 <= message.nanos < 1_000_000_000:
        raise ValueError("nanos must be from 0 to 999999999")
    fraction = micros(message.nanos)
    try:
        return EPOCH + dt.timedelta(seconds=message.seconds, microseconds=fraction)
    except OverflowError:
        raise ValueError("must be in the years 1 to 9999") from None


def timestamp_to_value(moment: dt.datetime) -> value_pb2.Value:
    since = moment - EPOCH
    return value_pb2.Value(
        timestamp_value=timestamp_pb2.Timestamp(
            seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000
        )
    )


def micros_from_datetimes(moments: list[dt.datetime]) -> list[int]:
    micro = dt.timedelta(microseconds=1)
    return [(moment - EPOCH) // micro for moment in moments]


def datetimes_from_micros(counts: list[int]) -> list[dt.datetime] | None:
    try:
        return [EPOCH + dt.timedelta(microseconds=value) for value in counts]
    except OverflowError:
        return None


def date_from_proto(message: value_pb2.Date) -> dt.date:
    try:
        return dt.date(message.year, message.month, message.day)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"is not a date of the years 1 to 9999: {error}") from None


def date_to_proto(date: dt.date) -> value_pb2.Date:
    return value_pb2.Date(year=date.year, month=date.month, day=date.day)


def time_from_proto(message: value_pb2.Time) -> dt.time:
    if not 0 <= message.nanos < 1_000_000_000:
        raise ValueError("nanos must be from 0 to 999999999")
    try:
        return dt.time(message.hours, message.minutes, message.seconds, micros(message.nanos))
    except OverflowError as error:
        raise ValueError(str(error)) from None


def time_to_proto(time: dt.time) -> value_pb2.Time:
    return value_pb2.Time(hours=time.hour, minutes=time.minute, seconds=time.second, nanos=time.microsecond * 1000)


def datetime_from_proto(message: value_pb2.DateTime) -> dt.datetime:
    if not message.HasField("date"):
        raise ValueError("has no date")
    return dt.datetime.combine(date_from_proto(message.date), time_from_proto(message.time))


def datetime_to_value(moment: dt.datetime) -> value_pb2.Value:
    return value_pb2.Value(
        datetime_value=value_pb2.DateTime(date=date_to_proto(moment.date()), time=time_to_proto(moment.time()))
    )


def duration_from_proto(message: value_pb2.CalendarDuration) -> Duration:
    return message.months, message.days, micros(message.nanos)


def duration_to_value(duration: Duration) -> value_pb2.Value:
    months, days, fraction = duration
    return value_pb2.Value(
        duration_value=value_pb2.CalendarDuration(months=months, days=days, nanos=fraction * 1000),
    )


# --- addresses ---------------------------------------------------------------------------------------------------


def inet_from_proto(message: value_pb2.Inet) -> Inet:
    given = address_bytes(message)
    if not message.HasField("prefix_length") or message.prefix_length == len(given) * 8:
        return ipaddress.ip_address(given)
    return ipaddress.ip_interface((given, message.prefix_length))


def inet_to_value(inet: Any) -> value_pb2.Value:
    """Takes addresses, and interfaces where the prefix is not the whole address."""
    message = value_pb2.Inet(address=inet.packed)
    if isinstance(inet, ipaddress.IPv4Interface | ipaddress.IPv6Interface):
        message.prefix_length = inet.network.prefixlen
    return value_pb2.Value(inet_value=message)


# --- lists -------------------------------------------------------------------------------------------------------


def list_of(element: Codec) -> Codec:
    def load(message: value_pb2.ListValue) -> list[Any]:
        loaded = []
        for index, value in enumerate(message.values):
            try:
                loaded.append(element.write(value))
            except MissingKindError:
                raise
            except ValueError as error:
                raise ValueError(f"element {index} {error}") from None
        return loaded

    def make(stored: list[Any]) -> value_pb2.Value:
        # PostgreSQL arrays may have several dimensions whatever their type says.
        values = [make(item) if isinstance(item, list) else element.read(item) for item in stored]
        return value_pb2.Value(list_value=value_pb2.ListValue(values=values))

    return Codec("list_value", load, make, equality=element.equality, order=element.order, element=element)
