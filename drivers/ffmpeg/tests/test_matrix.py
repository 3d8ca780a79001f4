"""Containers, codecs, encoder settings, filters, cuts, subtitles, tracks and loops: each seen in what comes out.

The source says where it is: in frame N the left half has the luma 20 + 8 N and the right half is white, and its two tracks of sound are
tones of 440 Hz (eng) and 880 Hz (deu). So a frame or a sample that is in the wrong place shows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import av
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from drivers.ffmpeg.tests.conftest import Bench, make_media
from drivers.ffmpeg.tests.test_pipeline import artifact_input, file_output, filter_of, run, small_video, stored
from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.api.media.v1.input_pb2 import Input
from onecontainer.api.media.v1.output_pb2 import FileOutput, Output
from onecontainer.api.media.v1.stream_pb2 import (
    AudioStream,
    AverageBitrate,
    ConstantBitrate,
    ElementaryStream,
    Filter,
    FilterArgument,
    ParamValue,
    RateControl,
    StreamSelector,
    SubtitleStream,
    VideoStream,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
RATE, FRAMES = 25, 25
WIDTH, HEIGHT = 176, 144  # a size that H.263 takes too
SUBTITLES = "1\n00:00:00,100 --> 00:00:00,900\nGood evening\n"


def luma_of(number: int) -> int:
    return 20 + 8 * number


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("matrix"))
    await made.attach()
    yield made
    await made.driver.detach()


@pytest.fixture(scope="module")
def source(bench: Bench, ffmpeg: str) -> str:
    """Name of the artifact that is described above: one second, H.264, two tracks of AAC, one of subtitles."""
    (bench.root / "text.srt").write_text(SUBTITLES)
    picture = f"color=size={WIDTH}x{HEIGHT}:rate={RATE}:duration=1,format=yuv420p,geq=lum='if(lt(X,W/2),20+8*N,235)':cb=90:cr=170"
    path = make_media(
        ffmpeg, bench.root / "source.mkv", "-f", "lavfi", "-i", picture,
        "-f", "lavfi", "-i", "sine=440:sample_rate=48000:duration=1", "-f", "lavfi", "-i", "sine=880:sample_rate=48000:duration=1",
        "-i", str(bench.root / "text.srt"), "-map", "0", "-map", "1", "-map", "2", "-map", "3",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", "8", "-bf", "2", "-g", "10", "-c:a", "aac", "-b:a", "128k", "-c:s", "srt",
        "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=deu",
    )  # fmt: skip
    return bench.artifacts.add(path)


def frames_of(path: Path) -> list[NDArray[np.int64]]:
    """The luma of each frame."""
    with av.open(path) as container:
        return [
            frame.to_ndarray(format="yuv420p")[: frame.height].astype(np.int64) for frame in container.decode(video=0)
        ]


def number_of(frame: NDArray[np.int64], *, left: bool = True) -> float:
    """Which frame of the source this is, by the luma in the middle of one half."""
    column = frame.shape[1] // 4 if left else 3 * frame.shape[1] // 4
    return (float(frame[4:-4, column - 4 : column + 4].mean()) - 20) / 8


def samples_of(path: Path, track: int = 0) -> NDArray[np.float64]:
    """The first channel of a track, at 48 kHz, as numbers from -1 to 1."""
    resampler = av.AudioResampler("fltp", "mono", 48000)
    with av.open(path) as container:
        parts = [part.to_ndarray()[0] for frame in container.decode(audio=track) for part in resampler.resample(frame)]
    return np.concatenate(parts).astype(np.float64)


def pitch_of(samples: NDArray[np.float64]) -> float:
    """The loudest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * 48000 / len(samples)


def packets_of(path: Path, kind: str) -> list[bytes]:
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


def codecs_of(path: Path) -> dict[str, str]:
    with av.open(path) as container:
        return {stream.type: stream.codec_context.codec.canonical_name for stream in container.streams}


def audio(key: str, codec: str = "", **fields: object) -> ElementaryStream:
    return ElementaryStream(key=key, audio=AudioStream(codec=codec, **fields))  # type: ignore[arg-type]


def video(key: str, **fields: object) -> ElementaryStream:
    return ElementaryStream(key=key, video=small_video(**fields))


