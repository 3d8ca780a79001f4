"""What the encoders of the x264 family take by name, which they tell nobody: checked before anything runs."""

from __future__ import annotations

from onecontainer.api.media.v1 import stream_pb2
from onecontainer.driver import errors

_PRESETS = "ultrafast superfast veryfast faster fast medium slow slower veryslow placebo"
# x264.h (x264_preset_names, x264_tune_names, x264_profile_names) and x265.h (the same of x265); x265 has profiles of its own for each
# depth, `main444-8` and the like, so only its presets and tunes are looked at.
_NAMES = {
    "libx264": {
        "preset": _PRESETS,
        "tune": "film animation grain stillimage psnr ssim fastdecode zerolatency",
        "profile": "baseline main high high10 high422 high444",
    },
    "libx265": {"preset": _PRESETS, "tune": "psnr ssim grain zerolatency fastdecode animation"},
}
_NAMES["libx264rgb"] = {**_NAMES["libx264"], "profile": "high444"}
HALF_COLOURS = frozenset({"yuv420p", "yuvj420p", "yuv420p10le", "nv12"})
"""The pixel formats that nearly all video has: half the colours each way."""
_EVEN = frozenset({"libx264", "libx265", "libopenh264"})


def check_named(field: str, value: str, encoder: str, at: str) -> None:
    """BackendCapabilityMissing if `encoder` has no such `field`: preset, tune or profile. Presets may be numbers; tunes may be several."""
    known = _NAMES.get(encoder, {}).get(field, "").split()
    words = value.split(",") if field == "tune" else [value.lower() if field == "profile" else value]
    unknown = [word for word in words if word not in known and not (field == "preset" and word.isdigit())]
    if known and unknown:
        raise errors.BackendCapabilityMissing(
            at, f"encoder {encoder} knows no {field} {unknown[0]!r}; it knows {', '.join(known)}"
        )


def odd_side(video: stream_pb2.VideoStream, encoder: str, at: str) -> errors.FieldInvalid | None:
    """What is wrong with an odd width or height, if the encoder gets pictures in one of HALF_COLOURS; None: nothing is."""
    if encoder not in _EVEN:
        return None
    for side in ("width", "height"):
        if (value := getattr(video, side)) % 2:
            return errors.FieldInvalid(
                f"{at}.{side}",
                f"is {value}, and {encoder} takes even numbers only: {value - 1}, {value + 1}, or pixel_format yuv444p",
            )
    return None
