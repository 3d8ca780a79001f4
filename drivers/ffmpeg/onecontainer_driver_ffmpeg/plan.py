"""From a RunPipelineRequest to commands. `draft_outputs` checks all that can be checked without the sources, `bind_output` the rest."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onecontainer.api.media.v1 import input_pb2, media_pb2, output_pb2, pipeline_pb2, stream_pb2
from onecontainer.api.media.v1.media_info_pb2 import MediaInfo, StreamInfo
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.encoder_names import HALF_COLOURS
from onecontainer_driver_ffmpeg.hardware import APIS
from onecontainer_driver_ffmpeg.media_info import seconds
from onecontainer_driver_ffmpeg.prober import input_options
from onecontainer_driver_ffmpeg.request_checks import check_request
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.sources import OpenedSource
from onecontainer_driver_ffmpeg.stream_plan import KINDS, StreamDraft
from onecontainer_driver_ffmpeg.targets import check_target
from onecontainer_driver_ffmpeg.targets.target import Known, Pick, Target, Track, Written
from onecontainer_driver_ffmpeg.uploads import UploadPlan, check_uploads


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
    target: Target
    streams: Sequence[tuple[Pick, StreamDraft]]
    uploads: Sequence[UploadPlan]


@dataclass(frozen=True)
class OutputPlan:
    """One process at a time, in `folder`. `commands`: one, or two for two passes. `expected` is the length in seconds, None: not known.

    `shown` is the last command as callers may see it, and `hidden` says what they see in place of other texts of it.
    """

    key: str
    at: str
    target: Target
    folder: Path
    tracks: Sequence[Track]
    commands: Sequence[Sequence[str]]
    shown: Sequence[str]
    written: Written
    expected: float | None
    limit: float
    streams: Sequence[pipeline_pb2.OutputStream]
    uploads: Sequence[UploadPlan]
    hidden: Mapping[str, str] = field(default_factory=dict)
    pass_log: Path | None = None
    """Beginning of the names of what the first pass leaves to the second. None: there is one pass."""

    def redact(self, text: str) -> str:
        return _redact(text, self.hidden)


async def draft_outputs(
    request: media_pb2.RunPipelineRequest, capabilities: Capabilities, settings: Settings
) -> list[OutputDraft]:
    """Checks everything of `request` but its sources. Raises FieldRequired, FieldInvalid, BackendCapabilityMissing, SourceNotAllowed."""
    check_request(request)
    targets = [
        await check_target(output, capabilities, settings, f"outputs[{index}]")
        for index, output in enumerate(request.outputs)
    ]
    streams = {stream.key: (index, stream) for index, stream in enumerate(request.elementary_streams)}
    picked = {pick.key for target in targets for pick in target.picks}
    for key, (index, _) in streams.items():
        if key not in picked:
            raise errors.FieldInvalid(f"elementary_streams[{index}].key", f"{key!r} is taken by no output")
    drafts = []
    for target in targets:
        taken: list[tuple[Pick, StreamDraft]] = []
        for pick in target.picks:
            if pick.key not in streams:
                raise errors.FieldInvalid(pick.at, f"there is no elementary stream {pick.key!r}")
            number, stream = streams[pick.key]
            if pick.kind and stream.WhichOneof("kind") not in (pick.kind, None):
                raise errors.FieldInvalid(pick.at, f"{pick.key!r} is {stream.WhichOneof('kind')}, not {pick.kind}")
            taken.append((pick, await target.draft(stream, capabilities, f"elementary_streams[{number}]")))
        if not target.picks:
            for kind in target.default_kinds:
                if draft := await target.draft_default(kind, capabilities):
                    taken.append((Pick(target.at, "", kind), draft))
        target.check_drafts(taken)
        uploads = check_uploads(target.output, settings.upload_hosts, settings.secrets, target.at)
        drafts.append(OutputDraft(target.output, target.at, target, taken, uploads))
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
    """The command of one output, now that the tracks of the inputs are known. `folder`: the call's own."""
    output, target = draft.request, draft.target
    found = [(pick, stream, tracks) for pick, stream in draft.streams if (tracks := _find_tracks(stream, inputs))]
    if not found:
        raise errors.DataInvalid(f"{draft.at}.streams", f"the inputs have no track that {target.container.name} takes")
    taken = sorted({number for _, _, tracks in found for number, _ in tracks})
    for number in taken:
        if inputs[number].length == 0.0 and inputs[number].request.HasField("start_offset"):
            raise errors.FieldInvalid(f"inputs[{number}].start_offset", "is at or after the end of the source")
    lengths = [inputs[number].length for number in taken]
    expected, limit, cut = _lengths(draft, lengths, settings, limits)
    own_filters = target.filters(expected)
    bounds = []
    # Of a looped input only the first play could be sought in, so the output's own start is then cut off after decoding.
    if output.HasField("start_offset") and any(one.looped for one in inputs):
        late = _time(seconds(output.start_offset))
        if own_filters:  # they go by time, so the cut has to come before them
            own_filters = [f"trim=start={late}", f"setpts=expr=PTS-{late}/TB", *own_filters]
        else:
            bounds += ["-ss", late]
    bounds += ["-t", _time(cut)]
    maps: list[str] = []
    graph: list[str] = []
    made: list[Track] = []
    counts = dict.fromkeys(KINDS, 0)
    for pick, stream, tracks in found:
        holds = target.container.holds
        if stream.encoder == "copy" and holds is not None and tracks[0][1].codec not in holds:
            raise errors.FieldInvalid(
                f"{stream.at}.{stream.kind}.codec",
                f"`copy` of {tracks[0][1].codec}, which {target.container.name} cannot hold",
            )
        if stream.odd and tracks[0][1].video.pixel_format in HALF_COLOURS:
            raise stream.odd
        where = f"{tracks[0][0]}:{tracks[0][1].index}"
        chain = [*stream.chain, *(own_filters if stream.kind == "video" else ()), *stream.upload]
        if chain:
            pads = "".join(f"[{number}:{track.index}]" for number, track in tracks)
            where = f"[s{len(graph)}]"
            graph.append(f"{pads}{','.join(chain)}{where}")
        apart = target.apart(stream.kind)
        made.append(Track(stream, 0 if apart else counts[stream.kind], tracks[0][1], where, pick.rung, apart))
        if not apart:
            maps += ["-map", where]
            counts[stream.kind] += 1
    main = [track for track in made if not track.apart]
    if not main:
        raise errors.DataInvalid(
            f"{draft.at}.streams", f"the inputs have no video or audio for {target.container.name}"
        )
    own = folder / output.key
    written = target.write(Known(own, made, expected, bounds, capabilities))
    threads = _least(settings.threads, limits.threads)
    head = [capabilities.ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "repeat+level+warning", "-nostats", "-y"]
    head += ["-progress", "pipe:1"]
    head += _devices([track.draft for track in made])
    if threads:
        head += ["-filter_threads", str(threads), "-filter_complex_threads", str(threads)]
    for one in inputs:
        head += target.input_arguments([track.draft for track in made])
        head += _input_arguments(one, output, threads, capabilities)
    head += ["-filter_complex", ";".join(graph)] if graph else []
    head += maps
    middle = [*(["-threads", str(threads)] if threads else []), *bounds]
    tags = [word for key in sorted(output.tags) for word in ("-metadata", f"{key}={output.tags[key]}")]
    pass_log = folder / f"{output.key}.pass" if any(track.draft.two_pass for track in main) else None
    commands = [[*head, *_encoding(main, "2" if pass_log else "", pass_log), *middle, *tags, *written.arguments]]
    if pass_log:
        # The names that ffmpeg gives to the logs have the tracks' positions in them, so both passes take the same tracks.
        commands.insert(0, [*head, *_encoding(main, "1", pass_log), *middle, "-f", "null", "-"])
    hidden = {**written.hidden}
    for index, one in enumerate(inputs):
        hidden |= {
            one.source.address: f"{{input{index}}}",
            one.source.address.removeprefix("file:"): f"{{input{index}}}",
        }
    hidden |= {f"file:{own}": "{output}", str(own): "{output}", f"file:{folder}": "{scratch}", str(folder): "{scratch}"}
    return OutputPlan(
        key=output.key,
        at=draft.at,
        target=target,
        folder=own,
        tracks=made,
        commands=commands,
        shown=_shown(commands[-1], hidden),
        written=written,
        expected=expected,
        limit=limit,
        streams=[
            pipeline_pb2.OutputStream(
                key=track.draft.key,
                kind=KINDS[track.draft.kind],
                encoder=track.draft.encoder,
                hardware=APIS[track.draft.use.api] if track.draft.use else stream_pb2.HARDWARE_API_UNSPECIFIED,
            )
            for track in made
        ],
        uploads=draft.uploads,
        hidden=hidden,
        pass_log=pass_log,
    )