def succeeded(result: pipeline_pb2.RunPipelineResult) -> None:
    assert {output.key: output.state for output in result.outputs} == {
        output.key: pipeline_pb2.OUTPUT_STATE_SUCCEEDED for output in result.outputs
    }


DEFAULTS = {
    "mkv": ("h264", "vorbis"), "mp4": ("h264", "aac"), "mov": ("h264", "aac"), "m4a": (None, "aac"), "avi": ("mpeg4", "mp3"),
    "webm": ("vp9", "opus"), "wmv": ("msmpeg4v3", "wmav2"), "vob": ("mpeg2video", "mp2"), "mpg": ("mpeg1video", "mp2"),
    "ogg": ("theora", "vorbis"), "ogv": ("theora", "vorbis"), "ts": ("mpeg2video", "mp2"), "flv": ("flv1", "mp3"),
    "mxf": ("mpeg2video", "pcm_s16le"), "gif": ("gif", None),
    "mka": (None, "vorbis"), "wma": (None, "wmav2"), "oga": (None, "flac"), "opus": (None, "opus"), "wav": (None, "pcm_s16le"),
    "aiff": (None, "pcm_s16be"), "caf": (None, "pcm_s16be"), "flac": (None, "flac"), "mp3": (None, "mp3"), "mp2": (None, "mp2"),
    "aac": (None, "aac"), "ac3": (None, "ac3"), "eac3": (None, "eac3"), "au": (None, "pcm_s16be"),
}  # fmt: skip


async def test_default_codecs_of_containers(bench: Bench, source: str) -> None:
    outputs = [file_output(f"as-{container}", container) for container in DEFAULTS]
    result = await run(bench, inputs=[artifact_input(source)], outputs=outputs)
    succeeded(result)
    found = {}
    for container, output in zip(DEFAULTS, result.outputs, strict=True):
        path = stored(bench, output)
        kinds = codecs_of(path)
        found[container] = (kinds.get("video"), kinds.get("audio"))
        if "video" in kinds:
            # All frames are there, in their order (MPEG-1 and FLV may repeat one at an end).
            numbers = [number_of(frame) for frame in frames_of(path)]
            assert FRAMES - 1 <= len(numbers) <= FRAMES + 1, container
            assert numbers == pytest.approx(sorted(numbers), abs=0.6), container
        if "audio" in kinds:
            assert pitch_of(samples_of(path)) == pytest.approx(440, abs=3), container
    assert found == DEFAULTS


EXTRACTED = [
    ("aac", "aac", "aac"), ("m4a", "aac", "aac"), ("m4a", "alac", "alac"), ("ogg", "libvorbis", "vorbis"), ("ogg", "libopus", "opus"),
    ("wav", "pcm_s16le", "pcm_s16le"), ("wav", "pcm_f32le", "pcm_f32le"), ("flac", "flac", "flac"), ("ac3", "ac3", "ac3"),
    ("wma", "wmav2", "wmav2"), ("mp3", "libmp3lame", "mp3"), ("mka", "opus", "opus"),
]  # fmt: skip


async def test_sound_alone(bench: Bench, source: str) -> None:
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[audio(f"s{number}", encoder) for number, (_, encoder, _) in enumerate(EXTRACTED)],
        outputs=[
            file_output(f"o{number}", container, f"s{number}") for number, (container, _, _) in enumerate(EXTRACTED)
        ],
    )
    succeeded(result)
    for (container, encoder, codec), output in zip(EXTRACTED, result.outputs, strict=True):
        path = stored(bench, output)
        assert codecs_of(path) == {"audio": codec}
        samples = samples_of(path)
        assert pitch_of(samples) == pytest.approx(440, abs=3), (container, encoder)
        assert len(samples) / 48000 == pytest.approx(1, abs=0.1), (container, encoder)


