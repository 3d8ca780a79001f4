"""`Output.hls` and `Output.dash`: media in segments, with playlists. One ffmpeg process makes the whole ladder.

Subtitles are WebVTT files of their own beside the segments, in both: `{key}-{stream}.vtt`. ffmpeg's muxers either cannot hold them or
cut them with the pictures, and a text of some kilobytes needs no segments.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from onecontainer.api.media.v1 import output_pb2, pipeline_pb2, stream_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.containers import Container
from onecontainer_driver_ffmpeg.listing import OptionEntry
from onecontainer_driver_ffmpeg.media_info import seconds
from onecontainer_driver_ffmpeg.stream_plan import StreamDraft
from onecontainer_driver_ffmpeg.targets.playlists import SubtitleRendition
from onecontainer_driver_ffmpeg.targets.target import Known, MadeFile, Pick, Target, Track
from onecontainer_driver_ffmpeg.values import muxer_params

MANIFEST, PLAYLIST, SEGMENT = (
    pipeline_pb2.FILE_ROLE_MANIFEST,
    pipeline_pb2.FILE_ROLE_PLAYLIST,
    pipeline_pb2.FILE_ROLE_SEGMENT,
)
HLS_TYPE, DASH_TYPE = "application/vnd.apple.mpegurl", "application/dash+xml"
_TYPES = {".ts": "video/mp2t", ".m4s": "video/iso.segment", ".mp4": "video/mp4", ".vtt": "text/vtt", ".m3u8": HLS_TYPE}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LANGUAGE = re.compile(r"[A-Za-z0-9-]{1,35}")
_SEGMENT_SECONDS = 6.0
MAIN = "main"
"""Folder of the one variant of an output without a ladder."""


class SegmentedTarget(Target):
    """What HLS and DASH have in common: a ladder, or one variant of the output's streams."""

    takes_two_passes = True

    def __init__(
        self, output: output_pb2.Output, at: str, container: Container, segment: float, muxing: Sequence[str]
    ) -> None:
        super().__init__(output, at, container)
        self.segment = segment
        self.muxing = muxing
        self._field = output.WhichOneof("target") or ""

    @property
    def variants(self) -> Sequence[output_pb2.Variant]:
        return self.output.hls.variants if self._field == "hls" else self.output.dash.variants

    @property
    def ladder(self) -> list[Pick]:
        """A pick for each stream of each variant, the same stream several times if variants share it."""
        return [
            Pick(f"{self.at}.{self._field}.variants[{rung}].{kind}", key, kind, rung)
            for rung, variant in enumerate(self.variants)
            for kind in ("video", "audio", "subtitle")
            if (key := getattr(variant, kind))
        ]

    @property
    def picks(self) -> Sequence[Pick]:
        return self.ladder if self.variants else super().picks

    def rung_name(self, rung: int) -> str:
        return self.variants[rung].name if self.variants else MAIN

    def apart(self, kind: str) -> bool:
        return kind == "subtitle"

    def check_drafts(self, drafts: Sequence[tuple[Pick, StreamDraft]]) -> None:
        if all(draft.kind == "subtitle" for _, draft in drafts):
            raise errors.FieldInvalid(drafts[0][0].at, "is subtitles only: a video or audio stream is needed")
        # The same words for key frames in all rungs, or none of its own because the track is copied.
        first: tuple[str, str] | None = None
        for pick, draft in drafts:
            forced = dict(draft.pairs).get("-force_key_frames")
            if draft.kind != "video" or not forced:
                continue
            if first and first[1] != forced:
                raise errors.FieldInvalid(
                    pick.at,
                    f"has another keyframe_interval than {first[0]}; the key frames of a ladder have to be at the same times",
                )
            first = first or (draft.key, forced)

    async def draft(self, stream: stream_pb2.ElementaryStream, capabilities: Capabilities, at: str) -> StreamDraft:
        if stream.WhichOneof("kind") == "subtitle" and not stream.subtitle.codec:
            named = stream_pb2.ElementaryStream()
            named.CopyFrom(stream)
            named.subtitle.codec = "webvtt"
            stream = named
        return await super().draft(stream, capabilities, at)

    def tag_arguments(self, known: Known) -> list[str]:
        """Apple's players know HEVC in fragmented MP4 by this tag only."""
        words: list[str] = []
        for track in known.tracks:
            encoder = known.capabilities.encoders.get(track.draft.encoder)
            if (encoder.codec if encoder else track.source.codec) == "hevc":
                words += [f"-tag:v:{track.number}", "hvc1"]
        return words

    # --- subtitles -----------------------------------------------------------------------------------------------------

    def subtitle_arguments(self, known: Known) -> list[str]:
        words: list[str] = []
        for name, track in self.subtitles(known.tracks).items():
            words += ["-map", track.map, *track.draft.arguments(0), *known.bounds, "-f", "webvtt", f"{name}.vtt"]
        return words

    def subtitles(self, tracks: Sequence[Track]) -> dict[str, Track]:
        """By name without extension. A stream that several variants take is there once."""
        return {self.subtitle_name(track): track for track in tracks if track.apart}

    def subtitle_name(self, track: Track) -> str:
        return f"{self.output.key}-{track.draft.key}"


