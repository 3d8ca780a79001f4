"""Dates and times of PostgreSQL as it counts them itself: days and microseconds since 2000-01-01, each alone in a tuple.

asyncpg's own forms are Python's, of which it takes the first and the last moment for minus and plus infinity: these would be stored
in place of what was sent. And what Python's calendar does not have (infinity, years before 1 and after 9999, 24:00:00) it cannot read.
Such values are shown as NATIVE, in PostgreSQL's text form, and taken back in that form.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable

from google.protobuf import timestamp_pb2

from onecontainer.api.db.v1 import value_pb2
from onecontainer.driver.records import calendar
from onecontainer.driver.records.model import Codec
from onecontainer_driver_sql import codecs

Count = tuple[int]
"""What asyncpg takes and gives where a type's format is ``tuple``."""

TYPES = ("date", "time", "timestamp", "timestamptz")
"""The types whose format is to be that."""

_EPOCH_DAYS = 10_957  # 2000-01-01 since 1970-01-01
_EPOCH_ORDINAL = dt.date(2000, 1, 1).toordinal()
_DAY = 86_400_000_000
_EPOCH = _EPOCH_DAYS * _DAY
_FIRST_DAY = calendar.days_from_date(value_pb2.Date(year=1, month=1, day=1)) - _EPOCH_DAYS
_LAST_DAY = calendar.days_from_date(value_pb2.Date(year=9999, month=12, day=31)) - _EPOCH_DAYS
_FIRST, _LAST = _FIRST_DAY * _DAY, (_LAST_DAY + 1) * _DAY - 1
_TEXT = re.compile(
    r"(?P<year>\d{4,7})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?: (?P<hours>\d\d):(?P<minutes>\d\d):(?P<seconds>\d\d)(?:\.(?P<fraction>\d{1,6}))?(?P<zone>\+00)?)?(?P<bc> BC)?\Z",
    re.ASCII,
)
_INFINITIES = {32: (-(2**31), 2**31 - 1), 64: (-(2**63), 2**63 - 1)}


# --- parts -------------------------------------------------------------------------------------------------------


def _micros_of_day(message: value_pb2.Time) -> int:
    time = codecs.time_from_proto(message)
    return ((time.hour * 60 + time.minute) * 60 + time.second) * 1_000_000 + time.microsecond