async def test_copies_are_the_same_bits(bench: Bench, source: str) -> None:
    original = bench.artifacts.stored[source]
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[
            ElementaryStream(key="v", video=VideoStream(codec="copy")),
            audio("a", "copy"),
            ElementaryStream(key="s", subtitle=SubtitleStream(codec="copy")),
        ],
        outputs=[
            file_output("mkv", "mkv", "v", "a", "s"),
            file_output("mp4", "mp4", "v", "a"),
            file_output("mov", "mov", "v", "a"),
            file_output("ts", "ts", "v", "a"),
            file_output("m4a", "m4a", "a"),
            file_output("srt", "srt", "s"),
        ],
    )
    succeeded(result)
    files = {output.key: stored(bench, output) for output in result.outputs}
    for key in ("mkv", "mp4", "mov"):
        assert packets_of(files[key], "video") == packets_of(original, "video"), key
    for key in ("mkv", "mp4", "mov", "m4a"):
        assert packets_of(files[key], "audio") == packets_of(original, "audio"), key
    # In a transport stream the same pictures have other start codes; what is decoded is the same.
    assert all(map(np.array_equal, frames_of(files["ts"]), frames_of(original)))
    assert packets_of(files["mkv"], "subtitles") == packets_of(original, "subtitles")
    assert "Good evening" in files["srt"].read_text()
    assert {stream.encoder for output in result.outputs for stream in output.streams} == {"copy"}


# What x264 writes of its settings into the stream, by what was asked.
X264 = {
    "slow": (VideoStream(codec="libx264", preset="slow"), ["subme=8", "trellis=2", "ref=5", "crf=23.0"]),
    "ultrafast": (VideoStream(codec="libx264", preset="ultrafast"), ["subme=0", "cabac=0"]),
    "grain": (VideoStream(codec="libx264", tune="grain"), ["deblock=1:-2:-2"]),
    "zerolatency": (VideoStream(codec="libx264", tune="zerolatency"), ["bframes=0", "sliced_threads=1"]),
    "crf": (VideoStream(codec="libx264", rate_control=RateControl(constant_quality=31.5)), ["crf=31.5"]),
    "qp": (VideoStream(codec="libx264", rate_control=RateControl(constant_quantizer=30)), ["rc=cqp", "qp=30"]),
    "lossless": (VideoStream(codec="libx264", rate_control=RateControl(lossless=True)), ["qp=0"]),
    "average": (
        VideoStream(codec="libx264", rate_control=RateControl(average_bitrate=AverageBitrate(bitrate=200_000))),
        ["rc=abr", "bitrate=200"],
    ),
    "params": (
        VideoStream(codec="libx264", params={"x264-params": ParamValue(text="keyint=7:ref=2"), "bf": ParamValue(integer=1)}),
        ["keyint=7", "ref=2", "bframes=1"],
    ),
    "keyframes": (VideoStream(codec="libx264", keyframe_interval=Duration(nanos=200_000_000)), []),
}  # fmt: skip
PROFILES = {"baseline": "Constrained Baseline", "main": "Main", "high": "High"}


async def test_settings_of_encoders(bench: Bench, source: str) -> None:
    streams = [ElementaryStream(key=key, video=asked) for key, (asked, _) in X264.items()]
    streams += [ElementaryStream(key=name, video=VideoStream(codec="h264", profile=name)) for name in PROFILES]
    keys = [stream.key for stream in streams]
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=streams,
        outputs=[file_output(key, "mp4", key) for key in keys],
    )
    succeeded(result)
    files = {output.key: stored(bench, output) for output in result.outputs}
    for key, (_, expected) in X264.items():
        data = files[key].read_bytes()
        settings = data[data.index(b"x264 - core") :].split(b"\0")[0].decode(errors="replace").split()
        assert set(expected) <= set(settings), (key, settings)
    for name, profile in PROFILES.items():
        with av.open(files[name]) as container:
            assert container.streams.video[0].profile == profile
    assert all(map(np.array_equal, frames_of(files["lossless"]), frames_of(bench.artifacts.stored[source])))
    with av.open(files["keyframes"]) as container:
        keyed = [
            float((packet.pts or 0) * packet.time_base) for packet in container.demux(video=0) if packet.is_keyframe
        ]
    assert keyed == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def boxes_of(path: Path) -> list[str]:
    """The outermost boxes of an MP4."""
    data, found, at = path.read_bytes(), [], 0
    while at + 8 <= len(data):
        found.append(data[at + 4 : at + 8].decode("latin-1"))
        at += int.from_bytes(data[at : at + 4], "big") or len(data)
    return found


