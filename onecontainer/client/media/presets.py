"""Pipelines for what people do most: one function per preset, each of which builds a request for `run_pipeline`.

    from onecontainer.client.media import presets

    job = client.media.run_pipeline("films", presets.web_mp4("artifacts/01jd…", height=720))

A request is a plain message: what a preset does not offer can be changed in it before it is sent. `NAMES` has all of them by the
names that the command line knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from onecontainer.api.media.v1 import input_pb2, media_info_pb2, output_pb2, stream_pb2
from onecontainer.api.media.v1 import media_pb2 as pb
from onecontainer.client.media import SourceLike, stream_of, to_source
from onecontainer.client.names import seconds

KEY = "main"
"""Key of the output of every preset."""
AUDIO_ENCODERS = {
    "m4a": "aac",
    "aac": "aac",
    "mp3": "mp3",
    "opus": "opus",
    "ogg": "opus",
    "flac": "flac",
    "wav": "pcm_s16le",
}
"""Containers that `audio_only` takes."""  # fmt: skip


@dataclass(frozen=True)
class Rung:
    """One quality of a ladder: the height in pixels, and bits per second of the picture."""

    height: int
    bitrate: int


LADDER = (Rung(1080, 5_000_000), Rung(720, 2_800_000), Rung(480, 1_400_000), Rung(360, 800_000), Rung(240, 400_000))
"""The usual ladder of H.264 for HLS. Source: Apple's HLS authoring specification for Apple devices, in rounded numbers."""


def rungs_for(info: media_info_pb2.MediaInfo, ladder: Sequence[Rung] = LADDER) -> list[Rung]:
    """The rungs that a source can fill: none is higher than the source's own picture. At least the lowest one."""
    video = stream_of(info, media_info_pb2.STREAM_KIND_VIDEO)
    height = video.video.height if video else 0
    return [rung for rung in ladder if rung.height <= height] or [min(ladder, key=lambda rung: rung.height)]


def web_mp4(
    source: SourceLike,
    *,
    height: int = 1080,
    quality: float = 23,
    audio_bitrate: int = 128_000,
    start: float | None = None,
    duration: float | None = None,
) -> pb.RunPipelineRequest:
    """An MP4 that every browser plays while it loads: H.264 and AAC, at most `height` pixels high, its index in front."""
    video = stream_pb2.VideoStream(
        codec="h264",
        preset="fast",
        profile="high",
        pixel_format="yuv420p",
        rate_control=stream_pb2.RateControl(constant_quality=quality),
        filters=[_no_higher_than(height)],
    )
    return _request(
        source,
        [_video("video", video), _audio("audio", "aac", audio_bitrate)],
        output_pb2.Output(file=output_pb2.FileOutput(container="mp4", fast_start=True)),
        start=start,
        duration=duration,
    )


def hls_abr(
    source: SourceLike,
    *,
    rungs: Sequence[Rung] = LADDER[1:4],
    segment: float = 6.0,
    audio_bitrate: int = 128_000,
    start: float | None = None,
    duration: float | None = None,
) -> pb.RunPipelineRequest:
    """HLS with a ladder from which players pick what their connection bears. The main playlist is `main.m3u8`.

    `rungs`: see `rungs_for`, which leaves out those that would only blow the source's picture up. `segment` in seconds.
    """
    streams = [
        _video(
            f"v{rung.height}",
            stream_pb2.VideoStream(
                codec="h264",
                preset="fast",
                pixel_format="yuv420p",
                height=rung.height,
                rate_control=stream_pb2.RateControl(
                    average_bitrate=stream_pb2.AverageBitrate(
                        bitrate=rung.bitrate, max_bitrate=rung.bitrate * 107 // 100, buffer_bits=rung.bitrate * 3 // 2
                    )
                ),
            ),
        )
        for rung in rungs
    ]
    variants = [output_pb2.Variant(name=f"{rung.height}p", video=f"v{rung.height}", audio="audio") for rung in rungs]
    hls = output_pb2.HlsOutput(variants=variants, segment_duration=seconds(segment))
    streams.append(_audio("audio", "aac", audio_bitrate))
    return _request(source, streams, output_pb2.Output(hls=hls), start=start, duration=duration, pick=False)


def thumbnail(
    source: SourceLike,
    *,
    at: float | None = None,
    width: int = 320,
    image_format: output_pb2.ImageFormat.ValueType = output_pb2.IMAGE_FORMAT_JPEG,
) -> pb.RunPipelineRequest:
    """One picture, at most `width` pixels wide: the frame at `at` seconds. None: from the middle."""
    pick = output_pb2.FramePick(count=1)
    if at is not None:
        pick = output_pb2.FramePick(times=output_pb2.Times(offsets=[seconds(at) or Duration()]))
    frames = output_pb2.FramesOutput(pick=pick, format=image_format)
    video = stream_pb2.VideoStream(filters=[_no_wider_than(width)])
    return _request(source, [_video("video", video)], output_pb2.Output(frames=frames))