def _time(micros: int) -> value_pb2.Time:
    seconds, micros = divmod(micros, 1_000_000)
    return value_pb2.Time(hours=seconds // 3600, minutes=seconds // 60 % 60, seconds=seconds % 60, nanos=micros * 1000)


def _days(message: value_pb2.Date) -> int:
    return codecs.date_from_proto(message).toordinal() - _EPOCH_ORDINAL


def _date(days: int) -> value_pb2.Date:
    """Of the years 1 to 9999."""
    return codecs.date_to_proto(dt.date.fromordinal(days + _EPOCH_ORDINAL))


def _date_text(days: int) -> tuple[str, str]:
    """The date, and what stands at the very end."""
    date = calendar.date_from_days(days + _EPOCH_DAYS)
    year, end = (date.year, "") if date.year > 0 else (1 - date.year, " BC")
    return f"{year:04}-{date.month:02}-{date.day:02}", end


def _clock_text(micros: int) -> str:
    seconds, micros = divmod(micros, 1_000_000)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{micros:06}".rstrip("0") if micros else text


def _infinity(count: int, bits: int) -> str | None:
    low, high = _INFINITIES[bits]
    return "-infinity" if count == low else "infinity" if count == high else None


def date_text(stored: Count) -> str:
    """As PostgreSQL writes it."""
    text, end = _date_text(stored[0])
    return _infinity(stored[0], 32) or text + end


def time_text(stored: Count) -> str:
    return _clock_text(stored[0])


def _moment_text(zone: str) -> Callable[[Count], str]:
    def text(stored: Count) -> str:
        days, micros = divmod(stored[0], _DAY)
        date, end = _date_text(days)
        return _infinity(stored[0], 64) or f"{date} {_clock_text(micros)}{zone}{end}"

    return text


timestamp_text = _moment_text("+00")
datetime_text = _moment_text("")


def _native(name: str, text: str) -> value_pb2.Value:
    return value_pb2.Value(native_value=value_pb2.NativeValue(type=name, text=text))


def _from_native(bits: int, text_of: Callable[[Count], str]) -> Callable[[str], Count]:
    """The inverse of ``text_of``; it takes no other form than that gives."""

    def parse(text: str) -> Count:
        low, high = _INFINITIES[bits]
        if text in ("infinity", "-infinity"):
            return (high if text == "infinity" else low,)
        found = _TEXT.match(text)
        if found is not None:
            year = 1 - int(found["year"]) if found["bc"] else int(found["year"])
            date = value_pb2.Date(year=year, month=int(found["month"]), day=int(found["day"]))
            count = calendar.days_from_date(date) - _EPOCH_DAYS
            if bits == 64:
                seconds = (int(found["hours"] or 0) * 60 + int(found["minutes"] or 0)) * 60 + int(found["seconds"] or 0)
                count = count * _DAY + seconds * 1_000_000 + int((found["fraction"] or "0").ljust(6, "0"))
            if low < count < high and text_of((count,)) == text:
                return (count,)
        raise ValueError("is not in the form in which it is shown, such as infinity or 0044-03-15 BC")

    return parse


# --- codecs ------------------------------------------------------------------------------------------------------


def _load_date(message: value_pb2.Date) -> Count:
    return (_days(message),)


def _make_date(stored: Count) -> value_pb2.Value:
    if _FIRST_DAY <= stored[0] <= _LAST_DAY:
        return value_pb2.Value(date_value=_date(stored[0]))
    return _native("date", date_text(stored))


DATE = Codec("date_value", _load_date, _make_date, from_native=_from_native(32, date_text))


def _time_from_native(text: str) -> Count:
    if text != "24:00:00":
        raise ValueError("must be 24:00:00, or a time_value")
    return (_DAY,)


def _make_time(stored: Count) -> value_pb2.Value:
    if stored[0] < _DAY:
        return value_pb2.Value(time_value=_time(stored[0]))
    return _native("time without time zone", time_text(stored))


TIME = Codec("time_value", lambda message: (_micros_of_day(message),), _make_time, from_native=_time_from_native)


def _load_datetime(message: value_pb2.DateTime) -> Count:
    if not message.HasField("date"):
        raise ValueError("has no date")
    return (_days(message.date) * _DAY + _micros_of_day(message.time),)


def _make_datetime(stored: Count) -> value_pb2.Value:
    if not _FIRST <= stored[0] <= _LAST:
        return _native("timestamp without time zone", datetime_text(stored))
    days, micros = divmod(stored[0], _DAY)
    return value_pb2.Value(datetime_value=value_pb2.DateTime(date=_date(days), time=_time(micros)))


DATETIME = Codec("datetime_value", _load_datetime, _make_datetime, from_native=_from_native(64, datetime_text))


def _load_timestamp(message: timestamp_pb2.Timestamp) -> Count:
    if not 0 <= message.nanos < 1_000_000_000:
        raise ValueError("nanos must be from 0 to 999999999")
    count = message.seconds * 1_000_000 + codecs.micros(message.nanos) - _EPOCH
    if not _FIRST <= count <= _LAST:
        raise ValueError("must be in the years 1 to 9999")
    return (count,)


def _make_timestamp(stored: Count) -> value_pb2.Value:
    if not _FIRST <= stored[0] <= _LAST:
        return _native("timestamp with time zone", timestamp_text(stored))
    seconds, micros = divmod(stored[0] + _EPOCH, 1_000_000)
    return value_pb2.Value(timestamp_value=timestamp_pb2.Timestamp(seconds=seconds, nanos=micros * 1000))


def _load_timestamps(micros: list[int]) -> list[Count] | None:
    if micros and not (min(micros) - _EPOCH >= _FIRST and max(micros) - _EPOCH <= _LAST):
        return None
    return [(count - _EPOCH,) for count in micros]


def _dump_timestamps(stored: list[Count]) -> list[int]:
    """Raises ValueError if one is NATIVE."""
    counts = [count for (count,) in stored]
    if counts and not (min(counts) >= _FIRST and max(counts) <= _LAST):
        raise ValueError
    return [count + _EPOCH for count in counts]


TIMESTAMP = Codec(
    "timestamp_value",
    _load_timestamp,
    _make_timestamp,
    array="timestamps_micros",
    load_array=_load_timestamps,
    dump_array=_dump_timestamps,
    filler=(-_EPOCH,),
    from_native=_from_native(64, timestamp_text),
)


# --- intervals ---------------------------------------------------------------------------------------------------

_MAX_MICROS = (2**63 - 1) // 1000
"""As nanoseconds, which the contract has, more does not fit."""
_ENDLESS = {
    (2**31 - 1, 2**31 - 1, 2**63 - 1): "infinity",
    (-(2**31), -(2**31), -(2**63)): "-infinity",
}
"""From PostgreSQL 17 on."""
_INTERVAL = re.compile(r"(-?\d{1,10}) mons (-?\d{1,10}) days (-?)(\d{2,10}):(\d\d):(\d\d)(?:\.(\d{1,6}))?\Z", re.ASCII)


def interval_text(stored: codecs.Duration) -> str:
    """As PostgreSQL takes it; it writes years, too."""
    months, days, micros = stored
    clock = ("-" if micros < 0 else "") + _clock_text(abs(micros))
    return _ENDLESS.get(stored) or f"{months} mons {days} days {clock}"


def _make_interval(stored: tuple[int, int, int]) -> value_pb2.Value:
    months, days, micros = stored
    if abs(micros) > _MAX_MICROS:
        return _native("interval", interval_text((months, days, micros)))
    return codecs.duration_to_value((months, days, micros))


def _interval_from_native(text: str) -> codecs.Duration:
    for stored, endless in _ENDLESS.items():
        if text == endless:
            return stored
    found = _INTERVAL.match(text)
    if found is None:
        raise ValueError("is not in the form in which it is shown, such as 1 mons -2 days 03:04:05.6")
    months, days, sign, hours, minutes, seconds, fraction = found.groups()
    micros = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1_000_000 + int((fraction or "0").ljust(6, "0"))
    return int(months), int(days), -micros if sign else micros


DURATION = Codec("duration_value", codecs.duration_from_proto, _make_interval, from_native=_interval_from_native)
