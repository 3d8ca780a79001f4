"""Random requests: valid ones all come to a file that can be read, hostile ones to a typed error or to a file, and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from drivers.ffmpeg.tests.conftest import Bench, processes_of
from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.api.media.v1.input_pb2 import Input, InputFormat, MediaSource
from onecontainer.api.media.v1.output_pb2 import FileOutput, FramePick, FramesOutput, Output, SpriteSheetOutput, Variant
from onecontainer.api.media.v1.stream_pb2 import (
    AudioStream,
    ElementaryStream,
    Filter,
    FilterArgument,
    ParamValue,
    RateControl,
    SubtitleStream,
    VideoStream,
)
from onecontainer.driver import errors

pytestmark = pytest.mark.asyncio(loop_scope="module")
# No shrinking: an example takes half a second, and is short enough as it is.
FEW = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
MANY = settings(FEW, max_examples=60)
ALL = settings(FEW, max_examples=200)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("random"))
    (made.sources / "clip.mp4").write_bytes(clip.read_bytes())
    await made.attach(source_hosts=["127.0.0.1:9"], max_media_duration=20.0, max_output_bytes=50_000_000)
    yield made
    await made.driver.detach()


def param(value: str | float) -> ParamValue:
    return ParamValue(text=value) if isinstance(value, str) else ParamValue(number=value)


def filter_of(name: str, **arguments: str | float) -> Filter:
    return Filter(
        name=name, arguments=[FilterArgument(name=key, value=param(value)) for key, value in arguments.items()]
    )


VIDEO_FILTERS = [
    filter_of("scale", w="iw/2", h=-2), filter_of("hue", s=0), filter_of("reverse"), filter_of("deflicker", mode="pm", size=10),
    filter_of("crop", w="iw/2", h="ih/2"), filter_of("hflip"), filter_of("vflip"), filter_of("eq", brightness=0.1),
    filter_of("drawtext", text="a:b,c'd[e];f\\\\g"), filter_of("setpts", expr="PTS-STARTPTS"), filter_of("fade", d=0.5),
]  # fmt: skip
AUDIO_FILTERS = [
    filter_of("volume", volume=0.8), filter_of("areverse"), filter_of("aphaser"), filter_of("atrim", start=1),
    filter_of("asetpts", expr="PTS-STARTPTS"), filter_of("afade", d=0.3),
]  # fmt: skip
# Container, video codecs, audio codecs.
MATRIX = [
    ("mp4", ["libx264", "mpeg4", "copy", ""], ["aac", "libmp3lame", "copy", ""]),
    ("mkv", ["libx264", "mpeg4", "ffv1", "copy"], ["libopus", "flac", "aac", "copy"]),
    ("avi", ["mpeg4", "mjpeg"], ["libmp3lame", "pcm_s16le"]),
    ("mov", ["libx264", "prores", "copy"], ["aac", "pcm_s16le", "copy"]),
    ("ts", ["mpeg2video", "libx264"], ["mp2", "aac"]),
    ("wmv", ["wmv2", "msmpeg4"], ["wmav2"]),
    ("vob", ["mpeg2video", ""], ["mp2", "ac3"]),
    ("ogg", ["libtheora", ""], ["libvorbis", "libopus", ""]),
]


@st.composite
def valid_requests(draw: st.DrawFn) -> media_pb2.RunPipelineRequest:
    container, videos, audios = draw(st.sampled_from(MATRIX))
    video_codec, audio_codec = draw(st.sampled_from(videos)), draw(st.sampled_from(audios))
    video, audio = VideoStream(codec=video_codec), AudioStream(codec=audio_codec)
    if video_codec != "copy":
        video.filters.extend(draw(st.lists(st.sampled_from(VIDEO_FILTERS), max_size=3)))
        if video_codec == "libx264":
            video.preset = "ultrafast"
            video.rate_control.CopyFrom(RateControl(constant_quality=draw(st.integers(18, 40))))
        video.height = draw(st.sampled_from([0, 90]))
    if audio_codec != "copy":
        audio.filters.extend(draw(st.lists(st.sampled_from(AUDIO_FILTERS), max_size=2)))
        audio.channels = draw(st.sampled_from([0, 1, 2]))
    streams = [ElementaryStream(key="v", video=video), ElementaryStream(key="a", audio=audio)]
    keys = draw(st.sampled_from([["v"], ["a"], ["v", "a"]]))
    one = Input(source=MediaSource(path="clip.mp4"), extra_plays=draw(st.integers(0, 1)))
    if draw(st.booleans()):
        one.start_offset.CopyFrom(Duration(nanos=draw(st.integers(0, 900_000_000))))
    output = Output(key="out", streams=keys, file=FileOutput(container=container))
    if draw(st.booleans()):
        output.duration.CopyFrom(Duration(seconds=1, nanos=draw(st.integers(500_000_000, 999_000_000))))
    return media_pb2.RunPipelineRequest(
        inputs=[one], elementary_streams=[stream for stream in streams if stream.key in keys], outputs=[output]
    )


@FEW
@given(valid_requests())
async def test_valid_requests_come_to_a_file(bench: Bench, request_: media_pb2.RunPipelineRequest) -> None:
    await run_valid(bench, request_)


@pytest.mark.slow
@ALL
@given(valid_requests())
async def test_two_hundred_valid_requests_come_to_a_file(bench: Bench, request_: media_pb2.RunPipelineRequest) -> None:
    await run_valid(bench, request_)


async def run_valid(bench: Bench, request_: media_pb2.RunPipelineRequest) -> None:
    result = await bench.driver.run_pipeline(request_, bench.context())
    output = result.outputs[0]
    assert output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    assert len(output.media_info.streams) == len(request_.outputs[0].streams)
    assert output.media_info.format.duration.ToMilliseconds() > 100


WORDS = [
    "-i", "-y", "-f", "null", "/etc/passwd", "file:/etc/passwd", "../../etc/passwd", "concat:clip.mp4", "movie=/etc/passwd",
    "hflip[a];movie=/etc/passwd[b];[a][b]overlay", "libx264", "aac", "copy", "scale", "drawtext", "textfile", "mp4", "mkv", "x/../../e.mp4",
    "$(id)", "`id`", "%s%n", "http://127.0.0.1:9/", "http://169.254.169.254/", "pipe:0", "data:,x", "subfile,,start,0,end,0,,:/etc/passwd",
    "lavfi", "image2", "tee", "[f=mp4]x", "a=b", "a:b", "'", "\\", ",", "-1", "1e999", "nan", "9223372036854775807", "clip.mp4",
    "artifacts/x",
    "x264-params", "stats=/tmp/x", "dump", "preset", "strict", "threads", "protocol_whitelist", "movflags", "crf", "fast", "high",
]  # fmt: skip
HOSTILE = st.sampled_from(WORDS) | st.text(max_size=20)


@st.composite
def hostile_requests(draw: st.DrawFn) -> media_pb2.RunPipelineRequest:
    word = lambda usual: draw(st.just(usual) | HOSTILE)  # noqa: E731

    def filters() -> list[Filter]:
        return [
            Filter(
                name=word("scale"),
                arguments=[
                    FilterArgument(name=word(""), value=ParamValue(text=word("2")))
                    for _ in range(draw(st.integers(0, 2)))
                ],
            )
            for _ in range(draw(st.integers(0, 2)))
        ]

    def params() -> dict[str, ParamValue]:
        return {word("g"): ParamValue(text=word("5")) for _ in range(draw(st.integers(0, 2)))}

    source = draw(
        st.builds(lambda text: MediaSource(path=text), st.just("clip.mp4") | HOSTILE)
        | st.builds(lambda text: MediaSource(url=text), HOSTILE)
        | st.builds(lambda text: MediaSource(artifact=text), HOSTILE)
    )
    kind = draw(st.sampled_from(["video", "audio", "subtitle"]))
    stream = ElementaryStream(key="v", language=word(""), title=word(""))
    if kind == "video":
        stream.video.CopyFrom(
            VideoStream(
                codec=word("libx264"), preset=word("ultrafast"), profile=word(""), pixel_format=word(""),
                width=draw(st.sampled_from([0, 64, -1, 20000])), filters=filters(), params=params(),
            )
        )  # fmt: skip
    elif kind == "audio":
        stream.audio.CopyFrom(AudioStream(codec=word("aac"), profile=word(""), filters=filters(), params=params()))
    else:
        stream.subtitle.CopyFrom(SubtitleStream(codec=word(""), params=params()))
    one = Input(source=source)
    if draw(st.integers(0, 3)) == 0:
        one.format.CopyFrom(InputFormat(demuxer=word("mov")))
    output = Output(
        key=word("out"),
        streams=["v"],
        file=FileOutput(container=word("mp4"), name=word("")),
        tags={word("title"): word("x")},
        muxer_params=params(),
    )
    target = draw(st.sampled_from(["file", "file", "hls", "dash", "frames", "sprites"]))
    if target in ("hls", "dash"):
        del output.streams[:]
        getattr(output, target).variants.append(Variant(name=word("a"), **{kind: "v"}))  # type: ignore[arg-type]
    elif target == "frames":
        output.frames.CopyFrom(FramesOutput(pick=FramePick(count=3)))
    elif target == "sprites":
        output.sprites.CopyFrom(SpriteSheetOutput(url_prefix=word(""), columns=draw(st.integers(-1, 70))))
    return media_pb2.RunPipelineRequest(inputs=[one], elementary_streams=[stream], outputs=[output])


@MANY
@given(hostile_requests())
async def test_hostile_requests_are_refused_or_contained(bench: Bench, request_: media_pb2.RunPipelineRequest) -> None:
    await run_hostile(bench, request_)


@pytest.mark.slow
@ALL
@given(hostile_requests())
async def test_two_hundred_hostile_requests_are_refused_or_contained(
    bench: Bench, request_: media_pb2.RunPipelineRequest
) -> None:
    await run_hostile(bench, request_)


async def run_hostile(bench: Bench, request_: media_pb2.RunPipelineRequest) -> None:
    before = sorted(path.name for path in bench.sources.iterdir())
    told = ""
    try:
        told = str(await bench.driver.run_pipeline(request_, bench.context()))
    except errors.OneContainerError as error:
        told = f"{error} {error.violations}"
    # Either way: nothing of the machine is told, and nothing is left or changed.
    assert str(bench.root) not in told
    assert processes_of(bench.root) == []
    assert sorted(path.name for path in bench.sources.iterdir()) == before
    scratch = {path.name for path in bench.left_behind()}
    assert all(not name.startswith(("..", "/")) for name in scratch)
