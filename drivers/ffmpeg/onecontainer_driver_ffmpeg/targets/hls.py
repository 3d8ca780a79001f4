"""`Output.hls`: HTTP Live Streaming."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from onecontainer.api.media.v1 import output_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.containers import Container
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.sources import OpenedSource
from onecontainer_driver_ffmpeg.stream_plan import StreamDraft
from onecontainer_driver_ffmpeg.targets import playlists
from onecontainer_driver_ffmpeg.targets.segmented import (
    HLS_TYPE,
    MAIN,
    MANIFEST,
    PLAYLIST,
    SEGMENT,
    SegmentedTarget,
    check_ladder,
    check_muxing,
    check_segment,
    language_of,
    made_file,
    subtitle_renditions,
)
from onecontainer_driver_ffmpeg.targets.target import Collection, Known, Made, NothingMade, Pick, Target, Track, Written

# Source: Apple's HLS authoring specification; HEVC, AV1 and lossless sound are for fragmented MP4 only.
_TS_HOLDS = frozenset(["h264", "aac", "mp3", "ac3", "eac3", "webvtt"])
_FMP4_HOLDS = _TS_HOLDS | frozenset(["hevc", "av1", "alac", "flac", "opus"])


@dataclass(frozen=True)
class _Part:
    """What has a playlist of its own. `variant`: which one, None: a rendition of sound. `group`: it is one of a group of those."""

    name: str
    tracks: Sequence[Track]
    variant: int | None = None
    group: bool = False

    @property
    def playlist(self) -> str:
        return f"{self.name}/index.m3u8"

    def entry(self, parts: Sequence[_Part]) -> str:
        """What the muxer's `var_stream_map` has for it."""
        words = [f"{track.draft.kind[0]}:{track.number}" for track in self.tracks]
        if self.group:
            words.append("agroup:sound")
        if self.variant is None:
            language = language_of(self.tracks[0])
            words += [f"language:{language}"] if language.isalpha() else []
            words += ["default:yes"] if self is parts[1] else []
        return ",".join([*words, f"name:{self.name}"])


