"""Probe and CaptureFrame, from every kind of source; HTTP through the egress guard."""

from __future__ import annotations

import asyncio
import contextlib
import io
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import av
import pytest
from google.protobuf.duration_pb2 import Duration
from onecontainer_driver_ffmpeg.egress import HostRules

from drivers.ffmpeg.tests.conftest import Bench, make_media
from onecontainer.api.media.v1 import media_info_pb2, media_pb2, output_pb2
from onecontainer.api.media.v1.input_pb2 import (
    Input,
    InputFormat,
    MediaSource,
    Rational,
    RawAudioFormat,
    RawVideoFormat,
)
from onecontainer.api.media.v1.output_pb2 import FileOutput, Output
from onecontainer.driver import errors

Answer = Callable[[str], tuple[str, dict[str, str], bytes]]


@contextlib.asynccontextmanager
async def web_server(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[str]]]:
    """An HTTP server with what `answer` gives for a path; yields its host:port and the paths that were asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            asked.append(path)
            line, headers, body = answer(path)
            headers = {"Content-Length": str(len(body)), "Connection": "close"} | headers
            lines = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
            writer.write(f"HTTP/1.1 {line}\r\n{lines}\r\n".encode() + body)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:  # also if the loop ends before the other side's end is heard
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()


async def probe(
    bench: Bench, source: MediaSource, source_format: InputFormat | None = None
) -> media_info_pb2.MediaInfo:
    request = media_pb2.ProbeRequest(source=source, format=source_format)
    return (await bench.driver.probe_media(request, bench.context())).media_info


async def test_probe_of_an_artifact_tells_all(bench: Bench, ffmpeg: str, clip: Path, tmp_path: Path) -> None:
    chapters = tmp_path / "chapters.txt"
    chapters.write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1500\ntitle=Middle\n")
    made = make_media(
        ffmpeg, tmp_path / "made.mp4", "-display_rotation:v:0", "90", "-i", str(clip),
        "-i", str(chapters), "-map_chapters", "1", "-c", "copy",
        "-metadata", "title=A title", "-metadata:s:a:0", "language=fra",
    )  # fmt: skip
    info = await probe(bench, MediaSource(artifact=bench.artifacts.add(made)))
    assert "mp4" in info.format.name.split(",")
    assert info.format.duration.seconds in (2, 3)
    assert info.format.size_bytes == made.stat().st_size
    assert info.format.tags["title"] == "A title"
    video, audio = info.streams[:2]
    assert (video.kind, video.codec, video.video.width, video.video.height) == (
        media_info_pb2.STREAM_KIND_VIDEO,
        "h264",
        320,
        180,
    )
    assert video.video.average_frame_rate == Rational(numerator=30, denominator=1)
    assert video.video.rotation_degrees == 90
    assert video.side_data[0].type == "Display Matrix"
    assert (audio.audio.sample_rate, audio.audio.channels, audio.language) == (48000, 1, "fra")
    chapter = info.chapters[0]
    assert (chapter.title, chapter.start_time.nanos, chapter.end_time.nanos) == ("Middle", 0, 500_000_000)
    assert info.prober.startswith("libavformat ")
    assert not info.raw_json


async def test_raw_formats_need_their_shape(bench: Bench) -> None:
    (bench.sources / "a.raw").write_bytes(bytes(64 * 48 * 3 // 2 * 10))
    video = RawVideoFormat(width=64, height=48, pixel_format="yuv420p", frame_rate=Rational(numerator=5, denominator=1))
    info = await probe(bench, MediaSource(path="a.raw"), InputFormat(raw_video=video))
    assert info.format.duration.seconds == 2
    audio = RawAudioFormat(sample_format="s16le", sample_rate=8000, channels=2)
    info = await probe(bench, MediaSource(path="a.raw"), InputFormat(raw_audio=audio))
    assert info.streams[0].audio.channels == 2
    request = media_pb2.RunPipelineRequest(
        inputs=[Input(source=MediaSource(path=str(bench.sources / "a.raw")), format=InputFormat(raw_video=video))],
        outputs=[Output(key="out", file=FileOutput(container="mp4"))],
    )
    result = await bench.driver.run_pipeline(request, bench.context())
    assert result.outputs[0].media_info.streams[0].video.width == 64


async def test_a_fake_ffprobe_gives_its_json(bench: Bench, clip: Path, tmp_path: Path) -> None:
    """The path through ffprobe, with a program in its place that prints what the libraries' child does."""
    program = tmp_path / "ffprobe"
    streams = '[{"index": 0, "codec_type": "audio"}]'
    facts = (
        f'{{"program_version": {{"version": "9"}}, "streams": {streams}, "format": {{"filename": "x", "size": "5"}}}}'
    )
    program.write_text(f"#!{sys.executable}\nprint('''{facts}''')\n")
    program.chmod(0o755)
    await bench.attach(ffprobe_path=str(program))
    info = await probe(bench, MediaSource(artifact=bench.artifacts.add(clip)))
    assert info.prober == "ffprobe 9"
    assert info.raw_json == '{"streams": [{"index": 0, "codec_type": "audio"}], "format": {"size": "5"}}'
    assert info.format.size_bytes == 5