def _devices(drafts: Sequence[StreamDraft]) -> list[str]:
    """The arguments of the hardware that encodes streams of one output: one device, for there is one place to upload to."""
    uses = {tuple(draft.use.general()): draft for draft in drafts if draft.use and draft.use.general()}
    if len(uses) > 1:
        where = [*uses.values()][1].at
        raise errors.FieldInvalid(
            f"{where}.video.hardware.device", "differs from that of another stream of this output"
        )
    return [word for words in uses for word in words]


def _encoding(tracks: Sequence[Track], which: str, log: Path | None) -> list[str]:
    """The encoders' arguments, with those of pass `which` for the tracks that are encoded in two."""
    words: list[str] = []
    for track in tracks:
        words += track.draft.arguments(track.number)
        if track.draft.two_pass and log:
            words += [f"-pass:v:{track.number}", which, f"-passlogfile:v:{track.number}", str(log)]
    return words


def _input_arguments(one: BoundInput, output: output_pb2.Output, threads: int, capabilities: Capabilities) -> list[str]:
    arguments = []
    for name, value in input_options(one.source, capabilities).items():
        arguments += [f"-{name}", value]
    if one.source.demuxer:
        arguments += ["-f", one.source.demuxer]
    if one.request.loop_forever or one.request.extra_plays:
        arguments += ["-stream_loop", "-1" if one.request.loop_forever else str(one.request.extra_plays)]
    start = seconds(one.request.start_offset) + (0.0 if one.looped else seconds(output.start_offset))
    arguments += ["-ss", _time(start)] if start else []
    if one.request.HasField("duration"):
        length = seconds(one.request.duration) - (0.0 if one.looped else seconds(output.start_offset))
        arguments += ["-t", _time(max(length, 0.001))]
    arguments += ["-re"] if one.request.real_time else []
    arguments += ["-threads", str(threads)] if threads else []
    arguments += _alpha_decoders(one.info, capabilities)
    return [*arguments, "-i", one.source.address]