class HlsTarget(SegmentedTarget):
    @property
    def _fragmented(self) -> bool:
        return self.output.hls.segment_type == output_pb2.SEGMENT_TYPE_FMP4

    @property
    def _main(self) -> str:
        return f"{self.output.key}.m3u8"

    def check_drafts(self, drafts: Sequence[tuple[Pick, StreamDraft]]) -> None:
        super().check_drafts(drafts)
        taken: set[tuple[int, str]] = set()
        several = not self.variants and any(draft.kind == "video" for _, draft in drafts)
        for pick, draft in drafts:
            if (
                (pick.rung, draft.kind) in taken
                and draft.kind != "subtitle"
                and not (draft.kind == "audio" and several)
            ):
                raise errors.FieldInvalid(
                    pick.at, f"is a second {draft.kind} stream, and a variant has one: make a variant for each"
                )
            taken.add((pick.rung, draft.kind))

    def _parts(self, tracks: Sequence[Track]) -> list[_Part]:
        """A part for each variant, and if one has several audio streams, each of them apart, for players to choose from."""
        main = [track for track in tracks if not track.apart]
        sounds = [track for track in main if track.draft.kind == "audio"]
        if self.variants or len(sounds) < 2:
            rungs = sorted({track.rung for track in main})
            return [
                _Part(self.rung_name(rung), [track for track in main if track.rung == rung], variant=rung)
                for rung in rungs
            ]
        pictures = [track for track in main if track.draft.kind == "video"]
        names = ["audio", *(f"audio-{number}" for number in range(2, len(sounds) + 1))]
        if not pictures:  # they were missing, and might be: each sound is a variant then
            return [_Part(name, [track], variant=0) for name, track in zip(names, sounds, strict=True)]
        return [
            _Part(MAIN, pictures, variant=0, group=True),
            *(_Part(name, [track], group=True) for name, track in zip(names, sounds, strict=True)),
        ]

    def write(self, known: Known) -> Written:
        parts = self._parts(known.tracks)
        encoded = any(track.draft.encoder != "copy" for track in known.tracks if not track.apart)
        flags = ["independent_segments"] if encoded else []
        flags += ["single_file"] if self.output.hls.single_file else []
        extension = "m4s" if self._fragmented else "ts"
        name = "media" if self.output.hls.single_file else "%05d"
        words = [*self.tag_arguments(known), "-f", "hls", "-hls_time", f"{self.segment:.6f}"]
        words += ["-hls_playlist_type", "vod", "-hls_list_size", "0"]
        words += ["-hls_segment_type", "fmp4" if self._fragmented else "mpegts", "-start_number", "1"]
        words += ["-hls_fmp4_init_filename", "init.mp4"] if self._fragmented else []
        words += ["-hls_flags", "+".join(flags)] if flags else []
        # Time stamps begin at 0, which subtitles go by.
        words += ["-muxdelay", "0", "-muxpreload", "0"]
        words += ["-master_pl_name", self._main, "-var_stream_map", " ".join(part.entry(parts) for part in parts)]
        words += [*self.muxing, "-hls_segment_filename", f"%v/{name}.{extension}", "%v/index.m3u8"]
        return Written([*words, *self.subtitle_arguments(known)], folders=[part.name for part in parts])

    async def collect(self, made: Made) -> Collection:
        parts = self._parts(made.tracks)
        names = [part.playlist for part in parts]
        try:
            read = {name: await asyncio.to_thread(playlists.read_media_playlist, made.folder / name) for name in names}
            main = await asyncio.to_thread((made.folder / self._main).read_text, "utf-8")
        except FileNotFoundError:
            raise NothingMade from None
        if not all(playlist.whole and playlist.segments for playlist in read.values()):
            raise NothingMade
        length = max(playlist.length for playlist in read.values())
        main = playlists.with_measured_bandwidth(main, read)
        renditions = {
            part.playlist: subtitle_renditions(self, made.tracks, part.variant)
            for part in parts
            if part.variant is not None
        }
        main = playlists.with_subtitles(main, renditions)
        await asyncio.to_thread((made.folder / self._main).write_text, main, "utf-8")
        files = [made_file(made.folder, self._main, MANIFEST)]
        texts = []
        for name in self.subtitles(made.tracks):
            playlist = made.folder / f"{name}.m3u8"
            await asyncio.to_thread(playlist.write_text, playlists.subtitle_playlist(f"{name}.vtt", length), "utf-8")
            texts += [made_file(made.folder, playlist.name, PLAYLIST), made_file(made.folder, f"{name}.vtt", SEGMENT)]
        files += [made_file(made.folder, name, PLAYLIST, HLS_TYPE) for name in names]
        for name, playlist_read in read.items():
            files += [
                made_file(made.folder, f"{name.partition('/')[0]}/{file}", SEGMENT) for file in playlist_read.files
            ]
        probe = OpenedSource(f"file:{made.folder / self._main}", False, self._main, "hls")
        return Collection([*files, *texts], probe, length)


async def check(output: output_pb2.Output, capabilities: Capabilities, settings: Settings, at: str) -> Target:
    where = f"{at}.hls"
    hls = output.hls
    check_ladder(output, hls.variants, where)
    segment = check_segment(hls, where)
    if hls.segment_type not in output_pb2.SegmentType.values():
        raise errors.FieldInvalid(f"{where}.segment_type", "is no type of this driver")
    holds = _FMP4_HOLDS if hls.segment_type == output_pb2.SEGMENT_TYPE_FMP4 else _TS_HOLDS
    kind = "fMP4" if hls.segment_type == output_pb2.SEGMENT_TYPE_FMP4 else "MPEG-TS"
    muxing = await check_muxing(output, "hls", frozenset({"hls_allow_cache"}), capabilities, at)
    container = Container(f"HLS with {kind}", "hls", HLS_TYPE, holds, key_frames=segment)
    return HlsTarget(output, at, container, segment, muxing)
