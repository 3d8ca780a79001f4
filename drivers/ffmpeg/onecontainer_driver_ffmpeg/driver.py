"""The driver: media through ffmpeg."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable

from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.api.media.v1.input_pb2 import InputFormat, MediaSource
from onecontainer.driver import Attachment, Context, MediaDriver, ProbeResult, errors
from onecontainer_driver_ffmpeg.binaries import find_ffmpeg, find_ffprobe
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.capabilities_list import list_capabilities
from onecontainer_driver_ffmpeg.capture import capture_frame
from onecontainer_driver_ffmpeg.egress import EgressGuard, egress_guard
from onecontainer_driver_ffmpeg.pipeline import PipelineRunner
from onecontainer_driver_ffmpeg.prober import Prober
from onecontainer_driver_ffmpeg.process import run
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.sources import OpenedSource


class FfmpegDriver(MediaDriver):
    """Each call runs its own processes; between calls the driver keeps what it read from the ffmpeg binary, and a process that has
    FFmpeg's libraries for probes (`probe_server.py`)."""

    def __init__(self) -> None:
        self._load: Callable[[], Awaitable[PipelineRunner]] | None = None
        self._loading = asyncio.Lock()
        self._runner: PipelineRunner | None = None

    async def attach(self, attachment: Attachment) -> None:
        settings = Settings.from_options(attachment.options)
        ffmpeg, ffprobe = find_ffmpeg(settings.ffmpeg_path), find_ffprobe(settings.ffprobe_path)

        async def load() -> PipelineRunner:
            capabilities = await Capabilities.load(ffmpeg, attachment.state_dir)
            return PipelineRunner(capabilities, settings, Prober(ffprobe, capabilities))

        self._load, self._runner = load, None

    async def detach(self) -> None:
        self._load = self._runner = None

    async def probe(self) -> ProbeResult:
        runner = await self._attached()
        try:
            finished = await run(
                [runner.capabilities.ffmpeg, "-version"], folder=runner.capabilities.folder, timeout=10.0
            )
        except (OSError, TimeoutError) as error:
            raise errors.BackendUnreachable(f"ffmpeg does not start: {str(error) or 'no answer in 10 s'}") from error
        if finished.return_code != 0:
            raise errors.BackendExecutionFailed(
                f"ffmpeg -version ended with {finished.return_code}: {' | '.join(finished.last_lines)}"
            )
        free = shutil.disk_usage(runner.capabilities.folder).free
        return ProbeResult(
            ready=True, backend_version=runner.capabilities.version, details={"free_disk_bytes": str(free)}
        )

    async def probe_media(self, request: media_pb2.ProbeRequest, context: Context) -> media_pb2.ProbeResponse:
        runner = await self._attached()
        async with self._opened(request.source, request.format, context) as (source, guard):
            info = await runner.prober.probe(
                source, at="source", folder=context.scratch, guard=guard, with_raw=not request.omit_raw_json
            )
        return media_pb2.ProbeResponse(media_info=info)

    async def list_capabilities(
        self, request: media_pb2.ListCapabilitiesRequest, context: Context
    ) -> media_pb2.ListCapabilitiesResponse:
        runner = await self._attached()
        return await list_capabilities(runner.capabilities, runner.settings)

    async def run_pipeline(
        self, request: media_pb2.RunPipelineRequest, context: Context
    ) -> pipeline_pb2.RunPipelineResult:
        runner = await self._attached()
        return await runner.run(request, context)

    async def capture_frame(
        self, request: media_pb2.CaptureFrameRequest, context: Context
    ) -> media_pb2.CaptureFrameResponse:
        runner = await self._attached()
        async with self._opened(request.source, request.format, context) as (source, guard):
            return await capture_frame(
                request,
                source,
                folder=context.scratch,
                guard=guard,
                capabilities=runner.capabilities,
                settings=runner.settings,
                prober=runner.prober,
            )

    async def _attached(self) -> PipelineRunner:
        """With what the ffmpeg binary says of itself, which is asked when it is first needed: Attach does not wait for it."""
        async with self._loading:
            if self._load is None:
                raise errors.NotAttached()
            if self._runner is None:
                self._runner = await self._load()
            return self._runner

    @contextlib.asynccontextmanager
    async def _opened(
        self, source: MediaSource, source_format: InputFormat, context: Context
    ) -> AsyncIterator[tuple[OpenedSource, EgressGuard | None]]:
        runner = await self._attached()
        opened = await runner.settings.sources.open(
            source,
            source_format,
            at="",
            copy=context.scratch / "input",
            artifacts=context.artifacts if source.WhichOneof("source") == "artifact" else None,
            capabilities=runner.capabilities,
        )
        async with contextlib.AsyncExitStack() as stack:
            guard = (
                await stack.enter_async_context(egress_guard(runner.settings.sources.hosts)) if opened.http else None
            )
            yield opened, guard
