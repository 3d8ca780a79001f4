"""From a RunPipelineRequest to commands. `draft_outputs` checks all that can be checked without the sources, `bind_output` the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onecontainer.api.media.v1 import input_pb2, media_pb2, output_pb2, pipeline_pb2
from onecontainer.api.media.v1.media_info_pb2 import MediaInfo, StreamInfo
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg import allowed
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.containers import CONTAINERS, Container
from onecontainer_driver_ffmpeg.media_info import seconds
from onecontainer_driver_ffmpeg.prober import input_options
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.sources import OpenedSource
from onecontainer_driver_ffmpeg.stream_plan import KINDS, StreamDraft, draft_default, draft_stream
from onecontainer_driver_ffmpeg.values import muxer_params

_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_INPUTS, MOST_STREAMS, MOST_OUTPUTS = 16, 64, 32


@dataclass(frozen=True)
class BoundInput:
    """An input whose source is open and probed. `length` is what it gives in seconds, None: not known."""

    request: input_pb2.Input
    source: OpenedSource
    info: MediaInfo

    @property
    def looped(self) -> bool:
        return self.request.loop_forever or self.request.extra_plays > 0

    @property
    def length(self) -> float | None:
        known = seconds(self.info.format.duration) if self.info.format.HasField("duration") else None
        if self.request.loop_forever:
            known = None
        elif known is not None:
            known = max(known * (1 + self.request.extra_plays) - seconds(self.request.start_offset), 0.0)
        if self.request.HasField("duration"):
            asked = seconds(self.request.duration)
            return asked if known is None else min(known, asked)
        return known


@dataclass(frozen=True)
class OutputDraft:
    request: output_pb2.Output
    at: str
    container: Container
    file_name: str
    streams: Sequence[StreamDraft]
    muxer_arguments: Sequence[str]


@dataclass(frozen=True)
class OutputPlan:
    """One process. `expected` is its length in seconds, None: not known. `shown` is the command as callers may see it."""

    key: str
    at: str
    container: Container
    path: Path
    command: Sequence[str]
    shown: Sequence[str]
    expected: float | None
    limit: float
    streams: Sequence[pipeline_pb2.OutputStream] = field(default_factory=list)


async def draft_outputs(request: media_pb2.RunPipelineRequest, capabilities: Capabilities) -> list[OutputDraft]:
    """Checks everything of `request` but its sources. Raises FieldRequired, FieldInvalid or BackendCapabilityMissing."""
    _check_counts(request)
    for index, one in enumerate(request.inputs):
        _check_input(one, f"inputs[{index}]")
    streams = {stream.key: (index, stream) for index, stream in enumerate(request.elementary_streams)}
    picked = {key for output in request.outputs for key in output.streams}
    for key, (index, stream) in streams.items():
        if key not in picked:
            raise errors.FieldInvalid(f"elementary_streams[{index}].key", f"{key!r} is taken by no output")
        for position, selector in enumerate(stream.sources):
            where = f"elementary_streams[{index}].sources[{position}]"
            if not 0 <= selector.input < len(request.inputs):
                raise errors.FieldInvalid(f"{where}.input", f"is not between 0 and {len(request.inputs) - 1}")
            if selector.index < 0:
                raise errors.FieldInvalid(f"{where}.index", "is below 0")
    drafts = []
    for index, output in enumerate(request.outputs):
        at = f"outputs[{index}]"
        container, name = _check_target(output, capabilities, at)
        taken: list[StreamDraft] = []
        for position, key in enumerate(output.streams):
            if key not in streams:
                raise errors.FieldInvalid(f"{at}.streams[{position}]", f"there is no elementary stream {key!r}")
            number, stream = streams[key]
            taken.append(await draft_stream(stream, container, capabilities, f"elementary_streams[{number}]"))
        if not output.streams:
            kinds = ("subtitle",) if container.name in ("srt", "vtt", "ass") else ("video", "audio")
            defaults = [await draft_default(kind, container, capabilities, at) for kind in kinds]
            taken = [draft for draft in defaults if draft]
        own = await capabilities.muxer_options(container.muxer)
        muxing = muxer_params(output.muxer_params, container.muxer, own, f"{at}.muxer_params")
        if output.file.fast_start and "-movflags" not in muxing and container.fast_start:
            muxing += ["-movflags", "+faststart"]
        for key in sorted(output.tags):
            muxing += ["-metadata", f"{key}={_check_tag(key, output.tags[key], at)}"]
        drafts.append(OutputDraft(output, at, container, f"{name}.{container.name}", taken, muxing))
    return drafts


def bind_output(
    draft: OutputDraft,
    inputs: Sequence[BoundInput],
    *,
    folder: Path,
    capabilities: Capabilities,
    settings: Settings,
    limits: pipeline_pb2.PipelineLimits,
) -> OutputPlan:
    """The command of one output, now that the tracks of the inputs are known."""
    output = draft.request
    maps: list[str] = []
    graph: list[str] = []
    arguments: list[str] = []
    made: list[pipeline_pb2.OutputStream] = []
    lengths: list[float | None] = []
    counts = dict.fromkeys(KINDS, 0)
    for stream in draft.streams:
        tracks = _find_tracks(stream, inputs)
        if tracks is None:
            continue
        if (
            stream.encoder == "copy"
            and draft.container.holds is not None
            and tracks[0][1].codec not in draft.container.holds
        ):
            raise errors.FieldInvalid(
                f"{stream.at}.{stream.kind}.codec",
                f"`copy` of {tracks[0][1].codec}, which {draft.container.name} cannot hold",
            )
        if stream.chain:
            pads = "".join(f"[{number}:{track.index}]" for number, track in tracks)
            graph.append(f"{pads}{','.join(stream.chain)}[s{len(graph)}]")
            maps += ["-map", f"[s{len(graph) - 1}]"]
        else:
            maps += ["-map", f"{tracks[0][0]}:{tracks[0][1].index}"]
        arguments += stream.arguments(counts[stream.kind])
        counts[stream.kind] += 1
        made.append(pipeline_pb2.OutputStream(key=stream.key, kind=KINDS[stream.kind], encoder=stream.encoder))
        lengths += [inputs[number].length for number, _ in tracks]
    if not made:
        raise errors.DataInvalid(f"{draft.at}.streams", f"the inputs have no track that {draft.container.name} takes")
    expected, limit, cut = _lengths(draft, lengths, settings, limits)
    path = folder / draft.request.key / draft.file_name
    threads = _least(settings.threads, limits.threads)
    command = [capabilities.ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "repeat+level+warning", "-nostats", "-y"]
    command += ["-progress", "pipe:1", "-stats_period", "0.25"]
    if threads:
        command += ["-filter_threads", str(threads), "-filter_complex_threads", str(threads)]
    for one in inputs:
        command += _input_arguments(one, output, threads, capabilities)
    if graph:
        command += ["-filter_complex", ";".join(graph)]
    command += [*maps, *arguments]
    if threads:
        command += ["-threads", str(threads)]
    if output.HasField("start_offset") and any(one.looped for one in inputs):
        command += ["-ss", _time(seconds(output.start_offset))]
    command += ["-t", _time(cut)]
    command += [*draft.muxer_arguments, "-f", draft.container.muxer, f"file:{path}"]
    return OutputPlan(
        draft.request.key,
        draft.at,
        draft.container,
        path,
        command,
        _shown(command, inputs, path),
        expected,
        limit,
        made,
    )


def _input_arguments(one: BoundInput, output: output_pb2.Output, threads: int, capabilities: Capabilities) -> list[str]:
    arguments = []
    for name, value in input_options(one.source, capabilities).items():
        arguments += [f"-{name}", value]
    if one.source.demuxer:
        arguments += ["-f", one.source.demuxer]
    if one.request.loop_forever or one.request.extra_plays:
        arguments += ["-stream_loop", "-1" if one.request.loop_forever else str(one.request.extra_plays)]
    # Of a looped input only the first play could be sought in, so the output's own start is then left to the output.
    start = seconds(one.request.start_offset) + (0.0 if one.looped else seconds(output.start_offset))
    arguments += ["-ss", _time(start)] if start else []
    if one.request.HasField("duration"):
        length = seconds(one.request.duration) - (0.0 if one.looped else seconds(output.start_offset))
        arguments += ["-t", _time(max(length, 0.001))]
    arguments += ["-re"] if one.request.real_time else []
    arguments += ["-threads", str(threads)] if threads else []
    return [*arguments, "-i", one.source.address]


def _lengths(
    draft: OutputDraft, lengths: Sequence[float | None], settings: Settings, limits: pipeline_pb2.PipelineLimits
) -> tuple[float | None, float, float]:
    """Expected length (None: not known), the bound that holds, and where to cut."""
    limit = settings.max_media_duration
    if limits.HasField("max_media_duration"):
        limit = min(limit, seconds(limits.max_media_duration))
    known = [length for length in lengths if length is not None]
    expected = max(known) - seconds(draft.request.start_offset) if len(known) == len(lengths) else None
    asked = seconds(draft.request.duration) if draft.request.HasField("duration") else None
    if asked is not None:
        expected = asked if expected is None else min(expected, asked)
    if expected is not None and expected <= 0:
        raise errors.FieldInvalid(f"{draft.at}.start_offset", "is at or after the end of the inputs")
    if expected is not None and expected > limit:
        raise errors.LimitExceeded(f"{draft.at} would be {expected:.1f} s long, and {limit:.1f} s are allowed")
    # The bound is on every command: filters such as `loop` and `apad` go on for ever, whatever the inputs are.
    return expected, limit, limit if asked is None else asked


def _find_tracks(stream: StreamDraft, inputs: Sequence[BoundInput]) -> list[tuple[int, StreamInfo]] | None:
    """Input and track of each selector. None: one is missing, and that is allowed."""
    found = []
    for position, selector in enumerate(stream.selectors):
        tracks = [track for track in inputs[selector.input].info.streams if track.kind == KINDS[stream.kind]]
        which = selector.WhichOneof("track")
        if which == "index":
            tracks = [track for track in tracks if track.index_in_kind == selector.index]
        elif which == "language":
            tracks = [track for track in tracks if track.language == selector.language]
        else:
            tracks = [track for track in tracks if not track.disposition.attached_picture]
        if not tracks:
            if stream.skip_if_missing:
                return None
            raise errors.DataInvalid(
                f"{stream.at}.sources[{position}]", f"inputs[{selector.input}] has no such {stream.kind} track"
            )
        found.append((selector.input, tracks[0]))
    return found


def _check_counts(request: media_pb2.RunPipelineRequest) -> None:
    if not request.inputs:
        raise errors.FieldRequired("inputs")
    if not request.outputs:
        raise errors.FieldRequired("outputs", "no outputs specified")
    for name, most in (("inputs", MOST_INPUTS), ("elementary_streams", MOST_STREAMS), ("outputs", MOST_OUTPUTS)):
        if len(getattr(request, name)) > most:
            raise errors.FieldInvalid(name, f"has more than {most} entries")
    for name in ("elementary_streams", "outputs"):
        seen: set[str] = set()
        for index, one in enumerate(getattr(request, name)):
            if not _KEY.fullmatch(one.key):
                raise errors.FieldInvalid(f"{name}[{index}].key", "is not of the form [a-z][a-z0-9_-]{0,62}")
            if one.key in seen:
                raise errors.FieldInvalid(f"{name}[{index}].key", f"{one.key!r} is there twice")
            seen.add(one.key)
    for name in ("max_output_bytes", "threads", "max_memory_bytes"):
        if getattr(request.limits, name) < 0:
            raise errors.FieldInvalid(f"limits.{name}", "is below 0")
    if request.limits.HasField("max_media_duration") and seconds(request.limits.max_media_duration) <= 0:
        raise errors.FieldInvalid("limits.max_media_duration", "is not more than 0")


def _check_input(one: input_pb2.Input, at: str) -> None:
    if seconds(one.start_offset) < 0:
        raise errors.FieldInvalid(f"{at}.start_offset", "is below 0")
    if one.HasField("duration") and seconds(one.duration) <= 0:
        raise errors.FieldInvalid(f"{at}.duration", "is not more than 0")
    if not 0 <= one.extra_plays <= 100_000:
        raise errors.FieldInvalid(f"{at}.extra_plays", "is not between 0 and 100000")
    if one.loop_forever and not one.HasField("duration"):
        raise errors.FieldRequired(f"{at}.duration", "is required with loop_forever")


def _check_target(output: output_pb2.Output, capabilities: Capabilities, at: str) -> tuple[Container, str]:
    target = output.WhichOneof("target")
    if target is None:
        raise errors.FieldRequired(f"{at}.file", "a target is required")
    if target != "file":
        raise errors.BackendCapabilityMissing(
            f"{at}.{target}", "only `file` targets are within this driver (ListCapabilities.targets)"
        )
    if output.uploads or output.upload_only:
        raise errors.BackendCapabilityMissing(f"{at}.uploads", "uploads are beyond this driver; outputs are artifacts")
    if seconds(output.start_offset) < 0:
        raise errors.FieldInvalid(f"{at}.start_offset", "is below 0")
    if output.HasField("duration") and seconds(output.duration) <= 0:
        raise errors.FieldInvalid(f"{at}.duration", "is not more than 0")
    container = CONTAINERS.get(output.file.container)
    if container is None or container not in capabilities.containers():
        raise errors.BackendCapabilityMissing(
            f"{at}.file.container", f"{output.file.container!r} is no container of this service"
        )
    name = output.file.name or output.key
    if not _FILE_NAME.fullmatch(name):
        raise errors.FieldInvalid(f"{at}.file.name", "is not of the form [A-Za-z0-9][A-Za-z0-9._-]{0,99}")
    return container, name


def _check_tag(key: str, value: str, at: str) -> str:
    if not allowed.TAG_KEY.fullmatch(key):
        raise errors.FieldInvalid(f'{at}.tags["{key}"]', "is no key of the form [A-Za-z][A-Za-z0-9_]{0,62}")
    if len(value) > 1024 or any(ord(character) < 32 for character in value):
        raise errors.FieldInvalid(f'{at}.tags["{key}"]', "has control characters or more than 1024 characters")
    return value


def _shown(command: Sequence[str], inputs: Sequence[BoundInput], path: Path) -> list[str]:
    """The command without the sidecar's folders and without URLs, whose queries may be secret."""
    names = {one.source.address: f"{{input{index}}}" for index, one in enumerate(inputs)}
    names |= {f"file:{path}": "{output}", command[0]: "ffmpeg"}
    shown = [names.get(word, word) for word in command]
    for index, word in enumerate(shown[:-1]):
        if word == "-format_whitelist":
            shown[index + 1] = "{formats}"
    return shown


def _least(*bounds: int) -> int:
    """The lowest bound of those that there are; 0: there is none."""
    return min((bound for bound in bounds if bound), default=0)


def _time(value: float) -> str:
    return f"{value:.6f}"
