"""The filter language of the List methods: terms joined by AND, `field = "value"`, and times by `<`, `>`, `<=`, `>=`."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import NamedTuple

from onecontainer.clock import EPOCH
from onecontainer.errors import FieldInvalid
from onecontainer.rpc.texts import control_problem

MAX_FILTER_CHARS = 4096
LABEL_PREFIX = "labels."

_TOKEN = re.compile(
    r"""\s*(?:(?P<op><=|>=|=|<|>)|(?P<quoted>"(?:[^"\\]|\\["\\])*")|(?P<word>[^\s"<>=]+))""",
)
_LABEL_KEY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")


class Term(NamedTuple):
    """One comparison. `op` is `=`, or for times one of `<`, `>`, `<=`, `>=`."""

    field: str
    op: str
    value: str

    @property
    def micros(self) -> int:
        """The value of a time comparison, in microseconds since the epoch."""
        return micros_of(self.value)


def parse_filter(
    text: str, fields: Collection[str], *, times: Collection[str] = (), labels: bool = False, path: str = "filter"
) -> list[Term]:
    """The terms of a filter, none of an empty one.

    `fields` can be compared by `=`, `times` (RFC 3339) by order, and with `labels` each `labels.KEY` by `=`. Raises
    FieldInvalid for `path`, naming the place and what is possible there.
    """
    if len(text) > MAX_FILTER_CHARS:
        raise FieldInvalid(path, f"is longer than {MAX_FILTER_CHARS} characters")
    tokens = _tokens(text, path)
    terms: list[Term] = []
    position = 0
    while position < len(tokens):
        if terms:
            if tokens[position] != ("word", "AND"):
                raise FieldInvalid(path, f"needs AND before {tokens[position][1]!r}")
            position += 1
        if len(tokens) - position < 3:
            raise FieldInvalid(path, 'ends in the middle of a term; terms are `field = "value"`, joined by AND')
        (kind, field), (op_kind, op), (value_kind, value) = tokens[position : position + 3]
        if kind != "word" or op_kind != "op" or value_kind not in ("quoted", "word"):
            raise FieldInvalid(path, f'{field} {op} {value}: not a term; terms are `field = "value"`, joined by AND')
        terms.append(_term(field, op, value, fields, times, labels, path))
        position += 3
    return terms


def _tokens(text: str, path: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise FieldInvalid(path, f"cannot be read from character {position + 1} on (a quote that is not closed?)")
        kind = match.lastgroup or ""
        value = match.group(kind)
        if kind == "quoted":
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        tokens.append((kind, value))
        position = match.end()
    return tokens


def _term(
    field: str, op: str, value: str, fields: Collection[str], times: Collection[str], labels: bool, path: str
) -> Term:
    if field in times:
        if op == "=":
            raise FieldInvalid(path, f"{field} is a time: compare it by <, >, <= or >=")
        try:
            micros_of(value)
        except ValueError:
            raise FieldInvalid(path, f'{field}: {value!r} is not a time such as "2026-01-31T12:00:00Z"') from None
        return Term(field, op, value)
    is_label = labels and field.startswith(LABEL_PREFIX) and _LABEL_KEY.match(field.removeprefix(LABEL_PREFIX))
    if field not in fields and not is_label:
        known: list[str] = sorted({*fields, *times, *(["labels.KEY"] if labels else [])})
        raise FieldInvalid(path, f"has no field {field}; there are: {', '.join(known)}")
    if op != "=":
        raise FieldInvalid(path, f"{field} can be compared by = only")
    if problem := control_problem(value):
        raise FieldInvalid(path, f"{field}: the value {problem}")
    return Term(field, op, value)


def micros_of(text: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time; without an offset it is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    difference = moment - EPOCH
    return (difference.days * 86_400 + difference.seconds) * 1_000_000 + difference.microseconds
