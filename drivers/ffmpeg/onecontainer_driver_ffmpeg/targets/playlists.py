"""HLS playlists as text: read back, and completed with what ffmpeg does not know when it writes them (RFC 8216)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_RANGE = re.compile(r"(\d+)(?:@\d+)?")


@dataclass(frozen=True)
class Segment:
    """`size` in bytes, `length` in seconds."""

    uri: str
    length: float
    size: int


@dataclass(frozen=True)
class MediaPlaylist:
    """`head`: file of the common head of fragments, empty: there is none. `whole`: it says that nothing more comes."""

    head: str
    segments: Sequence[Segment]
    whole: bool

    @property
    def length(self) -> float:
        return sum(segment.length for segment in self.segments)

    @property
    def files(self) -> list[str]:
        """Each file once, in the order in which a player needs them."""
        names = [*([self.head] if self.head else []), *(segment.uri for segment in self.segments)]
        return list(dict.fromkeys(names))

    @property
    def peak(self) -> int:
        """Most bits per second of neighbours that are half to one and a half target durations long; RFC 8216, 4.1."""
        target = max((segment.length for segment in self.segments), default=0.0)
        most = self.average
        for start in range(len(self.segments)):
            length, size = 0.0, 0
            for segment in self.segments[start:]:
                length, size = length + segment.length, size + segment.size
                if length > 1.5 * target:
                    break
                if length >= 0.5 * target > 0:
                    most = max(most, round(size * 8 / length))
        return most

    @property
    def average(self) -> int:
        return round(sum(one.size for one in self.segments) * 8 / self.length) if self.length > 0 else 0


def read_media_playlist(path: Path) -> MediaPlaylist:
    """Of a playlist whose segments are files beside it. OSError if it, or one of them, is not there."""
    head, length, size = "", 0.0, -1
    segments, whole = [], False
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("#EXT-X-MAP:"):
            head = _attribute(line, "URI")
        elif line.startswith("#EXTINF:"):
            length = float(line.removeprefix("#EXTINF:").split(",")[0])
        elif line.startswith("#EXT-X-BYTERANGE:"):
            match = _RANGE.search(line)
            size = int(match[1]) if match else -1
        elif line.startswith("#EXT-X-ENDLIST"):
            whole = True
        elif line and not line.startswith("#"):
            segments.append(Segment(line, length, size if size >= 0 else (path.parent / line).stat().st_size))
            size = -1
    return MediaPlaylist(head, segments, whole)


def with_measured_bandwidth(master: str, playlists: Mapping[str, MediaPlaylist]) -> str:
    """`master` with BANDWIDTH and AVERAGE-BANDWIDTH as measured, `playlists` by their addresses in it.

    ffmpeg's own are, depending on its version, the first segment's, or what the encoder was asked for. An alternative audio rendition
    that a variant needs counts too.
    """
    groups: dict[str, MediaPlaylist] = {}
    lines = master.splitlines()
    for line in lines:
        if line.startswith("#EXT-X-MEDIA:") and (playlist := playlists.get(_attribute(line, "URI"))):
            group = _attribute(line, "GROUP-ID")
            if group not in groups or groups[group].peak < playlist.peak:
                groups[group] = playlist
    done = []
    for index, line in enumerate(lines):
        uri = lines[index + 1] if index + 1 < len(lines) else ""
        if line.startswith("#EXT-X-STREAM-INF:") and uri in playlists:
            parts = [playlists[uri], *([groups[name]] if (name := _attribute(line, "AUDIO")) in groups else [])]
            rest = re.sub(r"(AVERAGE-)?BANDWIDTH=\d+,?", "", line.removeprefix("#EXT-X-STREAM-INF:"))
            measured = (
                f"BANDWIDTH={sum(one.peak for one in parts)},AVERAGE-BANDWIDTH={sum(one.average for one in parts)}"
            )
            line = f"#EXT-X-STREAM-INF:{measured},{rest}".rstrip(",")  # noqa: PLW2901
        done.append(line)
    return "\n".join(done) + "\n"


@dataclass(frozen=True)
class SubtitleRendition:
    """`uri` of its playlist; `language` as RFC 5646 or ISO 639-2 has it, empty: not known."""

    uri: str
    name: str
    language: str


def with_subtitles(master: str, variants: Mapping[str, Sequence[SubtitleRendition]]) -> str:
    """`master` with these subtitles, by the variants' addresses in it. Each variant gets a group of its own."""
    media, lines = [], master.splitlines()
    for index, line in enumerate(lines[:-1]):
        renditions = variants.get(lines[index + 1], ()) if line.startswith("#EXT-X-STREAM-INF:") else ()
        if not renditions:
            continue
        group = f"subtitles-{index}"
        lines[index] = f'{line},SUBTITLES="{group}"'
        for one in renditions:
            language = f',LANGUAGE="{one.language}"' if one.language else ""
            # It may come from a stranger's file, and the value of an attribute knows no escapes.
            name = "".join(character for character in one.name.replace('"', "'") if character.isprintable())
            media.append(
                f'#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="{group}",NAME="{name}"{language},DEFAULT=NO,AUTOSELECT=YES,FORCED=NO,'
                f'URI="{one.uri}"'
            )
    start = next((number for number, line in enumerate(lines) if line.startswith("#EXT-X-STREAM-INF:")), len(lines))
    return "\n".join([*lines[:start], *media, *lines[start:]]) + "\n"


def subtitle_playlist(uri: str, length: float) -> str:
    """A playlist of one WebVTT file that goes over all of `length` seconds."""
    return "\n".join(
        [
            "#EXTM3U",
            "#EXT-X-VERSION:3",
            f"#EXT-X-TARGETDURATION:{max(1, -int(-length // 1))}",
            "#EXT-X-MEDIA-SEQUENCE:0",
            "#EXT-X-PLAYLIST-TYPE:VOD",
            f"#EXTINF:{length:.6f},",
            uri,
            "#EXT-X-ENDLIST",
            "",
        ]
    )


def _attribute(line: str, name: str) -> str:
    match = re.search(rf'[:,]{name}="([^"]*)"', line)
    return match[1] if match else ""
