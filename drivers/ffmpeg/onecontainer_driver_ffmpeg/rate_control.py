"""Rate control of each encoder: one request message, many dialects."""

from __future__ import annotations

from collections.abc import Mapping

from onecontainer.api.media.v1.stream_pb2 import RateControl
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities, hardware_of
from onecontainer_driver_ffmpeg.listing import OptionEntry


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Encoders whose quality scale is FFmpeg's own `-q`.
_QSCALE = _words(
    """
    mpeg4 msmpeg4 msmpeg4v2 mpeg1video mpeg2video mjpeg wmv1 wmv2 flv h263 h263p libxvid libtheora aac libmp3lame
    libvorbis prores prores_ks libopenjpeg
    """
)
# Encoders that take their first pass from ffmpeg's own log file.
_TWO_PASS = _words("libx264 libvpx libvpx-vp9 libaom-av1 libxvid mpeg4 mpeg2video mpeg1video")
# Where the encoder declares no end of its scale; beyond it, it does the same as at the end.
_MOST_CRF = {"libx264": 51.0, "libx264rgb": 51.0, "libx265": 51.0, "libsvtav1": 63.0}
_BITRATE = (1_000, 1_000_000_000)
_BUFFER_BITS = 2**31 - 1


def write_rate_control(
    control: RateControl,
    encoder: str,
    own: Mapping[str, OptionEntry],
    capabilities: Capabilities,
    kind: str,
    suffix: str,
    at: str,
) -> list[str]:
    """Arguments for `control`. BackendCapabilityMissing if the encoder has no such mode."""
    mode = control.WhichOneof("mode")
    if mode is None:
        return []
    if mode == "constant_quality":
        return _quality(control.constant_quality, encoder, own, kind, suffix, f"{at}.constant_quality")
    if mode == "constant_quantizer":
        name = "qp" if "qp" in own else "q" if encoder in _QSCALE and kind == "video" else ""
        if not name:
            raise errors.BackendCapabilityMissing(
                f"{at}.constant_quantizer", f"encoder {encoder} has no fixed quantizer"
            )
        _within(control.constant_quantizer, own.get("qp"), f"{at}.constant_quantizer")
        return [f"-{name}{suffix}", str(control.constant_quantizer)]
    if mode == "average_bitrate":
        average = control.average_bitrate
        if average.two_pass and encoder not in _TWO_PASS:
            raise errors.BackendCapabilityMissing(
                f"{at}.average_bitrate.two_pass", f"encoder {encoder} has no two passes here"
            )
        bitrate = _bitrate(average.bitrate, f"{at}.average_bitrate.bitrate")
        arguments = [f"-b{suffix}", bitrate]
        if average.HasField("max_bitrate"):
            if average.max_bitrate < average.bitrate:
                raise errors.FieldInvalid(f"{at}.average_bitrate.max_bitrate", "is below bitrate")
            most = _bitrate(average.max_bitrate, f"{at}.average_bitrate.max_bitrate")
            arguments += [f"-maxrate{suffix}", most]
        if average.HasField("buffer_bits") or average.HasField("max_bitrate"):
            size = average.buffer_bits if average.HasField("buffer_bits") else average.max_bitrate
            arguments += [f"-bufsize{suffix}", _buffer(size, f"{at}.average_bitrate.buffer_bits")]
        return arguments
    if mode == "constant_bitrate":
        bitrate = _bitrate(control.constant_bitrate.bitrate, f"{at}.constant_bitrate.bitrate")
        if kind == "audio":
            return [f"-b{suffix}", bitrate]
        size = (
            control.constant_bitrate.buffer_bits if control.constant_bitrate.HasField("buffer_bits") else int(bitrate)
        )
        arguments = [f"-b{suffix}", bitrate, f"-minrate{suffix}", bitrate, f"-maxrate{suffix}", bitrate]
        return [*arguments, f"-bufsize{suffix}", _buffer(size, f"{at}.constant_bitrate.buffer_bits")]
    return _lossless(control.lossless, encoder, own, capabilities, suffix, f"{at}.lossless")


def _quality(
    quality: float, encoder: str, own: Mapping[str, OptionEntry], kind: str, suffix: str, at: str
) -> list[str]:
    if hardware := hardware_of(encoder):
        return _hardware_quality(quality, hardware, own, suffix, at)
    if "crf" in own:
        most = min(own["crf"].high, _MOST_CRF.get(encoder, own["crf"].high))
        if not 0 <= quality <= most:  # NaN is not either
            raise errors.FieldInvalid(at, f"is not between 0 and {most:g}")
        # libvpx takes a bitrate as an upper bound beside the quality; 0 says that there is none.
        bound = [f"-b{suffix}", "0"] if encoder.startswith("libvpx") else []
        return [*bound, f"-crf{suffix}", f"{quality:g}"]
    if encoder not in _QSCALE:
        raise errors.BackendCapabilityMissing(at, f"encoder {encoder} has no quality scale; give it a bitrate")
    if not 0 <= quality <= 100:
        raise errors.FieldInvalid(at, "is not between 0 and 100")
    return [f"-q{suffix}", f"{quality:g}"]


def _hardware_quality(quality: float, hardware: str, own: Mapping[str, OptionEntry], suffix: str, at: str) -> list[str]:
    """Each interface has its own scale, and another name for it."""
    name, mode = {"nvenc": ("cq", "vbr"), "vaapi": ("qp", "CQP"), "qsv": ("global_quality", "")}.get(hardware, ("", ""))
    if not name or (name not in own and name != "global_quality"):
        raise errors.BackendCapabilityMissing(at, f"{hardware} has no quality scale here; give it a bitrate")
    if not 1 <= quality <= 51:
        raise errors.FieldInvalid(at, "is not between 1 and 51")
    option = "rc_mode" if hardware == "vaapi" else "rc"
    return [*([f"-{option}{suffix}", mode] if mode and option in own else []), f"-{name}{suffix}", f"{round(quality)}"]


def _lossless(
    asked: bool, encoder: str, own: Mapping[str, OptionEntry], capabilities: Capabilities, suffix: str, at: str
) -> list[str]:
    if not asked:
        return []
    if "lossless" in own:
        return [f"-lossless{suffix}", "1"]
    if encoder in ("libx264", "libx264rgb"):
        return [f"-qp{suffix}", "0"]
    if encoder == "libx265":
        return [f"-x265-params{suffix}", "lossless=1"]
    codec = capabilities.codecs.get(capabilities.encoders[encoder].codec)
    if codec and not codec.lossy:
        return []
    raise errors.BackendCapabilityMissing(at, f"encoder {encoder} cannot be lossless")


def _bitrate(bitrate: int, at: str) -> str:
    low, high = _BITRATE
    if not low <= bitrate <= high:
        raise errors.FieldInvalid(at, f"is not between {low} and {high} bits per second")
    return str(bitrate)


def _buffer(bits: int, at: str) -> str:
    if not 1 <= bits <= _BUFFER_BITS:
        raise errors.FieldInvalid(at, f"is not between 1 and {_BUFFER_BITS} bits")
    return str(bits)


def _within(value: float, entry: OptionEntry | None, at: str) -> None:
    if entry and not entry.low <= value <= entry.high:
        raise errors.FieldInvalid(at, f"is not between {entry.low:g} and {entry.high:g}")
