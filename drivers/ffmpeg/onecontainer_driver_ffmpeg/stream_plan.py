"""Elementary streams: each is checked against the build and becomes encoder arguments, before any source is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onecontainer.api.media.v1 import media_info_pb2, stream_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities, hardware_of
from onecontainer_driver_ffmpeg.containers import Container
from onecontainer_driver_ffmpeg.encoder_names import HALF_COLOURS, check_named, odd_side
from onecontainer_driver_ffmpeg.filters import write_chain
from onecontainer_driver_ffmpeg.hardware import APIS, Use, choose
from onecontainer_driver_ffmpeg.listing import OptionEntry
from onecontainer_driver_ffmpeg.media_info import seconds
from onecontainer_driver_ffmpeg.rate_control import write_rate_control
from onecontainer_driver_ffmpeg.values import encoder_params

KINDS = {
    "video": media_info_pb2.STREAM_KIND_VIDEO,
    "audio": media_info_pb2.STREAM_KIND_AUDIO,
    "subtitle": media_info_pb2.STREAM_KIND_SUBTITLE,
}
_LETTERS = {"video": "v", "audio": "a", "subtitle": "s"}
_NO_VIDEO = frozenset({"wav", "aiff", "caf", "au"})


@dataclass(frozen=True)
class StreamDraft:
    """A stream of one output. `pairs` are options and values without stream specifiers, which depend on the other tracks; `use` is the
    hardware that encodes it, None: software, and `upload` the filters that bring frames there."""

    key: str
    kind: str
    at: str
    selectors: Sequence[stream_pb2.StreamSelector]
    encoder: str
    pairs: tuple[tuple[str, str], ...] = ()
    chain: tuple[str, ...] = ()
    skip_if_missing: bool = False
    tags: tuple[tuple[str, str], ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    use: Use | None = None
    upload: tuple[str, ...] = ()
    two_pass: bool = False
    odd: errors.FieldInvalid | None = None
    """What is wrong with the size if the source is in one of HALF_COLOURS."""
    filters: tuple[str, ...] = ()
    """Those of `chain` that the request named; the rest keep the shape of the picture."""

    def arguments(self, number: int) -> list[str]:
        """Options of the output's track `number` of this kind."""
        suffix = f":{_LETTERS[self.kind]}:{number}"
        words = [f"-c{suffix}", self.encoder]
        for name, value in self.pairs:
            words += [f"{name}{suffix}", value]
        for name, value in self.tags:
            words += [f"-metadata:s{suffix}", f"{name}={value}"]
        return words


async def draft_default(kind: str, container: Container, capabilities: Capabilities, at: str) -> StreamDraft | None:
    """The stream of `kind` that an output without `streams` gets; None: the container takes none by default."""
    if await capabilities.default_encoder(container, kind) is None:
        return None
    stream = stream_pb2.ElementaryStream(skip_if_missing=True)
    getattr(stream, kind).SetInParent()
    return await draft_stream(stream, container, capabilities, at)


async def draft_stream(
    stream: stream_pb2.ElementaryStream, container: Container, capabilities: Capabilities, at: str
) -> StreamDraft:
    """A stream as an output with `container` takes it. `at` is the stream's path in the request."""
    kind = stream.WhichOneof("kind")
    if kind is None:
        raise errors.FieldRequired(f"{at}.video", "one of video, audio and subtitle is required")
    if container.name in _NO_VIDEO and kind != "audio":
        raise errors.FieldInvalid(at, f"is {kind}, which {container.name} does not hold")
    selectors = list(stream.sources) or [stream_pb2.StreamSelector()]
    tags = tuple(
        (name, _tag_value(value, f"{at}.{name}"))
        for name, value in (("language", stream.language), ("title", stream.title))
        if value
    )
    draft = StreamDraft(stream.key, kind, at, selectors, "copy", skip_if_missing=stream.skip_if_missing, tags=tags)
    if kind == "video":
        return await _video(draft, stream.video, container, capabilities, f"{at}.video")
    if kind == "audio":
        return await _audio(draft, stream.audio, container, capabilities, f"{at}.audio")
    return await _subtitle(draft, stream.subtitle, container, capabilities, f"{at}.subtitle")


