"""One frame of a video as a picture."""

from __future__ import annotations

import math
import re
from pathlib import Path

from onecontainer.api.media.v1 import media_info_pb2, media_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.egress import EgressGuard
from onecontainer_driver_ffmpeg.failures import process_failure
from onecontainer_driver_ffmpeg.images import find_image
from onecontainer_driver_ffmpeg.media_info import seconds, to_duration
from onecontainer_driver_ffmpeg.prober import Prober, failure, input_options
from onecontainer_driver_ffmpeg.process import Bounds, run
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.sources import OpenedSource

MOST_SIDE = 16384
# Most bytes of a picture: what fits into a message, less a margin for the rest of it.
MOST_BYTES = 60 * 1024 * 1024
_TIMEOUT = 50.0
_SHOWN = re.compile(r"pts_time:\s*(-?[\d.]+).*?\bs:(\d+)x(\d+)")


async def capture_frame(
    request: media_pb2.CaptureFrameRequest,
    source: OpenedSource,
    *,
    folder: Path,
    guard: EgressGuard | None,
    capabilities: Capabilities,
    settings: Settings,
    prober: Prober,
) -> media_pb2.CaptureFrameResponse:
    """The handler of CaptureFrame, once the source is open."""
    image = find_image(request.image_format, capabilities, "image_format")
    for name, most in (("quality", 100), ("width", MOST_SIDE), ("height", MOST_SIDE)):
        if not 0 <= getattr(request, name) <= most:
            raise errors.FieldInvalid(name, f"is not between 0 and {most}")
    position = seconds(request.position)
    if position < 0:
        raise errors.FieldInvalid("position", "is below 0")
    info = await prober.probe(source, at="source", folder=folder, guard=guard)
    track = _find_track(request, info)
    command = [capabilities.ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "repeat+level+info", "-nostats"]
    if settings.threads:
        command += ["-filter_threads", str(settings.threads)]
    for name, value in input_options(source, capabilities).items():
        command += [f"-{name}", value]
    command += ["-f", source.demuxer] if source.demuxer else []
    # Time stamps are kept, so that the answer can tell the frame's own time.
    start = seconds(info.format.start_time)
    command += ["-ss", f"{position + max(start, 0.0):.6f}", "-copyts"] if position else ["-copyts"]
    command += ["-threads", str(settings.threads)] if settings.threads else []
    command += ["-i", source.address, "-map", f"0:{track.index}", "-frames:v", "1"]
    # One frame only goes on, so that `showinfo` tells of this one.
    chain = ["trim=end_frame=1"]
    chain += [f"scale=w={request.width or -1}:h={request.height or -1}"] if request.width or request.height else []
    command += ["-filter:v", ",".join([*chain, "showinfo=checksum=0"])]
    quality = [word for name, value in image.quality(request.quality or 85) for word in (f"{name}:v", value)]
    command += ["-c:v", image.encoder, *quality, "-f", image.muxer, "pipe:1"]
    try:
        finished = await run(
            command,
            folder=folder,
            timeout=_TIMEOUT,
            bounds=Bounds(memory_bytes=settings.max_memory_bytes, cpu_seconds=math.ceil(settings.max_cpu_time)),
            environment=guard.environment() if guard else None,
            most_output=MOST_BYTES,
        )
    except TimeoutError as error:
        raise errors.DataInvalid("source", f"gave no frame in {_TIMEOUT:.0f} s") from error
    if finished.return_code != 0:
        if guard and (guard.refused or guard.unreachable):
            raise failure(source, finished.last_lines, at="source", guard=guard)
        raise process_failure(
            finished.return_code, [line.replace(source.address, source.label) for line in finished.last_lines], "source"
        )
    if finished.output_truncated:
        raise errors.MessageTooLarge(
            f"the picture has more than {MOST_BYTES} bytes: ask for a smaller one or for JPEG",
            metadata={"limit_bytes": str(MOST_BYTES)},
        )
    shown = next((match for line in reversed(finished.last_lines) if (match := _SHOWN.search(line))), None)
    if not finished.output or shown is None:
        raise errors.DataInvalid("position", f"there is no frame at or after {position:g} s")
    return media_pb2.CaptureFrameResponse(
        image=finished.output,
        media_type=image.media_type,
        width=int(shown[2]),
        height=int(shown[3]),
        position=to_duration(max(float(shown[1]) - max(start, 0.0), 0.0)),
    )


def _find_track(request: media_pb2.CaptureFrameRequest, info: media_info_pb2.MediaInfo) -> media_info_pb2.StreamInfo:
    tracks = [track for track in info.streams if track.kind == media_info_pb2.STREAM_KIND_VIDEO]
    if request.HasField("track"):
        tracks = [track for track in tracks if track.index_in_kind == request.track]
        if not tracks:
            raise errors.DataInvalid("track", f"the source has no video track {request.track}")
    # A file with a cover only has that to show.
    tracks = [track for track in tracks if not track.disposition.attached_picture] or tracks
    if not tracks:
        raise errors.DataInvalid("source", "has no video")
    return tracks[0]