def sprites(
    source: SourceLike, *, interval: float = 5.0, width: int = 160, columns: int = 5, rows: int = 5
) -> pb.RunPipelineRequest:
    """Sheets of small pictures, one every `interval` seconds, and the WebVTT file that tells a player's scrub bar where each is."""
    sheet = output_pb2.SpriteSheetOutput(
        pick=output_pb2.FramePick(interval=seconds(interval)), tile_width=width, columns=columns, rows=rows
    )
    return _request(source, [_video("video", stream_pb2.VideoStream())], output_pb2.Output(sprites=sheet))


def audio_only(
    source: SourceLike,
    *,
    container: str = "m4a",
    bitrate: int = 128_000,
    start: float | None = None,
    duration: float | None = None,
) -> pb.RunPipelineRequest:
    """The sound alone. ValueError if `container` is none of `AUDIO_ENCODERS`. WAV and FLAC lose nothing, and have no bitrate."""
    if container not in AUDIO_ENCODERS:
        raise ValueError(f"{container!r} is none of {', '.join(AUDIO_ENCODERS)}")
    lossless = container in ("flac", "wav")
    stream = _audio("audio", AUDIO_ENCODERS[container], 0 if lossless else bitrate, needed=True)
    file = output_pb2.FileOutput(container=container, fast_start=container == "m4a")
    return _request(source, [stream], output_pb2.Output(file=file), start=start, duration=duration)


def archive(source: SourceLike, *, start: float | None = None, duration: float | None = None) -> pb.RunPipelineRequest:
    """A Matroska file of the first picture and sound, and no other track, that loses nothing of them and checks itself: FFV1 version 3
    with checksums (RFC 9043), FLAC."""
    params = {
        "slicecrc": stream_pb2.ParamValue(integer=1),
        "slices": stream_pb2.ParamValue(integer=4),
        # Each frame stands alone, so that one that is damaged is the only one.
        "g": stream_pb2.ParamValue(integer=1),
    }
    video = stream_pb2.VideoStream(codec="ffv1", level="3", params=params)
    return _request(
        source,
        [_video("video", video), _audio("audio", "flac", 0)],
        output_pb2.Output(file=output_pb2.FileOutput(container="mkv")),
        start=start,
        duration=duration,
    )


NAMES: dict[str, Callable[..., pb.RunPipelineRequest]] = {
    "web-mp4": web_mp4,
    "hls-abr": hls_abr,
    "thumbnail": thumbnail,
    "sprites": sprites,
    "audio-only": audio_only,
    "archive": archive,
}


def _no_higher_than(height: int) -> stream_pb2.Filter:
    """A height that is lowered to `height` and never raised, and even, which H.264 needs; the width follows."""
    return _scale("-2", f"trunc(min(ih,{height})/2)*2")


def _no_wider_than(width: int) -> stream_pb2.Filter:
    """The same for the width."""
    return _scale(f"trunc(min(iw,{width})/2)*2", "-2")


def _scale(width: str, height: str) -> stream_pb2.Filter:
    arguments = [("w", width), ("h", height)]
    return stream_pb2.Filter(
        name="scale",
        arguments=[
            stream_pb2.FilterArgument(name=name, value=stream_pb2.ParamValue(text=text)) for name, text in arguments
        ],
    )


def _video(key: str, video: stream_pb2.VideoStream) -> stream_pb2.ElementaryStream:
    return stream_pb2.ElementaryStream(key=key, video=video)


def _audio(key: str, codec: str, bitrate: int, *, needed: bool = False) -> stream_pb2.ElementaryStream:
    audio = stream_pb2.AudioStream(codec=codec)
    if bitrate:
        audio.rate_control.average_bitrate.bitrate = bitrate
    return stream_pb2.ElementaryStream(key=key, audio=audio, skip_if_missing=not needed)


def _request(
    source: SourceLike,
    streams: list[stream_pb2.ElementaryStream],
    output: output_pb2.Output,
    *,
    start: float | None = None,
    duration: float | None = None,
    pick: bool = True,
) -> pb.RunPipelineRequest:
    """`pick` False: the output's target names the streams itself."""
    output.key = KEY
    if pick:
        output.streams.extend(stream.key for stream in streams)
    one = input_pb2.Input(source=to_source(source), start_offset=seconds(start), duration=seconds(duration))
    return pb.RunPipelineRequest(inputs=[one], elementary_streams=streams, outputs=[output])
