"""Reads what `ffmpeg -encoders`, `-codecs`, `-formats`, `-filters`, `-protocols` and `-h TYPE=NAME` print. Pure text in, values out.

The layouts are those of FFmpeg's `fftools/opt_common.c`; they have been stable since version 4, but for the width of the flags of
filters.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

KINDS = {"V": "video", "A": "audio", "S": "subtitle", "D": "data", "T": "attachment"}

_ENCODER = re.compile(r"^ ([VAS])[F.][S.]([X.])[B.][D.] (\S+)\s+(.*)$")
_CODEC = re.compile(r"^ ([D.])([E.])([VASDT])[I.]([L.])[S.] (\S+)\s+(.*)$")
_CODEC_LIST = re.compile(r"\((encoders|decoders): ([^)]*)\)")
_FORMAT = re.compile(r"^ ([D ])([E ])([d ]) ?(\S+)\s+(.*)$")
_FILTER = re.compile(r"^ [T.][S.][C.]? (\S+)\s+([VAN|]+)->([VAN|]+)\s+(.*)$")
_OPTION = re.compile(r"^ {2,3}-?([A-Za-z0-9_][A-Za-z0-9_-]*)\s+<(\w+)>\s+([A-Z.]{8,12})(?:\s+(.*))?$")
_CONSTANT = re.compile(r"^ {4,5}(\S+)\s+(?:(-?\d+)\s+)?([A-Z.]{8,12})(?:\s.*)?$")
_RANGE = re.compile(r"\(from (\S+) to (\S+)\)")
_LIMITS = {
    "INT_MIN": -(2.0**31), "INT_MAX": 2.0**31 - 1, "UINT32_MAX": 2.0**32 - 1, "I64_MIN": -(2.0**63), "I64_MAX": 2.0**63 - 1,
    "UINT64_MAX": 2.0**64 - 1, "-FLT_MAX": -math.inf, "FLT_MAX": math.inf, "-DBL_MAX": -math.inf, "DBL_MAX": math.inf,
}  # fmt: skip


@dataclass(frozen=True)
class Encoder:
    name: str
    kind: str
    codec: str
    description: str
    experimental: bool


@dataclass(frozen=True)
class Codec:
    name: str
    kind: str
    description: str
    encoders: tuple[str, ...]
    decoders: tuple[str, ...]
    lossy: bool


@dataclass(frozen=True)
class Format:
    """A muxer, a demuxer or both of one name."""

    name: str
    description: str
    demuxer: bool
    muxer: bool


@dataclass(frozen=True)
class FilterEntry:
    """`inputs` and `outputs` are kinds; None: their number depends on the arguments."""

    name: str
    description: str
    inputs: tuple[str, ...] | None
    outputs: tuple[str, ...] | None


@dataclass(frozen=True)
class OptionEntry:
    """An option that an encoder, muxer or filter declares. `constants` are the words that it takes besides numbers."""

    name: str
    type: str
    low: float = -math.inf
    high: float = math.inf
    constants: frozenset[str] = frozenset()


@dataclass
class Help:
    """What `-h TYPE=NAME` tells."""

    options: dict[str, OptionEntry] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)


def parse_encoders(text: str) -> dict[str, Encoder]:
    found = {}
    for line in text.splitlines():
        if match := _ENCODER.match(line):
            kind, experimental, name, description = match.groups()
            codec = re.search(r"\(codec (\S+)\)\s*$", description)
            found[name] = Encoder(
                name, KINDS[kind], codec[1] if codec else name, description.strip(), experimental == "X"
            )
    return found


def parse_codecs(text: str) -> dict[str, Codec]:
    found = {}
    for line in text.splitlines():
        if match := _CODEC.match(line):
            decodes, encodes, kind, lossy, name, description = match.groups()
            lists = {key: tuple(names.split()) for key, names in _CODEC_LIST.findall(description)}
            found[name] = Codec(
                name=name,
                kind=KINDS[kind],
                description=_CODEC_LIST.sub("", description).strip(),
                encoders=lists.get("encoders", (name,) if encodes == "E" else ()),
                decoders=lists.get("decoders", (name,) if decodes == "D" else ()),
                lossy=lossy == "L",
            )
    return found


def parse_formats(text: str) -> dict[str, Format]:
    """Formats by name; devices, which read and write other things than files, are left out."""
    found: dict[str, Format] = {}
    for line in text.splitlines():
        match = _FORMAT.match(line)
        if not match or match[4] == "=" or match[3] == "d":
            continue
        demuxer, muxer, _, name, description = match.groups()
        before = found.get(name)
        found[name] = Format(
            name,
            description.strip(),
            demuxer == "D" or bool(before and before.demuxer),
            muxer == "E" or bool(before and before.muxer),
        )
    return found


def parse_filters(text: str) -> dict[str, FilterEntry]:
    def kinds(pads: str) -> tuple[str, ...] | None:
        if "N" in pads:
            return None
        return () if pads == "|" else tuple(KINDS[pad] for pad in pads)

    found = {}
    for line in text.splitlines():
        if match := _FILTER.match(line):
            name, inputs, outputs, description = match.groups()
            found[name] = FilterEntry(name, description.strip(), kinds(inputs), kinds(outputs))
    return found


def parse_protocols(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Protocols that can be read, and those that can be written."""
    _, _, rest = text.partition("Input:")
    inputs, _, outputs = rest.partition("Output:")
    return frozenset(inputs.split()), frozenset(outputs.split())


def parse_pixel_formats(text: str) -> tuple[str, ...]:
    return tuple(match[1] for match in re.finditer(r"^[I.][O.][H.][P.][B.] (\S+)\s+\d", text, re.MULTILINE))


def parse_version(text: str) -> tuple[str, tuple[str, ...]]:
    """Version, and the options of its build."""
    version = re.match(r"ffmpeg version (\S+)", text)
    configuration = re.search(r"^\s*configuration: (.*)$", text, re.MULTILINE)
    return version[1] if version else "", tuple(configuration[1].split()) if configuration else ()


def parse_help(text: str, flag: str) -> Help:
    """Options that have `flag` (E: encoding and muxing, F: filtering), with their words and ranges, and the default codecs of a muxer."""
    result = Help()
    current: OptionEntry | None = None
    words: set[str] = set()
    for line in [*text.splitlines(), ""]:
        if (constant := _CONSTANT.match(line)) and not _OPTION.match(line):
            words.add(constant[1])
            continue
        if current:
            result.options[current.name] = OptionEntry(
                current.name, current.type, current.low, current.high, frozenset(words)
            )
        current, words = None, set()
        if option := _OPTION.match(line):
            name, kind, flags, description = option.groups()
            if flag in flags:
                low, high = _range(description or "")
                current = OptionEntry(name, kind, low, high)
        elif default := re.match(r"^\s*Default (video|audio|subtitle) codec: (\S+?)\.$", line):
            result.defaults[default[1]] = default[2]
    return result


def _range(description: str) -> tuple[float, float]:
    match = _RANGE.search(description)
    return (_limit(match[1], -math.inf), _limit(match[2], math.inf)) if match else (-math.inf, math.inf)


def _limit(text: str, otherwise: float) -> float:
    try:
        return _LIMITS[text] if text in _LIMITS else float(text)
    except ValueError:
        return otherwise
