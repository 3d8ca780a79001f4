"""Live sinks, each received by a real receiver on loopback; what it got is read with FFmpeg's libraries."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import av
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.duration_pb2 import Duration
from onecontainer_driver_ffmpeg.targets import live

from drivers.ffmpeg.tests.conftest import Bench, processes_of
from drivers.ffmpeg.tests.test_pipeline import artifact_input, file_output, run, small_video
from onecontainer.api.media.v1 import media_pb2, output_pb2, pipeline_pb2
from onecontainer.api.media.v1.output_pb2 import LiveOutput, Output, RtmpSink, SrtSink, UdpSink
from onecontainer.api.media.v1.stream_pb2 import ElementaryStream
from onecontainer.driver import errors
from tests.fixtures import processes
from tests.fixtures.stalls import stalls

HOST = "127.0.0.1"
PASSPHRASE = "correct horse = battery"
KEY = "a1b2-c3d4?x=1&y={}"


def free_port(kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    return processes.free_port(kind)


def is_bound(port: int, kind: str) -> bool:
    """Whether a process of this machine listens on a port; asking the kernel disturbs no receiver."""
    entries = [line.split() for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return any(entry[1].endswith(f":{port:04X}") and entry[3] in ("07", "0A") for entry in entries)


def is_behind(port: int) -> bool:
    """Whether datagrams wait at a port of this machine."""
    entries = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return any(entry[1].endswith(f":{port:04X}") and int(entry[4].partition(":")[2], 16) for entry in entries)


async def until(happens: Callable[[], object], timeout: float = 180.0) -> None:
    async with asyncio.timeout(timeout):
        while not happens():  # noqa: ASYNC110 - what other processes do raises no event here
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def receiver(
    ffmpeg: str, url: str, made: Path, port: int, kind: str = "udp"
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An ffmpeg that listens at `url` and copies what it gets into a file."""
    command = [ffmpeg, "-nostdin", "-v", "warning", "-y", *(["-listen", "1"] if kind == "tcp" else [])]
    process = await asyncio.create_subprocess_exec(
        *command, "-i", url, "-c", "copy", str(made), stderr=asyncio.subprocess.PIPE
    )
    try:
        await until(lambda: is_bound(port, kind))
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def command_lines(bench: Bench, task: asyncio.Task[Any]) -> bytes:
    """What others see of a stream's processes, as soon as there are any: the stream is a short one, and has none when it is over."""
    seen: list[bytes] = []

    def look() -> bool:
        with contextlib.suppress(OSError):  # it has just ended
            seen[:] = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_of(bench.root)]
        return any(seen)

    await until(lambda: task.done() or look())
    return b"".join(seen)


def live_output(key: str = "live", *streams: str, **sink: Any) -> Output:
    return Output(key=key, streams=streams, live=LiveOutput(**sink))


async def stream(
    bench: Bench, clip: Path, *outputs: Output, extra_plays: int = 0, **fields: Any
) -> pipeline_pb2.RunPipelineResult:
    source = artifact_input(bench.artifacts.add(clip), real_time=True, extra_plays=extra_plays)
    return await run(bench, inputs=[source], outputs=outputs, **fields)


def check_received(path: Path) -> None:
    """Most of the three seconds, in what every player takes."""
    with av.open(path) as container:
        video = container.streams.video[0]
        assert (video.codec_context.name, video.width, video.codec_context.pix_fmt) == ("h264", 320, "yuv420p")
        assert container.streams.audio[0].codec_context.name == "aac"
        frames = list(container.decode(video=0))
        assert len(frames) > 40
        assert sum(frame.key_frame for frame in frames) >= 2  # one every two seconds


async def test_udp(bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path) -> None:
    await bench.attach(sink_hosts=[HOST])
    port = free_port()
    got = tmp_path / "got.ts"
    # It reads from its socket alone, so that what it has not read yet is seen there.
    async with receiver(ffmpeg, f"udp://{HOST}:{port}?fifo_size=0", got, port) as process:
        result = await stream(bench, clip, live_output(udp=UdpSink(host=HOST, port=port)))
        await until(lambda: not is_behind(port))  # what it has not read when it is ended is lost
        process.terminate()  # nothing else tells it that this was all
        await process.wait()
    check_received(got)
    (output,) = result.outputs
    assert output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    assert (output.live_url, list(output.files), list(result.warnings)) == (f"udp://{HOST}:{port}", [], [])
    assert output.media_duration.seconds >= 2
    assert bench.events.declared == [False]
    assert bench.events.details()[-1].outputs[0].size_bytes > 0


