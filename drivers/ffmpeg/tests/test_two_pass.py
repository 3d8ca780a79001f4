"""Two passes: the second has the first one's log, both count for progress, and nothing is left of either."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from drivers.ffmpeg.tests.conftest import Bench, play, unpacked
from drivers.ffmpeg.tests.test_hls import hls_output
from drivers.ffmpeg.tests.test_pictures import frames
from drivers.ffmpeg.tests.test_pipeline import artifact_input, file_output, run
from onecontainer.api.media.v1 import output_pb2, pipeline_pb2
from onecontainer.api.media.v1.output_pb2 import Variant
from onecontainer.api.media.v1.stream_pb2 import AudioStream, AverageBitrate, ElementaryStream, RateControl, VideoStream
from onecontainer.driver import errors


def in_two(bitrate: int, codec: str = "libx264", **fields: object) -> VideoStream:
    average = AverageBitrate(bitrate=bitrate, two_pass=True)
    return VideoStream(codec=codec, rate_control=RateControl(average_bitrate=average), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4")])
async def test_a_file_in_two_passes(bench: Bench, clip: Path, ffmpeg: str, container: str, codec: str) -> None:
    result = await run(
        bench,
        inputs=[artifact_input(bench.artifacts.add(clip))],
        elementary_streams=[
            ElementaryStream(key="a", audio=AudioStream()),
            ElementaryStream(key="v", video=in_two(90_000, codec, width=96)),
        ],
        outputs=[file_output("out", container, "a", "v")],
    )
    output = result.outputs[0]
    command = list(output.command)
    assert command[command.index("-pass:v:0") + 1] == "2"
    folder = unpacked(bench, output)
    play(ffmpeg, folder / output.files[0].name)
    assert [stream.codec for stream in output.media_info.streams][1] in ("h264", "vp8", "mpeg4")
    fractions = [one.outputs[0].fraction for one in bench.events.details()]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    # Only the second pass writes media.
    halves = [one.outputs[0] for one in bench.events.details() if 0 < one.outputs[0].fraction < 0.5]
    assert all(not one.frame and not one.HasField("media_time") for one in halves)
    assert {path.name for path in bench.left_behind()} <= {"input0"}


async def test_the_second_pass_is_closer_than_one_alone(bench: Bench, long_clip: Path) -> None:
    bitrate = 120_000
    quick = {"preset": "ultrafast", "width": 160}
    one = VideoStream(
        codec="libx264", rate_control=RateControl(average_bitrate=AverageBitrate(bitrate=bitrate)), **quick
    )
    result = await run(
        bench,
        inputs=[artifact_input(bench.artifacts.add(long_clip), duration=Duration(seconds=20))],
        elementary_streams=[
            ElementaryStream(key="two", video=in_two(bitrate, **quick)),
            ElementaryStream(key="one", video=one),
        ],
        outputs=[file_output("two", "mp4", "two"), file_output("one", "mp4", "one")],
    )
    two, one_alone = (output.media_info.streams[0].bitrate for output in result.outputs)
    assert abs(two - bitrate) <= abs(one_alone - bitrate)
    assert two == pytest.approx(bitrate, rel=0.05)


async def test_a_ladder_in_two_passes(bench: Bench, colours: Path, ffmpeg: str) -> None:
    streams = [
        ElementaryStream(key="v", video=in_two(200_000)),
        ElementaryStream(key="w", video=in_two(50_000, width=48)),
        ElementaryStream(key="a", audio=AudioStream(codec="aac")),
    ]
    ladder = [Variant(name="v", video="v", audio="a"), Variant(name="w", video="w", audio="a")]
    result = await run(
        bench,
        inputs=[artifact_input(bench.artifacts.add(colours))],
        elementary_streams=streams,
        outputs=[hls_output("out", variants=ladder, segment_type=output_pb2.SEGMENT_TYPE_FMP4)],
    )
    output = result.outputs[0]
    assert output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    assert [word for word in output.command if word.startswith("-pass")] == [
        "-pass:v:0", "-passlogfile:v:0", "-pass:v:1", "-passlogfile:v:1",
    ]  # fmt: skip
    folder = unpacked(bench, output)
    for name in ("v", "w"):
        assert len(list((folder / name).glob("*.m4s"))) == 4
    play(ffmpeg, folder / "out.m3u8", "-map", "0")


async def test_an_encoder_without_two_passes_is_refused(bench: Bench, clip: Path) -> None:
    with pytest.raises(errors.BackendCapabilityMissing) as caught:
        await run(
            bench,
            inputs=[artifact_input(bench.artifacts.add(clip))],
            elementary_streams=[ElementaryStream(key="v", video=in_two(100_000, "mjpeg"))],
            outputs=[file_output("o", "avi", "v")],
        )
    field = "elementary_streams[0].video.rate_control.average_bitrate.two_pass"
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_frames_have_no_passes(bench: Bench, clip: Path) -> None:
    with pytest.raises(errors.FieldInvalid):
        await run(
            bench,
            inputs=[artifact_input(bench.artifacts.add(clip))],
            elementary_streams=[
                ElementaryStream(key="v", video=VideoStream(rate_control=in_two(100_000).rate_control))
            ],
            outputs=[frames("o", "v")],
        )