async def test_settings_of_muxers_and_sound(bench: Bench, source: str) -> None:
    text, number = (lambda value: ParamValue(text=value)), (lambda value: ParamValue(integer=value))
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[
            ElementaryStream(key="copy", video=VideoStream(codec="copy")),
            ElementaryStream(key="s", subtitle=SubtitleStream()),
            audio("rich", "libmp3lame", rate_control=RateControl(constant_bitrate=ConstantBitrate(bitrate=192_000))),
            audio("coder", "aac", profile="aac_low", params={"aac_coder": text("fast"), "strict": text("experimental")}),
            audio("low", "libmp3lame", sample_rate=22050, channels=2, rate_control=RateControl(constant_quality=7)),
        ],
        outputs=[
            file_output("mkv", "mkv", "copy", "s", tags={"stereo_mode": "left_right"},
                        muxer_params={"default_mode": text("infer_no_subs")}),
            file_output("live", "mp4", "copy", muxer_params={"movflags": text("isml+frag_keyframe")}),
            file_output("plain", "mp4", "copy"),
            Output(key="fast", streams=["copy"], file=FileOutput(container="mp4", fast_start=True)),
            file_output("ts", "ts", "copy", muxer_params={"mpegts_start_pid": number(0x300)}, tags={"service_name": "Nine"}),
            file_output("rich", "mp3", "rich"),
            file_output("coder", "aac", "coder"),
            file_output("low", "mp3", "low", muxer_params={"id3v2_version": number(3)}, tags={"title": "A song"}),
        ],
    )  # fmt: skip
    succeeded(result)
    files = {output.key: stored(bench, output) for output in result.outputs}
    with av.open(files["mkv"]) as container:
        assert container.streams.video[0].metadata["stereo_mode"] == "left_right"
    assert [stream.disposition.default_track for stream in result.outputs[0].media_info.streams] == [True, False]
    live, plain, fast = (boxes_of(files[key]) for key in ("live", "plain", "fast"))
    assert "moof" in live
    assert plain.index("moov") > plain.index("mdat")
    assert fast.index("moov") < fast.index("mdat")
    with av.open(files["ts"]) as container:
        assert container.streams.video[0].id == 0x300
    assert b"Nine" in files["ts"].read_bytes()
    rich = result.outputs[5].media_info
    assert rich.format.bitrate == pytest.approx(192_000, rel=0.1)  # with the header of a short file
    assert result.outputs[6].media_info.streams[0].profile == "LC"
    low = result.outputs[7].media_info
    assert (low.streams[0].audio.sample_rate, low.streams[0].audio.channels) == (22050, 2)
    assert low.format.tags["title"] == "A song"


