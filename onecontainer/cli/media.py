"""`oca media`: probe and transcode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from google.protobuf import json_format

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.media.v1 import media_info_pb2, media_pb2, pipeline_pb2, stream_pb2
from onecontainer.cli.artifact import send
from onecontainer.cli.bars import duration
from onecontainer.cli.job import follow, options_of, show
from onecontainer.cli.media_files import preset_options, save
from onecontainer.cli.media_result import show_result
from onecontainer.cli.options import DURATION, JSON, job_options
from onecontainer.cli.render import enum_name, size
from onecontainer.cli.session import Session, connected
from onecontainer.client import Job, transcode_request
from onecontainer.client.media import IMAGE_FORMATS, presets
from onecontainer.client.media.live import live_output, live_request
from onecontainer.errors import OneContainerError

SOURCE_TTL = 24 * 3600.0
"""Seconds that a file is kept that was uploaded only to be a source."""


@click.group()
def media() -> None:
    """Probe and transcode media. SERVICE is a registered service whose driver is of scope media.

    A SOURCE is a file here (it is uploaded first), an `artifacts/…` name, an http(s) URL, or with --remote a path on the
    service's side. URLs and remote paths must be allowed by the service's operator.

    \b
    Examples:
      oca media probe films clip.mp4
      oca media transcode films clip.mp4 --to small.webm --height 360
      oca media transcode films clip.mp4 --preset hls-abr --to clip-hls
      oca media run films @pipeline.json
      oca media frame films artifacts/01jd… --at 12s --to frame.png
    """


def source_of(session: Session, source: str, remote: bool) -> str:
    """The source as the service finds it: a file here is uploaded."""
    if remote or source.startswith(("artifacts/", "http://", "https://")):
        return source
    path = Path(source)
    if not path.is_file():
        raise click.UsageError(f"{source} is no file here (with --remote it is a path on the service's side)")
    return send(session, path, ttl=SOURCE_TTL).name


remote_option = click.option("--remote", is_flag=True, help="SOURCE is a path on the service's side.")


@media.command()
@click.argument("service")
@click.argument("source")
@remote_option
@connected
def probe(session: Session, service: str, source: str, remote: bool) -> None:
    """Show what is in SOURCE."""
    show_info(session, session.client.media.probe(service, source_of(session, source, remote), timeout=session.timeout))


def show_info(session: Session, info: media_info_pb2.MediaInfo) -> None:
    if session.screen.is_json:
        session.screen.message(info)
        return
    found = info.format
    session.screen.message(
        info,
        {
            "format": f"{found.name} ({found.long_name})",
            "duration": duration(found.duration) if found.HasField("duration") else "unknown",
            "size": size(found.size_bytes) if found.HasField("size_bytes") else "",
            "bitrate": f"{found.bitrate / 1000:.0f} kbit/s" if found.HasField("bitrate") else "",
            "tags": dict(found.tags),
        },
    )
    session.screen.rows([track_row(track) for track in info.streams])
    if info.chapters:
        session.screen.rows([chapter_row(chapter) for chapter in info.chapters])


def chapter_row(chapter: media_info_pb2.Chapter) -> dict[str, object]:
    return {
        "chapter": chapter.id,
        "start": duration(chapter.start_time),
        "end": duration(chapter.end_time),
        "title": chapter.title,
    }


def track_row(track: media_info_pb2.StreamInfo) -> dict[str, object]:
    details = ""
    if track.HasField("video"):
        rate = track.video.average_frame_rate
        details = f"{track.video.width}x{track.video.height} {track.video.pixel_format}"
        details += f" {rate.numerator / rate.denominator:.4g} fps" if rate.denominator else ""
    elif track.HasField("audio"):
        details = f"{track.audio.sample_rate} Hz, {track.audio.channel_layout or track.audio.channels}"
    return {
        "track": track.index,
        "kind": enum_name(media_info_pb2.StreamKind, track.kind).lower(),
        "codec": track.codec,
        "details": details,
        "language": track.language,
    }


@media.command()
@click.argument("service")
@click.argument("source")
@remote_option
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write; its ending is the container. A folder for what has several files, as HLS.",
)
@click.option(
    "--preset",
    type=click.Choice(sorted(presets.NAMES)),
    help="A whole pipeline: web-mp4 for browsers, hls-abr with a ladder, thumbnail, sprites for scrub bars, audio-only, "
    "archive without loss. Then only --start, --duration, --width and --height count, as far as the preset has them.",
)
@click.option("--video-codec", default="", help="Encoder or codec; `copy` passes it through. Default: the container's.")
@click.option("--audio-codec", default="", help="The same for sound.")
@click.option("--width", type=click.IntRange(0), default=0, help="Pixels. Default: from the height, or unchanged.")
@click.option("--height", type=click.IntRange(0), default=0, help="Pixels. Default: from the width, or unchanged.")
@click.option("--quality", type=float, help="On the encoder's own scale (CRF); lower is better for most.")
@click.option("--encoder-preset", default="", help="Preset of the encoder, such as fast.")
@click.option("--start", type=DURATION, help="Begin there.")
@click.option("--duration", "length", type=DURATION, help="So much of it.")
@click.option("--no-audio", is_flag=True, help="Without sound.")
@job_options
@connected
def transcode(
    session: Session,
    service: str,
    source: str,
    remote: bool,
    target: Path,
    preset: str | None,
    video_codec: str,
    audio_codec: str,
    width: int,
    height: int,
    quality: float | None,
    encoder_preset: str,
    start: float | None,
    length: float | None,
    no_audio: bool,
    **values: Any,
) -> None:
    """Turn SOURCE into another file, as a job with a live bar, and download it. Ctrl-C leaves the job running."""
    if preset:
        others: dict[str, object] = {
            "--video-codec": video_codec,
            "--audio-codec": audio_codec,
            "--encoder-preset": encoder_preset,
        }
        others |= {"--no-audio": no_audio, "--quality": quality is not None}
        if given := [name for name, value in others.items() if value]:
            raise click.UsageError(f"{given[0]} cannot go with --preset, which has its own")
        wishes = {"start": start, "duration": length, "width": width or None, "height": height or None}
        options = preset_options(preset, target, {name: value for name, value in wishes.items() if value is not None})
        found = source_of(session, source, remote)
        if preset == "hls-abr":
            info = session.client.media.probe(service, found, timeout=session.timeout)
            options["rungs"] = presets.rungs_for(info)
        request = presets.NAMES[preset](found, **options)
    else:
        video = stream_pb2.VideoStream(codec=video_codec, preset=encoder_preset, width=width, height=height)
        if quality is not None:
            video.rate_control.constant_quality = quality
        audio = stream_pb2.AudioStream(codec=audio_codec)
        plain = not (video.ByteSize() or audio.ByteSize() or no_audio)
        request = transcode_request(
            source_of(session, source, remote),
            target.suffix.removeprefix(".").lower() or "mp4",
            video=None if plain else video,
            audio=None if plain or no_audio else audio,
            start=start,
            duration=length,
        )
    job = session.client.media.run_pipeline(service, request, options=options_of(values), timeout=session.timeout)
    result = finished(session, job, title=target.name)
    save(session, result.outputs[0], target)
    show_result(session, result)


def finished(session: Session, job: Job, *, title: str = "") -> pipeline_pb2.RunPipelineResult:
    """Follows a pipeline to its end. Raises the job's error if it failed, once it has shown what there is nevertheless."""
    follow(session, job, title=title)
    try:
        return job.result(pipeline_pb2.RunPipelineResult)
    except OneContainerError as error:
        if told := error.detail(pipeline_pb2.RunPipelineResult):
            show_result(session, told)
        raise


