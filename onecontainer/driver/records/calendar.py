"""Dates of the proleptic Gregorian calendar as days since 1970-01-01, for all years.

Python's own dates have the years 1 to 9999. The days of 400 years are always the same, so the others are counted from those.
"""

from __future__ import annotations

import datetime as dt

from onecontainer.api.db.v1 import value_pb2

_EPOCH = dt.date(1970, 1, 1).toordinal()
_ERA_YEARS, _ERA_DAYS = 400, 146_097


def days_from_date(date: value_pb2.Date) -> int:
    """Raises ValueError for what is no date."""
    era, year = divmod(date.year - 1, _ERA_YEARS)
    try:
        return dt.date(year + 1, date.month, date.day).toordinal() - _EPOCH + era * _ERA_DAYS
    except (ValueError, OverflowError) as error:
        raise ValueError(f"is not a date: {error}") from None


def date_from_days(days: int) -> value_pb2.Date:
    era, rest = divmod(days + _EPOCH - 1, _ERA_DAYS)
    date = dt.date.fromordinal(rest + 1)
    return value_pb2.Date(year=date.year + era * _ERA_YEARS, month=date.month, day=date.day)
