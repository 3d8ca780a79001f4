"""`Output.hls`: HTTP Live Streaming."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
    MANIFEST,
    PLAYLIST,
    SEGMENT,
    SegmentedTarget,
    check_ladder,
    check_muxing,
    check_segment,
    made_file,
    subtitle_renditions,
)
from onecontainer_driver_ffmpeg.targets.target import Collection, Known, Made, NothingMade, Pick, Target, Written

# Source: Apple's HLS authoring specification; HEVC, AV1 and lossless sound are for fragmented MP4 only.
_TS_HOLDS = frozenset(["h264", "aac", "mp3", "ac3", "eac3", "webvtt"])
_FMP4_HOLDS = _TS_HOLDS | frozenset(["hevc", "av1", "alac", "flac", "opus"])


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
        for pick, draft in drafts:
            if (pick.rung, draft.kind) in taken and draft.kind != "subtitle":
                raise errors.FieldInvalid(
                    pick.at, f"is a second {draft.kind} stream, and a variant has one: make a variant for each"
                )
            taken.add((pick.rung, draft.kind))

    def write(self, known: Known) -> Written:
        main = [track for track in known.tracks if not track.apart]
        rungs = sorted({track.rung for track in main})
        entries = []
        for rung in rungs:
            parts = [f"{track.draft.kind[0]}:{track.number}" for track in main if track.rung == rung]
            entries.append(",".join([*parts, f"name:{self.rung_name(rung)}"]))
        flags = ["independent_segments"] if any(track.draft.encoder != "copy" for track in main) else []
        flags += ["single_file"] if self.output.hls.single_file else []
        extension = "m4s" if self._fragmented else "ts"
        name = "media" if self.output.hls.single_file else "%05d"
        words = [
            *self.tag_arguments(known),
            "-f",
            "hls",
            "-hls_time",
            f"{self.segment:.6f}",
            "-hls_playlist_type",
            "vod",
            "-hls_list_size",
            "0",
        ]
        words += ["-hls_segment_type", "fmp4" if self._fragmented else "mpegts", "-start_number", "1"]
        words += ["-hls_fmp4_init_filename", "init.mp4"] if self._fragmented else []
        words += ["-hls_flags", "+".join(flags)] if flags else []
        # Time stamps begin at 0, which subtitles go by.
        words += ["-muxdelay", "0", "-muxpreload", "0"]
        words += ["-master_pl_name", self._main, "-var_stream_map", " ".join(entries)]
        words += [*self.muxing, "-hls_segment_filename", f"%v/{name}.{extension}", "%v/index.m3u8"]
        return Written([*words, *self.subtitle_arguments(known)], folders=[self.rung_name(rung) for rung in rungs])

    async def collect(self, made: Made) -> Collection:
        rungs = sorted({track.rung for track in made.tracks if not track.apart})
        names = {rung: f"{self.rung_name(rung)}/index.m3u8" for rung in rungs}
        try:
            read = {
                name: await asyncio.to_thread(playlists.read_media_playlist, made.folder / name)
                for name in names.values()
            }
            main = await asyncio.to_thread((made.folder / self._main).read_text, "utf-8")
        except FileNotFoundError:
            raise NothingMade from None
        if not all(playlist.whole and playlist.segments for playlist in read.values()):
            raise NothingMade
        length = max(playlist.length for playlist in read.values())
        main = playlists.with_measured_bandwidth(main, read)
        main = playlists.with_subtitles(
            main, {names[rung]: subtitle_renditions(self, made.tracks, rung) for rung in rungs}
        )
        await asyncio.to_thread((made.folder / self._main).write_text, main, "utf-8")
        files = [made_file(made.folder, self._main, MANIFEST)]
        texts = []
        for name in self.subtitles(made.tracks):
            playlist = made.folder / f"{name}.m3u8"
            await asyncio.to_thread(playlist.write_text, playlists.subtitle_playlist(f"{name}.vtt", length), "utf-8")
            texts += [made_file(made.folder, playlist.name, PLAYLIST), made_file(made.folder, f"{name}.vtt", SEGMENT)]
        files += [made_file(made.folder, name, PLAYLIST, HLS_TYPE) for name in names.values()]
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