@media.command()
@click.argument("service")
@click.argument("pipeline", type=JSON)
@job_options
@click.option("--wait/--no-wait", "wait_", default=True, show_default=True, help="Show it until it ends.")
@connected
def run(session: Session, service: str, pipeline: list[Any], wait_: bool, **values: Any) -> None:
    """Run a whole PIPELINE: a RunPipelineRequest as JSON, `@FILE`, or `-` for stdin.

    \b
    Example:
      oca media run films '{"inputs": [{"source": {"artifact": "artifacts/01jd…"}}],
                            "outputs": [{"key": "small", "file": {"container": "mp4"}}]}'
    """
    if len(pipeline) != 1:
        raise click.UsageError("PIPELINE must be one JSON object")
    request = media_pb2.RunPipelineRequest()
    try:
        json_format.ParseDict(pipeline[0], request)
    except json_format.ParseError as error:
        raise click.UsageError(f"PIPELINE is no RunPipelineRequest: {error}") from None
    options = options_of(values)
    job = session.client.media.run_pipeline(
        service, request, options=None if request.HasField("job_options") else options, timeout=session.timeout
    )
    if not wait_:
        show(session, job.record)
        return
    result = finished(session, job)
    assert job.record.state == job_pb2.JOB_STATE_SUCCEEDED
    show_result(session, result)


