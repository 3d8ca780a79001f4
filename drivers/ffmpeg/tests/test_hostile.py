"""What strangers may try: each is refused before anything runs, and names the field."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onecontainer_driver_ffmpeg.binaries import find_ffmpeg
from onecontainer_driver_ffmpeg.filters import escape

from drivers.ffmpeg.tests.conftest import Bench
from onecontainer.api.media.v1 import media_pb2, stream_pb2
from onecontainer.api.media.v1.input_pb2 import Input, InputFormat, MediaSource, RawVideoFormat
from onecontainer.api.media.v1.output_pb2 import (
    DashOutput,
    FileOutput,
    FramesOutput,
    HlsOutput,
    Output,
    SpriteSheetOutput,
    Upload,
    Variant,
)
from onecontainer.api.media.v1.pipeline_pb2 import PipelineLimits
from onecontainer.api.media.v1.stream_pb2 import (
    AudioStream,
    AverageBitrate,
    ElementaryStream,
    Filter,
    FilterArgument,
    ParamValue,
    RateControl,
    VideoStream,
)
from onecontainer.driver import errors


def text(value: str) -> ParamValue:
    return ParamValue(text=value)


def filter_of(name: str, *positional: str, **named: str) -> Filter:
    arguments = [FilterArgument(value=text(value)) for value in positional]
    return Filter(
        name=name,
        arguments=[*arguments, *(FilterArgument(name=key, value=text(value)) for key, value in named.items())],
    )


def with_video(**fields: object) -> media_pb2.RunPipelineRequest:
    """A request with one video stream into an MP4."""
    return media_pb2.RunPipelineRequest(
        inputs=[Input(source=MediaSource(path="clip.mp4"))],
        elementary_streams=[ElementaryStream(key="v", video=VideoStream(**fields))],  # type: ignore[arg-type]
        outputs=[Output(key="out", streams=["v"], file=FileOutput(container="mp4"))],
    )


def with_output(**fields: object) -> media_pb2.RunPipelineRequest:
    """A request with one output of the defaults."""
    fields = {"key": "out", "file": FileOutput(container="mp4")} | fields
    return media_pb2.RunPipelineRequest(
        inputs=[Input(source=MediaSource(path="clip.mp4"))],
        outputs=[Output(**fields)],  # type: ignore[arg-type]
    )


def with_source(**fields: str) -> media_pb2.RunPipelineRequest:
    return media_pb2.RunPipelineRequest(
        inputs=[Input(source=MediaSource(**fields))],  # type: ignore[arg-type]
        outputs=[Output(key="out", file=FileOutput(container="mp4"))],
    )


INVALID, MISSING, REQUIRED, REFUSED = (
    errors.FieldInvalid,
    errors.BackendCapabilityMissing,
    errors.FieldRequired,
    errors.SourceNotAllowed,
)
VIDEO = "elementary_streams[0].video"
HOSTILE = [
    # sources
    (with_source(path="/etc/passwd"), REFUSED, "inputs[0].source.path"),
    (with_source(path="../../../../etc/passwd"), REFUSED, "inputs[0].source.path"),
    (with_source(path="link/passwd"), REFUSED, "inputs[0].source.path"),
    (with_source(path="missing.mp4"), errors.ResourceNotFound, "inputs[0].source.path"),
    (with_source(path=""), INVALID, "inputs[0].source.path"),
    (with_source(path="."), INVALID, "inputs[0].source.path"),
    (with_source(path="-i"), errors.ResourceNotFound, "inputs[0].source.path"),
    (with_source(path="concat:clip.mp4|clip.mp4"), errors.ResourceNotFound, "inputs[0].source.path"),
    (with_source(url="file:///etc/passwd"), INVALID, "inputs[0].source.url"),
    (with_source(url="concat:http://a/b"), INVALID, "inputs[0].source.url"),
    (with_source(url="http://169.254.169.254/latest"), REFUSED, "inputs[0].source.url"),
    (with_source(url="http://allowed.example:22/"), REFUSED, "inputs[0].source.url"),
    (with_source(url="http://allowed.example@evil.example/"), INVALID, "inputs[0].source.url"),
    (with_source(url="http://evil.example#allowed.example/"), REFUSED, "inputs[0].source.url"),
    (with_source(url="http://allowed.example\r\nHost: evil/"), INVALID, "inputs[0].source.url"),
    (with_source(url="-http://allowed.example/"), INVALID, "inputs[0].source.url"),
    (with_source(artifact="../x"), INVALID, "inputs[0].source.artifact"),
    (with_source(artifact="artifacts/none"), errors.ResourceNotFound, ""),
    (with_source(), REQUIRED, "inputs[0].source"),
    (with_source(path="list.txt"), errors.DataInvalid, "inputs[0].source"),
    (with_source(path="list.m3u8"), errors.DataInvalid, "inputs[0].source"),
    (with_source(path="words.txt"), errors.DataInvalid, "inputs[0].source"),
    (with_source(path="empty.mp4"), errors.DataInvalid, "inputs[0].source"),
    (with_source(path="half.mp4"), errors.DataInvalid, "inputs[0].source"),
    # outputs
    (with_output(key="../x"), INVALID, "outputs[0].key"),
    (with_output(key="-y"), INVALID, "outputs[0].key"),
    (with_output(file=FileOutput(container="x/../../evil.mp4")), MISSING, "outputs[0].file.container"),
    (with_output(file=FileOutput(container="null")), MISSING, "outputs[0].file.container"),
    (with_output(file=FileOutput(container="mp4", name="../evil")), INVALID, "outputs[0].file.name"),
    (with_output(file=FileOutput(container="mp4", name="a\nb")), INVALID, "outputs[0].file.name"),
    (with_output(muxer_params={"movflags": text("faststart -f null")}), INVALID, 'outputs[0].muxer_params["movflags"]'),
    (with_output(muxer_params={"y": text("1")}), MISSING, 'outputs[0].muxer_params["y"]'),
    (with_output(muxer_params={"protocol_whitelist": text("all")}), MISSING, 'outputs[0].muxer_params["protocol_whitelist"]'),
    (with_output(muxer_params={"encryption_key": text("00")}), MISSING, 'outputs[0].muxer_params["encryption_key"]'),
    (with_output(tags={"a=b": "c"}), INVALID, 'outputs[0].tags["a=b"]'),
    (with_output(tags={"title": "a\0b"}), INVALID, 'outputs[0].tags["title"]'),
    (with_output(streams=["nothing"]), INVALID, "outputs[0].streams[0]"),
    (with_output(duration=Duration(seconds=-1)), INVALID, "outputs[0].duration"),
    (with_output(start_offset=Duration(seconds=100)), INVALID, "outputs[0].start_offset"),
    (with_output(file=None), REQUIRED, "outputs[0].file"),
    (with_output(file=None, hls=HlsOutput(variants=[Variant(name="../out", video="v")])), INVALID, "outputs[0].hls.variants[0].name"),
    (with_output(file=None, hls=HlsOutput(), muxer_params={"hls_segment_filename": text("/tmp/a")}), MISSING, "outputs[0].muxer_params"),
    (with_output(file=None, hls=HlsOutput(), muxer_params={"hls_key_info_file": text("/etc/passwd")}), MISSING, "outputs[0].muxer_params"),
    (with_output(file=None, dash=DashOutput(), muxer_params={"http_opts": text("a=b")}), MISSING, "outputs[0].muxer_params"),
    (with_output(file=None, sprites=SpriteSheetOutput(url_prefix="a\n\nSTYLE")), INVALID, "outputs[0].sprites.url_prefix"),
    (with_output(file=None, frames=FramesOutput(), muxer_params={"protocol_opts": text("a=b")}), MISSING, "outputs[0].muxer_params"),
    (with_output(uploads=[Upload()]), REQUIRED, "outputs[0].uploads[0].s3"),
    (media_pb2.RunPipelineRequest(inputs=[Input()]), REQUIRED, "outputs"),
    (media_pb2.RunPipelineRequest(outputs=[Output()]), REQUIRED, "inputs"),
    # encoders and their options
    (with_video(codec="nope"), MISSING, f"{VIDEO}.codec"),
    (with_video(codec="libx264 -f null"), MISSING, f"{VIDEO}.codec"),
    (with_video(codec="-i"), MISSING, f"{VIDEO}.codec"),
    (with_video(codec="aac"), INVALID, f"{VIDEO}.codec"),
    (with_video(codec="libtheora"), INVALID, f"{VIDEO}.codec"),
    (with_video(codec="h264_vaapi"), MISSING, f"{VIDEO}.codec"),
    (with_video(hardware=stream_pb2.Hardware(mode=stream_pb2.HARDWARE_MODE_REQUIRED)), MISSING, f"{VIDEO}.hardware.mode"),
    (with_video(codec="copy", filters=[filter_of("hflip")]), INVALID, f"{VIDEO}.filters"),
    (with_video(codec="copy", width=10), INVALID, f"{VIDEO}.width"),
    (with_video(preset="fast -y"), INVALID, f"{VIDEO}.preset"),
    (with_video(pixel_format="yuv420p,format"), MISSING, f"{VIDEO}.pixel_format"),
    (with_video(width=-5), INVALID, f"{VIDEO}.width"),
    (with_video(params={"stats": text("/tmp/x")}), MISSING, f'{VIDEO}.params["stats"]'),
    (with_video(params={"passlogfile": text("/tmp/x")}), MISSING, f'{VIDEO}.params["passlogfile"]'),
    (with_video(params={"x264opts": text("stats=/tmp/x")}), MISSING, f'{VIDEO}.params["x264opts"]'),
    (with_video(params={"x264-params": text("keyint=5:dump-yuv=/tmp/x")}), INVALID, f'{VIDEO}.params["x264-params"]'),
    (with_video(params={"i": text("/etc/passwd")}), MISSING, f'{VIDEO}.params["i"]'),
    (with_video(params={"vstats_file": text("/tmp/x")}), MISSING, f'{VIDEO}.params["vstats_file"]'),
    (with_video(params={"crf 1 -y": text("1")}), MISSING, f'{VIDEO}.params["crf 1 -y"]'),
    (with_video(params={"threads": ParamValue(integer=500)}), MISSING, f'{VIDEO}.params["threads"]'),
    (with_video(params={"aq-mode": text("wrong")}), INVALID, f'{VIDEO}.params["aq-mode"]'),
    (with_video(params={"aq-mode": ParamValue(integer=-50)}), INVALID, f'{VIDEO}.params["aq-mode"]'),
    (with_video(params={"crf": ParamValue(number=float("nan"))}), INVALID, f'{VIDEO}.params["crf"]'),
    (with_video(params={"crf": ParamValue()}), REQUIRED, f'{VIDEO}.params["crf"]'),
    (with_video(rate_control=RateControl(constant_quality=-3)), INVALID, f"{VIDEO}.rate_control.constant_quality"),
    (
        with_video(rate_control=RateControl(average_bitrate=AverageBitrate(bitrate=5))),
        INVALID,
        f"{VIDEO}.rate_control.average_bitrate.bitrate",
    ),
    # filters
    (with_video(filters=[filter_of("movie", filename="/etc/passwd")]), MISSING, f"{VIDEO}.filters[0].name"),
    (with_video(filters=[filter_of("subtitles", filename="/etc/passwd")]), MISSING, f"{VIDEO}.filters[0].name"),
    (with_video(filters=[filter_of("sendcmd", filename="/etc/passwd")]), MISSING, f"{VIDEO}.filters[0].name"),
    (with_video(filters=[filter_of("zmq")]), MISSING, f"{VIDEO}.filters[0].name"),
    (with_video(filters=[filter_of("hflip,movie=/etc/passwd")]), MISSING, f"{VIDEO}.filters[0].name"),
    (with_video(filters=[filter_of("null[x];[x]hflip")]), MISSING, f"{VIDEO}.filters[0].name"),
    (with_video(filters=[filter_of("hflip"), filter_of("volume")]), INVALID, f"{VIDEO}.filters[1].name"),
    (with_video(filters=[filter_of("overlay")]), INVALID, f"{VIDEO}.filters[0].name"),
    (with_video(filters=[filter_of("split")]), MISSING, f"{VIDEO}.filters[0].name"),
    (with_video(filters=[filter_of("drawtext", textfile="/etc/passwd")]), MISSING, f"{VIDEO}.filters[0].arguments[0].name"),
    (with_video(filters=[filter_of("drawtext", "/etc/passwd")]), INVALID, f"{VIDEO}.filters[0].arguments[0].name"),
    (with_video(filters=[filter_of("scale", **{"w=1:h": "1"})]), MISSING, f"{VIDEO}.filters[0].arguments[0].name"),
    (with_video(filters=[filter_of("scale", *["1"] * 200)]), INVALID, f"{VIDEO}.filters[0].arguments"),
    (with_video(filters=[filter_of("hue", h="1\n2")]), INVALID, f"{VIDEO}.filters[0].arguments[0].value"),
    (with_video(filters=[filter_of("null")] * 100), INVALID, f"{VIDEO}.filters"),
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fortress(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> AsyncIterator[Bench]:
    """One attached driver for all requests, for none of them may change anything; with files that lie about what they are."""
    bench = Bench(tmp_path_factory.mktemp("fortress"))
    (bench.sources / "clip.mp4").write_bytes(clip.read_bytes())
    (bench.sources / "half.mp4").write_bytes(clip.read_bytes()[:700])
    (bench.sources / "empty.mp4").write_bytes(b"")
    (bench.sources / "words.txt").write_text("no media at all\n" * 40)
    (bench.sources / "list.txt").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    (bench.sources / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:3,\n{bench.sources}/clip.mp4\n#EXT-X-ENDLIST\n")
    (bench.sources / "link").symlink_to("/etc")
    await bench.attach(source_hosts=["allowed.example"])
    yield bench
    await bench.driver.detach()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("request_", "error", "field"), HOSTILE, ids=lambda value: value if isinstance(value, str) else ""
)
async def test_refused_before_anything_runs(
    fortress: Bench, request_: media_pb2.RunPipelineRequest, error: type[errors.OneContainerError], field: str
) -> None:
    with pytest.raises(error) as caught:
        await fortress.driver.run_pipeline(request_, fortress.context())
    assert type(caught.value) is error
    if caught.value.violations:
        assert caught.value.violations[0].field.startswith(field)
    else:
        assert field in str(caught.value)
    assert not fortress.artifacts.stored
    assert not fortress.events.details()


async def test_a_stream_that_nothing_takes_is_refused(bench: Bench) -> None:
    request = with_output()
    request.elementary_streams.add(key="lost", audio=AudioStream())
    with pytest.raises(errors.FieldInvalid) as caught:
        await bench.driver.run_pipeline(request, bench.context())
    assert caught.value.violations[0].field == "elementary_streams[0].key"


async def test_negative_limits_are_refused(bench: Bench) -> None:
    request = with_output()
    request.limits.CopyFrom(PipelineLimits(threads=-1))
    with pytest.raises(errors.FieldInvalid):
        await bench.driver.run_pipeline(request, bench.context())


@pytest.mark.parametrize(
    "source_format",
    [
        InputFormat(demuxer="concat"),
        InputFormat(demuxer="lavfi"),
        InputFormat(demuxer="image2"),
        InputFormat(demuxer="hls"),
        InputFormat(demuxer="sdp"),
        InputFormat(raw_video=RawVideoFormat(width=16, height=16, pixel_format="yuv420p:x")),
    ],
)
async def test_demuxers_that_follow_references_cannot_be_named(
    bench: Bench, clip: Path, source_format: InputFormat
) -> None:
    (bench.sources / "clip.mp4").write_bytes(clip.read_bytes())
    request = media_pb2.ProbeRequest(source=MediaSource(path="clip.mp4"), format=source_format)
    with pytest.raises(errors.BackendCapabilityMissing) as caught:
        await bench.driver.probe_media(request, bench.context())
    assert caught.value.violations[0].field.startswith("format.")


async def test_a_file_that_draws_in_another_is_contained(bench: Bench, clip: Path) -> None:
    """An HLS list under the name of a video, and one that a path may reach: neither opens what it names."""
    secret = bench.root / "secret.mp4"
    secret.write_bytes(clip.read_bytes())
    lie = bench.sources / "movie.mp4"
    lie.write_text(f"#EXTM3U\n#EXTINF:3,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    with pytest.raises(errors.DataInvalid):
        await bench.driver.probe_media(media_pb2.ProbeRequest(source=MediaSource(path="movie.mp4")), bench.context())


FFMPEG = find_ffmpeg("")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(
        st.characters(
            min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f", exclude_categories=("Cs", "Cc")
        ),
        min_size=1,
        max_size=40,
    )
)
def test_whatever_is_in_a_filter_value_stays_in_it(value: str) -> None:
    """ffmpeg itself reads the escaped value back, as a tag of a frame."""
    graph = f"color=size=16x16:duration=0.04,metadata=mode=add:key=k:value={escape(value)},metadata=mode=print:file=-"
    command = [
        FFMPEG,
        "-nostdin",
        "-loglevel",
        "error",
        "-f",
        "lavfi",
        "-i",
        graph,
        "-frames:v",
        "1",
        "-f",
        "null",
        "-",
    ]
    printed = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    assert printed.partition("\nk=")[2] == f"{value}\n"
