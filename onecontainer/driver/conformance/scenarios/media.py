"""MediaService: a small clip that the kit makes itself, without a compressor; for who reads no pictures, silence."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator

from google.protobuf.message import Message

from onecontainer.api.media.v1 import input_pb2, output_pb2, pipeline_pb2
from onecontainer.api.media.v1 import media_pb2 as pb
from onecontainer.driver.conformance.expect import refused, require
from onecontainer.driver.conformance.model import Skipped
from onecontainer.driver.conformance.scenarios.work import Work, Works
from onecontainer.driver.conformance.session import SERVICE, Sample, Session, Slow
from onecontainer.errors import Code, Reason
from onecontainer.rpc.status import duration

NAME = "onecontainer.api.media.v1.MediaService"
WIDTH, HEIGHT, RATE = 64, 48, 10
SECONDS, LONG_SECONDS = 2, 60
SAMPLE_RATE = 8000
PICTURES, SOUND = "yuv4mpegpipe", "wav"
"""Formats of what the kit makes, as FFmpeg calls them."""
CONTAINERS = ("mp4", "mkv", "webm", "avi")


def clip(seconds: int) -> bytes:
    """YUV4MPEG2, 4:2:0: each second has another brightness, so that frames can be told apart."""
    chunks = [f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F{RATE}:1 Ip A1:1 C420jpeg\n".encode()]
    chroma = bytes([128]) * (WIDTH * HEIGHT // 2)
    for frame in range(seconds * RATE):
        brightness = 16 + (frame // RATE * 40 + frame % RATE) % 200
        chunks += [b"FRAME\n", bytes([brightness]) * (WIDTH * HEIGHT), chroma]
    return b"".join(chunks)


def silence(seconds: int) -> bytes:
    """A WAV file, of one channel."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(bytes(2 * SAMPLE_RATE * seconds))
    return content.getvalue()


