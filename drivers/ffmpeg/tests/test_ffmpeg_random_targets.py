"""Random requests for playlists and pictures: all come to something that plays, or to whole pictures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.ffmpeg.tests.conftest import Bench, play, unpacked
from drivers.ffmpeg.tests.test_ffmpeg_random import AUDIO_FILTERS, FEW, VIDEO_FILTERS
from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.api.media.v1.input_pb2 import Input, MediaSource
from onecontainer.api.media.v1.output_pb2 import (
    SEGMENT_TYPE_FMP4,
    DashOutput,
    FramePick,
    FramesOutput,
    HlsOutput,
    Output,
    SpriteSheetOutput,
    Times,
    Variant,
)
from onecontainer.api.media.v1.stream_pb2 import AudioStream, ElementaryStream, VideoStream
from onecontainer.driver import errors

pytestmark = pytest.mark.asyncio(loop_scope="module")
FEWER = settings(FEW, max_examples=8)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("random"))
    (made.sources / "clip.mp4").write_bytes(clip.read_bytes())
    await made.attach(max_media_duration=20.0, max_output_bytes=50_000_000)
    yield made
    await made.driver.detach()


# Packing, video codecs, audio codecs.
SEGMENTED = [
    (HlsOutput(), ["libx264", "copy"], ["aac", "libmp3lame", "copy"]),
    (HlsOutput(single_file=True), ["libx264", "copy"], ["ac3", "copy"]),
    (HlsOutput(segment_type=SEGMENT_TYPE_FMP4), ["libx264", "libx265", "copy"], ["aac", "flac", "copy"]),
    (DashOutput(), ["libx264", "copy"], ["aac", "libopus", "copy"]),
    (DashOutput(with_hls=True), ["libx264"], ["aac"]),
]


@st.composite
def segmented_requests(draw: st.DrawFn) -> media_pb2.RunPipelineRequest:
    packing, videos, audios = draw(st.sampled_from(SEGMENTED))
    target = type(packing)()
    target.CopyFrom(packing)
    target.segment_duration.CopyFrom(Duration(seconds=1, nanos=draw(st.sampled_from([0, 500_000_000]))))
    audio = AudioStream(codec=draw(st.sampled_from(audios)))
    if audio.codec != "copy":
        audio.filters.extend(draw(st.lists(st.sampled_from(AUDIO_FILTERS), max_size=1)))
    streams = [ElementaryStream(key="a", audio=audio)]
    for index in range(draw(st.integers(0, 2))):
        codec = draw(st.sampled_from(videos))
        video = VideoStream(codec=codec)
        if codec != "copy":
            video.preset = "ultrafast"
            video.height = draw(st.sampled_from([0, 46, 90]))
            video.filters.extend(draw(st.lists(st.sampled_from(VIDEO_FILTERS), max_size=2)))
        streams.append(ElementaryStream(key=f"v{index}", video=video))
    videos_made = [stream.key for stream in streams[1:]]
    output = Output(key="out")
    if len(videos_made) == 2 or draw(st.booleans()):
        names = draw(st.permutations(["0", "1", "out", "main", "audio"]))
        rungs = [
            Variant(name=name, video=key, audio=draw(st.sampled_from(["a", ""])))
            for name, key in zip(names, videos_made, strict=False)
        ]
        if not any(rung.audio for rung in rungs):
            rungs.append(Variant(name=names[4], audio="a"))
        target.variants.extend(rungs)
    else:
        output.streams.extend(stream.key for stream in streams)
    (output.hls if isinstance(target, HlsOutput) else output.dash).CopyFrom(target)
    one = Input(source=MediaSource(path="clip.mp4"), extra_plays=draw(st.integers(0, 1)))
    return media_pb2.RunPipelineRequest(inputs=[one], elementary_streams=streams, outputs=[output])


async def check_segmented(bench: Bench, ffmpeg: str, request_: media_pb2.RunPipelineRequest) -> None:
    output = (await bench.driver.run_pipeline(request_, bench.context())).outputs[0]
    assert output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    assert output.files[0].role == pipeline_pb2.FILE_ROLE_MANIFEST
    assert len({file.name for file in output.files}) == len(output.files)
    folder = unpacked(bench, output)
    # Media playlists one by one: FFmpeg's reader of a main playlist complains about the variants that it leaves out.
    media = [file.name for file in output.files if file.name.endswith("index.m3u8") or file.name.startswith("media_")]
    for name in media:
        assert "#EXT-X-ENDLIST" in (folder / name).read_text()
        play(ffmpeg, folder / name, "-map", "0")
    if output.files[0].name.endswith(".mpd"):
        play(ffmpeg, folder / output.files[0].name, "-map", "0:a:0", "-t", "2")
    else:
        assert media


@FEWER
@given(segmented_requests())
async def test_segmented_requests_come_to_what_plays(
    bench: Bench, ffmpeg: str, request_: media_pb2.RunPipelineRequest
) -> None:
    await check_segmented(bench, ffmpeg, request_)


@st.composite
def picture_requests(draw: st.DrawFn) -> media_pb2.RunPipelineRequest:
    pick = draw(
        st.builds(FramePick, interval=st.integers(200, 900).map(lambda ms: Duration(nanos=ms * 1_000_000)))
        | st.builds(FramePick, count=st.integers(1, 12))
        | st.just(FramePick(key_frames=True))
        | st.just(FramePick(times=Times(offsets=[Duration(), Duration(nanos=300_000_000)])))
        | st.just(FramePick())
    )
    pick.max_frames = draw(st.sampled_from([0, 1, 5]))
    image = draw(st.integers(0, 3))
    output = Output(key="out")
    if draw(st.booleans()):
        output.frames.CopyFrom(FramesOutput(pick=pick, format=image, quality=draw(st.integers(0, 100))))  # type: ignore[arg-type]
    else:
        output.sprites.CopyFrom(
            SpriteSheetOutput(
                pick=pick,
                format=image,  # type: ignore[arg-type]
                columns=draw(st.integers(0, 4)),
                rows=draw(st.integers(0, 4)),
                tile_width=draw(st.sampled_from([0, 16, 33])),
                tile_height=draw(st.sampled_from([0, 17, 40])),
            )
        )
    request = media_pb2.RunPipelineRequest(
        inputs=[Input(source=MediaSource(path="clip.mp4"), extra_plays=draw(st.integers(0, 1)))], outputs=[output]
    )
    if draw(st.booleans()):
        video = VideoStream(
            filters=draw(st.lists(st.sampled_from(VIDEO_FILTERS), max_size=2)), width=draw(st.sampled_from([0, 50]))
        )
        request.elementary_streams.add(key="v", video=video)
        output.streams.append("v")
    if draw(st.booleans()):
        output.start_offset.CopyFrom(Duration(nanos=draw(st.integers(0, 900_000_000))))
    del request.outputs[:]
    request.outputs.append(output)
    return request


async def check_pictures(bench: Bench, request_: media_pb2.RunPipelineRequest) -> None:
    target = request_.outputs[0].WhichOneof("target")
    pick = getattr(request_.outputs[0], str(target)).pick
    try:
        output = (await bench.driver.run_pipeline(request_, bench.context())).outputs[0]
    except errors.DataInvalid as error:
        # After such a start the clip may have no key frame left, which is said.
        late = pick.key_frames and request_.outputs[0].HasField("start_offset")
        if not late or error.violations[0].field != f"outputs[0].{target}.pick":
            raise
        return
    assert output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    folder = unpacked(bench, output)
    most = pick.max_frames or 1000
    if request_.outputs[0].HasField("frames"):
        times = [file.media_time.ToMilliseconds() for file in output.files]
        assert times == sorted(set(times))
        made = len(output.files)
    else:
        made = (folder / "out.vtt").read_text().count("#xywh=")
        a_sheet = (request_.outputs[0].sprites.columns or 10) * (request_.outputs[0].sprites.rows or 10)
        assert len(output.files) - 1 == -(-made // a_sheet)
    assert 1 <= made <= most


@FEWER
@given(picture_requests())
async def test_picture_requests_come_to_pictures(bench: Bench, request_: media_pb2.RunPipelineRequest) -> None:
    await check_pictures(bench, request_)


@pytest.mark.slow
@settings(FEWER, max_examples=120)
@given(segmented_requests() | picture_requests())
async def test_many_requests_of_both_kinds(bench: Bench, ffmpeg: str, request_: media_pb2.RunPipelineRequest) -> None:
    if request_.outputs[0].WhichOneof("target") in ("hls", "dash"):
        await check_segmented(bench, ffmpeg, request_)
    else:
        await check_pictures(bench, request_)
