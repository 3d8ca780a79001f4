"""Labels and request_ids: the same rules wherever a caller may set them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from onecontainer.errors import FieldViolation
from onecontainer.rpc.texts import control_problem

MAX_REQUEST_ID = 128
MAX_LABELS = 32
MAX_LABEL_VALUE = 256
LABEL_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,62}")


def label_violations(labels: Mapping[str, str], path: str = "labels") -> Iterator[FieldViolation]:
    """What is wrong with labels, with full paths (``labels['Key']``)."""
    if len(labels) > MAX_LABELS:
        yield FieldViolation(path, f"has {len(labels)} labels; at most {MAX_LABELS} are allowed")
    for key, value in labels.items():
        place = f"{path}[{key[:64]!r}]"
        if not LABEL_KEY.fullmatch(key):
            yield FieldViolation(place, f"the key does not match {LABEL_KEY.pattern}")
        if len(value) > MAX_LABEL_VALUE:
            yield FieldViolation(place, f"the value has more than {MAX_LABEL_VALUE} characters")
        elif problem := control_problem(value):
            yield FieldViolation(place, f"the value {problem}")


def request_id_violations(request_id: str, path: str = "request_id") -> Iterator[FieldViolation]:
    """What is wrong with an idempotency key; an empty one is none."""
    if len(request_id) > MAX_REQUEST_ID:
        yield FieldViolation(path, f"has {len(request_id)} characters; at most {MAX_REQUEST_ID} are allowed")
    elif problem := control_problem(request_id):
        yield FieldViolation(path, problem)
