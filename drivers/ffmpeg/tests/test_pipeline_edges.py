"""What users get wrong, and what must not go wrong for them: refusals that name the field, legal defaults, and ends that lose nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import av
import pytest
from google.protobuf.duration_pb2 import Duration
from onecontainer_driver_ffmpeg import pipeline_run

from drivers.ffmpeg.tests.conftest import Bench, make_media, processes_of
from drivers.ffmpeg.tests.test_pipeline import artifact_input, file_output, filter_of, run, small_video, stored
from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.api.media.v1.input_pb2 import Input, MediaSource
from onecontainer.api.media.v1.stream_pb2 import ElementaryStream, RateControl, VideoStream
from onecontainer.driver import errors


@pytest.mark.parametrize(
    ("field", "video"),
    [
        ("preset", {"codec": "libx264", "preset": "fasst"}),
        ("tune", {"codec": "h264", "tune": "film,-y"}),
        ("profile", {"codec": "libx264", "profile": "hihg"}),
        ("preset", {"codec": "libx265", "preset": "quick"}),
        ("width", {"codec": "libx264", "width": 321}),
        ("height", {"height": 181, "pixel_format": "yuv420p"}),
        ("rate_control.constant_quality", {"rate_control": RateControl(constant_quality=float("nan"))}),
        ("rate_control.constant_quality", {"rate_control": RateControl(constant_quality=float("inf"))}),
        ("rate_control.constant_quality", {"rate_control": RateControl(constant_quality=52)}),
    ],
)
async def test_what_an_encoder_does_not_take_is_refused_with_its_field(
    bench: Bench, clip: Path, field: str, video: dict[str, Any]
) -> None:
    with pytest.raises((errors.BackendCapabilityMissing, errors.FieldInvalid)) as caught:
        await run(
            bench,
            inputs=[artifact_input(bench.artifacts.add(clip))],
            elementary_streams=[ElementaryStream(key="v", video=VideoStream(**video))],
            outputs=[file_output("out", "mp4", "v")],
        )
    assert caught.value.violations[0].field == f"elementary_streams[0].video.{field}"


async def test_odd_sizes_are_fine_with_all_colours(bench: Bench, ffmpeg: str, tmp_path: Path) -> None:
    made = make_media(
        ffmpeg, tmp_path / "all.mkv", "-f", "lavfi", "-i", "testsrc2=s=128x72:r=10:d=1", "-c:v", "ffv1", "-pix_fmt", "yuv444p"
    )  # fmt: skip
    result = await run(
        bench,
        inputs=[artifact_input(bench.artifacts.add(made))],
        elementary_streams=[ElementaryStream(key="v", video=VideoStream(codec="libx264", width=65, height=41))],
        outputs=[file_output("out", "mkv", "v")],
    )
    (track,) = result.outputs[0].media_info.streams
    assert (track.video.width, track.video.height, track.video.pixel_format) == (65, 41, "yuv444p")


async def test_what_an_encoder_alone_can_tell_is_not_tried_again(bench: Bench, clip: Path) -> None:
    request = {
        "inputs": [artifact_input(bench.artifacts.add(clip))],
        "elementary_streams": [
            ElementaryStream(key="v", video=VideoStream(codec="libx264", filters=[filter_of("crop", w=321, h=101)]))
        ],
        "outputs": [file_output("out", "mp4", "v")],
    }
    # Cut to odd sides with all colours first, which the encoder's own format cannot have.
    request["elementary_streams"][0].video.filters.insert(0, filter_of("format", pix_fmts="yuv444p"))
    request["elementary_streams"][0].video.profile = "main"
    with pytest.raises(errors.BackendExecutionFailed) as caught:
        await run(bench, **request)
    assert caught.value.code == errors.Code.INVALID_ARGUMENT
    assert " @ 0x" not in str(caught.value)


async def test_a_start_after_the_end_and_a_missing_artifact_name_the_inputs_field(bench: Bench, clip: Path) -> None:
    source = bench.artifacts.add(clip)
    outputs = [file_output("out", "mp4")]
    with pytest.raises(errors.FieldInvalid) as late:
        await run(bench, inputs=[artifact_input(source, start_offset=Duration(seconds=100))], outputs=outputs)
    assert late.value.violations[0].field == "inputs[0].start_offset"
    with pytest.raises(errors.ResourceNotFound, match=r"inputs\[1\]\.source\.artifact"):
        await run(bench, inputs=[artifact_input(source), artifact_input("artifacts/none")], outputs=outputs)


@pytest.mark.parametrize(
    ("limits", "field"),
    [({"threads": 100_000}, "limits.threads"), ({"max_memory_bytes": 1}, "limits.max_memory_bytes")],
)
async def test_limits_that_no_process_could_start_with(
    bench: Bench, clip: Path, limits: dict[str, int], field: str
) -> None:
    with pytest.raises(errors.FieldInvalid) as caught:
        await run(
            bench,
            inputs=[artifact_input(bench.artifacts.add(clip))],
            outputs=[file_output("out", "mp4")],
            limits=pipeline_pb2.PipelineLimits(**limits),
        )
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(("container", "rate"), [("3gp", 44_100), ("mxf", 48_000)])
async def test_defaults_are_legal_whatever_the_sources_sound_is(
    bench: Bench, ffmpeg: str, tmp_path: Path, container: str, rate: int
) -> None:
    made = make_media(
        ffmpeg, tmp_path / "cd.mkv", "-f", "lavfi", "-i", "testsrc2=s=176x144:r=25:d=1", "-f", "lavfi", "-i",
        "sine=d=1:r=44100",
    )  # fmt: skip
    result = await run(
        bench, inputs=[artifact_input(bench.artifacts.add(made))], outputs=[file_output("out", container)]
    )
    sound = next(one for one in result.outputs[0].media_info.streams if one.HasField("audio"))
    assert sound.audio.sample_rate == rate


async def test_the_ending_for_sound_alone_has_sound_alone(bench: Bench, clip: Path) -> None:
    result = await run(bench, inputs=[artifact_input(bench.artifacts.add(clip))], outputs=[file_output("out", "m4a")])
    assert [one.codec for one in result.outputs[0].media_info.streams] == ["aac"]


async def test_transparency_of_webm_is_decoded(bench: Bench, ffmpeg: str, tmp_path: Path) -> None:
    made = make_media(
        ffmpeg, tmp_path / "alpha.webm", "-f", "lavfi", "-i", "color=c=red@0.5:s=64x64:r=10:d=1,format=yuva420p",
        "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p",
    )  # fmt: skip
    result = await run(
        bench,
        inputs=[artifact_input(bench.artifacts.add(made))],
        elementary_streams=[ElementaryStream(key="v", video=VideoStream(codec="ffv1"))],
        outputs=[file_output("out", "mkv", "v")],
    )
    with av.open(stored(bench, result.outputs[0])) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "yuva420p"
    assert abs(int(frame.to_ndarray(format="rgba")[32, 32, 3]) - 128) < 6


@pytest.mark.parametrize("program", ["", *filter(shutil.which, ["ffmpeg"])])
async def test_finish_while_a_source_is_being_opened_is_no_failure(
    bench: Bench, clip: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """Whatever the version's exit code is then: nothing has been made, and nothing has gone wrong."""
    monkeypatch.setattr("onecontainer.driver.progress.INTERVAL_SECONDS", 0.0)  # else the probe's end is told too late
    hanging = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            if bench.events.details():  # the source has been probed, so this is the output's own ffmpeg
                hanging.set()
                await reader.read()
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + clip.read_bytes())
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await bench.attach(source_hosts=[host], ffmpeg_path=program)
        request = media_pb2.RunPipelineRequest(
            inputs=[Input(source=MediaSource(url=f"http://{host}/a.mp4"))], outputs=[file_output("out", "mp4")]
        )
        context = bench.context()
        task = asyncio.create_task(bench.driver.run_pipeline(request, context))
        async with asyncio.timeout(180):
            await asyncio.wait(
                [task, waiting := asyncio.create_task(hanging.wait())], return_when=asyncio.FIRST_COMPLETED
            )
            waiting.cancel()
            context._finish()
            result = await task
    assert [output.state for output in result.outputs] == [pipeline_pb2.OUTPUT_STATE_CANCELLED]
    assert result.ended_early


