"""HLS outputs: playlists are read, segments counted, and the whole is played."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import av
import pytest
from google.protobuf.duration_pb2 import Duration

from drivers.ffmpeg.tests.conftest import Bench, make_media, play, unpacked
from drivers.ffmpeg.tests.test_pipeline import artifact_input, file_output, run, small_video
from onecontainer.api.media.v1 import media_pb2, output_pb2, pipeline_pb2
from onecontainer.api.media.v1.output_pb2 import HlsOutput, Output, Variant
from onecontainer.api.media.v1.stream_pb2 import AudioStream, ElementaryStream, ParamValue, SubtitleStream, VideoStream
from onecontainer.driver import errors

ONE_SECOND = Duration(seconds=1)
FMP4 = output_pb2.SEGMENT_TYPE_FMP4
ROLES = pipeline_pb2.FileRole


def hls_output(key: str, *streams: str, **fields: Any) -> Output:
    return Output(key=key, streams=streams, hls=HlsOutput(**{"segment_duration": ONE_SECOND, **fields}))


def ladder_streams() -> list[ElementaryStream]:
    return [
        ElementaryStream(key="big", video=small_video()),
        ElementaryStream(key="little", video=small_video(width=48, frame_rate={"numerator": 5, "denominator": 1})),
        ElementaryStream(key="sound", audio=AudioStream(codec="aac")),
        ElementaryStream(key="text", subtitle=SubtitleStream()),
    ]


LADDER = [
    Variant(name="big", video="big", audio="sound", subtitle="text"),
    Variant(name="0-little", video="little", audio="sound", subtitle="text"),
    Variant(name="sound", audio="sound"),
]


def key_times(path: Path) -> list[float]:
    with av.open(path) as container:
        return [
            round(float(packet.pts * packet.time_base), 2)
            for packet in container.demux(video=0)
            if packet.pts is not None and packet.is_keyframe
        ]


async def test_a_ladder_plays_and_its_key_frames_are_aligned(bench: Bench, colours: Path, ffmpeg: str) -> None:
    source = bench.artifacts.add(colours)
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=ladder_streams(),
        outputs=[hls_output("show", variants=LADDER)],
    )
    output = result.outputs[0]
    assert [(file.name, file.role) for file in output.files[:4]] == [
        ("show.m3u8", ROLES.FILE_ROLE_MANIFEST),
        ("big/index.m3u8", ROLES.FILE_ROLE_PLAYLIST),
        ("0-little/index.m3u8", ROLES.FILE_ROLE_PLAYLIST),
        ("sound/index.m3u8", ROLES.FILE_ROLE_PLAYLIST),
    ]
    assert output.files[0].media_type == "application/vnd.apple.mpegurl"
    assert output.media_duration.ToMilliseconds() == pytest.approx(4000, abs=60)
    folder = unpacked(bench, output)
    for name in ("big", "0-little", "sound"):
        # The encoder's run-out makes sound some milliseconds longer, which may be a segment.
        names = [f"0000{n}.ts" for n in range(1, 6)]
        made = sorted(path.name for path in (folder / name).glob("*.ts"))
        assert made in ([names, names[:4]] if name == "sound" else [names[:4]])
        playlist = (folder / name / "index.m3u8").read_text()
        assert "#EXT-X-ENDLIST" in playlist
        assert playlist.count("#EXTINF") == len(made)
        play(ffmpeg, folder / name / "index.m3u8")
    big, little = (key_times(folder / name / "index.m3u8") for name in ("big", "0-little"))
    assert big == pytest.approx([0, 1, 2, 3], abs=0.05)
    assert little == pytest.approx(big, abs=0.05)
    master = (folder / "show.m3u8").read_text()
    variants = re.findall(r"#EXT-X-STREAM-INF:(.*)\n(.*)\n", master)
    assert [address for _, address in variants] == ["big/index.m3u8", "0-little/index.m3u8", "sound/index.m3u8"]
    assert ["RESOLUTION=96x54" in variants[0][0], "RESOLUTION=48x28" in variants[1][0], "RESOLUTION" in variants[2][0]] == [
        True, True, False,
    ]  # fmt: skip
    for attributes, address in variants:
        peak = max(path.stat().st_size * 8 for path in (folder / address).parent.glob("*.ts"))  # segments of one second
        told = re.search(r"(?<!-)BANDWIDTH=(\d+)", attributes)
        assert told
        assert int(told[1]) == pytest.approx(peak, rel=0.08)
        assert ("avc1." in attributes, "mp4a.40.2" in attributes) == ("sound" not in address, True)
    # Subtitles once, and with both variants that have them.
    assert master.count('URI="show-text.m3u8"') == 2
    assert master.count("SUBTITLES=") == 2
    assert 'LANGUAGE="eng"' in master
    assert [file.name for file in output.files if "text" in file.name] == ["show-text.m3u8", "show-text.vtt"]
    text = (folder / "show-text.vtt").read_text()
    assert re.search(r"00:00\.500 --> 00:01\.500\nGood evening", text)
    with av.open(folder / "big/00001.ts") as segment:  # subtitles go by time stamps that begin at 0
        assert float(segment.streams.video[0].start_time * segment.streams.video[0].time_base) == pytest.approx(
            0, abs=0.1
        )
    play(ffmpeg, folder / "show.m3u8", "-map", "0:v", "-map", "0:a")
    assert {stream.codec for stream in output.media_info.streams} >= {"h264", "aac"}
    assert not any(str(bench.root) in word for word in output.command)


@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize("kind", [output_pb2.SEGMENT_TYPE_MPEG_TS, FMP4])
async def test_ways_of_packing(
    bench: Bench, colours: Path, ffmpeg: str, kind: output_pb2.SegmentType.ValueType, single_file: bool
) -> None:
    source = bench.artifacts.add(colours)
    streams = [
        ElementaryStream(key="v", video=small_video()),
        ElementaryStream(key="a", audio=AudioStream(codec="aac")),
    ]
    packed = hls_output("out", "v", "a", segment_type=kind, single_file=single_file)
    result = await run(bench, inputs=[artifact_input(source)], elementary_streams=streams, outputs=[packed])
    names = [file.name for file in result.outputs[0].files]
    extension = "m4s" if kind == FMP4 else "ts"
    head = ["main/init.mp4"] if kind == FMP4 and not single_file else []
    parts = [f"main/media.{extension}"] if single_file else [f"main/0000{n}.{extension}" for n in range(1, 5)]
    assert names == ["out.m3u8", "main/index.m3u8", *head, *parts]
    folder = unpacked(bench, result.outputs[0])
    playlist = (folder / "main/index.m3u8").read_text()
    assert playlist.count("#EXTINF") == 4
    assert playlist.count("#EXT-X-BYTERANGE") == (4 if single_file else 0)
    play(ffmpeg, folder / "out.m3u8")
    with av.open(folder / "main/index.m3u8") as container:
        assert sum(1 for _ in container.decode(video=0)) == 40


async def test_copies_and_default_streams(bench: Bench, colours: Path, ffmpeg: str) -> None:
    source = bench.artifacts.add(colours)
    streams = [
        ElementaryStream(key="v", video=VideoStream(codec="copy")),
        ElementaryStream(key="a", audio=AudioStream(codec="copy")),
    ]
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=streams,
        outputs=[hls_output("copied", "v", "a", segment_type=FMP4), hls_output("usual")],
    )
    copied, usual = (unpacked(bench, output) for output in result.outputs)
    with av.open(copied / "main/index.m3u8") as container, av.open(colours) as original:
        assert [bytes(packet) for packet in container.demux(video=0) if packet.size] == [
            bytes(packet) for packet in original.demux(video=0) if packet.size
        ]
    assert [stream.encoder for stream in result.outputs[1].streams] == ["libx264", "aac"]
    assert len(list((usual / "main").glob("*.ts"))) == 4  # defaults have their key frames at the segments too
    for folder in (copied, usual):
        play(ffmpeg, next(folder.glob("*.m3u8")))


async def test_languages_are_renditions(bench: Bench, colours: Path, ffmpeg: str) -> None:
    source = bench.artifacts.add(colours)
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[
            ElementaryStream(key="v", video=small_video()),
            ElementaryStream(key="english", language="eng", audio=AudioStream(codec="aac")),
            ElementaryStream(key="german", language="deu", audio=AudioStream(codec="aac", channels=2)),
            ElementaryStream(key="text", subtitle=SubtitleStream()),
        ],
        outputs=[hls_output("out", "english", "v", "german", "text")],
    )
    output = result.outputs[0]
    folder = unpacked(bench, output)
    master = (folder / "out.m3u8").read_text()
    sounds = re.findall(r"#EXT-X-MEDIA:TYPE=AUDIO,(.*)", master)
    assert [re.findall(r'(?:LANGUAGE|URI)="([^"]*)"', line) for line in sounds] == [
        ["eng", "audio/index.m3u8"],
        ["deu", "audio-2/index.m3u8"],
    ]
    assert ["DEFAULT=YES" in line for line in sounds] == [True, False]
    assert re.findall(r"#EXT-X-STREAM-INF:.*\n(.*)", master) == ["main/index.m3u8"]
    assert 'AUDIO="' in master
    assert master.count("SUBTITLES=") == master.count('URI="out-text.m3u8"') == 1
    for name, channels in (("audio", 1), ("audio-2", 2)):
        play(ffmpeg, folder / name / "index.m3u8")
        with av.open(folder / name / "00001.ts") as container:
            assert container.streams.audio[0].codec_context.channels == channels
            assert not container.streams.video
    play(ffmpeg, folder / "main/index.m3u8")


async def test_sounds_whose_picture_is_missing_are_variants(
    bench: Bench, colours: Path, ffmpeg: str, tmp_path: Path
) -> None:
    sound = make_media(ffmpeg, tmp_path / "sound.mka", "-i", str(colours), "-map", "0:a", "-c", "copy")
    result = await run(
        bench,
        inputs=[artifact_input(bench.artifacts.add(sound))],
        elementary_streams=[
            ElementaryStream(key="v", skip_if_missing=True, video=small_video()),
            ElementaryStream(key="one", audio=AudioStream(codec="aac")),
            ElementaryStream(key="two", audio=AudioStream(codec="copy")),
        ],
        outputs=[hls_output("out", "v", "one", "two")],
    )
    folder = unpacked(bench, result.outputs[0])
    master = (folder / "out.m3u8").read_text()
    assert re.findall(r"#EXT-X-STREAM-INF:.*\n(.*)", master) == ["audio/index.m3u8", "audio-2/index.m3u8"]
    for name in ("audio", "audio-2"):
        play(ffmpeg, folder / name / "index.m3u8")


async def test_finish_leaves_a_playlist_that_plays(bench: Bench, long_clip: Path, ffmpeg: str) -> None:
    source = bench.artifacts.add(long_clip)
    slow = VideoStream(codec="libx264", preset="slower")
    request = media_pb2.RunPipelineRequest(
        service="services/media",
        inputs=[artifact_input(source)],
        elementary_streams=[
            ElementaryStream(key="v", video=slow),
            ElementaryStream(key="w", video=VideoStream(codec="libx264", width=160)),
        ],
        outputs=[hls_output("out", variants=[Variant(name="v", video="v"), Variant(name="w", video="w")])],
    )
    context = bench.context()
    task = asyncio.create_task(bench.driver.run_pipeline(request, context))
    async with asyncio.timeout(180):
        await bench.events.moved.wait()
    context._finish()
    async with asyncio.timeout(180):
        result = await task
    output = result.outputs[0]
    assert result.ended_early
    assert (output.state, output.ended_early) == (pipeline_pb2.OUTPUT_STATE_SUCCEEDED, True)
    assert 0 < output.media_duration.ToMilliseconds() < 59_000
    folder = unpacked(bench, output)
    for name in ("v", "w"):
        assert "#EXT-X-ENDLIST" in (folder / name / "index.m3u8").read_text()
        play(ffmpeg, folder / name / "index.m3u8")


def variants(*given: dict[str, str]) -> list[Variant]:
    return [Variant(**fields) for fields in given]


BIG = {"name": "a", "video": "big"}
REFUSED: dict[str, tuple[Output, str]] = {
    "two of a name": (hls_output("o", variants=variants(BIG, BIG)), "outputs[0].hls.variants[1].name"),
    "no name": (hls_output("o", variants=variants({"video": "big"})), "outputs[0].hls.variants[0].name"),
    "a name that leads out": (hls_output("o", variants=variants({**BIG, "name": "../a"})), "outputs[0].hls.variants[0].name"),
    "neither video nor audio": (
        hls_output("o", variants=variants({"name": "a", "subtitle": "text"})),
        "outputs[0].hls.variants[0].video",
    ),
    "variants and streams": (hls_output("o", "big", variants=variants(BIG)), "outputs[0].streams"),
    "an unknown stream": (
        hls_output("o", variants=variants(BIG, {"name": "b", "video": "none"})),
        "outputs[0].hls.variants[1].video",
    ),
    "sound where pictures belong": (
        hls_output("o", variants=variants(BIG, {"name": "b", "video": "sound"})),
        "outputs[0].hls.variants[1].video",
    ),
    "two videos in one variant": (hls_output("o", "big", "little"), "outputs[0].streams[1]"),
    "two sounds and no picture": (hls_output("o", "sound", "other"), "outputs[0].streams[1]"),
    "text alone": (hls_output("o", "text"), "outputs[0].streams[0]"),
    "a short segment": (hls_output("o", "big", segment_duration=Duration(nanos=999_000_000)), "outputs[0].hls.segment_duration"),
    "a long segment": (hls_output("o", "big", segment_duration=Duration(seconds=61)), "outputs[0].hls.segment_duration"),
    "a packing of another version": (hls_output("o", "big", segment_type=99), "outputs[0].hls.segment_type"),
    "a codec that it cannot hold": (hls_output("o", "vp9"), "elementary_streams[0].video.codec"),
    "key frames at other times": (
        hls_output("o", variants=variants(BIG, {"name": "b", "video": "often"})),
        "outputs[0].hls.variants[1].video",
    ),
    "an option that belongs to the target": (
        Output(key="o", streams=["big"], hls=HlsOutput(), muxer_params={"hls_list_size": ParamValue(integer=2)}),
        'outputs[0].muxer_params["hls_list_size"]',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_names_its_field(bench: Bench, clip: Path, name: str) -> None:
    output, field = REFUSED[name]
    source = bench.artifacts.add(clip)
    streams = [
        *ladder_streams(),
        ElementaryStream(key="other", audio=AudioStream()),
        ElementaryStream(key="vp9", video=VideoStream(codec="vp9")),
        ElementaryStream(key="often", video=VideoStream(keyframe_interval=Duration(nanos=300_000_000))),
    ]
    taken = {
        *output.streams,
        *(getattr(one, kind) for one in output.hls.variants for kind in ("video", "audio", "subtitle")),
    }
    with pytest.raises(errors.OneContainerError) as caught:
        await run(
            bench,
            inputs=[artifact_input(source)],
            elementary_streams=[stream for stream in streams if stream.key in taken],
            outputs=[output],
        )
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_size_bound_counts_all_segments(bench: Bench, long_clip: Path) -> None:
    source = bench.artifacts.add(long_clip)
    stream = ElementaryStream(key="v", video=small_video(rate_control={"constant_quality": 1}))
    with pytest.raises(errors.LimitExceeded, match="bound on size"):
        await run(
            bench,
            inputs=[artifact_input(source)],
            elementary_streams=[stream],
            outputs=[hls_output("o", "v")],
            # Each segment is far smaller.
            limits=pipeline_pb2.PipelineLimits(max_output_bytes=3_000_000),
        )
    assert list(bench.artifacts.stored) == [source]


async def test_a_failed_output_keeps_no_file_and_the_others_keep_theirs(bench: Bench, colours: Path) -> None:
    source = bench.artifacts.add(colours)
    bad = small_video(filters=[{"name": "crop", "arguments": [{"name": "w", "value": {"text": "nonsense("}}]}])
    with pytest.raises(errors.BackendExecutionFailed, match=r"outputs\[0\]"):
        await run(
            bench,
            inputs=[artifact_input(source)],
            elementary_streams=[ElementaryStream(key="bad", video=bad), ElementaryStream(key="v", video=small_video())],
            outputs=[hls_output("bad", "bad"), hls_output("good", "v"), file_output("file", "mp4", "v")],
        )
    kept = sorted(path.name.partition("-")[2] for name, path in bench.artifacts.stored.items() if name != source)
    assert kept == ["file.mp4", "good.m3u8", *(f"main-0000{n}.ts" for n in range(1, 5)), "main-index.m3u8"]
    assert not [path for path in bench.left_behind() if path.suffix in (".ts", ".m3u8")]
