"""How results are shown: tables for people, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf import any_pb2, descriptor_pool, duration_pb2, json_format, timestamp_pb2, wrappers_pb2
from google.protobuf.internal.containers import MessageMap, ScalarMap
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

Cell = object
PIPE_WIDTH = 4096
_STRUCTS = ("google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue")
_EXACT = 2**53
"""Up to here a double holds every whole number."""
FindTypes = Callable[..., Any]
_ALWAYS_ASKED = ("google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo", "google.rpc.ResourceInfo")
"""Types that errors inside a message hold: a pool asked for must have them, too."""
_GIVEN_UP = ""
_BYTES_MARK = f"/{wrappers_pb2.BytesValue.DESCRIPTOR.full_name}"
_UNKNOWN_TYPE = re.compile(r"type(?:\.googleapis\.com)?[^ ]*/([\w.]+)")
_STATE_COLOURS = {
    "READY": "green",
    "SUCCEEDED": "green",
    "OK": "green",
    "RUNNING": "cyan",
    "STARTING": "yellow",
    "PROBING": "yellow",
    "QUEUED": "yellow",
    "RETRY_WAIT": "yellow",
    "CANCELLING": "yellow",
    "DRAINING": "yellow",
    "BACKOFF": "red",
    "UNAVAILABLE": "red",
    "UNASSIGNED": "red",
    "FAILED": "red",
    "BROKEN": "red",
    "EXPIRED": "red",
    "CANCELLED": "magenta",
}


class Screen:
    """Shows results the way the user wants them.

    Attributes:
        output: `table` or `json`.
        pool: where the types of an Any are looked up first.
        console: for what is only for people; in JSON mode it writes to stderr.
    """

    def __init__(self, output: str, find_types: FindTypes | None = None) -> None:
        self.output = output
        self.pool = descriptor_pool.Default()
        self._find_types = find_types
        self.console = Console(stderr=self.is_json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            # A pipe has no width to wrap at.
            self.console.width = PIPE_WIDTH

    @property
    def is_json(self) -> bool:
        return self.output == "json"

    def messages(
        self, found: Sequence[Message], columns: Mapping[str, Callable[[Any], Cell]], *, empty: str = "There are none."
    ) -> None:
        """A list: a row for each, or a JSON array."""
        if self.is_json:
            self.data([self.to_json(message) for message in found])
        elif not found:
            self.say(empty)
        else:
            self.rows([{name: cell(message) for name, cell in columns.items()} for message in found])

    def message(self, message: Message, fields: Mapping[str, Cell] | None = None) -> None:
        """One thing: its fields (those given, else all that are set), or JSON."""
        if self.is_json:
            self.data(self.to_json(message))
            return
        shown = fields if fields is not None else self.to_json(message)
        grid = Table.grid(padding=(0, 2))
        for name, value in shown.items():
            if value not in (None, "", [], {}):
                grid.add_row(Text(name, style="bold"), _cell(value))
        self._print(grid)

    def rows(self, rows: Sequence[Mapping[str, Cell]]) -> None:
        """Rows of one shape as a table, or as a JSON array."""
        if self.is_json:
            self.data(rows)
            return
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for index, name in enumerate(rows[0] if rows else ()):
            table.add_column(name.upper(), overflow="fold", no_wrap=index == 0)
        for row in rows:
            table.add_row(*map(_cell, row.values()))
        self._print(table)

    def _print(self, table: Table) -> None:
        if self.console.is_terminal:
            self.console.print(table)
            return
        with self.console.capture() as captured:
            self.console.print(table)
        # Without the spaces that fill the last column.
        click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def data(self, value: Any) -> None:
        """JSON to stdout; coloured on a terminal."""
        text = json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False, default=_plain)
        click.echo(text)

    def pretty(self, message: Message) -> str:
        """A message as indented JSON."""
        return json.dumps(self.to_json(message), indent=2, ensure_ascii=False)

    def say(self, text: str) -> None:
        """A line for people. Not on stdout in JSON mode."""
        self.console.print(text, markup=False)

    def to_json(self, message: Message) -> Any:
        """A message as JSON with the contract's field names.

        The type of an Any that is not known here is asked from the gateway; what nobody knows is shown as its bytes.
        """
        pool = self.pool
        asked: list[str] = []
        while True:
            try:
                shown = json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool)
                shown = _whole(shown, message.DESCRIPTOR)
                return _without_marks(shown) if _GIVEN_UP in asked else shown
            except (TypeError, json_format.Error) as error:
                match = _UNKNOWN_TYPE.search(str(error))
                if match is None:
                    raise
                if match[1] in asked or self._find_types is None or _GIVEN_UP in asked:
                    asked.append(_GIVEN_UP)
                    message = type(message).FromString(message.SerializeToString())
                    _as_bytes(message, match[1])
                    pool = descriptor_pool.Default()
                else:
                    asked.append(match[1])
                    pool = self._find_types(*asked, *_ALWAYS_ASKED)


def screen_of(output: str | None) -> Screen:
    """How to show things in a command without a session; errors then know, too."""
    ctx = click.get_current_context()
    screen = Screen(output or ctx.find_root().params.get("output") or "table")
    ctx.meta["onecontainer.output"] = screen.output
    return screen


def _as_bytes(message: Message, unknown: str) -> None:
    """Turns each Any of a type that nobody knows into one of a type that JSON has a form for, and marks it."""
    if isinstance(message, any_pb2.Any):
        if message.TypeName() == unknown:
            message.value = wrappers_pb2.BytesValue(value=message.value).SerializeToString()
            message.type_url += _BYTES_MARK
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            items = list(value.values()) if field.message_type.fields_by_name["value"].message_type else []
        else:
            items = list(value) if field.is_repeated else [value]
        for item in items:
            _as_bytes(item, unknown)


def _without_marks(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_marks(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_marks(item) for item in value]
    return value.removesuffix(_BYTES_MARK) if isinstance(value, str) else value


def _whole(shown: Any, kind: Any) -> Any:
    """The JSON of a message (`kind`: its descriptor) without the `.0` of whole numbers where a Struct has them, which keeps all numbers as
    doubles. A field that is a double is one."""
    if kind.full_name in _STRUCTS:
        return _without_points(shown)
    if not isinstance(shown, dict):
        return shown
    for field in kind.fields:
        below, value = field.message_type, shown.get(field.name)
        if below is not None and isinstance(value, dict) and below.GetOptions().map_entry:
            below = below.fields_by_name["value"].message_type
            if below is not None:
                shown[field.name] = {name: _whole(item, below) for name, item in value.items()}
        elif below is not None and field.is_repeated and isinstance(value, list):
            shown[field.name] = [_whole(item, below) for item in value]
        elif below is not None and value is not None:
            shown[field.name] = _whole(value, below)
    return shown


def _without_points(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_points(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_points(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value


def _cell(value: Cell) -> Text | str:
    """A value as a table shows it."""
    if isinstance(value, Text):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, timestamp_pb2.Timestamp):
        return moment(value)
    if isinstance(value, duration_pb2.Duration):
        seconds = value.ToNanoseconds() / 1e9
        return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.4g} s"
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 32 else f"{value[:16].hex()}… ({len(value)} bytes)"
    if isinstance(value, str):
        return state(value) if value in _STATE_COLOURS else Text(value)
    if isinstance(value, MessageMap | ScalarMap | Mapping):
        return Text("\n".join(f"{key}={_inner(item)}" for key, item in value.items()))
    if isinstance(value, Sequence):
        return Text("\n".join(_inner(item) for item in value))
    return Text(str(value))


def _inner(value: Cell) -> str:
    """A value inside another one."""
    if isinstance(value, Mapping | list):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return str(_cell(value))


def _plain(value: Any) -> Any:
    """JSON of what JSON has no form for: dates and such as text, bytes as base64 by the contract's rule."""
    if isinstance(value, Message):
        return json_format.MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def state(name: str) -> Text:
    """A state in its colour."""
    return Text(name, style=_STATE_COLOURS.get(name, ""))


def enum_name(enum: Any, number: int) -> str:
    """READY of SERVICE_STATE_READY: the value's name without the enum's."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.DESCRIPTOR.name).upper() + "_"
    return str(enum.Name(number)).removeprefix(prefix)


def moment(value: timestamp_pb2.Timestamp, now: datetime | None = None) -> str:
    """How long ago, for people: `3 min ago`; empty if it is not set."""
    if not value.seconds:
        return ""
    passed = ((now or datetime.now(UTC)) - value.ToDatetime(tzinfo=UTC)).total_seconds()
    ago, ahead = ("", " ago") if passed >= 0 else ("in ", "")
    passed = abs(passed)
    for limit, divisor, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if passed < limit:
            return f"{ago}{passed / divisor:.0f} {unit}{ahead}"
    return f"{ago}{passed / 86400:.0f} d{ahead}"


def size(count: int) -> str:
    """Bytes for people: `1.5 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def in_a_line(message: str) -> str:
    """An error's message as a cell: its first line, and after a colon the last one, which is what a program said at its end."""
    first, *more = message.strip().splitlines() or [""]
    return f"{first} {more[-1].strip()}" if more and first.endswith(":") else first