@pytest.mark.parametrize("program", ["", "ffmpeg"], ids=["bundled", "debian"])
async def test_srt_caller_with_a_passphrase(
    bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path, program: str
) -> None:
    if program and not shutil.which(program):
        pytest.skip("Debian's ffmpeg is not here: apt-get install ffmpeg")
    await bench.attach(sink_hosts=[HOST], secrets={"tv": PASSPHRASE}, ffmpeg_path=program)
    port = free_port()
    got = tmp_path / "got.ts"
    sink = SrtSink(host=HOST, port=port, stream_id="#!::r=a b,m=publish", passphrase_secret="secrets/tv")
    # The receiver takes the passphrase in the options' form, where it needs no escapes.
    async with receiver(
        ffmpeg, f"srt://{HOST}:{port}?mode=listener&tlpktdrop=0&passphrase={PASSPHRASE}", got, port
    ) as process:
        task = asyncio.create_task(stream(bench, clip, live_output(srt=sink)))
        shown = await command_lines(bench, task)
        result = await task
        await process.wait()
    check_received(got)
    (output,) = result.outputs
    assert output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    assert output.live_url == f"srt://{HOST}:{port}"
    assert "#!::r=a b,m=publish" in output.command
    assert PASSPHRASE not in str(result)
    assert str(port).encode() in shown
    # A build that takes it from nowhere but its command line is told of, and Debian's is none of them.
    told = [warning.field for warning in result.warnings]
    assert told == ["outputs[0].live.srt.passphrase_secret"] * (PASSPHRASE.encode() in shown)
    assert not (program and told)


async def bench_moved(bench: Bench, task: asyncio.Task[Any]) -> None:
    """Until media flows. What keeps it from doing so is raised."""
    await until(lambda: task.done() or bench.events.moved.is_set())
    if task.done():
        await task
        raise AssertionError("ended before anything was seen")


