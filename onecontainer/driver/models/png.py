"""PNG files as most of them are, several times faster than by Pillow: by libpng, if `imagecodecs` is installed."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_decode: Callable[[bytes], npt.NDArray[Any]] | None
try:
    from imagecodecs import png_decode as _decode
except ImportError:  # it is an optional one
    _decode = None

_HEADER = struct.Struct(">8sI4sIIBBBBB")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MODES = {0: ("L", 1), 2: ("RGB", 3)}
"""Colour types without a palette and without transparency: Pillow's mode, and samples per pixel."""
_CHUNK = struct.Struct(">I4s")
_SPECIAL = frozenset({b"tRNS", b"eXIf", b"acTL"})
"""Chunks that make a file more than its pixels: transparency, an orientation, an animation."""
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_TURNED = re.compile(rb'tiff:Orientation(?:="|>)[2-9]')


def plain_png(data: bytes, *, max_pixels: int) -> Image.Image | None:
    """A grey or RGB picture with 8 bits per channel, the pixels that Pillow gives.

    None for all else, for what is damaged too: Pillow opens that, or says what is wrong with it.
    """
    if _decode is None or len(data) < _HEADER.size:
        return None
    signature, _, kind, width, height, depth, colour, _, _, interlaced = _HEADER.unpack_from(data)
    if (signature, kind, depth, interlaced) != (_SIGNATURE, b"IHDR", 8, 0) or colour not in _MODES:
        return None
    if not 0 < width * height <= max_pixels or not _is_plain(data):
        return None
    mode, samples = _MODES[colour]
    try:
        pixels = _decode(data)
    except Exception:  # noqa: BLE001 - whatever its codec raises, Pillow is asked
        return None
    if pixels.dtype != np.uint8 or pixels.size != width * height * samples:
        return None
    return Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)


def _may_turn(kind: bytes, text: bytes) -> bool:
    """Whether a text is one of those in which Pillow looks for an orientation, and may have one."""
    keyword, _, rest = text.partition(b"\0")
    if keyword == b"XML:com.adobe.xmp":
        packed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] != b"\0")
        return packed or _TURNED.search(rest) is not None
    return keyword == b"Raw profile type exif"


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def _is_plain(data: bytes) -> bool:
    """Whether it is whole, and has none of the special chunks."""
    position = len(_SIGNATURE)
    length: int
    kind: bytes
    while position + _CHUNK.size <= len(data):
        length, kind = _CHUNK.unpack_from(data, position)
        end = position + _CHUNK.size + length
        # libpng lets pass what is wrong with a chunk that it does not need.
        if kind in _SPECIAL or (kind != b"IDAT" and data[end : end + 4] != _crc(data[position + 4 : end])):
            return False
        if kind in _TEXTS and _may_turn(kind, data[position + _CHUNK.size : end]):
            return False
        position = end + 4
        if kind == b"IEND":
            return position <= len(data)
    return False