def _alpha_decoders(info: MediaInfo, capabilities: Capabilities) -> list[str]:
    """FFmpeg's own decoders of VP8 and VP9 leave out the transparency, which is a picture of its own there; those of libvpx do not."""
    words = []
    for track in info.streams:
        decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(track.codec, "")
        tags = {name.lower(): value for name, value in track.tags.items()}
        if decoder and tags.get("alpha_mode") == "1" and decoder in capabilities.codecs[track.codec].decoders:
            words += [f"-c:v:{track.index_in_kind}", decoder]
    return words


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


def _shown(command: Sequence[str], hidden: Mapping[str, str]) -> list[str]:
    """The command without the sidecar's folders and without URLs, whose queries may be secret."""
    return [
        "ffmpeg",
        *(
            "{formats}" if before == "-format_whitelist" else _redact(word, hidden)
            for before, word in itertools.pairwise(command)
        ),
    ]


def _redact(text: str, hidden: Mapping[str, str]) -> str:
    for secret, instead in hidden.items():
        text = text.replace(secret, instead)
    return text


def _least(*bounds: int) -> int:
    """The lowest bound of those that there are; 0: there is none."""
    return min((bound for bound in bounds if bound), default=0)


def _time(value: float) -> str:
    return f"{value:.6f}"
