"""Dates as days since 1970-01-01, in the bounds that CQL has."""

from __future__ import annotations

from onecontainer.api.db.v1 import value_pb2
from onecontainer.driver.records import calendar

MIN_DAYS, MAX_DAYS = -(2**31), 2**31 - 1

date_from_days = calendar.date_from_days


def days_from_date(date: value_pb2.Date) -> int:
    """Raises ValueError for what is no date, or out of range."""
    days = calendar.days_from_date(date)
    if not MIN_DAYS <= days <= MAX_DAYS:
        raise ValueError("must be from -5877641-06-23 to 5881580-07-11")
    return days