async def test_http_from_an_allowed_host(bench: Bench, clip: Path) -> None:
    async with web_server(lambda _path: ("200 OK", {"Content-Type": "video/mp4"}, clip.read_bytes())) as (host, _asked):
        await bench.attach(source_hosts=[host])
        info = await probe(bench, MediaSource(url=f"http://{host}/clip.mp4?token=secret"))
        assert info.streams[0].video.width == 320
        request = media_pb2.RunPipelineRequest(
            inputs=[Input(source=MediaSource(url=f"http://{host}/clip.mp4?token=secret"))],
            outputs=[Output(key="out", file=FileOutput(container="wav"))],
        )
        result = await bench.driver.run_pipeline(request, bench.context())
    assert result.outputs[0].files
    assert "secret" not in str(result)


@pytest.mark.parametrize("trusted", [True, False])
async def test_https_is_verified(
    bench: Bench, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    certificate, key = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with web_server(lambda _path: ("200 OK", {}, clip.read_bytes()), tls) as (host, asked):
        address = host.replace("127.0.0.1", "localhost")
        await bench.attach(source_hosts=[address])
        source = MediaSource(url=f"https://{address}/clip.mp4")
        if not trusted:
            with pytest.raises(errors.DataInvalid):
                await probe(bench, source)
            assert not asked
            return
        assert (await probe(bench, source)).streams[0].video.width == 320
        request = media_pb2.RunPipelineRequest(
            inputs=[Input(source=source)], outputs=[Output(key="out", file=FileOutput(container="wav"))]
        )
        result = await bench.driver.run_pipeline(request, bench.context())
        assert result.outputs[0].files


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize("how", ["redirect", "playlist", "segment-redirect"])
async def test_http_that_leads_elsewhere_is_contained(bench: Bench, clip: Path, how: str) -> None:
    async with web_server(lambda _path: ("200 OK", {}, clip.read_bytes())) as (inner, asked_inner):

        def answer(path: str) -> tuple[str, dict[str, str], bytes]:
            away = f"http://{inner}/secret.ts"
            if how == "redirect" or (how == "segment-redirect" and path == "/part.ts"):
                return "302 Found", {"Location": away}, b""
            segment = away if how == "playlist" else "part.ts"
            playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{segment}\n#EXT-X-ENDLIST\n"
            return "200 OK", {"Content-Type": "application/vnd.apple.mpegurl"}, playlist.encode()

        async with web_server(answer) as (outer, asked_outer):
            await bench.attach(source_hosts=[outer])
            with pytest.raises(errors.SourceNotAllowed) as caught:
                await probe(bench, MediaSource(url=f"http://{outer}/a.m3u8"))
    assert asked_outer
    assert not asked_inner
    assert inner in str(caught.value)
    assert caught.value.violations[0].field == "source"


async def test_http_playlist_on_one_host_is_read(bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path) -> None:
    part = make_media(ffmpeg, tmp_path / "part.ts", "-i", str(clip), "-c", "copy").read_bytes()

    def answer(path: str) -> tuple[str, dict[str, str], bytes]:
        if path.endswith(".ts"):
            return "200 OK", {"Content-Type": "video/mp2t"}, part
        playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\npart.ts\n#EXT-X-ENDLIST\n"
        return "200 OK", {"Content-Type": "application/vnd.apple.mpegurl"}, playlist.encode()

    async with web_server(answer) as (host, asked):
        await bench.attach(source_hosts=[host])
        info = await probe(bench, MediaSource(url=f"http://{host}/a.m3u8"))
    assert info.format.name == "hls"
    assert "/part.ts" in asked


async def test_a_host_that_does_not_answer_may_be_tried_again(bench: Bench) -> None:
    async with web_server(lambda _path: ("200 OK", {}, b"")) as (host, _asked):
        pass
    await bench.attach(source_hosts=[host])
    with pytest.raises(errors.BackendUnreachable) as caught:
        await probe(bench, MediaSource(url=f"http://{host}/a.mp4"))
    assert caught.value.retry_after


@pytest.mark.parametrize(
    ("rule", "url", "allowed"),
    [
        ("example.com", "http://example.com/", True),
        ("example.com", "https://EXAMPLE.com:443/x", True),
        ("example.com", "http://example.com:8080/", False),
        ("example.com", "http://a.example.com/", False),
        ("*.example.com", "http://a.example.com/", True),
        ("*.example.com", "http://example.com/", False),
        ("*.example.com", "http://aexample.com/", False),
        ("example.com:8080", "http://example.com:8080/", True),
        ("example.com:8080", "http://example.com/", False),
        ("[::1]:9000", "http://[::1]:9000/", True),
        ("example.com", "ftp://example.com/", False),
        ("example.com", "http://user@example.com/", False),
        ("example.com", "http://example.com.evil.example/", False),
    ],
)
def test_host_rules(rule: str, url: str, allowed: bool) -> None:
    assert HostRules.parse([rule]).allow_url(url) is allowed


@pytest.mark.parametrize("entry", ["", "http://a", "a/b", "a b/", "*", "*.*.com", "user@a"])
def test_host_rules_that_are_none(entry: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        HostRules.parse([entry])


@pytest.mark.parametrize(
    ("image_format", "media_type", "codec"),
    [
        (output_pb2.IMAGE_FORMAT_UNSPECIFIED, "image/jpeg", "mjpeg"),
        (output_pb2.IMAGE_FORMAT_PNG, "image/png", "png"),
        (output_pb2.IMAGE_FORMAT_WEBP, "image/webp", "webp"),
    ],
)
async def test_frame_at_a_time(
    bench: Bench, clip: Path, image_format: output_pb2.ImageFormat.ValueType, media_type: str, codec: str
) -> None:
    request = media_pb2.CaptureFrameRequest(
        source=MediaSource(artifact=bench.artifacts.add(clip)),
        position=Duration(seconds=1, nanos=510_000_000),
        image_format=image_format,
        width=160,
    )
    response = await bench.driver.capture_frame(request, bench.context())
    assert (response.media_type, response.width, response.height) == (media_type, 160, 90)
    assert response.position.ToMilliseconds() == pytest.approx(1533, abs=2)
    with av.open(io.BytesIO(response.image)) as container:
        frame = next(container.decode(video=0))
        assert container.streams.video[0].codec_context.codec.canonical_name == codec
        assert (frame.width, frame.height) == (160, 90)


async def test_first_frame_is_the_first(bench: Bench, clip: Path) -> None:
    request = media_pb2.CaptureFrameRequest(
        source=MediaSource(artifact=bench.artifacts.add(clip)), image_format=output_pb2.IMAGE_FORMAT_PNG
    )
    response = await bench.driver.capture_frame(request, bench.context())
    assert response.position.ToMilliseconds() == 0
    with av.open(io.BytesIO(response.image)) as image, av.open(clip) as video:
        got = next(image.decode(video=0)).to_ndarray(format="gray").astype(int)
        wanted = next(video.decode(video=0)).to_ndarray(format="gray").astype(int)
    assert abs(got - wanted).mean() < 2


async def test_no_frame_after_the_end_and_none_in_sound(bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path) -> None:
    late = media_pb2.CaptureFrameRequest(
        source=MediaSource(artifact=bench.artifacts.add(clip)), position=Duration(seconds=99)
    )
    with pytest.raises(errors.DataInvalid) as caught:
        await bench.driver.capture_frame(late, bench.context())
    assert caught.value.violations[0].field == "position"
    sound = make_media(ffmpeg, tmp_path / "a.wav", "-i", str(clip), "-vn")
    mute = media_pb2.CaptureFrameRequest(source=MediaSource(artifact=bench.artifacts.add(sound)))
    with pytest.raises(errors.DataInvalid) as caught:
        await bench.driver.capture_frame(mute, bench.context())
    assert caught.value.violations[0].field == "source"