class Media:
    """The works of a MediaService."""

    def __init__(self) -> None:
        self._artifact = ""

    def works(self) -> Works:
        return {
            f"{NAME}/{method}": Work(run)
            for method, run in (
                ("ListCapabilities", self.capabilities),
                ("Probe", self.probe),
                ("CaptureFrame", self.capture),
                ("RunPipeline", self.pipeline),
            )
        }

    def _source(self, session: Session) -> input_pb2.MediaSource:
        if not self._artifact:
            self._artifact = session.desk.keep(clip(SECONDS), "kit.y4m", "video/x-yuv4mpeg")
        return input_pb2.MediaSource(artifact=self._artifact)

    async def capabilities(self, session: Session) -> None:
        request = pb.ListCapabilitiesRequest(service=SERVICE)
        answer = await session.one_as(f"{NAME}/ListCapabilities", request, pb.ListCapabilitiesResponse)
        require(answer.version, "ListCapabilities", "no version")
        if session.claims(f"{NAME}/RunPipeline"):
            require(answer.targets, "ListCapabilities of a driver with RunPipeline", "no targets")
        session.samples.append(Sample(session.contract[f"{NAME}/ListCapabilities"], request))

    async def probe(self, session: Session) -> None:
        kind = await self._readable(session)
        source = self._source(session) if kind == PICTURES else self._sound(session)
        request = pb.ProbeRequest(service=SERVICE, source=source, omit_raw_json=True)
        answer = await session.one_as(f"{NAME}/Probe", request, pb.ProbeResponse)
        streams = answer.media_info.streams
        if kind == PICTURES:
            sizes = [(stream.video.width, stream.video.height) for stream in streams]
            wanted = [(WIDTH, HEIGHT)]
            require(sizes == wanted, "Probe of a clip", f"tracks of the sizes {sizes}, not {wanted}")
        else:
            rates = [(stream.audio.sample_rate, stream.audio.channels) for stream in streams]
            require(rates == [(SAMPLE_RATE, 1)], "Probe of a WAV file", f"{rates}, not {[(SAMPLE_RATE, 1)]}")
        broken = session.desk.keep(b"this is no media", "text.txt", "text/plain")
        wrong = pb.ProbeRequest(service=SERVICE, source=input_pb2.MediaSource(artifact=broken))
        refused(
            await session.call(f"{NAME}/Probe", wrong), "Probe of a text", Code.INVALID_ARGUMENT, Reason.DATA_INVALID
        )
        missing = pb.ProbeRequest(service=SERVICE, source=input_pb2.MediaSource(artifact="artifacts/none"))
        answer_missing = await session.call(f"{NAME}/Probe", missing)
        refused(answer_missing, "Probe of an artifact that is not there", Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)
        session.samples.append(Sample(session.contract[f"{NAME}/Probe"], request))

    async def capture(self, session: Session) -> None:
        method = session.contract[f"{NAME}/CaptureFrame"]
        pictures = set()
        for position in (0, 1):
            request = pb.CaptureFrameRequest(
                service=SERVICE, source=self._source(session), position=duration(position), width=WIDTH
            )
            answer = await session.one_as(method.name, request, pb.CaptureFrameResponse)
            sent = f"CaptureFrame at {position} s"
            require(answer.image.startswith(b"\xff\xd8"), sent, f"no JPEG, but {answer.image[:8]!r}")
            require(answer.width == WIDTH, sent, f"a width of {answer.width} instead of {WIDTH}")
            pictures.add(answer.image)
            session.samples.append(Sample(method, request))
        require(len(pictures) == 2, "CaptureFrame at 0 s and at 1 s", "the same picture")

    async def pipeline(self, session: Session) -> None:
        method = session.contract[f"{NAME}/RunPipeline"]
        container = await self._container(session)
        output = output_pb2.Output(key="clip", file=output_pb2.FileOutput(container=container))
        request = pb.RunPipelineRequest(
            service=SERVICE, inputs=[input_pb2.Input(source=self._source(session))], outputs=[output]
        )
        sent = f"RunPipeline of a clip of {SECONDS} s to {container}"
        result = pipeline_pb2.RunPipelineResult.FromString((await session.result(method, request)).SerializeToString())
        states = [pipeline_pb2.OutputState.Name(one.state) for one in result.outputs]
        require(states == ["OUTPUT_STATE_SUCCEEDED"], sent, f"outputs {states}")
        files = list(_files(result))
        sizes = [len(session.desk.artifacts[name][1]) if name in session.desk.artifacts else 0 for name in files]
        require(sizes and all(sizes), sent, f"the artifacts {files} of {sizes} bytes")
        session.jobs.append((method, request))
        long_source = session.desk.keep(clip(LONG_SECONDS), "long.y4m", "video/x-yuv4mpeg")
        long_input = input_pb2.Input(source=input_pb2.MediaSource(artifact=long_source), real_time=True)
        session.slow.append(Slow(method, pb.RunPipelineRequest(service=SERVICE, inputs=[long_input], outputs=[output])))

    def _sound(self, session: Session) -> input_pb2.MediaSource:
        return input_pb2.MediaSource(artifact=session.desk.keep(silence(SECONDS), "kit.wav", "audio/wav"))

    async def _readable(self, session: Session) -> str:
        """What of the kit's own the driver reads; pictures if it does not tell. Raises Skipped if it is none."""
        name = f"{NAME}/ListCapabilities"
        if not session.claims(name):
            return PICTURES
        answer = await session.one_as(name, pb.ListCapabilitiesRequest(service=SERVICE), pb.ListCapabilitiesResponse)
        formats = {one.name for one in answer.formats if one.demuxer and one.input_allowed}
        found = next((kind for kind in (PICTURES, SOUND) if kind in formats), "")
        if formats and not found:
            raise Skipped(f"it reads neither {PICTURES} nor {SOUND}; give --examples with a Probe")
        return found or PICTURES

    async def _container(self, session: Session) -> str:
        """A container that the driver can write."""
        name = f"{NAME}/ListCapabilities"
        if not session.claims(name):
            return CONTAINERS[0]
        answer = await session.one_as(name, pb.ListCapabilitiesRequest(service=SERVICE), pb.ListCapabilitiesResponse)
        there = {container.name for container in answer.containers}
        return next((container for container in CONTAINERS if container in there), CONTAINERS[0])


def _files(result: Message) -> Iterator[str]:
    told = pipeline_pb2.RunPipelineResult.FromString(result.SerializeToString())
    for output in told.outputs:
        for file in output.files:
            yield file.artifact
