"""DASH outputs: the manifest is read, and the whole is played."""

from __future__ import annotations

import asyncio
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import av
import pytest
from google.protobuf.duration_pb2 import Duration

from drivers.ffmpeg.tests.conftest import Bench, make_media, play, unpacked
from drivers.ffmpeg.tests.test_hls import LADDER, ladder_streams
from drivers.ffmpeg.tests.test_pipeline import artifact_input, run, small_video
from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.api.media.v1.output_pb2 import DashOutput, HlsOutput, Output, Variant
from onecontainer.api.media.v1.stream_pb2 import (
    AudioStream,
    ElementaryStream,
    ParamValue,
    StreamSelector,
    SubtitleStream,
    VideoStream,
)
from onecontainer.driver import errors

DASH = {"mpd": "urn:mpeg:dash:schema:mpd:2011"}


def dash_output(key: str, *streams: str, **fields: Any) -> Output:
    return Output(key=key, streams=streams, dash=DashOutput(**{"segment_duration": Duration(seconds=1), **fields}))


def representations(manifest: Path) -> dict[str, list[str]]:
    """Names of the representations by the kind of their adaptation set."""
    found: dict[str, list[str]] = {}
    for one in ElementTree.parse(manifest).getroot().iterfind(".//mpd:AdaptationSet", DASH):
        names = [str(part.get("id")) for part in one.iterfind("mpd:Representation", DASH)]
        found.setdefault(str(one.get("contentType")), []).append(" ".join(names))
    return found


def joined(folder: Path, name: str) -> Path:
    """All of a representation as one file."""
    path = folder / f"{name}.joined.mp4"
    parts = [folder / name / "init.mp4", *sorted((folder / name).glob("*.m4s"))]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("with_hls", [False, True])
async def test_a_ladder_plays(bench: Bench, colours: Path, ffmpeg: str, with_hls: bool) -> None:
    source = bench.artifacts.add(colours)
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=ladder_streams(),
        outputs=[dash_output("show", variants=LADDER, with_hls=with_hls)],
    )
    output = result.outputs[0]
    assert (output.files[0].name, output.files[0].role) == ("show.mpd", pipeline_pb2.FILE_ROLE_MANIFEST)
    assert output.files[0].media_type == "application/dash+xml"
    assert output.media_duration.ToMilliseconds() == pytest.approx(4000, abs=60)
    folder = unpacked(bench, output)
    # The sound that all variants share is one representation.
    assert representations(folder / "show.mpd") == {
        "video": ["big 0-little"],
        "audio": ["big-audio"],
        "text": ["Text-show-text"],
    }
    key_times = []
    for name, count in (("big", 40), ("0-little", 20)):
        assert len(list((folder / name).glob("*.m4s"))) == 4
        with av.open(joined(folder, name)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
            assert len(packets) == count
            key_times.append([float(packet.pts * packet.time_base) for packet in packets if packet.is_keyframe])
    assert key_times[0] == key_times[1] == pytest.approx([0, 1, 2, 3])
    for name in ("big", "0-little", "big-audio"):
        play(ffmpeg, joined(folder, name))
    # FFmpeg's reader knows no text beside the segments, and repeats the end of tracks that are shorter than others.
    silent = folder / "silent.mpd"
    silent.write_text(
        re.sub(
            r'<AdaptationSet contentType="text".*?</AdaptationSet>',
            "",
            (folder / "show.mpd").read_text(),
            flags=re.DOTALL,
        )
    )
    for track in ("0:v:0", "0:v:1", "0:a"):
        play(ffmpeg, silent, "-map", track, "-t", "3.8")
    assert "Good evening" in (folder / "show-text.vtt").read_text()
    playlists = [file.name for file in output.files if file.role == pipeline_pb2.FILE_ROLE_PLAYLIST]
    if not with_hls:
        assert playlists == []
        return
    assert playlists == ["show.m3u8", "media_0.m3u8", "media_1.m3u8", "media_2.m3u8", "show-text.m3u8"]
    master = (folder / "show.m3u8").read_text()
    assert len(re.findall(r"#EXT-X-STREAM-INF:BANDWIDTH=\d+,AVERAGE-BANDWIDTH=\d+,RESOLUTION=", master)) == 2
    assert master.count('URI="show-text.m3u8"') == 2
    assert 'URI="big/init.mp4"' in (folder / "media_0.m3u8").read_text()
    play(ffmpeg, folder / "show.m3u8", "-map", "0:v", "-map", "0:a")


async def test_copies_languages_and_defaults(bench: Bench, colours: Path, ffmpeg: str, tmp_path: Path) -> None:
    two = make_media(
        ffmpeg, tmp_path / "two.mkv", "-i", str(colours), "-map", "0:v", "-map", "0:a", "-map", "0:a", "-c", "copy",
        "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=deu",
    )  # fmt: skip
    source = bench.artifacts.add(two)
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[
            ElementaryStream(key="v", video=VideoStream(codec="copy")),
            ElementaryStream(key="english", audio=AudioStream(codec="copy")),
            ElementaryStream(key="german", sources=[StreamSelector(language="deu")], audio=AudioStream(codec="aac")),
            ElementaryStream(key="text", skip_if_missing=True, subtitle=SubtitleStream()),
        ],
        outputs=[dash_output("both", "v", "english", "german", "text"), dash_output("usual")],
    )
    both, usual = (unpacked(bench, output) for output in result.outputs)
    assert representations(both / "both.mpd") == {"video": ["video"], "audio": ["audio", "audio-2"]}
    root = ElementTree.parse(both / "both.mpd").getroot()
    assert [one.get("lang") for one in root.iterfind(".//mpd:AdaptationSet[@contentType='audio']", DASH)] == [
        "eng",
        "deu",
    ]
    with av.open(joined(both, "video")) as container, av.open(two) as original:
        assert [bytes(packet) for packet in container.demux(video=0) if packet.size] == [
            bytes(packet) for packet in original.demux(video=0) if packet.size
        ]
    assert [stream.encoder for stream in result.outputs[1].streams] == ["libx264", "aac"]
    assert len(list((usual / "video").glob("*.m4s"))) == 4
    play(ffmpeg, both / "both.mpd", "-map", "0")
    play(ffmpeg, usual / "usual.mpd", "-map", "0")