def language_of(track: Track) -> str:
    """ISO 639-2 as the containers get it, empty: not known, or nothing that could stand in a playlist."""
    language = dict(track.draft.tags).get("language", "") or track.source.language
    return language if _LANGUAGE.fullmatch(language) else ""


def subtitle_renditions(target: SegmentedTarget, tracks: Sequence[Track], rung: int) -> list[SubtitleRendition]:
    """The subtitles of one variant."""
    return [
        SubtitleRendition(
            f"{target.subtitle_name(track)}.m3u8",
            dict(track.draft.tags).get("title", "") or track.source.tags.get("title", "") or track.draft.key,
            language_of(track),
        )
        for track in tracks
        if track.apart and track.rung == rung
    ]


def made_file(folder: Path, name: str, role: pipeline_pb2.FileRole.ValueType, media_type: str = "") -> MadeFile:
    path = folder / name
    return MadeFile(path, name, role, media_type or _TYPES.get(path.suffix, "application/octet-stream"))


async def edit_text(path: Path, edit: Callable[[str], str]) -> None:
    """Rewrites a small text file."""
    text = await asyncio.to_thread(path.read_text, "utf-8")
    await asyncio.to_thread(path.write_text, edit(text), "utf-8")


def check_ladder(output: output_pb2.Output, variants: Sequence[output_pb2.Variant], at: str) -> None:
    """`at`: the target's path, `outputs[0].hls`. FieldInvalid or FieldRequired."""
    if variants and output.streams:
        raise errors.FieldInvalid(
            f"{at.rpartition('.')[0]}.streams", "MUST be empty with variants, which name their own"
        )
    if len(variants) > 32:
        raise errors.FieldInvalid(f"{at}.variants", "has more than 32 entries")
    names: set[str] = set()
    for index, variant in enumerate(variants):
        where = f"{at}.variants[{index}]"
        if not _NAME.fullmatch(variant.name):
            raise errors.FieldInvalid(f"{where}.name", "is not of the form [a-z0-9][a-z0-9_-]{0,62}")
        if variant.name in names:
            raise errors.FieldInvalid(f"{where}.name", f"{variant.name!r} is there twice")
        names.add(variant.name)
        if not variant.video and not variant.audio:
            raise errors.FieldRequired(f"{where}.video", "a variant has a video or an audio stream")


def check_segment(target: output_pb2.HlsOutput | output_pb2.DashOutput, at: str) -> float:
    """Seconds of a segment."""
    if not target.HasField("segment_duration"):
        return _SEGMENT_SECONDS
    length = seconds(target.segment_duration)
    if not 1 <= length <= 60:
        raise errors.FieldInvalid(f"{at}.segment_duration", "is not between 1 s and 60 s")
    return length


async def check_muxing(
    output: output_pb2.Output, muxer: str, free: frozenset[str], capabilities: Capabilities, at: str
) -> list[str]:
    """Arguments for `muxer_params`. `free`: the muxer's own options that are not the target's business."""
    if muxer not in {part for entry in capabilities.formats.values() if entry.muxer for part in entry.name.split(",")}:
        raise errors.BackendCapabilityMissing(f"{at}.{output.WhichOneof('target')}", f"this build has no muxer {muxer}")
    own: dict[str, OptionEntry] = await capabilities.muxer_options(muxer)
    return muxer_params(output.muxer_params, muxer, {name: own[name] for name in free & set(own)}, f"{at}.muxer_params")
