"""What the gateway calls: messages in, messages out."""

from __future__ import annotations

import asyncio
import io
import tempfile
import wave
from pathlib import Path

from onecontainer.api.media.v1 import capabilities_pb2, input_pb2, media_info_pb2
from onecontainer.api.media.v1 import media_pb2 as pb
from onecontainer.driver import Attachment, Context, MediaDriver, ProbeResult, errors
from onecontainer_driver_scaffold_name import wav

LAYOUTS = {1: "mono", 2: "stereo"}


class ScaffoldNameDriver(MediaDriver):
    """Looks into WAV files."""

    _max_bytes: int | None = None

    def attach(self, attachment: Attachment) -> None:
        limit = attachment.options["max_bytes"]
        if limit < 1:
            raise errors.FieldInvalid("options.max_bytes", "must be at least 1")
        self._max_bytes = limit

    def detach(self) -> None:
        self._max_bytes = None

    def probe(self) -> ProbeResult:
        """Whether the backend works: it is tried. (`MediaService.Probe` is `probe_media`.)"""
        content = io.BytesIO()
        with wave.open(content, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(bytes(16))
        with tempfile.NamedTemporaryFile() as file_on_disk:
            path = Path(file_on_disk.name)
            path.write_bytes(content.getvalue())
            if wav.look_into(path).frames != 8:
                raise errors.BackendExecutionFailed("the reader does not read what the writer wrote")
        return ProbeResult(ready=True, backend_version=wav.VERSION)

    async def probe_media(self, request: pb.ProbeRequest, context: Context) -> pb.ProbeResponse:
        _check(request)
        artifact = await context.artifacts.get(request.source.artifact)
        if self._max_bytes is None:
            raise errors.NotAttached("the driver is not attached to a service")
        if artifact.size_bytes > self._max_bytes:
            raise errors.LimitExceeded(f"{artifact.name} has {artifact.size_bytes} bytes, more than {self._max_bytes}")
        path = context.scratch / "medium.wav"
        await context.artifacts.fetch(artifact.name, path)
        try:
            # Reading a file blocks, so it is done in a thread.
            facts = await asyncio.to_thread(wav.look_into, path)
        except wav.NotWav as error:
            raise errors.DataInvalid("source.artifact", str(error)) from error
        return pb.ProbeResponse(media_info=media_info(facts))

    def list_capabilities(self, request: pb.ListCapabilitiesRequest, context: Context) -> pb.ListCapabilitiesResponse:
        return pb.ListCapabilitiesResponse(
            version=wav.VERSION,
            codecs=[
                capabilities_pb2.CodecCapability(
                    name=name,
                    description=f"PCM, {width * 8} bits",
                    kind=media_info_pb2.STREAM_KIND_AUDIO,
                    decoders=[name],
                )
                for width, name in sorted(wav.CODECS.items(), key=lambda pair: pair[1])
            ],
            formats=[
                capabilities_pb2.FormatCapability(name="wav", description="WAVE", demuxer=True, input_allowed=True)
            ],
        )


def _check(request: pb.ProbeRequest) -> None:
    kind = request.source.WhichOneof("source")
    if kind is None:
        raise errors.FieldRequired("source")
    if kind != "artifact":
        raise errors.SourceNotAllowed(
            f"source.{kind}", "is not read by this driver: upload the file, and give its artifact"
        )
    if not request.source.artifact:
        raise errors.FieldRequired("source.artifact")
    if request.format.WhichOneof("format") is not None and request.format != input_pb2.InputFormat(demuxer="wav"):
        raise errors.FieldInvalid("format", "must be absent, or the demuxer `wav`")


def media_info(facts: wav.Facts) -> media_info_pb2.MediaInfo:
    """The facts as a message."""
    info = media_info_pb2.MediaInfo(prober=wav.VERSION)
    info.format.name, info.format.long_name = "wav", "WAVE"
    info.format.size_bytes, info.format.bitrate = facts.size_bytes, facts.bitrate
    info.format.duration.FromNanoseconds(round(facts.seconds * 1e9))
    track = info.streams.add(
        kind=media_info_pb2.STREAM_KIND_AUDIO, codec=facts.codec, bitrate=facts.bitrate, frame_count=facts.frames
    )
    track.duration.CopyFrom(info.format.duration)
    track.audio.sample_rate, track.audio.channels = facts.sample_rate, facts.channels
    track.audio.bits_per_sample = facts.sample_bytes * 8
    track.audio.channel_layout = LAYOUTS.get(facts.channels, "")
    return info