async def test_filters_of_pictures(bench: Bench, source: str) -> None:
    left = filter_of("crop", w="iw/2", h="ih", x=0, y=0)
    chains = {
        "grey": [filter_of("hue", s=0)],
        "half": [filter_of("scale", w="iw/2", h=-1)],
        "calm": [filter_of("deflicker", mode="pm", size=10)],
        "back": [filter_of("reverse")],
        "crop-flip": [left, filter_of("hflip")],
        "flip-crop": [filter_of("hflip"), left],
        "late": [filter_of("trim", start_frame=5), filter_of("setpts", expr="PTS-STARTPTS")],
        "positional": [
            Filter(name="scale", arguments=[FilterArgument(value=ParamValue(integer=side)) for side in (64, 48)])
        ],
    }
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[video(key, filters=filters) for key, filters in chains.items()],
        outputs=[file_output(key, "mkv", key) for key in chains],
    )
    succeeded(result)
    files = {output.key: stored(bench, output) for output in result.outputs}
    with av.open(files["grey"]) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.ptp(picture, axis=2).max() <= 3
    with av.open(bench.artifacts.stored[source]) as container:
        assert np.ptp(next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int), axis=2).max() > 40
    assert frames_of(files["half"])[0].shape == (HEIGHT // 2, WIDTH // 2)
    assert len(frames_of(files["calm"])) == FRAMES
    numbers = [number_of(frame) for frame in frames_of(files["back"])]
    assert numbers == pytest.approx([FRAMES - 1 - position for position in range(FRAMES)], abs=0.6)
    first, second = frames_of(files["crop-flip"])[0], frames_of(files["flip-crop"])[0]
    assert first.shape == second.shape == (HEIGHT, WIDTH // 2)
    assert first.mean() == pytest.approx(luma_of(0), abs=4)  # the dark half of the picture
    assert second.mean() == pytest.approx(235, abs=4)  # the other half: it was turned before
    late = [number_of(frame) for frame in frames_of(files["late"])]
    assert (len(late), late[0]) == (FRAMES - 5, pytest.approx(5, abs=0.6))
    assert frames_of(files["positional"])[0].shape == (48, 64)


async def test_filters_of_sound(bench: Bench, source: str) -> None:
    chains = {
        "plain": [],
        "quiet": [filter_of("volume", volume=0.25)],
        "short": [filter_of("atrim", start=0.4), filter_of("asetpts", expr="PTS-STARTPTS")],
        "fading": [filter_of("afade", t="out", d=1)],
        "rising": [filter_of("afade", t="out", d=1), filter_of("areverse")],
        "phased": [Filter(name="aphaser")],
        "fast": [filter_of("atempo", tempo=2.0)],
    }
    result = await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[audio(key, "pcm_s16le", filters=filters) for key, filters in chains.items()],
        outputs=[file_output(key, "wav", key) for key in chains],
    )
    succeeded(result)
    heard = {output.key: samples_of(stored(bench, output)) for output in result.outputs}
    loudness = {key: float(np.sqrt(np.mean(samples**2))) for key, samples in heard.items()}
    assert loudness["quiet"] == pytest.approx(loudness["plain"] / 4, rel=0.02)
    assert len(heard["short"]) == len(heard["plain"]) - 0.4 * 48000
    assert abs(heard["fading"][1000:5000]).mean() > 3 * abs(heard["fading"][-5000:-1000]).mean()
    assert np.array_equal(heard["rising"], heard["fading"][::-1])
    assert len(heard["phased"]) == len(heard["plain"])
    assert not np.allclose(heard["phased"], heard["plain"], atol=0.01)
    assert len(heard["fast"]) == pytest.approx(len(heard["plain"]) / 2, rel=0.05)
    assert pitch_of(heard["fast"]) == pytest.approx(440, abs=6)


async def test_cuts_are_exact(bench: Bench, source: str) -> None:
    tenths = lambda count: Duration(nanos=count * 100_000_000)  # noqa: E731
    streams = [video("v"), audio("a", "pcm_s16le")]
    cut = await run(
        bench,
        inputs=[artifact_input(source, start_offset=tenths(2), duration=tenths(6))],
        elementary_streams=streams,
        outputs=[
            file_output("input", "mkv", "v"),
            file_output("both", "mkv", "v", start_offset=tenths(2), duration=tenths(2)),
            file_output("wav", "wav", "a", start_offset=tenths(2), duration=tenths(2)),
            file_output("tail", "mp4", "v", start_offset=tenths(4)),
            file_output("over", "mp4", "v", duration=Duration(seconds=9)),
        ],
    )
    succeeded(cut)
    files = {output.key: stored(bench, output) for output in cut.outputs}
    for key, first, count in (("input", 5, 15), ("both", 10, 5), ("tail", 15, 5), ("over", 5, 15)):
        numbers = [number_of(frame) for frame in frames_of(files[key])]
        assert numbers == pytest.approx(list(range(first, first + count)), abs=0.6), key
    with av.open(files["wav"]) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 0.2 * 48000
    assert cut.outputs[1].media_duration.ToMilliseconds() == 200


async def test_loops(bench: Bench, source: str) -> None:
    tenths = lambda count: Duration(seconds=count // 10, nanos=count % 10 * 100_000_000)  # noqa: E731
    plays = [
        ({"extra_plays": 2}, 75), ({"extra_plays": 1, "duration": tenths(14)}, 35), ({"loop_forever": True, "duration": tenths(22)}, 55),
    ]  # fmt: skip
    for fields, count in plays:
        looped: Input = artifact_input(source, **fields)
        result = await run(
            bench, inputs=[looped], elementary_streams=[video("v")], outputs=[file_output("out", "mkv", "v")]
        )
        numbers = [number_of(frame) for frame in frames_of(stored(bench, result.outputs[0]))]
        # The source's sound is a little longer than its pictures, and a play ends with the longer one.
        assert len(numbers) == pytest.approx(count, abs=2)
        assert numbers[:FRAMES] == pytest.approx(list(range(FRAMES)), abs=0.6)
        assert sum(number < 0.6 for number in numbers) == (count + FRAMES - 1) // FRAMES


async def test_subtitles_in_each_form(bench: Bench, source: str, tmp_path: Path) -> None:
    (tmp_path / "words.srt").write_text(SUBTITLES.replace("evening", "morning"))
    words = bench.artifacts.add(tmp_path / "words.srt")
    picked = StreamSelector(input=1)
    streams = [
        ElementaryStream(key="v", video=VideoStream(codec="copy")),
        ElementaryStream(key="vp9", video=VideoStream(codec="vp9", width=64)),
        ElementaryStream(key="s", sources=[picked], language="fra", title="French", subtitle=SubtitleStream()),
        ElementaryStream(key="ass", sources=[picked], subtitle=SubtitleStream(codec="ass")),
    ]
    forms = {
        "mp4": ("v", "s"), "mov": ("v", "s"), "webm": ("vp9", "s"), "mkv": ("v", "ass"),
        "srt": ("s",), "vtt": ("s",), "ass": ("s",),
    }  # fmt: skip
    result = await run(
        bench,
        inputs=[artifact_input(source), artifact_input(words)],
        elementary_streams=streams,
        outputs=[file_output(f"to-{container}", container, *keys) for container, keys in forms.items()],
    )
    succeeded(result)
    found = {}
    for container, output in zip(forms, result.outputs, strict=True):
        path = stored(bench, output)
        with av.open(path) as opened:
            track = opened.streams.subtitles[0]
            found[container] = track.codec_context.codec.canonical_name
            text = b"".join(bytes(packet) for packet in opened.demux(track))
            assert b"Good morning" in text, container
            if container in ("mp4", "mov", "webm"):
                assert track.language == "fra"
    assert found == {
        "mp4": "mov_text", "mov": "mov_text", "webm": "webvtt", "mkv": "ass", "srt": "subrip", "vtt": "webvtt", "ass": "ass",
    }  # fmt: skip


async def test_tracks_of_several_inputs(bench: Bench, source: str, ffmpeg: str, tmp_path: Path) -> None:
    other = bench.artifacts.add(
        make_media(ffmpeg, tmp_path / "b.mkv", "-f", "lavfi", "-i", "color=white:size=64x64:rate=25:duration=1",
                   "-f", "lavfi", "-i", "sine=1760:sample_rate=48000:duration=1", "-c:v", "ffv1", "-c:a", "pcm_s16le")
    )  # fmt: skip
    second = StreamSelector(input=1)
    streams = [
        ElementaryStream(key="over", sources=[StreamSelector(), second], video=small_video(filters=[filter_of("overlay", x=10, y=10)])),
        ElementaryStream(key="mixed", sources=[StreamSelector(), second],
                         audio=AudioStream(codec="pcm_s16le", filters=[Filter(name="amix")])),
        ElementaryStream(key="eng", sources=[StreamSelector(language="eng")], audio=AudioStream(codec="flac")),
        ElementaryStream(key="deu", sources=[StreamSelector(language="deu")], audio=AudioStream(codec="flac")),
        ElementaryStream(key="last", sources=[StreamSelector(index=1)], audio=AudioStream(codec="flac")),
        ElementaryStream(key="foreign", sources=[second], language="jpn", audio=AudioStream(codec="flac")),
        ElementaryStream(key="none", sources=[StreamSelector(input=1, language="deu")], skip_if_missing=True,
                         audio=AudioStream(codec="flac")),
    ]  # fmt: skip
    result = await run(
        bench,
        inputs=[artifact_input(source), artifact_input(other)],
        elementary_streams=streams,
        outputs=[
            file_output("all", "mkv", "over", "deu", "none", "eng", "foreign", "last"),
            file_output("mixed", "wav", "mixed"),
        ],
    )
    succeeded(result)
    path = stored(bench, result.outputs[0])
    assert [round(pitch_of(samples_of(path, track)) / 40) * 40 for track in range(4)] == [880, 440, 1760, 880]
    with av.open(path) as container:
        assert [stream.language for stream in container.streams.audio] == ["deu", "eng", "jpn", "deu"]
    assert [stream.key for stream in result.outputs[0].streams] == ["over", "deu", "eng", "foreign", "last"]
    frame = frames_of(path)[0]
    assert frame[20:60, 20:60].mean() > 225
    assert frame[100:140, 20:60].mean() == pytest.approx(luma_of(0), abs=4)
    spectrum = np.abs(np.fft.rfft(samples_of(stored(bench, result.outputs[1]))[:48000]))
    assert spectrum[440] > 20 * np.median(spectrum)
    assert spectrum[1760] > 20 * np.median(spectrum)
