"""Names of classes: sets that come along, and lists in files."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from onecontainer.driver import errors

# name → file beside this one, an array of names
WELL_KNOWN = {"imagenet-1k": "imagenet-1k.json"}
MAX_LABELS = 1_000_000
MAX_FILE_BYTES = 32 * 1024 * 1024


@cache
def well_known(name: str) -> tuple[str, ...]:
    """Raises FieldInvalid for a set that does not come along."""
    if name not in WELL_KNOWN:
        raise errors.FieldInvalid(
            "config.classification.labels.well_known", f"there is no set {name!r}; there is {', '.join(WELL_KNOWN)}"
        )
    return tuple(
        json.loads(resources.files("onecontainer.driver.models").joinpath(WELL_KNOWN[name]).read_text(encoding="utf-8"))
    )


def parse(data: bytes) -> tuple[str, ...]:
    """One name per line, or a JSON array of names.

    Raises:
        DataInvalid: neither of them, or too many.
    """
    path = "config.classification.labels.artifact"
    try:
        text = data.decode("utf-8-sig")
        names = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise errors.DataInvalid(path, f"is neither lines of UTF-8 nor a JSON array: {error}") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise errors.DataInvalid(path, "must hold names, at least one")
    if len(names) > MAX_LABELS:
        raise errors.DataInvalid(path, f"holds {len(names)} names; {MAX_LABELS} are allowed")
    return tuple(names)
