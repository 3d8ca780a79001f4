"""What a check of `oca doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: `ok`, `note` (works, but you may want to know) or `bad`; and what to do then."""

    level: str
    what: str
    detail: str
    hint: str = ""