_QUICKER = {
    "libvpx-vp9": {"cpu-used": "4", "row-mt": "1"},
    "libaom-av1": {"cpu-used": "6", "row-mt": "1"},
}
"""Encoders whose own defaults take minutes for seconds of a clip; `params` sets them otherwise.

Source: https://trac.ffmpeg.org/wiki/Encode/VP9 and .../AV1, the speeds named there for everyday use.
"""


async def _video(
    draft: StreamDraft, video: stream_pb2.VideoStream, container: Container, capabilities: Capabilities, at: str
) -> StreamDraft:
    if _is_copy(video, at):
        return _copied(draft, at)
    encoder = await _encoder(video.codec, "video", container, capabilities, f"{at}.codec")
    codec = capabilities.encoders[encoder].codec
    use = await choose(video.hardware, encoder, codec, capabilities.hardware, at)
    reason = use if isinstance(use, str) else ""
    if isinstance(use, Use):
        try:
            return await _encoded_video(draft, video, use.encoder, use, container, capabilities, at)
        except errors.BackendCapabilityMissing as error:
            # Hardware encoders have fewer settings. What is preferred gives way to what else was asked for.
            if video.hardware.mode == stream_pb2.HARDWARE_MODE_REQUIRED:
                raise
            reason = str(error)
    if hardware_of(encoder):  # named, and only preferred
        encoder = await _encoder(codec, "video", container, capabilities, f"{at}.codec")
    done = await _encoded_video(draft, video, encoder, None, container, capabilities, at)
    if reason:
        return replace(done, warnings=((f"{at}.hardware.mode", f"encoded in software: {reason}"),))
    return done


async def _encoded_video(
    draft: StreamDraft,
    video: stream_pb2.VideoStream,
    encoder: str,
    use: Use | None,
    container: Container,
    capabilities: Capabilities,
    at: str,
) -> StreamDraft:
    """The stream by one encoder. BackendCapabilityMissing for a setting that the encoder does not have."""
    own = await capabilities.encoder_options(encoder)
    words = write_rate_control(video.rate_control, encoder, own, capabilities, "video", "", f"{at}.rate_control")
    for field, option in (("preset", "preset"), ("tune", "tune"), ("profile", "profile"), ("level", "level")):
        if value := getattr(video, field):
            if field in ("preset", "tune") and option not in own:
                raise errors.BackendCapabilityMissing(f"{at}.{field}", f"encoder {encoder} has no {field}")
            if use and option in own and own[option].constants and value not in own[option].constants:
                raise errors.BackendCapabilityMissing(f"{at}.{field}", f"encoder {encoder} knows no {field} {value!r}")
            words += [f"-{option}", _word(value, f"{at}.{field}")]
            check_named(field, value, encoder, f"{at}.{field}")
    interval = container.key_frames
    if video.HasField("keyframe_interval"):
        interval = seconds(video.keyframe_interval)
        if interval <= 0:
            raise errors.FieldInvalid(f"{at}.keyframe_interval", "is not more than 0")
    if interval:
        # Half a millisecond less: a multiple that is a hair above the frame's own time would come a frame late.
        words += ["-force_key_frames", f"expr:gte(t,n_forced*{interval:.6f}-0.0005)"]
    if container.key_frames:
        words += _aligned(encoder, own, video)
    odd = odd_side(video, encoder, at)
    if odd and video.pixel_format in HALF_COLOURS:
        raise odd
    if video.pixel_format:
        if video.pixel_format not in capabilities.pixel_formats:
            raise errors.BackendCapabilityMissing(
                f"{at}.pixel_format", f"{video.pixel_format!r} is no pixel format here"
            )
        if use is None:
            words += ["-pix_fmt", video.pixel_format]
        elif not use.takes(video.pixel_format):
            raise errors.BackendCapabilityMissing(
                f"{at}.pixel_format", f"encoder {encoder} takes no {video.pixel_format}"
            )
        elif not use.upload(""):
            words += ["-pix_fmt", video.pixel_format]
    for name, value in _QUICKER.get(encoder, {}).items():
        if name in own and name not in video.params:
            words += [f"-{name}", value]
    words += encoder_params(video.params, encoder, own, "", f"{at}.params")
    filters, sizing = await _picture_chain(draft, video, capabilities, at)
    return replace(
        draft,
        encoder=encoder,
        pairs=(*(use.pairs() if use else ()), *_pairs(words, encoder, capabilities)),
        chain=(*filters, *sizing),
        filters=filters,
        use=use,
        upload=use.upload(video.pixel_format) if use else (),
        two_pass=video.rate_control.average_bitrate.two_pass,
        odd=None if video.pixel_format or filters else odd,
    )