async def test_an_output_that_cannot_finish_in_time_costs_no_other(
    bench: Bench, long_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_run, "_FINISH_GRACE", 600.0)
    monkeypatch.setattr(pipeline_run, "_LIVE_FINISH_GRACE", 0.1)
    source = artifact_input(bench.artifacts.add(long_clip), real_time=True)
    request = media_pb2.RunPipelineRequest(
        service="services/media",
        inputs=[source],
        elementary_streams=[ElementaryStream(key="v", video=small_video())],
        outputs=[file_output("stuck", "mp4", "v"), file_output("good", "mp4", "v")],
    )
    context = bench.context()
    task = asyncio.create_task(bench.driver.run_pipeline(request, context))
    folder = bench.root / "scratch"
    async with asyncio.timeout(180):
        while not task.done() and [
            one.frame > 0 for report in bench.events.details()[-1:] for one in report.outputs
        ] != [True, True]:
            await bench.events.moved.wait()
            await asyncio.sleep(0.1)
    for pid in processes_of(folder):
        if b"/stuck/" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGSTOP)
    context._finish()
    # Both have the same time, and a short one is over for both where a machine stands still: it begins when the good one is done.
    async with asyncio.timeout(180):
        while bench.events.details()[-1].outputs[1].state == pipeline_pb2.OUTPUT_STATE_RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    monkeypatch.setattr(pipeline_run, "_FINISH_GRACE", 1.0)
    result = await asyncio.wait_for(task, 180)
    context._end_of_events()
    stuck, good = result.outputs
    assert (stuck.state, good.state) == (pipeline_pb2.OUTPUT_STATE_CANCELLED, pipeline_pb2.OUTPUT_STATE_SUCCEEDED)
    assert [warning.field for warning in result.warnings] == ["outputs[0]"]
    assert good.ended_early
    assert len(good.files) == 1
    last = bench.events.details()[-1].outputs
    assert last[1].fraction < 1.0, "it is as far as it is"
    assert processes_of(folder) == []