async def test_srt_caller_is_refused_for_its_passphrase(
    bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.attach(sink_hosts=[HOST], secrets={"tv": "another one at that"})
    port = free_port()
    sink = SrtSink(host=HOST, port=port, passphrase_secret="secrets/tv")
    url = f"srt://{HOST}:{port}?mode=listener&passphrase={PASSPHRASE}"
    async with receiver(ffmpeg, url, tmp_path / "got.ts", port):
        with pytest.raises(errors.BackendUnreachable) as caught:
            await stream(bench, clip, live_output(srt=sink))
    assert caught.value.violations[0].field == "outputs[0].live.srt.host"
    assert "another one at that" not in str(caught.value)


async def test_srt_receiver_that_goes_away(bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path) -> None:
    await bench.attach(sink_hosts=[HOST])
    port = free_port()
    url = f"srt://{HOST}:{port}?mode=listener"
    async with receiver(ffmpeg, url, tmp_path / "got.ts", port) as process:
        output = live_output(srt=SrtSink(host=HOST, port=port))
        task = asyncio.create_task(stream(bench, clip, output, extra_plays=100))
        await bench_moved(bench, task)
        process.terminate()
        with pytest.raises(errors.BackendUnreachable) as caught:
            await task
    assert caught.value.violations[0].field == "outputs[0].live.srt.host"


async def test_srt_listener(bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path) -> None:
    await bench.attach(secrets={"tv": PASSPHRASE})
    port = free_port()
    sink = SrtSink(
        port=port,
        mode=output_pb2.SRT_MODE_LISTENER,
        latency=Duration(nanos=200_000_000),
        passphrase_secret="secrets/tv",
    )
    task = asyncio.create_task(stream(bench, clip, live_output(srt=sink)))
    await until(lambda: task.done() or is_bound(port, "udp"))
    got = tmp_path / "got.ts"
    call = [
        ffmpeg,
        "-nostdin",
        "-v",
        "error",
        "-i",
        f"srt://{HOST}:{port}?tlpktdrop=0&passphrase={PASSPHRASE}",
        "-c",
        "copy",
        got,
    ]
    process = await asyncio.create_subprocess_exec(*call)
    assert (await task).outputs[0].state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    await process.wait()
    check_received(got)
    assert not is_bound(port, "udp")


async def test_rtmp_with_a_stream_key(bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path) -> None:
    await bench.attach(sink_hosts=[f"localhost:{(port := free_port(socket.SOCK_STREAM))}"], secrets={"tube": KEY})
    got = tmp_path / "got.flv"
    sink = RtmpSink(host="localhost", port=port, app="live", stream_key_secret="secrets/tube")
    async with receiver(ffmpeg, f"rtmp://{HOST}:{port}/live/{KEY}", got, port, "tcp") as process:
        task = asyncio.create_task(stream(bench, clip, live_output(rtmp=sink)))
        shown = await command_lines(bench, task)
        result = await task
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
        await process.wait()
    check_received(got)
    assert "Unexpected stream" not in said  # what this receiver says of another name than it waits for
    (output,) = result.outputs
    assert output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    assert output.live_url == f"rtmp://localhost:{port}/live"
    assert b"-rtmp_playpath" in shown
    assert KEY.encode() not in shown
    assert KEY not in str(result)
    assert "~" not in " ".join(output.command)


async def test_dead_receivers(bench: Bench, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_CONNECT_TIMEOUT", 3.0)
    await bench.attach(sink_hosts=[HOST])
    open_ends: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: open_ends.append(writer), HOST, 0)
    mute = int(silent.sockets[0].getsockname()[1])
    rtmp = {"host": HOST, "app": "live", "stream_name": "x"}
    async with silent:
        # Silence ends what hears nothing soon enough; where the relay is still to hear of a refusal it would only hide that.
        for sink, silence, field, said in [
            (
                {"rtmp": RtmpSink(port=free_port(socket.SOCK_STREAM), **rtmp)},
                60.0,
                "rtmp.host",
                "refused|Connect call failed",
            ),
            ({"rtmp": RtmpSink(port=mute, **rtmp)}, 3.0, "rtmp.host", "does not answer as RTMP servers do"),
            ({"srt": SrtSink(host=HOST, port=free_port())}, 60.0, "srt.host", "failed"),
        ]:
            monkeypatch.setattr(live, "_SILENCE_TIMEOUT", silence)
            with pytest.raises(errors.BackendUnreachable, match=said) as caught:
                await stream(bench, clip, live_output(**sink))
            assert caught.value.violations[0].field == f"outputs[0].live.{field}"
            assert caught.value.code == errors.Code.UNAVAILABLE
    assert open_ends  # it was there, and said nothing
    for writer in open_ends:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_receiver_that_goes_away_stops_its_own_output_only(
    bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path
) -> None:
    await bench.attach(sink_hosts=[HOST])
    tcp, udp = free_port(socket.SOCK_STREAM), free_port()
    outputs = [
        live_output("tube", rtmp=RtmpSink(host=HOST, port=tcp, app="live", stream_name="x")),
        live_output("tv", udp=UdpSink(host=HOST, port=udp)),
    ]
    outputs[1].duration.seconds = 4
    async with receiver(ffmpeg, f"rtmp://{HOST}:{tcp}/live/x", tmp_path / "got.flv", tcp, "tcp") as process:
        task = asyncio.create_task(stream(bench, clip, *outputs, extra_plays=20))
        await bench_moved(bench, task)
        await until(lambda: bench.events.details()[-1].outputs[0].media_time.seconds >= 1)
        process.kill()
        with pytest.raises(errors.BackendUnreachable) as caught:
            await task
    assert caught.value.violations[0].field == "outputs[0].live.rtmp.host"
    states = [output.state for output in bench.events.details()[-1].outputs]
    assert states == [pipeline_pb2.OUTPUT_STATE_FAILED, pipeline_pb2.OUTPUT_STATE_SUCCEEDED]


@pytest.mark.parametrize("finish", [True, False], ids=["finish", "abort"])
async def test_a_stream_without_end_is_ended(
    bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path, finish: bool
) -> None:
    """FINISH and ABORT: the processes are gone and the port is free."""
    await bench.attach(sink_hosts=[HOST])
    waiting, port = free_port(), free_port()
    listener = SrtSink(port=waiting, mode=output_pb2.SRT_MODE_LISTENER)
    outputs = [live_output("sent", udp=UdpSink(host=HOST, port=port)), live_output("waiting", srt=listener)]
    inputs = [artifact_input(bench.artifacts.add(clip), loop_forever=True, real_time=True)]
    context = bench.context()
    request = media_pb2.RunPipelineRequest(service="services/media", inputs=inputs, outputs=outputs)
    task = asyncio.create_task(bench.driver.run_pipeline(request, context))
    await bench_moved(bench, task)
    await until(lambda: task.done() or is_bound(waiting, "udp"))
    assert len(processes_of(bench.root)) == 2
    with stalls() as still:
        started = asyncio.get_running_loop().time()
        if finish:
            context._finish()
            result = await task
            sent, never = result.outputs
            assert (sent.state, sent.ended_early) == (pipeline_pb2.OUTPUT_STATE_SUCCEEDED, True)
            assert never.state == pipeline_pb2.OUTPUT_STATE_CANCELLED  # its receiver never came
            assert result.ended_early
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        took = asyncio.get_running_loop().time() - started - still.seconds
    # Far less than the time that files get to be ended.
    assert took < 15
    assert processes_of(bench.root) == []
    assert not is_bound(waiting, "udp")


async def test_a_file_that_is_not_in_real_time_is_told_of(bench: Bench, clip: Path) -> None:
    await bench.attach(sink_hosts=[HOST])
    output = live_output(udp=UdpSink(host=HOST, port=free_port()))
    result = await run(bench, inputs=[artifact_input(bench.artifacts.add(clip))], outputs=[output], validate_only=True)
    assert [warning.field for warning in result.warnings] == ["inputs[0].real_time"]
    assert result.outputs[0].state == pipeline_pb2.OUTPUT_STATE_VALIDATED
    assert bench.events.declared == []  # nothing was sent


async def test_multicast_has_its_time_to_live(bench: Bench, clip: Path) -> None:
    await bench.attach(sink_hosts=["239.255.7.7:5000"])
    for ttl, told in [(0, "ttl=1"), (9, "ttl=9")]:
        output = live_output(udp=UdpSink(host="239.255.7.7", port=5000, multicast_ttl=ttl))
        result = await stream(bench, clip, output, validate_only=True)
        assert result.outputs[0].command[-1] == f"udp://239.255.7.7:5000?pkt_size=1316&{told}"


UDP, SRT, RTMP = {"host": HOST, "port": 5000}, {"host": HOST, "port": 5000}, {"host": HOST, "app": "live"}
NAMED = RTMP | {"stream_name": "x"}
REFUSED: list[tuple[str, type[errors.OneContainerError], dict[str, Any]]] = [
    ("live.udp", errors.FieldRequired, {}),
    ("live.udp.host", errors.FieldRequired, {"udp": UdpSink(port=5000)}),
    ("live.udp.host", errors.SourceNotAllowed, {"udp": UdpSink(host="192.0.2.1", port=5000)}),
    ("live.udp.host", errors.SourceNotAllowed, {"udp": UdpSink(host="239.1.1.1", port=5000)}),
    ("live.udp.host", errors.FieldInvalid, {"udp": UdpSink(host=f"{HOST}:1?localport=9&x=", port=5000)}),
    ("live.udp.port", errors.FieldInvalid, {"udp": UdpSink(host=HOST, port=53)}),
    ("live.udp.port", errors.FieldInvalid, {"udp": UdpSink(host=HOST, port=65536)}),
    ("live.udp.multicast_ttl", errors.FieldInvalid, {"udp": UdpSink(**UDP, multicast_ttl=256)}),
    ("live.srt.host", errors.FieldRequired, {"srt": SrtSink(port=5000)}),
    ("live.srt.port", errors.FieldInvalid, {"srt": SrtSink(host=HOST)}),
    ("live.srt.host", errors.SourceNotAllowed, {"srt": SrtSink(host="192.0.2.1", port=5000)}),
    ("live.srt.host", errors.SourceNotAllowed, {"srt": SrtSink(host="0.0.0.0", port=5000, mode=output_pb2.SRT_MODE_LISTENER)}),
    ("live.srt.latency", errors.FieldInvalid, {"srt": SrtSink(**SRT, latency=Duration(nanos=19_000_000))}),
    ("live.srt.latency", errors.FieldInvalid, {"srt": SrtSink(**SRT, latency=Duration(seconds=9))}),
    ("live.srt.stream_id", errors.FieldInvalid, {"srt": SrtSink(**SRT, stream_id="x" * 513)}),
    ("live.srt.stream_id", errors.FieldInvalid, {"srt": SrtSink(**SRT, stream_id="a\nb")}),
    ("live.srt.passphrase_secret", errors.FieldInvalid, {"srt": SrtSink(**SRT, passphrase_secret="tv")}),
    ("live.srt.passphrase_secret", errors.SourceNotAllowed, {"srt": SrtSink(**SRT, passphrase_secret="secrets/other")}),
    ("live.srt.passphrase_secret", errors.FieldInvalid, {"srt": SrtSink(**SRT, passphrase_secret="secrets/short")}),
    ("live.rtmp.host", errors.SourceNotAllowed, {"rtmp": RtmpSink(**NAMED | {"host": "192.0.2.1"})}),
    ("live.rtmp.port", errors.FieldInvalid, {"rtmp": RtmpSink(**NAMED, port=-1)}),
    ("live.rtmp.app", errors.FieldRequired, {"rtmp": RtmpSink(host=HOST, stream_name="x")}),
    ("live.rtmp.app", errors.FieldInvalid, {"rtmp": RtmpSink(**NAMED | {"app": "a/b"})}),
    ("live.rtmp.stream_name", errors.FieldRequired, {"rtmp": RtmpSink(**RTMP)}),
    ("live.rtmp.stream_name", errors.FieldInvalid, {"rtmp": RtmpSink(**RTMP, stream_name="x swfUrl=y")}),
    ("live.rtmp.stream_key_secret", errors.SourceNotAllowed, {"rtmp": RtmpSink(**RTMP, stream_key_secret="secrets/no")}),
    ("live.rtmp.stream_key_secret", errors.FieldInvalid, {"rtmp": RtmpSink(**RTMP, stream_key_secret="secrets/blank")}),
]  # fmt: skip


async def test_what_is_refused_before_anything_runs(bench: Bench, clip: Path) -> None:
    await bench.attach(sink_hosts=[HOST], secrets={"short": "ten chars", "blank": "has a blank"})
    source = artifact_input(bench.artifacts.add(clip), real_time=True)
    for field, error, sink in REFUSED:
        with pytest.raises(error) as caught:
            await run(bench, inputs=[source], outputs=[live_output(**sink)])
        assert caught.value.violations[0].field == f"outputs[0].{field}", sink
    kept = live_output(udp=UdpSink(**UDP))
    kept.uploads.add().s3.bucket = "films"
    with pytest.raises(errors.FieldInvalid) as caught:
        await run(bench, inputs=[source], outputs=[kept])
    assert caught.value.violations[0].field == "outputs[0].uploads"
    nothing_allowed = live_output(udp=UdpSink(**UDP))
    await bench.attach(sink_hosts=[])
    with pytest.raises(errors.SourceNotAllowed, match="sink_hosts"):
        await run(bench, inputs=[source], outputs=[nothing_allowed])
    assert bench.events.declared == []


async def test_streams_that_do_not_fit(bench: Bench, clip: Path) -> None:
    await bench.attach(sink_hosts=[HOST])
    source = artifact_input(bench.artifacts.add(clip), real_time=True)
    two = [ElementaryStream(key=key, video=small_video()) for key in ("a", "b")]
    with pytest.raises(errors.FieldInvalid) as caught:
        await run(
            bench, inputs=[source], elementary_streams=two, outputs=[live_output("x", "a", "b", rtmp=RtmpSink(**NAMED))]
        )
    assert caught.value.violations[0].field == "outputs[0].streams[1]"
    with pytest.raises(errors.LimitExceeded, match=r"outputs\[2\]\.live"):
        await run(bench, inputs=[source], outputs=[live_output(f"o{n}", udp=UdpSink(**UDP)) for n in range(3)])
    endless = artifact_input(bench.artifacts.add(clip), loop_forever=True)
    with pytest.raises(errors.FieldRequired) as missing:
        await run(bench, inputs=[endless], outputs=[live_output(udp=UdpSink(**UDP)), file_output("f", "mp4")])
    assert missing.value.violations[0].field == "inputs[0].duration"


async def test_a_build_without_a_protocol(bench: Bench, clip: Path) -> None:
    await bench.attach(sink_hosts=[HOST])
    listed = await bench.driver.list_capabilities(media_pb2.ListCapabilitiesRequest(), bench.context())
    assert "live" in listed.targets
    known = {one.name: one for one in listed.protocols}
    assert all(known[name].output and known[name].allowed for name in ("udp", "srt", "rtmp"))
    runner = await bench.driver._attached()
    runner.capabilities.output_protocols -= {"srt"}
    listed = await bench.driver.list_capabilities(media_pb2.ListCapabilitiesRequest(), bench.context())
    known = {one.name: one for one in listed.protocols}
    assert not known["srt"].output
    assert not known["srt"].allowed
    with pytest.raises(errors.BackendCapabilityMissing, match="ffmpeg_path") as caught:
        await stream(bench, clip, live_output(srt=SrtSink(**SRT)))
    assert caught.value.violations[0].field == "outputs[0].live.srt"


async def test_a_port_that_is_taken(bench: Bench, clip: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind((HOST, 0))
        sink = SrtSink(port=taken.getsockname()[1], mode=output_pb2.SRT_MODE_LISTENER)
        with pytest.raises(errors.ResourceConflict, match=r"outputs\[0\]\.live\.srt\.port"):
            await stream(bench, clip, live_output(srt=sink))


class TlsFront:
    """A TLS server for `localhost` in front of an RTMP server that has none."""

    def __init__(self, folder: Path, behind: int) -> None:
        self._folder, self._behind = folder, behind
        self.authority = folder / "authority.pem"

    def _context(self) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = self._folder / "key.pem"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.authority, private)
        return context

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, forward = await asyncio.open_connection(HOST, self._behind)
            await asyncio.gather(copy(reader, forward), copy(back, writer))

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with contextlib.suppress(OSError):
                    while data := await reader.read(65536):
                        writer.write(data)
                        await writer.drain()
            finally:  # also if the loop ends before the other side's end is heard
                writer.close()

        server = await asyncio.start_server(serve, HOST, 0, ssl=self._context())
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()


async def test_rtmp_over_tls(
    bench: Bench, clip: Path, ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's certificate is verified, by the name in the request and not by the address behind it."""
    await bench.attach(sink_hosts=["localhost", HOST], secrets={"tube": KEY})
    behind = free_port(socket.SOCK_STREAM)
    got = tmp_path / "got.flv"
    front = TlsFront(tmp_path, behind)
    async with front.running() as port:

        def output(host: str) -> Output:
            return live_output(
                rtmp=RtmpSink(host=host, port=port, app="live", stream_key_secret="secrets/tube", tls=True)
            )

        with pytest.raises(errors.BackendUnreachable, match="certificate verify failed"):
            await stream(bench, clip, output("localhost"))
        monkeypatch.setenv("SSL_CERT_FILE", str(front.authority))
        with pytest.raises(errors.BackendUnreachable, match="certificate verify failed"):
            await stream(bench, clip, output(HOST))
        async with receiver(ffmpeg, f"rtmp://{HOST}:{behind}/live/{KEY}", got, behind, "tcp") as process:
            result = await stream(bench, clip, output("localhost"))
            await process.wait()
    check_received(got)
    assert result.outputs[0].live_url == f"rtmps://localhost:{port}/live"