async def _picture_chain(
    draft: StreamDraft, video: stream_pb2.VideoStream, capabilities: Capabilities, at: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The filters, and what makes size and frame rate after them."""
    filters = await write_chain(video.filters, "video", len(draft.selectors), capabilities, f"{at}.filters")
    chain = []
    if video.width or video.height:
        for side in ("width", "height"):
            if not 0 <= getattr(video, side) <= 16384:
                raise errors.FieldInvalid(f"{at}.{side}", "is not between 1 and 16384")
        # -2: from the aspect ratio, and even, which most encoders need.
        chain.append(f"scale=w={video.width or -2}:h={video.height or -2}")
    if video.HasField("frame_rate"):
        rate = video.frame_rate
        if not (rate.numerator > 0 and rate.denominator > 0 and rate.numerator <= 1000 * rate.denominator):
            raise errors.FieldInvalid(f"{at}.frame_rate", "is not more than 0 and at most 1000")
        chain.append(f"fps=fps={rate.numerator}/{rate.denominator}")
    return tuple(filters), tuple(chain)


def _aligned(encoder: str, own: Mapping[str, OptionEntry], video: stream_pb2.VideoStream) -> list[str]:
    """Key frames only where they are forced, as whole new beginnings, so that the rungs of a ladder have them at the same places."""
    words = []
    if encoder == "libx264" and not {"sc_threshold", "x264-params"} & set(video.params):
        words += ["-sc_threshold", "0"]
    if (
        encoder == "libx265"
        and "x265-params" not in video.params
        and video.rate_control.WhichOneof("mode") != "lossless"
    ):
        words += ["-x265-params", "scenecut=0:open-gop=0"]
    if "forced-idr" in own and "forced-idr" not in video.params:
        words += ["-forced-idr", "1"]
    return words


async def draft_picture(
    stream: stream_pb2.ElementaryStream,
    encoder: str,
    pairs: Sequence[tuple[str, str]],
    capabilities: Capabilities,
    at: str,
) -> StreamDraft:
    """A video stream as still pictures: its source, filters and size; how they are encoded is the output's business."""
    for field in ("codec", "rate_control"):
        if stream.video.codec if field == "codec" else stream.video.HasField("rate_control"):
            raise errors.FieldInvalid(f"{at}.video.{field}", "cannot go with an output of pictures, which has its own")
    selectors = list(stream.sources) or [stream_pb2.StreamSelector()]
    draft = StreamDraft(
        stream.key, "video", at, selectors, encoder, tuple(pairs), skip_if_missing=stream.skip_if_missing
    )
    filters, sizing = await _picture_chain(draft, stream.video, capabilities, f"{at}.video")
    return replace(draft, chain=(*filters, *sizing))


async def _audio(
    draft: StreamDraft, audio: stream_pb2.AudioStream, container: Container, capabilities: Capabilities, at: str
) -> StreamDraft:
    if _is_copy(audio, at):
        return _copied(draft, at)
    encoder = await _encoder(audio.codec, "audio", container, capabilities, f"{at}.codec")
    own = await capabilities.encoder_options(encoder)
    words = write_rate_control(audio.rate_control, encoder, own, capabilities, "audio", "", f"{at}.rate_control")
    if audio.profile:
        words += ["-profile", _word(audio.profile, f"{at}.profile")]
    for field, option, most in (("sample_rate", "-ar", 768_000), ("channels", "-ac", 64)):
        value = getattr(audio, field)
        if not 0 <= value <= most:
            raise errors.FieldInvalid(f"{at}.{field}", f"is not between 1 and {most}")
        if field == "sample_rate" and container.sample_rate:
            if value not in (0, container.sample_rate):
                raise errors.FieldInvalid(
                    f"{at}.{field}", f"is not {container.sample_rate}, the only one that {container.name} takes"
                )
            value = container.sample_rate
        words += [option, str(value)] if value else []
    words += encoder_params(audio.params, encoder, own, "", f"{at}.params")
    chain = await write_chain(audio.filters, "audio", len(draft.selectors), capabilities, f"{at}.filters")
    return replace(draft, encoder=encoder, pairs=_pairs(words, encoder, capabilities), chain=tuple(chain))


async def _subtitle(
    draft: StreamDraft, subtitle: stream_pb2.SubtitleStream, container: Container, capabilities: Capabilities, at: str
) -> StreamDraft:
    if len(draft.selectors) > 1:
        raise errors.FieldInvalid(f"{draft.at}.sources", "has more than one track, which subtitles cannot join")
    if _is_copy(subtitle, at):
        return _copied(draft, at)
    encoder = await _encoder(subtitle.codec, "subtitle", container, capabilities, f"{at}.codec")
    words = encoder_params(subtitle.params, encoder, await capabilities.encoder_options(encoder), "", f"{at}.params")
    return replace(draft, encoder=encoder, pairs=_pairs(words, encoder, capabilities))


async def _encoder(name: str, kind: str, container: Container, capabilities: Capabilities, at: str) -> str:
    if not name:
        default = await capabilities.default_encoder(container, kind)
        if default is None:
            raise errors.FieldInvalid(at, f"is needed: {container.name} has no default for {kind}")
        return default
    encoder = capabilities.encoder_for(name)
    if encoder is None:
        raise errors.BackendCapabilityMissing(at, f"{name!r} is no encoder of this build")
    entry = capabilities.encoders[encoder]
    if hardware_of(encoder) and hardware_of(encoder) not in APIS:
        raise errors.BackendCapabilityMissing(at, f"{name!r} needs hardware that this driver does not use")
    if entry.kind != kind:
        raise errors.FieldInvalid(at, f"{name!r} encodes {entry.kind}, not {kind}")
    if container.holds is not None and entry.codec not in container.holds:
        raise errors.FieldInvalid(at, f"{name!r} makes {entry.codec}, which {container.name} cannot hold")
    return encoder


def _is_copy(stream: stream_pb2.VideoStream | stream_pb2.AudioStream | stream_pb2.SubtitleStream, at: str) -> bool:
    if stream.codec != "copy":
        return False
    for descriptor, _ in stream.ListFields():
        if descriptor.name != "codec":
            raise errors.FieldInvalid(
                f"{at}.{descriptor.name}", "cannot go with codec `copy`, which leaves the track as it is"
            )
    return True


def _copied(draft: StreamDraft, at: str) -> StreamDraft:
    if len(draft.selectors) > 1:
        raise errors.FieldInvalid(f"{at}.codec", "`copy` takes one track, and here are several")
    return draft


def _pairs(words: list[str], encoder: str, capabilities: Capabilities) -> tuple[tuple[str, str], ...]:
    return (*zip(words[::2], words[1::2], strict=True), *_experimental(encoder, capabilities))


def _experimental(encoder: str, capabilities: Capabilities) -> tuple[tuple[str, str], ...]:
    return (("-strict", "experimental"),) if capabilities.encoders[encoder].experimental else ()


def _word(value: str, at: str) -> str:
    if not 0 < len(value) <= 64 or not all(character.isalnum() or character in "._+-:," for character in value):
        raise errors.FieldInvalid(at, "is no word of letters, digits and . _ + - : ,")
    return value


def _tag_value(value: str, at: str) -> str:
    if len(value) > 1024 or any(ord(character) < 32 for character in value):
        raise errors.FieldInvalid(at, "has control characters or more than 1024 characters")
    return value
