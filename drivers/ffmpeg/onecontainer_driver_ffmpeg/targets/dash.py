"""`Output.dash`: Dynamic Adaptive Streaming over HTTP. Each stream is a representation with a folder of its own.

ffmpeg names representations and their folders by number; when it has ended they get their names, in folders, manifest and playlists.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from onecontainer.api.media.v1 import output_pb2
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.containers import Container
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.targets import playlists
from onecontainer_driver_ffmpeg.targets.segmented import (
    DASH_TYPE,
    HLS_TYPE,
    MANIFEST,
    PLAYLIST,
    SEGMENT,
    SegmentedTarget,
    check_ladder,
    check_muxing,
    check_segment,
    edit_text,
    language_of,
    made_file,
    subtitle_renditions,
)
from onecontainer_driver_ffmpeg.targets.target import (
    Collection,
    Known,
    Made,
    MadeFile,
    NothingMade,
    Pick,
    Target,
    Track,
    Written,
)

_HOLDS = frozenset(["h264", "hevc", "av1", "vp9", "aac", "ac3", "eac3", "opus", "flac", "webvtt"])
# Options of the muxer that change nothing of what this driver promises or goes by.
_FREE = frozenset(
    ["frag_duration", "frag_type", "index_correction", "write_prft", "max_playback_rate", "min_playback_rate"]
)
_DURATION = re.compile(r'mediaPresentationDuration="PT(?:(\d+)H)?(?:(\d+)M)?([\d.]+)S"')


class DashTarget(SegmentedTarget):
    @property
    def _manifest(self) -> str:
        return f"{self.output.key}.mpd"

    @property
    def picks(self) -> Sequence[Pick]:
        """A stream that variants share is one representation, but its subtitles belong to each of them."""
        picks: list[Pick] = []
        taken: set[str] = set()
        for pick in super().picks:
            if pick.kind == "subtitle" or pick.key not in taken:
                picks.append(pick)
                taken.add(pick.key)
        return picks

    def write(self, known: Known) -> Written:
        main = [track for track in known.tracks if not track.apart]
        sets: dict[tuple[str, ...], list[str]] = {}
        for index, track in enumerate(main):
            sets.setdefault(_alike(track), []).append(str(index))
        adaptation = " ".join(f"id={number},streams={','.join(tracks)}" for number, tracks in enumerate(sets.values()))
        words = [
            *self.tag_arguments(known),
            "-f",
            "dash",
            "-seg_duration",
            f"{self.segment:.6f}",
            "-dash_segment_type",
            "mp4",
        ]
        words += ["-init_seg_name", "$RepresentationID$/init.mp4", "-adaptation_sets", adaptation]
        words += ["-media_seg_name", "$RepresentationID$/$Number%05d$.m4s"]
        if self.output.dash.with_hls:
            words += ["-hls_playlist", "1", "-hls_master_name", f"{self.output.key}.m3u8"]
        folders = [str(index) for index in range(len(main))]
        return Written([*words, *self.muxing, self._manifest, *self.subtitle_arguments(known)], folders=folders)

    async def collect(self, made: Made) -> Collection:
        names = self._names(made.tracks)
        manifest = made.folder / self._manifest
        try:
            text = await asyncio.to_thread(manifest.read_text, "utf-8")
        except FileNotFoundError:
            raise NothingMade from None
        length = _length(text)
        if not length or "<S " not in text:
            raise NothingMade
        for index, name in enumerate(names):
            await asyncio.to_thread((made.folder / str(index)).rename, made.folder / f"{name}.part")
        for name in names:  # in two steps: a variant may be called as another one's number
            await asyncio.to_thread((made.folder / f"{name}.part").rename, made.folder / name)
        by_number = {str(index): name for index, name in enumerate(names)}
        text = re.sub(
            r'(?<=<Representation id=")(\d+)(?=" mimeType)', lambda match: by_number.get(match[1], match[1]), text
        )
        text = text.replace("</Period>", f"{self._text_sets(made.tracks)}</Period>", 1)
        await asyncio.to_thread(manifest.write_text, text, "utf-8")
        files = [made_file(made.folder, self._manifest, MANIFEST, DASH_TYPE)]
        if self.output.dash.with_hls:
            files += await self._finish_hls(made, names, length)
        main = [track for track in made.tracks if not track.apart]
        for name, track in zip(names, main, strict=True):
            files += await asyncio.to_thread(_segments, made.folder, name, track.draft.kind)
        files += [made_file(made.folder, f"{name}.vtt", SEGMENT) for name in self.subtitles(made.tracks)]
        return Collection(files, length=length)

    def _names(self, tracks: Sequence[Track]) -> list[str]:
        """A folder for each representation: a variant's name for its pictures, or its sound if that is all."""
        names: list[str] = []
        taken = {self.rung_name(rung) for rung in range(len(self.variants))}
        rungs: set[int] = set()
        for track in tracks:
            if track.apart:
                continue
            sound_only = self.variants and not self.variants[track.rung].video
            if self.variants and track.rung not in rungs and (track.draft.kind == "video" or sound_only):
                names.append(self.rung_name(track.rung))
                rungs.add(track.rung)
                continue
            stem = f"{self.rung_name(track.rung)}-{track.draft.kind}" if self.variants else track.draft.kind
            numbered = (f"{stem}-{number}" for number in itertools.count(2))
            names.append(next(name for name in itertools.chain([stem], numbered) if name not in taken))
            taken.add(names[-1])
        return names

    def _text_sets(self, tracks: Sequence[Track]) -> str:
        """Adaptation sets of subtitles. Source: DASH-IF IOP, 6.4.4: a text track as one file beside the manifest."""
        lines = []
        for name, track in self.subtitles(tracks).items():
            language = language_of(track)
            lang = f" lang={quoteattr(language)}" if language else ""
            lines.append(
                f'\t<AdaptationSet contentType="text" mimeType="text/vtt"{lang}>\n'
                f'\t\t\t<Role schemeIdUri="urn:mpeg:dash:role:2011" value="subtitle" />\n'
                f'\t\t\t<Representation id="Text-{name}" bandwidth="1000">\n'
                f"\t\t\t\t<BaseURL>{name}.vtt</BaseURL>\n\t\t\t</Representation>\n\t\t</AdaptationSet>\n\t"
            )
        return "".join(lines)

    async def _finish_hls(self, made: Made, names: Sequence[str], length: float) -> list[MadeFile]:
        """The HLS playlists that ffmpeg wrote, with the folders' names, measured bandwidths and subtitles."""
        master = made.folder / f"{self.output.key}.m3u8"
        read: dict[str, playlists.MediaPlaylist] = {}
        try:
            for index, name in enumerate(names):
                path = made.folder / f"media_{index}.m3u8"
                await edit_text(path, functools.partial(_renamed, index, name))
                read[path.name] = await asyncio.to_thread(playlists.read_media_playlist, path)
            text = await asyncio.to_thread(master.read_text, "utf-8")
        except FileNotFoundError:
            raise NothingMade from None
        text = playlists.with_measured_bandwidth(text, read)
        main = [track for track in made.tracks if not track.apart]
        renditions: Mapping[str, Sequence[playlists.SubtitleRendition]] = {
            f"media_{index}.m3u8": subtitle_renditions(self, made.tracks, track.rung)
            for index, track in enumerate(main)
        }
        await asyncio.to_thread(master.write_text, playlists.with_subtitles(text, renditions), "utf-8")
        files = [made_file(made.folder, name, PLAYLIST, HLS_TYPE) for name in (master.name, *read)]
        for name in self.subtitles(made.tracks):
            path = made.folder / f"{name}.m3u8"
            await asyncio.to_thread(path.write_text, playlists.subtitle_playlist(f"{name}.vtt", length), "utf-8")
            files.append(made_file(made.folder, path.name, PLAYLIST, HLS_TYPE))
        return files


