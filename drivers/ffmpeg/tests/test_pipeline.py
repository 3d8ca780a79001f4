"""RunPipeline on real clips; what comes out is read with FFmpeg's libraries."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import av
import pytest
from google.protobuf.duration_pb2 import Duration
from onecontainer_driver_ffmpeg import pipeline_run
from onecontainer_driver_ffmpeg.process import Child

from drivers.ffmpeg.tests.conftest import Bench, make_media, processes_of
from onecontainer.api.media.v1 import media_pb2, output_pb2, pipeline_pb2, stream_pb2
from onecontainer.api.media.v1.input_pb2 import Input, MediaSource
from onecontainer.api.media.v1.output_pb2 import FileOutput, Output
from onecontainer.api.media.v1.stream_pb2 import (
    AudioStream,
    ElementaryStream,
    Filter,
    FilterArgument,
    ParamValue,
    RateControl,
    StreamSelector,
    VideoStream,
)
from onecontainer.driver import errors
from tests.fixtures.stalls import stalls


def artifact_input(name: str, **fields: object) -> Input:
    return Input(source=MediaSource(artifact=name), **fields)  # type: ignore[arg-type]


def file_output(key: str, container: str, *streams: str, **fields: object) -> Output:
    return Output(key=key, streams=streams, file=FileOutput(container=container), **fields)  # type: ignore[arg-type]


def filter_of(name: str, **arguments: object) -> Filter:
    return Filter(
        name=name,
        arguments=[
            FilterArgument(
                name=key, value=ParamValue(text=value) if isinstance(value, str) else ParamValue(number=value)
            )  # type: ignore[arg-type]
            for key, value in arguments.items()
        ],
    )


def small_video(**fields: object) -> VideoStream:
    return VideoStream(codec="libx264", preset="ultrafast", **fields)  # type: ignore[arg-type]


async def run(bench: Bench, **fields: object) -> pipeline_pb2.RunPipelineResult:
    request = media_pb2.RunPipelineRequest(service="services/media", **fields)  # type: ignore[arg-type]
    context = bench.context()
    try:
        return await bench.driver.run_pipeline(request, context)
    finally:
        context._end_of_events()


def stored(bench: Bench, result: pipeline_pb2.OutputResult) -> Path:
    return bench.artifacts.stored[result.files[0].artifact]


async def test_outputs_with_codecs_filters_and_progress(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[
            ElementaryStream(
                key="small",
                title="small one",
                video=VideoStream(
                    codec="h264",
                    preset="veryfast",
                    profile="high",
                    rate_control=RateControl(constant_quality=30),
                    filters=[filter_of("hflip"), filter_of("hue", s=0)],
                    width=160,
                    params={"bf": ParamValue(integer=0)},
                ),
            ),
            ElementaryStream(
                key="sound",
                audio=AudioStream(
                    codec="libopus", sample_rate=48000, channels=2, filters=[filter_of("volume", volume=0.5)]
                ),
            ),
            ElementaryStream(key="same", video=VideoStream(codec="copy")),
        ],
        outputs=[
            file_output("movie", "mkv", "small", "sound", tags={"title": "A: title=with 'all', [kinds]; of\\signs"}),
            file_output("audio", "ogg", "sound"),
            file_output("copied", "mp4", "same"),
        ],
    )
    assert [output.state for output in result.outputs] == [pipeline_pb2.OUTPUT_STATE_SUCCEEDED] * 3
    movie, audio, copied = result.outputs
    with av.open(stored(bench, movie)) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.width, video.height, video.profile) == ("h264", 160, 90, "High")
        assert container.streams.audio[0].codec_context.name == "opus"
        assert container.streams.audio[0].codec_context.channels == 2
        assert container.metadata["title"] == "A: title=with 'all', [kinds]; of\\signs"
        assert video.metadata["title"] == "small one"
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        assert abs(frame[..., 0] - frame[..., 2]).max() < 8  # saturation 0: grey
    with av.open(stored(bench, audio)) as container:
        assert not container.streams.video
        assert container.duration == pytest.approx(3_000_000, abs=100_000)
    with av.open(stored(bench, copied)) as container, av.open(clip) as original:
        same = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        assert same == [bytes(packet) for packet in original.demux(video=0) if packet.size]
    assert copied.streams[0].encoder == "copy"
    assert movie.media_info.streams[0].codec == "h264"
    assert movie.return_code == 0
    assert "{input0}" in movie.command
    assert not any(str(bench.root) in word for word in movie.command)
    assert not bench.left_behind() or all(path.name == "input0" for path in bench.left_behind())


async def test_progress_is_monotonic_and_ends_at_one(bench: Bench, long_clip: Path) -> None:
    source = bench.artifacts.add(long_clip)
    streams = [
        ElementaryStream(key="v", video=small_video()),
        ElementaryStream(key="a", audio=AudioStream(codec="aac")),
    ]
    context_result = await run(
        bench,
        inputs=[artifact_input(source, duration=Duration(seconds=60))],
        elementary_streams=streams,
        outputs=[file_output("one", "mp4", "v", "a"), file_output("two", "mkv", "v")],
    )
    assert len(context_result.outputs) == 2
    reports, details = bench.events.reports, bench.events.details()
    assert len(reports) >= 3
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    assert reports[-1].total == pytest.approx(120, abs=1)
    fractions = [one.fraction for one in details if one.HasField("fraction")]
    assert fractions == sorted(fractions)
    for index in range(2):
        for name in ("fraction", "frame", "size_bytes"):
            values = [getattr(one.outputs[index], name) for one in details]
            assert values == sorted(values)
    assert any(one.outputs[0].HasField("speed") for one in details)


async def test_start_and_duration_cut(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    result = await run(
        bench,
        inputs=[artifact_input(source, start_offset=Duration(nanos=500_000_000), duration=Duration(seconds=2))],
        elementary_streams=[
            ElementaryStream(key="v", video=small_video(frame_rate={"numerator": 15, "denominator": 1}))
        ],
        outputs=[
            file_output("all", "mp4", "v"),
            file_output("part", "mp4", "v", start_offset=Duration(seconds=1), duration=Duration(nanos=400_000_000)),
        ],
    )
    lengths = []
    for output in result.outputs:
        with av.open(stored(bench, output)) as container:
            lengths.append(sum(1 for _ in container.decode(video=0)) / 15)
    assert lengths == [pytest.approx(2.0, abs=0.07), pytest.approx(0.4, abs=0.07)]


async def test_loop_and_two_inputs_joined(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    result = await run(
        bench,
        inputs=[artifact_input(source, extra_plays=1), artifact_input(source)],
        elementary_streams=[
            ElementaryStream(key="long", video=small_video()),
            ElementaryStream(
                key="beside",
                sources=[StreamSelector(input=1), StreamSelector(input=1)],
                video=small_video(filters=[filter_of("hstack")]),
            ),
        ],
        outputs=[file_output("long", "mp4", "long"), file_output("beside", "mp4", "beside")],
    )
    with av.open(stored(bench, result.outputs[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 180
    with av.open(stored(bench, result.outputs[1])) as container:
        assert container.streams.video[0].width == 640


async def test_bitrate_is_held(bench: Bench, long_clip: Path) -> None:
    source = bench.artifacts.add(long_clip)
    average = stream_pb2.AverageBitrate(bitrate=300_000, max_bitrate=400_000)
    result = await run(
        bench,
        inputs=[artifact_input(source, duration=Duration(seconds=20))],
        elementary_streams=[
            ElementaryStream(key="v", video=small_video(rate_control=RateControl(average_bitrate=average)))
        ],
        outputs=[file_output("v", "mp4", "v")],
    )
    assert result.outputs[0].media_info.format.bitrate == pytest.approx(300_000, rel=0.25)


async def test_all_or_nothing_keeps_all_of_a_success(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    outputs = [file_output("one", "wav"), file_output("two", "flac")]
    result = await run(bench, inputs=[artifact_input(source)], outputs=outputs, all_or_nothing=True)
    assert [len(output.files) for output in result.outputs] == [1, 1]


async def test_validate_only_runs_nothing(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    result = await run(bench, inputs=[artifact_input(source)], outputs=[file_output("out", "mp4")], validate_only=True)
    assert result.validated_only
    assert result.outputs[0].state == pipeline_pb2.OUTPUT_STATE_VALIDATED
    assert [stream.encoder for stream in result.outputs[0].streams] == ["libx264", "aac"]
    assert list(bench.artifacts.stored) == [source]


@pytest.mark.parametrize(("params", "expected"), [({}, "4"), ({"cpu-used": ParamValue(integer=1)}, "1")])
async def test_slow_encoders_are_used_at_an_everyday_speed(
    bench: Bench, clip: Path, params: dict[str, ParamValue], expected: str
) -> None:
    source = bench.artifacts.add(clip)
    stream = ElementaryStream(key="v", video=VideoStream(codec="vp9", params=params))
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[stream],
        outputs=[file_output("out", "webm", "v")],
        validate_only=True,
    )
    command = list(result.outputs[0].command)
    places = [index for index, word in enumerate(command) if word.startswith("-cpu-used")]
    assert [command[index + 1] for index in places] == [expected]


async def test_one_failure_leaves_the_others(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    streams = [
        ElementaryStream(key="good", video=small_video()),
        # The names are right, so only ffmpeg itself can tell that the expression is not.
        ElementaryStream(key="bad", video=small_video(filters=[filter_of("crop", w="nonsense(")])),
    ]
    request = {"inputs": [artifact_input(source)], "elementary_streams": streams}
    with pytest.raises(errors.BackendExecutionFailed) as caught:
        await run(bench, **request, outputs=[file_output("bad", "mp4", "bad"), file_output("good", "mp4", "good")])
    assert caught.value.code == errors.Code.INVALID_ARGUMENT
    assert "outputs[0]" in str(caught.value)
    assert "nonsense" in str(caught.value)
    assert str(bench.root) not in str(caught.value)
    assert len(bench.artifacts.stored) == 2  # the source and the good output
    details = bench.events.details()[-1]
    assert [one.state for one in details.outputs] == [
        pipeline_pb2.OUTPUT_STATE_FAILED,
        pipeline_pb2.OUTPUT_STATE_SUCCEEDED,
    ]


async def test_all_or_nothing_stops_the_others(bench: Bench, long_clip: Path) -> None:
    source = bench.artifacts.add(long_clip)
    streams = [
        ElementaryStream(key="good", video=VideoStream(codec="libx264", preset="veryslow")),
        ElementaryStream(key="bad", video=small_video(filters=[filter_of("crop", w="nonsense(")])),
    ]
    with stalls() as still:
        started = time.monotonic()
        with pytest.raises(errors.BackendExecutionFailed):
            await run(
                bench,
                # At the pace of playing: it would take a minute, and is CANCELLED however slow this machine is.
                inputs=[artifact_input(source, real_time=True)],
                elementary_streams=streams,
                outputs=[file_output("good", "mp4", "good"), file_output("bad", "mp4", "bad")],
                all_or_nothing=True,
            )
        took = time.monotonic() - started - still.seconds
    assert took < 10
    assert len(bench.artifacts.stored) == 1
    assert bench.events.details()[-1].outputs[0].state == pipeline_pb2.OUTPUT_STATE_CANCELLED


async def test_all_or_nothing_stops_one_that_is_only_being_started(
    bench: Bench, long_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = pipeline_run.running_child

    def bad_has_failed() -> bool:
        return any(told.outputs[1].state == pipeline_pb2.OUTPUT_STATE_FAILED for told in bench.events.details())

    @contextlib.asynccontextmanager
    async def start_late(command: Sequence[str], **more: Any) -> AsyncIterator[Child]:
        while "good" in command[-1] and not bad_has_failed():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        async with start(command, **more) as child:
            yield child

    monkeypatch.setattr(pipeline_run, "running_child", start_late)
    streams = [
        ElementaryStream(key="good", video=small_video()),
        ElementaryStream(key="bad", video=small_video(filters=[filter_of("crop", w="nonsense(")])),
    ]
    with pytest.raises(errors.BackendExecutionFailed):
        await run(
            bench,
            inputs=[artifact_input(bench.artifacts.add(long_clip), duration=Duration(seconds=10), real_time=True)],
            elementary_streams=streams,
            outputs=[file_output("good", "mp4", "good"), file_output("bad", "mp4", "bad")],
            all_or_nothing=True,
        )
    good = bench.events.details()[-1].outputs[0]
    assert good.state == pipeline_pb2.OUTPUT_STATE_CANCELLED
    assert not good.HasField("media_time"), "it is killed as soon as it is there"


def slow_request(source: str) -> media_pb2.RunPipelineRequest:
    return media_pb2.RunPipelineRequest(
        service="services/media",
        inputs=[artifact_input(source)],
        elementary_streams=[
            ElementaryStream(
                key="v", video=VideoStream(codec="libx264", preset="slower", params={"g": ParamValue(integer=30)})
            ),
            ElementaryStream(key="a", audio=AudioStream(codec="aac")),
        ],
        outputs=[file_output("one", "mp4", "v", "a"), file_output("two", "mkv", "v", "a")],
    )


async def test_abort_is_gone_at_once(bench: Bench, long_clip: Path) -> None:
    request = slow_request(bench.artifacts.add(long_clip))
    context = bench.context()
    task = asyncio.create_task(bench.driver.run_pipeline(request, context))
    await bench.under_way(task)
    assert len(processes_of(bench.root)) == 2
    with stalls() as still:
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        took = time.monotonic() - started - still.seconds
    assert took < 1
    assert processes_of(bench.root) == []
    assert len(bench.artifacts.stored) == 1


async def test_finish_leaves_playable_files(bench: Bench, long_clip: Path) -> None:
    request = slow_request(bench.artifacts.add(long_clip))
    context = bench.context()
    task = asyncio.create_task(bench.driver.run_pipeline(request, context))
    await bench.under_way(task)
    context._finish()
    async with asyncio.timeout(180):
        result = await task
    assert result.ended_early
    assert processes_of(bench.root) == []
    played = [output for output in result.outputs if output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED]
    assert played
    for output in played:
        assert output.ended_early
        with av.open(stored(bench, output)) as container:
            frames = sum(1 for _ in container.decode(video=0))
        assert 0 < frames < 1800
        assert sum(1 for _ in av.open(stored(bench, output)).decode(audio=0)) > 0


async def test_size_bound(bench: Bench, long_clip: Path) -> None:
    source = bench.artifacts.add(long_clip)
    with pytest.raises(errors.LimitExceeded):
        await run(
            bench,
            inputs=[artifact_input(source)],
            elementary_streams=[ElementaryStream(key="v", video=VideoStream(codec="rawvideo"))],
            outputs=[file_output("v", "avi", "v")],
            limits=pipeline_pb2.PipelineLimits(max_output_bytes=5_000_000),
        )
    assert len(bench.artifacts.stored) == 1


async def test_size_bound_is_of_all_outputs_together(bench: Bench, long_clip: Path) -> None:
    source = bench.artifacts.add(long_clip)
    with pytest.raises(errors.LimitExceeded, match="bound on size"):
        await run(
            bench,
            inputs=[artifact_input(source)],
            elementary_streams=[ElementaryStream(key="v", video=VideoStream(codec="mjpeg"))],
            outputs=[file_output("one", "avi", "v"), file_output("two", "mkv", "v")],
            # Either would fit alone.
            limits=pipeline_pb2.PipelineLimits(max_output_bytes=20_000_000),
            all_or_nothing=True,
        )


async def test_a_filter_without_end_is_ended(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    with pytest.raises(errors.LimitExceeded, match="longer than 30 s"):
        await run(
            bench,
            inputs=[artifact_input(source)],
            elementary_streams=[ElementaryStream(key="a", audio=AudioStream(filters=[Filter(name="apad")]))],
            outputs=[file_output("a", "wav", "a")],
            limits=pipeline_pb2.PipelineLimits(max_media_duration=Duration(seconds=30)),
        )


async def test_length_bound(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    with pytest.raises(errors.LimitExceeded, match="outputs\\[0\\]"):
        await run(
            bench,
            inputs=[artifact_input(source)],
            outputs=[file_output("out", "mp4")],
            limits=pipeline_pb2.PipelineLimits(max_media_duration=Duration(seconds=2)),
        )


async def test_memory_bound(bench: Bench, long_clip: Path) -> None:
    source = bench.artifacts.add(long_clip)
    with pytest.raises((errors.LimitExceeded, errors.BackendExecutionFailed)):
        await run(
            bench,
            inputs=[artifact_input(source)],
            elementary_streams=[ElementaryStream(key="v", video=small_video(filters=[filter_of("reverse")]))],
            outputs=[file_output("v", "mp4", "v")],
            limits=pipeline_pb2.PipelineLimits(max_memory_bytes=400 * 1024**2),
        )
    assert len(bench.artifacts.stored) == 1


async def test_a_source_that_breaks_off_is_told_of(bench: Bench, clip: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.mp4"
    half.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])  # its index comes first, so it opens
    source = bench.artifacts.add(half)
    result = await run(bench, inputs=[artifact_input(source)], outputs=[file_output("out", "mp4")])
    assert result.outputs[0].state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    assert [warning.field for warning in result.warnings] == ["outputs[0]"]
    assert str(bench.root) not in result.warnings[0].message


async def test_hardware_that_is_preferred_falls_back(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    hardware = stream_pb2.Hardware(mode=stream_pb2.HARDWARE_MODE_PREFERRED)
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[ElementaryStream(key="v", video=small_video(hardware=hardware))],
        outputs=[file_output("out", "mp4", "v")],
    )
    assert result.outputs[0].streams[0].encoder == "libx264"
    assert result.outputs[0].streams[0].hardware == stream_pb2.HARDWARE_API_UNSPECIFIED
    assert [warning.field for warning in result.warnings] == ["elementary_streams[0].video.hardware.mode"]


async def test_subtitles_and_languages(bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path) -> None:
    text = tmp_path / "text.srt"
    text.write_text("1\n00:00:00,000 --> 00:00:02,000\nGood evening\n")
    made = make_media(
        ffmpeg, tmp_path / "two.mkv", "-i", str(clip), "-i", str(text), "-map", "0", "-map", "0:a", "-map", "1",
        "-c:v", "copy", "-c:a", "copy", "-c:s", "srt", "-metadata:s:a:1", "language=deu",
    )  # fmt: skip
    source = bench.artifacts.add(made)
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[
            ElementaryStream(key="v", video=VideoStream(codec="copy")),
            ElementaryStream(key="a", sources=[StreamSelector(language="deu")], audio=AudioStream(codec="copy")),
            ElementaryStream(key="s", language="eng", subtitle=stream_pb2.SubtitleStream()),
        ],
        outputs=[
            Output(key="out", streams=["v", "a", "s"], file=FileOutput(container="mkv")),
            Output(key="text", streams=["s"], file=output_pb2.FileOutput(container="vtt")),
        ],
    )
    with av.open(stored(bench, result.outputs[0])) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio", "subtitle"]
        assert container.streams.audio[0].language == "deu"
        assert container.streams.subtitles[0].language == "eng"
    assert "Good evening" in stored(bench, result.outputs[1]).read_text()
