"""From the JSON of ffprobe, or of `probe_child.py` which has the same shape, to `MediaInfo`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration

from onecontainer.api.media.v1 import media_info_pb2 as pb
from onecontainer.api.media.v1.input_pb2 import Rational

_KINDS = {
    "video": pb.STREAM_KIND_VIDEO,
    "audio": pb.STREAM_KIND_AUDIO,
    "subtitle": pb.STREAM_KIND_SUBTITLE,
    "data": pb.STREAM_KIND_DATA,
    "attachment": pb.STREAM_KIND_ATTACHMENT,
}
_DISPOSITIONS = {
    "default": "default_track",
    "forced": "forced",
    "hearing_impaired": "hearing_impaired",
    "visual_impaired": "visual_impaired",
    "comment": "comment",
    "dub": "dub",
    "original": "original",
    "attached_pic": "attached_picture",
}
_INT64_MAX = 2**63 - 1
_DURATION_MAX = 315_576_000_000
Facts = Mapping[str, Any]


def media_info(facts: Facts, *, prober: str, raw_json: str = "") -> pb.MediaInfo:
    counts: dict[Any, int] = {}
    streams = []
    for stream in facts.get("streams", ()):
        kind = stream.get("codec_type")
        streams.append(_stream(stream, counts.get(kind, 0)))
        counts[kind] = counts.get(kind, 0) + 1
    chapters = [
        pb.Chapter(
            id=_integer(chapter.get("id")) or 0,
            start_time=to_duration(chapter.get("start_time")),
            end_time=to_duration(chapter.get("end_time")),
            title=_text(chapter.get("tags", {}).get("title")),
            tags=_tags(chapter),
        )
        for chapter in facts.get("chapters", ())
    ]
    return pb.MediaInfo(
        format=_format(facts.get("format", {})), streams=streams, chapters=chapters, raw_json=raw_json, prober=prober
    )


def seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def to_duration(value: Any) -> Duration | None:
    """Of seconds as a number or as text; None for what is none, as `N/A`."""
    number = _number(value)
    if number is None or abs(number) > _DURATION_MAX:
        return None
    return Duration(seconds=int(number), nanos=round((number - int(number)) * 1_000_000) * 1000)


def _format(facts: Facts) -> pb.FormatInfo:
    return pb.FormatInfo(
        name=_text(facts.get("format_name")),
        long_name=_text(facts.get("format_long_name")),
        start_time=to_duration(facts.get("start_time")),
        duration=to_duration(facts.get("duration")),
        size_bytes=_integer(facts.get("size")),
        bitrate=_integer(facts.get("bit_rate")),
        probe_score=_integer(facts.get("probe_score")),
        tags=_tags(facts),
    )


def _stream(facts: Facts, index_in_kind: int) -> pb.StreamInfo:
    tags = _tags(facts)
    level = _integer(facts.get("level"))
    result = pb.StreamInfo(
        index=_integer(facts.get("index")) or 0,
        index_in_kind=index_in_kind,
        kind=_KINDS.get(facts.get("codec_type", ""), pb.STREAM_KIND_UNSPECIFIED),
        codec=_text(facts.get("codec_name")),
        codec_long_name=_text(facts.get("codec_long_name")),
        profile=_text(facts.get("profile")),
        # FFmpeg's word for "no level" is -99.
        level=None if level is None or level < 0 else level,
        codec_tag=_text(facts.get("codec_tag_string")),
        time_base=_rational(facts.get("time_base")),
        start_time=to_duration(facts.get("start_time")),
        duration=to_duration(facts.get("duration")),
        bitrate=_integer(facts.get("bit_rate")),
        frame_count=_integer(facts.get("nb_frames")),
        language=tags.get("language", ""),
        disposition=pb.Disposition(
            **{field: True for name, field in _DISPOSITIONS.items() if facts.get("disposition", {}).get(name)}
        ),
        tags=tags,
        side_data=[
            pb.SideData(
                type=_text(data.get("side_data_type")),
                values={key: str(value).strip() for key, value in data.items() if key != "side_data_type"},
            )
            for data in facts.get("side_data_list", ())
        ],
    )
    if facts.get("codec_type") == "video":
        result.video.CopyFrom(_video(facts))
    elif facts.get("codec_type") == "audio":
        result.audio.CopyFrom(
            pb.AudioInfo(
                sample_rate=_integer(facts.get("sample_rate")) or 0,
                channels=_integer(facts.get("channels")) or 0,
                channel_layout=_text(facts.get("channel_layout")),
                sample_format=_text(facts.get("sample_fmt")),
                bits_per_sample=_integer(facts.get("bits_per_sample")) or None,
            )
        )
    elif facts.get("width") and facts.get("height"):
        result.subtitle.CopyFrom(pb.SubtitleInfo(width=int(facts["width"]), height=int(facts["height"])))
    return result


def _video(facts: Facts) -> pb.VideoInfo:
    rotation = next((_number(data["rotation"]) for data in facts.get("side_data_list", ()) if "rotation" in data), None)
    return pb.VideoInfo(
        width=_integer(facts.get("width")) or 0,
        height=_integer(facts.get("height")) or 0,
        pixel_format=_text(facts.get("pix_fmt")),
        average_frame_rate=_rational(facts.get("avg_frame_rate")),
        real_frame_rate=_rational(facts.get("r_frame_rate")),
        sample_aspect_ratio=_rational(facts.get("sample_aspect_ratio")),
        display_aspect_ratio=_rational(facts.get("display_aspect_ratio")),
        rotation_degrees=rotation or 0.0,
        color_range=_text(facts.get("color_range")),
        color_space=_text(facts.get("color_space")),
        color_transfer=_text(facts.get("color_transfer")),
        color_primaries=_text(facts.get("color_primaries")),
        field_order=_text(facts.get("field_order")),
        has_b_frames=bool(_integer(facts.get("has_b_frames"))),
    )


def _tags(facts: Facts) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in facts.get("tags", {}).items()}


def _text(value: Any) -> str:
    """Text without what protobuf does not take; FFmpeg's words for "not known" are empty."""
    if value is None or value in ("unknown", "N/A"):
        return ""
    return str(value).encode("utf-8", "replace").decode()


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _integer(value: Any) -> int | None:
    try:
        number = int(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) <= _INT64_MAX else None


def _rational(value: Any) -> Rational | None:
    numerator, _, denominator = str(value).replace(":", "/").partition("/")
    top, bottom = _integer(numerator), _integer(denominator)
    return None if not top or not bottom else Rational(numerator=top, denominator=bottom)