def _alike(track: Track) -> tuple[str, ...]:
    """What the representations of one adaptation set have in common: a player changes between them as it goes.

    Filters are part of it, because they may change the shape of the picture, which has to be one.
    """
    codec = track.source.codec if track.draft.encoder == "copy" else track.draft.encoder
    selectors = [selector.SerializeToString(deterministic=True).hex() for selector in track.draft.selectors]
    return (track.draft.kind, codec, language_of(track), *selectors, *track.draft.filters)


def _segments(folder: Path, name: str, kind: str) -> list[MadeFile]:
    parts = sorted(path.name for path in (folder / name).glob("*.m4s"))
    head = made_file(folder, f"{name}/init.mp4", SEGMENT, f"{kind}/mp4")
    return [head, *(made_file(folder, f"{name}/{part}", SEGMENT) for part in parts)]


def _renamed(index: int, name: str, playlist: str) -> str:
    return re.sub(rf'^({index})/|(?<=URI="){index}/', f"{name}/", playlist, flags=re.MULTILINE)


def _length(manifest: str) -> float:
    match = _DURATION.search(manifest)
    return int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + float(match[3]) if match else 0.0


async def check(output: output_pb2.Output, capabilities: Capabilities, settings: Settings, at: str) -> Target:
    where = f"{at}.dash"
    check_ladder(output, output.dash.variants, where)
    segment = check_segment(output.dash, where)
    muxing = await check_muxing(output, "dash", _FREE, capabilities, at)
    container = Container("DASH", "dash", DASH_TYPE, _HOLDS, key_frames=segment)
    return DashTarget(output, at, container, segment, muxing)
