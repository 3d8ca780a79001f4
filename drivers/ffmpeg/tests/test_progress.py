"""Progress as a contract, and CancelJob with mode FINISH in every container."""

from __future__ import annotations

import asyncio
from pathlib import Path

import av
from google.protobuf.duration_pb2 import Duration
from onecontainer_driver_ffmpeg.progress import OutputMeter, PipelineMeter

from drivers.ffmpeg.tests.conftest import Bench, processes_of
from drivers.ffmpeg.tests.test_pipeline import artifact_input, file_output, run, small_video, stored
from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.api.media.v1.output_pb2 import FileOutput, Output
from onecontainer.api.media.v1.stream_pb2 import AudioStream, ElementaryStream, ParamValue, VideoStream

FINISHED = {
    "mp4": ("copy", "aac"), "mov": ("copy", "aac"), "m4a": (None, "aac"), "mkv": ("copy", "aac"), "avi": ("mpeg4", "libmp3lame"),
    "webm": ("vp8", "libopus"), "wmv": ("wmv2", "wmav2"), "vob": ("mpeg2video", "mp2"), "ogg": (None, "libvorbis"),
    "ts": ("copy", "aac"), "wav": (None, "pcm_s16le"), "flac": (None, "flac"), "mp3": (None, "libmp3lame"), "ac3": (None, "ac3"),
}  # fmt: skip


def stream_of(kind: str, codec: str) -> ElementaryStream:
    if kind == "audio":
        return ElementaryStream(key=f"a-{codec}", audio=AudioStream(codec=codec))
    video = VideoStream(codec=codec) if codec == "copy" else VideoStream(codec=codec, width=64)
    if codec == "vp8":
        video.params["deadline"].text = "realtime"
    return ElementaryStream(key=f"v-{codec}", video=video)


async def test_finish_leaves_a_playable_file_in_every_container(bench: Bench, long_clip: Path) -> None:
    """The source comes at the pace of playing, so that none of the outputs can be done before."""
    await bench.attach(processes=len(FINISHED) + 1)
    streams: dict[str, ElementaryStream] = {}
    outputs = [Output(key="fast", streams=["v-copy", "a-aac"], file=FileOutput(container="mp4", fast_start=True))]
    for container, codecs in FINISHED.items():
        taken = [stream_of(kind, codec) for kind, codec in zip(("video", "audio"), codecs, strict=True) if codec]
        streams |= {stream.key: stream for stream in taken}
        outputs.append(file_output(f"as-{container}", container, *(stream.key for stream in taken)))
    request = media_pb2.RunPipelineRequest(
        inputs=[artifact_input(bench.artifacts.add(long_clip), real_time=True)],
        elementary_streams=streams.values(),
        outputs=outputs,
    )
    context = bench.context()
    task = asyncio.create_task(bench.driver.run_pipeline(request, context))

    async def all_are_under_way() -> None:
        while not task.done():
            bench.events.moved.clear()
            details = bench.events.details()
            # Half a second of media is in each file, or about to be: less is what a file may not show yet.
            if details and all(one.media_time.ToMilliseconds() > 1500 for one in details[-1].outputs):
                return
            await bench.events.moved.wait()

    async with asyncio.timeout(240):
        await all_are_under_way()
        context._finish()
        result = await task
    assert result.ended_early
    assert processes_of(bench.root) == []
    assert [output.key for output in result.outputs if output.state != pipeline_pb2.OUTPUT_STATE_SUCCEEDED] == []
    for output in result.outputs:
        assert output.ended_early, output.key
        with av.open(stored(bench, output)) as container:
            last = {stream.index: 0.0 for stream in container.streams}
            for frame in container.decode():
                index = 0 if isinstance(frame, av.VideoFrame) or len(last) == 1 else 1
                last[index] = max(last[index], frame.time or 0.0)
        assert all(0.3 < end < 59 for end in last.values()), (output.key, last)
        assert len(last) == len(output.streams)


async def test_what_is_not_known_is_absent(bench: Bench, long_clip: Path) -> None:
    await run(
        bench,
        inputs=[artifact_input(bench.artifacts.add(long_clip), duration=Duration(seconds=30))],
        elementary_streams=[ElementaryStream(key="v", video=small_video()), ElementaryStream(key="a", audio=AudioStream())],
        outputs=[file_output("video", "mp4", "v"), file_output("sound", "wav", "a")],
    )  # fmt: skip
    details = bench.events.details()
    first, last = details[0], details[-1]
    for output in first.outputs:
        for field in ("fraction", "frame", "fps", "speed", "size_bytes", "media_time", "eta"):
            assert not output.HasField(field), field
    assert not first.HasField("eta")
    for output in last.outputs:
        assert output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
        assert (output.fraction, output.HasField("eta")) == (1.0, False)
        assert output.size_bytes > 0
    assert (last.fraction, last.HasField("eta")) == (1.0, False)
    video, sound = last.outputs
    assert video.frame == 30 * 30
    assert not sound.HasField("frame")
    assert abs(video.media_time.ToMilliseconds() - 30_000) < 100


async def test_a_length_that_nobody_knows_has_no_fraction(bench: Bench, ffmpeg: str, long_clip: Path) -> None:
    """A raw stream tells no length; then neither does the progress, and it moves all the same."""
    raw = bench.root / "long.h264"
    process = await asyncio.create_subprocess_exec(
        ffmpeg, "-loglevel", "error", "-i", str(long_clip), "-c:v", "copy", "-an", "-f", "h264", str(raw)
    )
    assert await process.wait() == 0
    await run(
        bench,
        inputs=[artifact_input(bench.artifacts.add(raw))],
        elementary_streams=[ElementaryStream(key="v", video=small_video(params={"g": ParamValue(integer=30)}))],
        outputs=[file_output("out", "mkv", "v")],
    )
    under_way = [one for one in bench.events.details() if one.outputs[0].state == pipeline_pb2.OUTPUT_STATE_RUNNING]
    assert not any(one.HasField("fraction") or one.HasField("eta") for one in under_way)
    assert not any(one.outputs[0].HasField("fraction") or one.outputs[0].HasField("eta") for one in under_way)
    assert under_way[-1].outputs[0].frame > 0


def test_an_estimate_comes_when_there_is_something_to_tell_it_from() -> None:
    now = 0.0
    meter = OutputMeter("a", 100.0, lambda: now)
    whole = PipelineMeter([meter], lambda: now)
    meter.start()
    seen = []
    for now, done in ((0.1, 10), (0.6, 1), (0.7, 20), (1.0, 20), (2.0, 50)):  # noqa: B007 - the clock reads it
        meter.update({"out_time_us": str(done * 1_000_000)})
        seen.append(
            (meter.progress.fraction, meter.progress.eta.ToMilliseconds(), whole.details().eta.ToMilliseconds())
        )
    # Too early; time that goes back changes nothing; then what is left at the pace so far.
    assert seen == [(0.1, 0, 0), (0.1, 5400, 5400), (0.2, 2800, 2800), (0.2, 4000, 4000), (0.5, 2000, 2000)]  # fmt: skip
    meter.end(pipeline_pb2.OUTPUT_STATE_SUCCEEDED)
    assert not meter.progress.HasField("eta")
    assert not whole.details().HasField("eta")
