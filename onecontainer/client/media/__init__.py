"""The media vertical: look into media, and turn it into other media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onecontainer.api.media.v1 import input_pb2, media_info_pb2, output_pb2, pipeline_pb2, stream_pb2
from onecontainer.api.media.v1 import media_pb2 as pb
from onecontainer.api.media.v1.media_pb2_grpc import MediaServiceStub
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.client.calls import Caller
from onecontainer.client.jobs import AsyncJob, Jobs
from onecontainer.client.names import full_name, seconds

SourceLike = input_pb2.MediaSource | str | Path
"""A MediaSource, an `artifacts/…` name, an http(s) URL, or a path in a folder that the service's operator has allowed."""

IMAGE_FORMATS = {
    "jpeg": output_pb2.IMAGE_FORMAT_JPEG,
    "png": output_pb2.IMAGE_FORMAT_PNG,
    "webp": output_pb2.IMAGE_FORMAT_WEBP,
}


class Media:
    """Calls of MediaService. Each method takes the service first.

    Attributes:
        stub: the generated MediaService stub.
    """

    def __init__(self, caller: Caller, jobs: Jobs) -> None:
        self._caller = caller
        self._jobs = jobs
        self.stub = caller.stub(MediaServiceStub, pb.DESCRIPTOR.services_by_name["MediaService"])

    async def probe(
        self,
        service: str,
        source: SourceLike,
        *,
        format: input_pb2.InputFormat | None = None,  # noqa: A002 - the contract's word
        timeout: float | None = None,
    ) -> media_info_pb2.MediaInfo:
        """What is in a source: container, tracks, chapters, tags."""
        request = pb.ProbeRequest(
            service=full_name("services", service), source=to_source(source), format=format, omit_raw_json=True
        )
        return (await self._caller.unary(self.stub.Probe, request, timeout=timeout)).media_info

    async def capabilities(self, service: str, *, timeout: float | None = None) -> pb.ListCapabilitiesResponse:
        """What the service's build can do, and what of it requests may use."""
        request = pb.ListCapabilitiesRequest(service=full_name("services", service))
        return await self._caller.unary(self.stub.ListCapabilities, request, timeout=timeout)

    async def capture_frame(
        self,
        service: str,
        source: SourceLike,
        *,
        position: float | None = None,
        image_format: str = "jpeg",
        quality: int = 0,
        width: int = 0,
        height: int = 0,
        timeout: float | None = None,
    ) -> pb.CaptureFrameResponse:
        """One frame as a picture: the first at or after `position` seconds."""
        request = pb.CaptureFrameRequest(
            service=full_name("services", service),
            source=to_source(source),
            position=seconds(position),
            image_format=IMAGE_FORMATS[image_format],
            quality=quality,
            width=width,
            height=height,
        )
        return await self._caller.unary(self.stub.CaptureFrame, request, timeout=timeout)

    async def run_pipeline(
        self,
        service: str,
        request: pb.RunPipelineRequest,
        *,
        options: job_options_pb2.JobOptions | None = None,
        timeout: float | None = None,
    ) -> AsyncJob:
        """Runs a pipeline as a job whose result is a RunPipelineResult. See `transcode_request` for a simple one."""
        full = pb.RunPipelineRequest()
        full.CopyFrom(request)
        full.service = full_name("services", service)
        if options is not None:
            full.job_options.CopyFrom(options)
        job = await self._caller.unary(self.stub.RunPipeline, full, timeout=timeout)
        return self._jobs.handle(job)


def to_source(source: SourceLike) -> input_pb2.MediaSource:
    """A MediaSource of what stands for one."""
    if isinstance(source, input_pb2.MediaSource):
        return source
    text = str(source)
    if text.startswith("artifacts/"):
        return input_pb2.MediaSource(artifact=text)
    if text.startswith(("http://", "https://")):
        return input_pb2.MediaSource(url=text)
    return input_pb2.MediaSource(path=text)


def transcode_request(
    source: SourceLike,
    container: str,
    *,
    key: str = "main",
    name: str = "",
    video: stream_pb2.VideoStream | None = None,
    audio: stream_pb2.AudioStream | None = None,
    start: float | None = None,
    duration: float | None = None,
    tags: Mapping[str, str] | None = None,
    limits: pipeline_pb2.PipelineLimits | None = None,
    fast_start: bool = False,
) -> pb.RunPipelineRequest:
    """A pipeline of one source and one file.

    With neither `video` nor `audio` the first track of each is taken, with the container's default codecs; with one of them only
    that one is in the file, with both both (sound only if the source has it). Times are in seconds.
    """
    streams: list[stream_pb2.ElementaryStream] = []
    if video is not None:
        streams.append(stream_pb2.ElementaryStream(key="video", video=video))
    if audio is not None:
        streams.append(stream_pb2.ElementaryStream(key="audio", audio=audio, skip_if_missing=video is not None))
    return pb.RunPipelineRequest(
        inputs=[
            input_pb2.Input(source=to_source(source), start_offset=seconds(start), duration=seconds(duration)),
        ],
        elementary_streams=streams,
        outputs=[
            output_pb2.Output(
                key=key,
                streams=[stream.key for stream in streams],
                file=output_pb2.FileOutput(container=container, name=name, fast_start=fast_start),
                tags=tags or {},
            )
        ],
        limits=limits,
    )


def stream_of(
    info: media_info_pb2.MediaInfo, kind: media_info_pb2.StreamKind.ValueType
) -> media_info_pb2.StreamInfo | None:
    """The first track of a kind. None: there is none."""
    found: Sequence[media_info_pb2.StreamInfo] = [stream for stream in info.streams if stream.kind == kind]
    return found[0] if found else None
