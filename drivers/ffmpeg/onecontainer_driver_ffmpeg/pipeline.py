"""Runs a pipeline: opens the sources, plans, and leaves the rest to `pipeline_run.py`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.driver import Context
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.egress import EgressGuard, egress_guard
from onecontainer_driver_ffmpeg.pipeline_run import PipelineRun
from onecontainer_driver_ffmpeg.plan import BoundInput, bind_output, draft_outputs
from onecontainer_driver_ffmpeg.prober import Prober
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.sources import OpenedSource
from onecontainer_driver_ffmpeg.storing import folder_bytes
from onecontainer_driver_ffmpeg.targets.live import check_lives


@dataclass
class PipelineRunner:
    """Runs the pipelines of one service; at most `settings.processes` ffmpeg processes at a time over all of them."""

    capabilities: Capabilities
    settings: Settings
    prober: Prober
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.settings.processes)

    async def run(self, request: media_pb2.RunPipelineRequest, context: Context) -> pipeline_pb2.RunPipelineResult:
        """The handler of RunPipeline. If all outputs are only artifacts, an attempt may be run again; else it says that it may not."""
        drafts = await draft_outputs(request, self.capabilities, self.settings)
        advice = check_lives(request, self.settings)
        folder = context.scratch
        async with self._open_inputs(request, context) as (inputs, guard):
            plans = [
                bind_output(
                    draft,
                    inputs,
                    folder=folder,
                    capabilities=self.capabilities,
                    settings=self.settings,
                    limits=request.limits,
                )
                for draft in drafts
            ]
            warnings = advice + [
                pipeline_pb2.Warning(field=where, message=text)
                for where, text in dict.fromkeys(
                    warning for draft in drafts for _, stream in draft.streams for warning in stream.warnings
                )
            ]
            if request.validate_only:
                outputs = [
                    pipeline_pb2.OutputResult(
                        key=plan.key,
                        state=pipeline_pb2.OUTPUT_STATE_VALIDATED,
                        command=plan.shown,
                        streams=plan.streams,
                        live_url=plan.written.live_url,
                    )
                    for plan in plans
                ]
                return pipeline_pb2.RunPipelineResult(outputs=outputs, warnings=warnings, validated_only=True)
            if any(plan.uploads or not plan.target.makes_files for plan in plans):
                await context.declare(idempotent=False)
            copies = await asyncio.to_thread(folder_bytes, folder)
            run = PipelineRun(
                settings=self.settings,
                room=max(self.settings.max_scratch_bytes - copies, 1),
                prober=self.prober,
                slots=self._slots,
                request=request,
                context=context,
                plans=plans,
                inputs=inputs,
                guard=guard,
            )
            await run.all()
        result = pipeline_pb2.RunPipelineResult(
            outputs=[output.result for output in run.outputs],
            warnings=[*warnings, *run.warnings],
            ended_early=run.finishing,
        )
        run.raise_failures(result)
        return result

    @contextlib.asynccontextmanager
    async def _open_inputs(
        self, request: media_pb2.RunPipelineRequest, context: Context
    ) -> AsyncIterator[tuple[list[BoundInput], EgressGuard | None]]:
        folder = context.scratch
        opened: dict[bytes, OpenedSource] = {}
        sources = []
        async with contextlib.AsyncExitStack() as stack:
            guard = None
            for index, one in enumerate(request.inputs):
                # The same source twice is fetched once.
                same = (
                    one.source.SerializeToString(deterministic=True)
                    + b"|"
                    + one.format.SerializeToString(deterministic=True)
                )
                if same not in opened:
                    context.progress(0.0, message=f"opening input {index}")
                    opened[same] = await self.settings.sources.open(
                        one.source,
                        one.format,
                        at=f"inputs[{index}].",
                        copy=folder / f"input{index}",
                        artifacts=context.artifacts if one.source.WhichOneof("source") == "artifact" else None,
                        capabilities=self.capabilities,
                        room=max(self.settings.max_scratch_bytes - await asyncio.to_thread(folder_bytes, folder), 1),
                    )
                sources.append(opened[same])
            if any(source.http for source in sources):
                guard = await stack.enter_async_context(egress_guard(self.settings.sources.hosts))
            inputs = [
                BoundInput(
                    one,
                    source,
                    await self.prober.probe(source, at=f"inputs[{index}].source", folder=folder, guard=guard),
                )
                for index, (one, source) in enumerate(zip(request.inputs, sources, strict=True))
            ]
            yield inputs, guard
