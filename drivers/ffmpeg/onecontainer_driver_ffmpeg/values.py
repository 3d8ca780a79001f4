"""Checks values of encoder, muxer and filter options against what the build declares, and writes them as ffmpeg reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from onecontainer.api.media.v1.stream_pb2 import ParamValue
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg import allowed
from onecontainer_driver_ffmpeg.listing import OptionEntry

MOST_TEXT = 1024
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?([kKMG]i?)?")
_WORD = re.compile(r"[A-Za-z0-9_.:/+|,=%*#() -]{1,1024}")
_NUMERIC = frozenset({"int", "int64", "uint64", "unsigned", "float", "double"})


def write_value(value: ParamValue, at: str) -> str:
    """The value as text. FieldInvalid if it is none, not finite, too long, or has control characters."""
    kind = value.WhichOneof("value")
    if kind is None:
        raise errors.FieldRequired(at)
    if kind == "integer":
        return str(value.integer)
    if kind == "flag":
        return "1" if value.flag else "0"
    if kind == "number":
        if not math.isfinite(value.number):
            raise errors.FieldInvalid(at, "is not finite")
        return f"{value.number:.12g}"
    if len(value.text) > MOST_TEXT or any(ord(character) < 32 or ord(character) == 127 for character in value.text):
        raise errors.FieldInvalid(at, f"has control characters or more than {MOST_TEXT} characters")
    return value.text


def check_option(value: ParamValue, entry: OptionEntry, at: str) -> str:
    """Like write_value, and FieldInvalid if an option of that type does not take the value."""
    text = write_value(value, at)
    if value.WhichOneof("value") != "text":
        number = float(text)
        if entry.type in _NUMERIC and not entry.low <= number <= entry.high:
            raise errors.FieldInvalid(at, f"is not between {entry.low:g} and {entry.high:g}")
        return text
    if text in entry.constants:
        return text
    if entry.type == "flags":
        unknown = [
            word for word in re.split(r"[+-]", text) if word and word not in entry.constants and not word.isdigit()
        ]
        if unknown or not text:
            raise errors.FieldInvalid(
                at,
                f"knows no {', '.join(map(repr, unknown)) or 'empty value'}; it knows {', '.join(sorted(entry.constants))}",
            )
        return text
    if entry.type in _NUMERIC and not _NUMBER.fullmatch(text):
        words = f" or one of {', '.join(sorted(entry.constants))}" if entry.constants else ""
        raise errors.FieldInvalid(at, f"is {text!r}, and takes a number{words}")
    if not _WORD.fullmatch(text):
        raise errors.FieldInvalid(at, "has characters that no such option needs")
    return text


def encoder_params(
    params: Mapping[str, ParamValue], encoder: str, own: Mapping[str, OptionEntry], suffix: str, at: str
) -> list[str]:
    """Arguments for further options of `encoder`; `suffix` is the stream specifier, as `:v:0`."""
    arguments = []
    for name in sorted(params):
        field = f'{at}["{name}"]'
        entry = own.get(name)
        if entry is None and name in allowed.GENERIC_ENCODER_OPTIONS:
            entry = OptionEntry(name, "generic")
        if entry is None or name in allowed.ENCODER_OPTIONS_REFUSED:
            raise errors.BackendCapabilityMissing(field, f"encoder {encoder} has no option {name!r} for requests")
        if name in allowed.ENCODER_SETTING_LISTS:
            text = _setting_list(params[name], field)
        elif entry.type in ("string", "dictionary", "binary") and name not in allowed.ENCODER_TEXT_OPTIONS:
            raise errors.BackendCapabilityMissing(field, f"option {name!r} of encoder {encoder} is not for requests")
        else:
            text = check_option(params[name], entry, field)
        arguments += [f"-{name}{suffix}", text]
    return arguments


def muxer_params(params: Mapping[str, ParamValue], muxer: str, own: Mapping[str, OptionEntry], at: str) -> list[str]:
    """Arguments for further options of `muxer`."""
    arguments = []
    for name in sorted(params):
        field = f'{at}["{name}"]'
        entry = own.get(name)
        if entry is None and name in allowed.GENERIC_MUXER_OPTIONS:
            entry = OptionEntry(name, "generic")
        if entry is None or (
            entry.type in ("string", "dictionary", "binary") and name not in allowed.MUXER_TEXT_OPTIONS
        ):
            raise errors.BackendCapabilityMissing(field, f"muxer {muxer} has no option {name!r} for requests")
        arguments += [f"-{name}", check_option(params[name], entry, field)]
    return arguments


def _setting_list(value: ParamValue, at: str) -> str:
    text = write_value(value, at)
    for setting in text.split(":"):
        name, _, rest = setting.partition("=")
        if name not in allowed.ENCODER_SETTINGS or not re.fullmatch(r"[A-Za-z0-9_.,+()/-]*", rest):
            raise errors.FieldInvalid(at, f"setting {setting!r} is not for requests")
    return text