async def test_a_ladder_does_without_what_is_missing(bench: Bench, clip: Path, ffmpeg: str) -> None:
    streams = [
        ElementaryStream(key="v", video=small_video(width=64)),
        ElementaryStream(key="a", audio=AudioStream(codec="copy")),
        ElementaryStream(
            key="other", sources=[StreamSelector(language="deu")], skip_if_missing=True, audio=AudioStream()
        ),
    ]
    rungs = [
        Variant(name="v", video="v", audio="other"),
        Variant(name="other", audio="other"),
        Variant(name="a", audio="a"),
    ]
    result = await run(
        bench,
        inputs=[artifact_input(bench.artifacts.add(clip))],
        elementary_streams=streams,
        outputs=[dash_output("dash", variants=rungs), Output(key="hls", hls=HlsOutput(variants=rungs))],
    )
    dash, hls = (unpacked(bench, output) for output in result.outputs)
    assert representations(dash / "dash.mpd") == {"video": ["v"], "audio": ["a"]}
    assert re.findall(r"^[^#\n]+$", (hls / "hls.m3u8").read_text(), re.MULTILINE) == ["v/index.m3u8", "a/index.m3u8"]
    play(ffmpeg, joined(dash, "v"))
    play(ffmpeg, hls / "a/index.m3u8")


async def test_finish_leaves_a_manifest_that_plays(bench: Bench, long_clip: Path, ffmpeg: str) -> None:
    request = media_pb2.RunPipelineRequest(
        service="services/media",
        inputs=[artifact_input(bench.artifacts.add(long_clip))],
        elementary_streams=[ElementaryStream(key="v", video=VideoStream(codec="libx264", preset="slower"))],
        outputs=[dash_output("out", variants=[Variant(name="v", video="v")])],
    )
    context = bench.context()
    task = asyncio.create_task(bench.driver.run_pipeline(request, context))
    async with asyncio.timeout(180):
        await bench.events.moved.wait()
    context._finish()
    async with asyncio.timeout(180):
        output = (await task).outputs[0]
    assert (output.state, output.ended_early) == (pipeline_pb2.OUTPUT_STATE_SUCCEEDED, True)
    folder = unpacked(bench, output)
    assert 'type="static"' in (folder / "out.mpd").read_text()
    assert 0 < output.media_duration.ToMilliseconds() < 59_000
    play(ffmpeg, folder / "out.mpd")


REFUSED: dict[str, tuple[Output, str]] = {
    "a codec that it cannot hold": (dash_output("o", "prores"), "elementary_streams[0].video.codec"),
    "a copy that it cannot hold": (dash_output("o", "copy"), "elementary_streams[0].video.codec"),
    "two of a name": (
        dash_output("o", variants=[Variant(name="a", video="v"), Variant(name="a", video="v")]),
        "outputs[0].dash.variants[1].name",
    ),
    "a long segment": (
        dash_output("o", "v", segment_duration=Duration(seconds=61)),
        "outputs[0].dash.segment_duration",
    ),
    "an option that belongs to the target": (
        Output(key="o", streams=["v"], dash=DashOutput(), muxer_params={"single_file": ParamValue(flag=True)}),
        'outputs[0].muxer_params["single_file"]',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_names_its_field(bench: Bench, ffmpeg: str, tmp_path: Path, name: str) -> None:
    output, field = REFUSED[name]
    old = make_media(ffmpeg, tmp_path / "old.avi", "-f", "lavfi", "-i", "color=s=64x64:r=5:d=1", "-c:v", "mjpeg")
    streams = [
        ElementaryStream(key="v", video=VideoStream()),
        ElementaryStream(key="copy", video=VideoStream(codec="copy")),
        ElementaryStream(key="prores", video=VideoStream(codec="prores")),
    ]
    taken = {*output.streams, *(one.video for one in output.dash.variants)}
    with pytest.raises(errors.OneContainerError) as caught:
        await run(
            bench,
            inputs=[artifact_input(bench.artifacts.add(old))],
            elementary_streams=[stream for stream in streams if stream.key in taken],
            outputs=[output],
        )
    assert [violation.field for violation in caught.value.violations] == [field]
