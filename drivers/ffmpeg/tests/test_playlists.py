"""Playlists as text: what is read from them, and what is written into them."""

from __future__ import annotations

from pathlib import Path

import pytest
from onecontainer_driver_ffmpeg.targets.playlists import (
    MediaPlaylist,
    Segment,
    SubtitleRendition,
    read_media_playlist,
    subtitle_playlist,
    with_measured_bandwidth,
    with_subtitles,
)

MASTER = """#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="sound",NAME="low",URI="low.m3u8"
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="sound",NAME="high",URI="high.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=1,AVERAGE-BANDWIDTH=2,RESOLUTION=4x2,CODECS="avc1.42c00a,mp4a.40.2",AUDIO="sound"
a.m3u8

#EXT-X-STREAM-INF:CODECS="avc1.42c00a",AVERAGE-BANDWIDTH=2,BANDWIDTH=1
b.m3u8
"""


def playlist(*segments: tuple[float, int]) -> MediaPlaylist:
    return MediaPlaylist("", [Segment(f"{n}.ts", length, size) for n, (length, size) in enumerate(segments)], True)


@pytest.mark.parametrize(
    ("segments", "peak", "average"),
    [
        ([(2, 1000), (2, 3000)], 12000, 8000),
        # A remainder of some milliseconds counts with its neighbour only (RFC 8216, 4.1: at least half a target duration).
        ([(2, 1000), (0.02, 500)], round(1500 * 8 / 2.02), round(1500 * 8 / 2.02)),
        # Two short ones together are long enough.
        ([(4, 1000), (1, 2000), (1, 2000)], 16000, round(5000 * 8 / 6)),
        ([], 0, 0),
    ],
)
def test_bandwidths_are_those_of_the_segments(segments: list[tuple[float, int]], peak: int, average: int) -> None:
    assert (playlist(*segments).peak, playlist(*segments).average) == (peak, average)


def test_a_variant_counts_the_sound_that_it_needs() -> None:
    done = with_measured_bandwidth(
        MASTER,
        {
            "a.m3u8": playlist((1, 1000), (1, 2000)),
            "b.m3u8": playlist((1, 125)),
            "low.m3u8": playlist((1, 10)),
            "high.m3u8": playlist((1, 100)),
        },
    )
    lines = [line for line in done.splitlines() if "STREAM-INF" in line]
    assert lines == [
        '#EXT-X-STREAM-INF:BANDWIDTH=16800,AVERAGE-BANDWIDTH=12800,RESOLUTION=4x2,CODECS="avc1.42c00a,mp4a.40.2",AUDIO="sound"',
        '#EXT-X-STREAM-INF:BANDWIDTH=1000,AVERAGE-BANDWIDTH=1000,CODECS="avc1.42c00a"',
    ]


def test_subtitles_come_before_the_variants_that_have_them() -> None:
    done = with_subtitles(MASTER, {"b.m3u8": [SubtitleRendition("text.m3u8", 'so "called"\n#EXT', "deu")]}).splitlines()
    [media] = [line for line in done if "TYPE=SUBTITLES" in line]
    assert """NAME="so 'called'#EXT",LANGUAGE="deu",""" in media
    group = media.partition('GROUP-ID="')[2].partition('"')[0]
    assert [line.endswith(f',SUBTITLES="{group}"') for line in done if "STREAM-INF" in line] == [False, True]
    assert done.index(media) < min(index for index, line in enumerate(done) if "STREAM-INF" in line)


@pytest.mark.parametrize("ends", [True, False])
def test_reading_byte_ranges_and_files(tmp_path: Path, ends: bool) -> None:
    (tmp_path / "b.ts").write_bytes(b"1234567")
    (tmp_path / "list.m3u8").write_text(
        '#EXTM3U\n#EXT-X-MAP:URI="a.mp4",BYTERANGE="10@0"\n#EXTINF:2.5,\n#EXT-X-BYTERANGE:30@10\na.mp4\n#EXTINF:1,\nb.ts\n'
        + ("#EXT-X-ENDLIST\n" if ends else "")
    )
    read = read_media_playlist(tmp_path / "list.m3u8")
    assert (read.files, read.length, read.whole) == (["a.mp4", "b.ts"], 3.5, ends)
    assert [segment.size for segment in read.segments] == [30, 7]


def test_a_subtitle_playlist_reads_back(tmp_path: Path) -> None:
    (tmp_path / "text.vtt").write_text("WEBVTT\n")
    (tmp_path / "text.m3u8").write_text(subtitle_playlist("text.vtt", 12.25))
    read = read_media_playlist(tmp_path / "text.m3u8")
    assert (read.files, read.length, read.whole) == (["text.vtt"], 12.25, True)
    assert "#EXT-X-TARGETDURATION:13\n" in (tmp_path / "text.m3u8").read_text()
