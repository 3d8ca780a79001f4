"""Reads encoded images: from untrusted bytes to an upright Pillow image with 8 bits per channel."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from onecontainer.driver.models.png import plain_png

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff")

# Pillow's own guard warns first and raises at the double; `open_image` has a limit of its own, checked on the header.
Image.MAX_IMAGE_PIXELS = None

# What Pillow's decoders raise on damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    struct.error,
    zlib.error,
)


class ImageError(ValueError):
    """The bytes are not an image that can be read; the message says why."""


def open_image(
    data: bytes, *, max_pixels: int, draft: tuple[int, int] | None = None, upright: bool = True
) -> Image.Image:
    """Decodes an image; of an animation the first frame.

    Args:
        max_pixels: width times height beyond which nothing is decoded.
        draft: size that is enough on both sides; a JPEG may be decoded at a half, a quarter or an eighth then.
        upright: apply the EXIF orientation.

    Raises:
        ImageError: empty, no image of FORMATS, damaged, truncated, too large, or with values that have no 8-bit meaning.
    """
    if not data:
        raise ImageError("is empty")
    if (plain := plain_png(data, max_pixels=max_pixels)) is not None:
        return plain
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"is not an image of a known format ({', '.join(FORMATS)})") from None
    except _DAMAGE as error:
        raise ImageError(f"is a damaged image: {error}") from error
    if image.width * image.height > max_pixels:
        raise ImageError(f"has {image.width} × {image.height} pixels; {max_pixels} are allowed")
    try:
        if draft is not None and isinstance(image, JpegImageFile):
            image.draft(None, draft)
        image.load()
        # How Pillow reads 16 bits of a PNG, and 32 bits of a TIFF.
        deep = image.mode == "I" and image.format != "PNG"
        if upright:
            image = ImageOps.exif_transpose(image)
    except _DAMAGE as error:
        raise ImageError(f"is a damaged or truncated {image.format} image: {error}") from error
    if deep:
        # Nobody tells which number is white: taken for 16 bits, most such images would be black.
        raise ImageError("has pixels of 32 bits, or signed ones; convert it to 8 or 16 bits per channel")
    return _eight_bits(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow's convert() clips deeper grey images instead of scaling them."""
    if image.mode in {"F", "I"} or image.mode.startswith("I;"):
        values = np.asarray(image)
        if image.mode == "F" or values.size == 0 or values.min() < 0 or values.max() > 0xFFFF:
            raise ImageError("has pixel values beyond 16 bits; convert it to 8 or 16 bits per channel")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    return image


def flatten(image: Image.Image, mode: str, background: tuple[int, ...] | None) -> Image.Image:
    """Returns the image in ``mode`` (RGB or L), transparency laid on ``background`` or, without one, dropped."""
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    with_alpha = image.convert("RGBA")
    if background is None:
        opaque = with_alpha.convert("RGB")
    else:
        under = Image.new("RGBA", image.size, (*background, 255) if len(background) == 3 else (*background * 3, 255))
        opaque = Image.alpha_composite(under, with_alpha).convert("RGB")
    return opaque if mode == "RGB" else opaque.convert(mode)
