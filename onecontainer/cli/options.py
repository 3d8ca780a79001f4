"""Options that commands share, and types of their values. Imports click only: the root uses it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

OUTPUTS = ("table", "json")
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$")
_HOST = re.compile(r"^([^\s:/\[\]]+|\[[0-9a-fA-F:.%\w]+\])$")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Seconds(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A duration: `90`, `1.5s`, `200ms`, `5m`, `2h`, `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.match(value)
        if match is None:
            self.fail(f"{value!r} is no duration; write 90, 1.5s, 200ms, 5m, 2h or 7d", param, ctx)
        return float(match[1]) * _UNITS[match[2] or "s"]


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """Bytes, with `k`, `m` or `g` behind the number in units of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)([kmg]?)(i?b)?", value.lower())
        if match is None:
            self.fail(f"{value!r} is no size: 1048576, 512m, 2g", param, ctx)
        return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]


class Pair(click.ParamType):  # type: ignore[type-arg]
    """`KEY=VALUE`, the value as text."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, self.value_of(text)

    def value_of(self, text: str) -> Any:
        return text


class JsonPair(Pair):
    """`KEY=VALUE`; the value is JSON if it reads as JSON, else text: `threads=4`, `fast=true`, `name=cat`."""

    def value_of(self, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text


class Target(click.ParamType):  # type: ignore[type-arg]
    """Where something listens: `HOST:PORT` or `unix:PATH`."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        host, _, port = text.rpartition(":")
        is_socket = text.startswith("unix:") and len(text) > len("unix:")
        is_address = bool(_HOST.match(host)) and port.isdecimal() and 1 <= int(port) <= 65535
        if not is_socket and not is_address:
            self.fail(f"{text!r} is neither HOST:PORT nor unix:PATH", param, ctx)
        return text


class JsonInput(click.ParamType):  # type: ignore[type-arg]
    """JSON as the argument itself, `@FILE`, or `-` for stdin. One value, or several one after the other."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        if isinstance(value, list):
            return value
        try:
            return list(json_values(read_text(value)))
        except OSError as error:
            self.fail(f"cannot read {value[1:]}: {error.strerror}", param, ctx)
        except json.JSONDecodeError as error:
            self.fail(f"this is no JSON: {error.msg}, line {error.lineno}, column {error.colno}", param, ctx)


def read_text(argument: str) -> str:
    """The text of an argument, of `@FILE`, or of stdin for `-`."""
    if argument == "-":
        return sys.stdin.read()
    return Path(argument[1:]).read_text() if argument.startswith("@") else argument


def json_values(text: str) -> Iterable[Any]:
    """JSON values one after the other, white space between them. Raises json.JSONDecodeError."""
    decoder = json.JSONDecoder()
    position = 0
    while rest := text[position:].lstrip():
        value, length = decoder.raw_decode(rest)
        position = len(text) - len(rest) + length
        yield value


DURATION = Seconds()
SIZE = Bytes()
PAIR = Pair()
JSON_PAIR = JsonPair()
JSON = JsonInput()
TARGET = Target()
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _note_output(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    # Before all else: an error in another option has to be shown in this form already.
    if value is not None:
        ctx.meta["onecontainer.output"] = value
    return value


output_option = click.option(
    "--output",
    "-o",
    is_eager=True,
    callback=_note_output,
    envvar="ONECONTAINER_OUTPUT",
    type=click.Choice(OUTPUTS),
    help="For people (table, the default) or for programs (json).",
)

_CONNECTION: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--address",
        "-a",
        envvar="ONECONTAINER_ADDRESS",
        metavar="HOST:PORT",
        help="Gateway. Default: the one that runs on the data folder, else 127.0.0.1:50051.",
    ),
    click.option("--token", envvar="ONECONTAINER_TOKEN", metavar="TOKEN", help="Bearer token."),
    click.option(
        "--ca-file",
        envvar="ONECONTAINER_CA_FILE",
        type=FILE,
        help="PEM file with the CA of the gateway; turns TLS on.",
    ),
    click.option("--tls", is_flag=True, default=None, help="TLS, with the system's CAs."),
    click.option(
        "--timeout",
        envvar="ONECONTAINER_TIMEOUT",
        type=DURATION,
        help="Longest time for a call. Default: 60s; waiting and transfers have no limit.",
    ),
    output_option,
)


def connection_options(function: F) -> F:
    """Adds the options that say which gateway, as whom, how long and how it is shown."""
    for option in reversed(_CONNECTION):
        function = option(function)
    return function


data_dir_option = click.option(
    "--data-dir",
    envvar="ONECONTAINER_DATA_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the gateway's data. Default: the user's data folder.",
)


def job_options(function: F) -> F:
    """Adds the options of a command that makes a job."""
    options: tuple[Callable[[Any], Any], ...] = (
        click.option("--priority", type=click.Choice(["low", "normal", "high"]), default="normal", help="Lane."),
        click.option("--request-id", default="", help="Idempotency key: the same one again gives the same job."),
        click.option("--queue-timeout", type=DURATION, help="Longest wait for the first attempt. Default: no limit."),
        click.option("--attempt-timeout", type=DURATION, help="Longest run of one attempt. Default: no limit."),
        click.option("--total-timeout", type=DURATION, help="Longest time from creation to the end. Default: 24h."),
        click.option("--stall-timeout", type=DURATION, help="Longest run without progress. Default: no limit."),
        click.option("--max-attempts", type=click.IntRange(1, 100), help="Attempts in all. Default: the service's, 3."),
        click.option("--initial-backoff", type=DURATION, help="Wait before the second attempt. Default: 1s."),
        click.option("--max-backoff", type=DURATION, help="Longest wait between attempts. Default: 60s."),
        click.option(
            "--backoff-multiplier", type=click.FloatRange(1, 10), help="From one wait to the next. Default: 2."
        ),
        click.option(
            "--retry-unsafe", is_flag=True, help="Repeat it though its side effects may then happen more than once."
        ),
        click.option("--result-ttl", type=DURATION, help="How long the result is kept. Default: 1h."),
        click.option("--keep-result", is_flag=True, help="Keep the result until the job is deleted."),
        click.option("--label", "labels", type=PAIR, multiple=True, help="Label of the job; may be repeated."),
    )
    for option in reversed(options):
        function = option(function)
    return function
