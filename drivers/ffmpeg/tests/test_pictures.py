"""Frames and sprite sheets of a clip whose colour tells the time: each picture is looked at."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from drivers.ffmpeg.tests.conftest import Bench, colour_at, colour_of, make_media, unpacked
from drivers.ffmpeg.tests.test_pipeline import artifact_input, filter_of, run
from onecontainer.api.media.v1 import media_pb2, output_pb2, pipeline_pb2
from onecontainer.api.media.v1.output_pb2 import FramePick, FramesOutput, Output, SpriteSheetOutput, Times
from onecontainer.api.media.v1.stream_pb2 import AudioStream, ElementaryStream, RateControl, VideoStream
from onecontainer.client.media import presets
from onecontainer.driver import errors

JPEG, PNG, WEBP = output_pb2.IMAGE_FORMAT_JPEG, output_pb2.IMAGE_FORMAT_PNG, output_pb2.IMAGE_FORMAT_WEBP


def span(value: float) -> Duration:
    return Duration(nanos=round(value * 1e9) % 10**9, seconds=int(value))


def frames(key: str, *streams: str, pick: dict[str, Any] | None = None, **fields: Any) -> Output:
    return Output(key=key, streams=streams, frames=FramesOutput(pick=FramePick(**(pick or {})), **fields))


def sprites(key: str, *streams: str, pick: dict[str, Any] | None = None, **fields: Any) -> Output:
    return Output(key=key, streams=streams, sprites=SpriteSheetOutput(pick=FramePick(**(pick or {})), **fields))


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """Height, width, 3."""
    with av.open(path, format={".jpg": "jpeg_pipe", ".png": "png_pipe", ".webp": "webp_pipe"}[path.suffix]) as opened:
        return next(opened.decode(video=0)).to_ndarray(format="rgb24")


def times_of(output: pipeline_pb2.OutputResult) -> list[float]:
    return [file.media_time.ToMilliseconds() / 1000 for file in output.files]


PICKS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "the default": ({}, [0, 0.4, 0.8, 1.2, 1.6, 2, 2.4, 2.8, 3.2, 3.6]),
    "an interval": ({"interval": span(0.75)}, [0, 0.8, 1.5, 2.3, 3.0, 3.8]),
    "a count": ({"count": 4}, [0, 1, 2, 3]),
    "times": ({"times": Times(offsets=[span(0.25), span(1), span(3.9)])}, [0.3, 1.0, 3.9]),
    "key frames": ({"key_frames": True}, [0, 1, 2, 3]),
}


async def test_each_way_to_pick_frames(bench: Bench, colours: Path) -> None:
    source = bench.artifacts.add(colours)
    outputs = [frames(f"p{index}", pick=pick) for index, (pick, _) in enumerate(PICKS.values())]
    result = await run(bench, inputs=[artifact_input(source)], outputs=outputs)
    assert not result.warnings
    for (name, (_, expected)), output in zip(PICKS.items(), result.outputs, strict=True):
        # Sound makes the clip some milliseconds longer than its pictures, so a part may begin a frame later.
        assert times_of(output) == pytest.approx(expected, abs=0.11 if output.key in ("p0", "p2") else 0.01), name
        assert [file.name for file in output.files] == [
            f"{output.key}-{n:05d}.jpg" for n in range(1, len(expected) + 1)
        ]
        assert {(file.role, file.media_type) for file in output.files} == {(pipeline_pb2.FILE_ROLE_FRAME, "image/jpeg")}
        folder = unpacked(bench, output)
        for file, time in zip(output.files, times_of(output), strict=True):
            picture = pixels(folder / file.name)
            assert picture.shape == (54, 96, 3)
            assert colour_of(picture) == colour_at(time), (name, time)
        assert output.media_duration.ToMilliseconds() == pytest.approx(4000, abs=60)


async def test_formats_filters_sizes_and_parts(bench: Bench, colours: Path) -> None:
    source = bench.artifacts.add(colours)
    stream = VideoStream(filters=[filter_of("negate")], width=48)
    part = frames("part", "v", format=PNG, pick={"interval": span(1)})
    part.start_offset.CopyFrom(span(1))
    part.duration.CopyFrom(span(1.5))
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[ElementaryStream(key="v", video=stream)],
        outputs=[part, *(frames(f"q{n}", format=WEBP, quality=n, pick={"count": 2}) for n in (5, 95))],
    )
    output, poor, fine = result.outputs
    assert [file.name for file in output.files] == ["part-00001.png", "part-00002.png"]
    assert times_of(output) == pytest.approx([0, 1], abs=0.01)
    folder = unpacked(bench, output)
    shown = [pixels(folder / file.name) for file in output.files]
    assert [one.shape for one in shown] == [(28, 48, 3)] * 2
    means = [one.reshape(-1, 3).mean(axis=0) for one in shown]
    assert means[0] == pytest.approx((255, 0, 255), abs=40)  # the negative of lime, which is at 1 s
    assert means[1] == pytest.approx((255, 255, 0), abs=40)  # and of blue
    assert output.media_info.streams[0].codec == "png"
    assert [file.media_type for file in poor.files] == ["image/webp"] * 2
    assert sum(file.size_bytes for file in poor.files) <= sum(file.size_bytes for file in fine.files)


async def test_frames_over_the_bound_are_left_out_with_a_warning(bench: Bench, colours: Path) -> None:
    source = bench.artifacts.add(colours)
    late = Times(offsets=[span(1), span(9)])
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        outputs=[
            frames("many", pick={"interval": span(0.1), "max_frames": 3}),
            frames("few", pick={"interval": span(1), "max_frames": 4}),
            frames("late", pick={"times": late}),
        ],
    )
    assert [len(output.files) for output in result.outputs] == [3, 4, 1]
    assert sorted(warning.field for warning in result.warnings) == [
        "outputs[0].frames.pick.max_frames",
        "outputs[2].frames.pick",
    ]


async def test_a_late_start_in_a_looped_source(bench: Bench, colours: Path) -> None:
    source = bench.artifacts.add(colours)
    late = frames("late", pick={"interval": span(1)})
    late.start_offset.CopyFrom(span(5.5))  # in the middle of lime, the second time
    result = await run(bench, inputs=[artifact_input(source, extra_plays=1)], outputs=[late])
    output = result.outputs[0]
    assert times_of(output) == pytest.approx([0, 1, 2], abs=0.11)
    folder = unpacked(bench, output)
    assert [colour_of(pixels(folder / file.name)) for file in output.files] == ["lime", "blue", "white"]


async def test_sound_alone_gives_no_pictures(bench: Bench, colours: Path, ffmpeg: str, tmp_path: Path) -> None:
    sound = make_media(ffmpeg, tmp_path / "sound.mka", "-i", str(colours), "-map", "0:a", "-c", "copy")
    with pytest.raises(errors.DataInvalid) as caught:
        await run(bench, inputs=[artifact_input(bench.artifacts.add(sound))], outputs=[frames("o")])
    assert [violation.field for violation in caught.value.violations] == ["outputs[0].streams"]


CUE = re.compile(r"(\d\d):(\d\d):(\d\d\.\d{3}) --> (\d\d):(\d\d):(\d\d\.\d{3})\n(\S+)#xywh=(\d+),(\d+),(\d+),(\d+)\n")


def cues(text: str) -> list[tuple[float, float, str, tuple[int, int, int, int]]]:
    """Begin and end in seconds, address of the sheet, and x, y, width, height."""
    assert text.startswith("WEBVTT\n\n")
    found = []
    for match in CUE.finditer(text):
        begin, end = (int(match[i]) * 3600 + int(match[i + 1]) * 60 + float(match[i + 2]) for i in (1, 4))
        found.append((begin, end, match[7], (int(match[8]), int(match[9]), int(match[10]), int(match[11]))))
    return found


@pytest.mark.parametrize(
    ("fields", "tile", "sheets"),
    [
        # 20 tiles of 3x2: three whole sheets, and one with two tiles side by side.
        ({"columns": 3, "rows": 2, "tile_width": 32}, (32, 18), [(36, 96), (36, 96), (36, 96), (18, 64)]),
        ({"tile_width": 16, "tile_height": 24, "format": PNG}, (16, 24), [(48, 160)]),
        ({"columns": 1, "rows": 20, "format": WEBP}, (160, 90), [(1800, 160)]),
    ],
)
async def test_each_cue_shows_its_time(
    bench: Bench, colours: Path, fields: dict[str, Any], tile: tuple[int, int], sheets: list[tuple[int, int]]
) -> None:
    source = bench.artifacts.add(colours)
    prefix = "https://cdn.example.com/a/"
    output = sprites("bar", pick={"interval": span(0.2)}, url_prefix=prefix, **fields)
    result = (await run(bench, inputs=[artifact_input(source)], outputs=[output])).outputs[0]
    folder = unpacked(bench, result)
    assert [file.role for file in result.files] == [
        pipeline_pb2.FILE_ROLE_THUMBNAIL_TRACK,
        *[pipeline_pb2.FILE_ROLE_SPRITE] * len(sheets),
    ]
    pictures = {file.name: pixels(folder / file.name) for file in result.files[1:]}
    assert [picture.shape[:2] for picture in pictures.values()] == sheets
    assert next(iter(pictures)) == f"bar-001.{ {PNG: 'png', WEBP: 'webp'}.get(fields.get('format', JPEG), 'jpg') }"
    found = cues((folder / "bar.vtt").read_text())
    assert len(found) == 20
    assert [cue[0] for cue in found] == pytest.approx([n * 0.2 for n in range(20)], abs=0.01)
    assert [cue[1] for cue in found[:-1]] == [cue[0] for cue in found[1:]]
    assert found[-1][1] == pytest.approx(4, abs=0.06)
    for begin, _, address, (x, y, width, height) in found:
        assert (width, height) == tile
        sheet = pictures[address.removeprefix(prefix)]
        assert x + width <= sheet.shape[1]
        assert y + height <= sheet.shape[0]
        inner = sheet[y + 2 : y + height - 2, x + 2 : x + width - 2]
        assert colour_of(inner) == colour_at(begin + 0.01), begin


@pytest.mark.parametrize("kind", ["frames", "sprites"])
async def test_finish_leaves_whole_pictures(bench: Bench, long_clip: Path, kind: str) -> None:
    source = bench.artifacts.add(long_clip)
    often = {"interval": span(0.1)}
    output = frames("o", pick=often) if kind == "frames" else sprites("o", pick=often, columns=2, rows=1, tile_width=32)
    request = media_pb2.RunPipelineRequest(
        service="services/media", inputs=[artifact_input(source, real_time=True)], outputs=[output]
    )
    context = bench.context()
    task = asyncio.create_task(bench.driver.run_pipeline(request, context))
    await bench.under_way(task, milliseconds=500)
    context._finish()
    async with asyncio.timeout(180):
        result = (await task).outputs[0]
    assert (result.state, result.ended_early) == (pipeline_pb2.OUTPUT_STATE_SUCCEEDED, True)
    folder = unpacked(bench, result)
    if kind == "frames":
        assert 2 <= len(result.files) < 600
        assert {pixels(folder / file.name).shape for file in result.files} == {(360, 640, 3)}
        return
    found = cues((folder / "o.vtt").read_text())
    assert 2 <= len(found) < 600
    assert [file.name for file in result.files[1:]] == sorted({cue[2] for cue in found})
    assert len(result.files) - 1 == (len(found) + 1) // 2
    for file in result.files[1:]:
        assert pixels(folder / file.name).shape[0] == 18


REFUSED: dict[str, tuple[Output, str]] = {
    "a codec": (frames("o", "coded"), "elementary_streams[0].video.codec"),
    "rate control": (sprites("o", "rated"), "elementary_streams[0].video.rate_control"),
    "sound": (frames("o", "sound"), "outputs[0].streams[0]"),
    "two streams": (frames("o", "plain", "coded"), "outputs[0].streams[1]"),
    "no times": (frames("o", pick={"times": Times()}), "outputs[0].frames.pick.times.offsets"),
    "times that go back": (
        frames("o", pick={"times": Times(offsets=[span(1), span(1)])}),
        "outputs[0].frames.pick.times.offsets[1]",
    ),
    "a time before the start": (
        frames("o", pick={"times": Times(offsets=[Duration(seconds=-1)])}),
        "outputs[0].frames.pick.times.offsets[0]",
    ),
    "a time after the end": (frames("o", pick={"times": Times(offsets=[span(99)])}), "outputs[0].frames.pick"),
    "too short an interval": (sprites("o", pick={"interval": span(0.009)}), "outputs[0].sprites.pick.interval"),
    "too many": (frames("o", pick={"count": 1001}), "outputs[0].frames.pick.count"),
    "none": (frames("o", pick={"count": 0}), "outputs[0].frames.pick.count"),
    "too high a bound": (frames("o", pick={"max_frames": 10_001}), "outputs[0].frames.pick.max_frames"),
    "a format of another version": (frames("o", format=99), "outputs[0].frames.format"),
    "too good": (frames("o", quality=101), "outputs[0].frames.quality"),
    "too small a tile": (sprites("o", tile_width=15), "outputs[0].sprites.tile_width"),
    "too tall a tile": (sprites("o", tile_height=1081), "outputs[0].sprites.tile_height"),
    "too many columns": (sprites("o", columns=65), "outputs[0].sprites.columns"),
    "too few rows": (sprites("o", rows=-1), "outputs[0].sprites.rows"),
    "a prefix with lines": (sprites("o", url_prefix="a\n\n00:01 --> 00:02\nb"), "outputs[0].sprites.url_prefix"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_names_its_field(bench: Bench, colours: Path, name: str) -> None:
    output, field = REFUSED[name]
    source = bench.artifacts.add(colours)
    streams = [
        ElementaryStream(key="plain", video=VideoStream()),
        ElementaryStream(key="coded", video=VideoStream(codec="libx264")),
        ElementaryStream(key="rated", video=VideoStream(rate_control=RateControl(constant_quality=20))),
        ElementaryStream(key="sound", audio=AudioStream()),
    ]
    with pytest.raises(errors.OneContainerError) as caught:
        await run(
            bench,
            inputs=[artifact_input(source)],
            elementary_streams=[stream for stream in streams if stream.key in output.streams],
            outputs=[output],
        )
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_count_needs_a_known_length(bench: Bench, colours: Path, ffmpeg: str, tmp_path: Path) -> None:
    raw = make_media(ffmpeg, tmp_path / "raw.h264", "-i", str(colours), "-map", "0:v", "-c", "copy")
    source = bench.artifacts.add(raw)
    with pytest.raises(errors.FieldInvalid, match="length is known"):
        await run(bench, inputs=[artifact_input(source)], outputs=[frames("o")])
    result = await run(bench, inputs=[artifact_input(source)], outputs=[frames("o", pick={"key_frames": True})])
    assert len(result.outputs[0].files) == 4


@pytest.mark.parametrize(("width", "shape"), [(48, (28, 48, 3)), (320, (54, 96, 3))])
async def test_a_thumbnail_is_no_larger_than_its_source(
    bench: Bench, colours: Path, width: int, shape: tuple[int, ...]
) -> None:
    request = presets.thumbnail(bench.artifacts.add(colours), width=width, image_format=PNG)
    streams, outputs = request.elementary_streams, request.outputs
    result = await run(bench, inputs=request.inputs, elementary_streams=streams, outputs=outputs)
    (output,) = result.outputs
    assert pixels(unpacked(bench, output) / output.files[0].name).shape == shape