@media.command()
@click.argument("service")
@click.argument("source")
@remote_option
@click.option(
    "--to", "target", type=click.Path(path_type=Path), required=True, help="Picture to write: .jpg, .png or .webp."
)
@click.option("--at", "position", type=DURATION, help="Which frame: the first one from there on. Default: the first.")
@click.option("--width", type=click.IntRange(0), default=0, help="Pixels. Default: the video's.")
@connected
def frame(
    session: Session, service: str, source: str, remote: bool, target: Path, position: float | None, width: int
) -> None:
    """Take one frame of SOURCE as a picture."""
    ending = target.suffix.removeprefix(".").lower().replace("jpg", "jpeg")
    if ending not in IMAGE_FORMATS:
        raise click.UsageError(f"{target} must end in .jpg, .png or .webp")
    answer = session.client.media.capture_frame(
        service,
        source_of(session, source, remote),
        position=position,
        image_format=ending,
        width=width,
        timeout=session.timeout,
    )
    target.write_bytes(answer.image)
    session.screen.rows(
        [
            {
                "file": str(target),
                "size": f"{answer.width}x{answer.height}",
                "at": duration(answer.position),
                "bytes": len(answer.image),
            }
        ]
    )


@media.command()
@click.argument("service")
@click.argument("source")
@click.argument("url")
@remote_option
@click.option("--copy", is_flag=True, help="Pass the tracks through, which the sink must be able to carry.")
@click.option("--loop", is_flag=True, help="Again and again, until the job is cancelled.")
@click.option("--wait/--no-wait", "wait_", default=True, show_default=True, help="Show it until it ends.")
@job_options
@connected
def stream(
    session: Session,
    service: str,
    source: str,
    url: str,
    remote: bool,
    copy: bool,
    loop: bool,
    wait_: bool,
    **values: Any,
) -> None:
    """Send SOURCE to URL at the pace of playing: `udp://HOST:PORT`, `srt://HOST:PORT[?mode=listener&streamid=…]` or
    `rtmp://HOST[:PORT]/APP/NAME`. The service's operator must have allowed the host. `oca job cancel --finish` ends it.

    \b
    Example:
      oca media stream films clip.mp4 rtmp://127.0.0.1/live/clip
    """
    try:
        sink = live_output(url)
    except ValueError as error:
        raise click.UsageError(f"{url}: {error}") from None
    request = live_request(source_of(session, source, remote), sink, copy=copy, loop=loop)
    job = session.client.media.run_pipeline(service, request, options=options_of(values), timeout=session.timeout)
    if not wait_:
        show(session, job.record)
        return
    result = finished(session, job, title=url.partition("?")[0])
    show_result(session, result)


@media.command()
@click.argument("service")
@click.option(
    "--show",
    "what",
    type=click.Choice(["summary", "codecs", "encoders", "containers", "filters", "formats"]),
    default="summary",
    show_default=True,
    help="What to list.",
)
@connected
def capabilities(session: Session, service: str, what: str) -> None:
    """What the service's build can do, and what of it requests may use."""
    found = session.client.media.capabilities(service, timeout=session.timeout)
    if session.screen.is_json:
        session.screen.message(found)
    elif what == "summary":
        session.screen.message(
            found,
            {
                "version": found.version,
                "containers": ", ".join(container.name for container in found.containers),
                "codecs": f"{len(found.codecs)}, {sum(bool(codec.encoders) for codec in found.codecs)} of them can be encoded",
                "filters": f"{len(found.filters)}, {sum(item.allowed for item in found.filters)} of them allowed",
                "hardware": ", ".join(device for item in found.hardware for device in item.devices) or "none",
            },
        )
    else:
        session.screen.rows([row_of(item) for item in getattr(found, what)])


def row_of(item: Any) -> dict[str, object]:
    """A capability's scalar fields that say something."""
    return {
        field.name: ", ".join(value) if field.is_repeated else value
        for field in item.DESCRIPTOR.fields
        if field.type in (field.TYPE_STRING, field.TYPE_BOOL)
        for value in (getattr(item, field.name),)
    }
