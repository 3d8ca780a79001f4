"""Ids that sort by the time they were made."""

from __future__ import annotations

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [one + other for one in _ALPHABET for other in _ALPHABET]


def new_id() -> str:
    """26 characters: a ULID (48 bits of milliseconds, 80 random bits) in lower-case Crockford base 32.

    Source: https://github.com/ulid/spec
    """
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in range(120, -1, -10)])
