"""Formats of still pictures, and what their quality means to the encoder of each."""

from __future__ import annotations

from dataclasses import dataclass

from onecontainer.api.media.v1 import output_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities


@dataclass(frozen=True)
class Image:
    """`muxer`: the one that writes one picture into a pipe, `demuxer` reads one."""

    encoder: str
    muxer: str
    media_type: str
    extension: str
    demuxer: str

    def quality(self, quality: int) -> tuple[tuple[str, str], ...]:
        """Options of the encoder for a quality of 1 to 100."""
        if self.encoder == "mjpeg":
            # ffmpeg's scale goes from 2 (best) to 31; its JPEG wants full range.
            return (("-q", f"{2 + (100 - quality) * 29 / 99:.1f}"), ("-pix_fmt", "yuvj420p"))
        return (("-quality", str(quality)),) if self.encoder == "libwebp" else ()


_IMAGES = {
    output_pb2.IMAGE_FORMAT_JPEG: Image("mjpeg", "mjpeg", "image/jpeg", "jpg", "jpeg_pipe"),
    output_pb2.IMAGE_FORMAT_PNG: Image("png", "image2pipe", "image/png", "png", "png_pipe"),
    output_pb2.IMAGE_FORMAT_WEBP: Image("libwebp", "webp", "image/webp", "webp", "webp_pipe"),
}


def find_image(asked: output_pb2.ImageFormat.ValueType, capabilities: Capabilities, at: str) -> Image:
    """The format of the field `at`; unspecified is JPEG. FieldInvalid or BackendCapabilityMissing."""
    image = _IMAGES.get(asked or output_pb2.IMAGE_FORMAT_JPEG)
    if image is None:
        raise errors.FieldInvalid(at, "is no format of this driver")
    if image.encoder not in capabilities.encoders:
        raise errors.BackendCapabilityMissing(at, f"this build has no encoder {image.encoder}")
    return image
