"""Runs a pipeline: opens the sources, plans, runs one process per output, stores what they made."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.driver import Context, errors, to_status
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.egress import EgressGuard, egress_guard
from onecontainer_driver_ffmpeg.failures import complaints, process_failure, too_large
from onecontainer_driver_ffmpeg.media_info import to_duration
from onecontainer_driver_ffmpeg.plan import BoundInput, OutputPlan, bind_output, draft_outputs
from onecontainer_driver_ffmpeg.prober import Prober, failure
from onecontainer_driver_ffmpeg.process import Bounds, Child, running_child
from onecontainer_driver_ffmpeg.progress import OutputMeter, PipelineMeter, ProgressReader
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.sources import OpenedSource

# How long ffmpeg gets to write the end of a file after CancelJob with mode FINISH.
_FINISH_GRACE = 20.0
_INTERRUPTED = 255


@dataclass
class _Output:
    plan: OutputPlan
    meter: OutputMeter
    result: pipeline_pb2.OutputResult
    error: errors.OneContainerError | None = None
    over_size: bool = False

    def end(self, state: pipeline_pb2.OutputState.ValueType, error: errors.OneContainerError | None = None) -> None:
        self.error = error
        self.result.state = state
        self.meter.end(state)
        if error:
            self.result.error.CopyFrom(to_status(error))


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
        """The handler of RunPipeline. All outputs are artifacts, so an attempt may be run again."""
        drafts = await draft_outputs(request, self.capabilities)
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
            warnings = [
                pipeline_pb2.Warning(field=where, message=text)
                for where, text in dict.fromkeys(
                    warning for draft in drafts for stream in draft.streams for warning in stream.warnings
                )
            ]
            if request.validate_only:
                outputs = [
                    pipeline_pb2.OutputResult(
                        key=plan.key,
                        state=pipeline_pb2.OUTPUT_STATE_VALIDATED,
                        command=plan.shown,
                        streams=plan.streams,
                    )
                    for plan in plans
                ]
                return pipeline_pb2.RunPipelineResult(outputs=outputs, warnings=warnings, validated_only=True)
            run = _Run(self, request, context, plans, inputs, guard)
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
                )
            sources.append(opened[same])
        async with contextlib.AsyncExitStack() as stack:
            guard = None
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


class _Run:
    """One pipeline under way."""

    def __init__(
        self,
        runner: PipelineRunner,
        request: media_pb2.RunPipelineRequest,
        context: Context,
        plans: Sequence[OutputPlan],
        inputs: Sequence[BoundInput],
        guard: EgressGuard | None,
    ) -> None:
        self._runner = runner
        self._request = request
        self._context = context
        self._inputs = inputs
        self._guard = guard
        self._folder = context.scratch
        self._children: set[Child] = set()
        self._stopping = False
        self.finishing = False
        self.warnings: list[pipeline_pb2.Warning] = []
        clock = asyncio.get_running_loop().time
        self.outputs = [
            _Output(
                plan,
                OutputMeter(plan.key, plan.expected, clock),
                pipeline_pb2.OutputResult(key=plan.key, state=pipeline_pb2.OUTPUT_STATE_PENDING, streams=plan.streams),
            )
            for plan in plans
        ]
        self._meter = PipelineMeter([output.meter for output in self.outputs], clock)
        settings, limits = runner.settings, request.limits
        self._bounds = Bounds(
            memory_bytes=_least(settings.max_memory_bytes, limits.max_memory_bytes),
            file_bytes=_least(settings.max_output_bytes, limits.max_output_bytes),
        )

    async def all(self) -> None:
        """Runs all outputs to their end. Cancelled, it leaves no process behind."""
        self._tell()
        watch = asyncio.create_task(self._watch_finishing())
        try:
            async with asyncio.TaskGroup() as tasks:
                for output in self.outputs:
                    tasks.create_task(self._one(output))
            if self._request.all_or_nothing:
                # Only now is it known that all of them have made it.
                for output in self.outputs:
                    await self._finish_storing(output)
        finally:
            watch.cancel()
            await asyncio.wait([watch])
        self._tell()

    def raise_failures(self, result: pipeline_pb2.RunPipelineResult) -> None:
        """Raises if an output failed: its own error if there is one, else one for all."""
        failed = [output for output in self.outputs if output.error]
        if not failed:
            return
        first = failed[0].error
        if len(failed) == 1 and isinstance(first, errors.OneContainerError):
            raise first
        codes = {output.error.code for output in failed if output.error}
        raise errors.BackendExecutionFailed(
            f"{len(failed)} of {len(self.outputs)} outputs failed: "
            + "; ".join(str(output.error) for output in failed)[:4000],
            code=codes.pop() if len(codes) == 1 else errors.Code.INTERNAL,
            hop="backend",
        )

    def _tell(self) -> None:
        self._context.progress(
            self._meter.done, self._meter.total, "seconds", self._meter.message(), self._meter.details()
        )

    async def _watch_finishing(self) -> None:
        await self._context.wait_finishing()
        if self._context.cancelled:
            return
        self.finishing = True
        for child in self._children:
            child.interrupt()
        await asyncio.sleep(_FINISH_GRACE)
        for child in self._children:
            child.kill()

    async def _one(self, output: _Output) -> None:
        async with self._runner._slots:
            if self._stopping or self.finishing:
                output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)
                return
            output.meter.start()
            await asyncio.to_thread(output.plan.path.parent.mkdir, parents=True, exist_ok=True)
            await self._transcode(output)
        if not self._request.all_or_nothing:
            await self._finish_storing(output)

    async def _finish_storing(self, output: _Output) -> None:
        if output.result.state != pipeline_pb2.OUTPUT_STATE_STORING:
            return
        if self._stopping:
            output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)
            return
        try:
            await self._store(output)
        except errors.OneContainerError as error:
            self._fail(output, error)

    async def _transcode(self, output: _Output) -> None:
        """Runs ffmpeg. Leaves the output STORING, or ended."""
        plan = output.plan

        def on_block(block: dict[str, str]) -> None:
            # Telling what has not moved would hide a stall.
            if output.meter.update(block):
                self._tell()
            if self._bytes_made() > self._bounds.file_bytes > 0:
                output.over_size = True
                child.kill()

        environment = self._guard.environment() if self._guard else None
        async with running_child(
            plan.command, folder=plan.path.parent, bounds=self._bounds, environment=environment
        ) as child:
            self._children.add(child)
            try:
                code = await child.wait(ProgressReader(on_block).feed)
            finally:
                self._children.discard(child)
        output.result.command.extend(plan.shown)
        output.result.return_code = code
        output.result.last_lines.extend(self._redact(line, plan) for line in child.log.lines())
        if self._stopping:
            output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)
            return
        if output.over_size or self._bytes_made() > self._bounds.file_bytes > 0:
            self._fail(output, too_large(plan.at))
            return
        if code != 0 and not (self.finishing and code in (_INTERRUPTED, -signal.SIGTERM)):
            self._fail(output, self._why(output, code))
            return
        if output.meter.done >= plan.limit - 0.5 and (plan.expected is None or plan.expected < plan.limit - 1):
            self._fail(
                output, errors.LimitExceeded(f"{plan.at} is longer than {plan.limit:.0f} s, the bound on its length")
            )
            return
        if told := complaints(list(output.result.last_lines)):
            self.warnings.append(
                pipeline_pb2.Warning(field=plan.at, message=f"made, but ffmpeg told of errors: {told}")
            )
        output.result.state = output.meter.progress.state = pipeline_pb2.OUTPUT_STATE_STORING

    async def _store(self, output: _Output) -> None:
        """Looks at the file that was made, and puts it into the artifact store."""
        plan = output.plan
        made = OpenedSource(f"file:{plan.path}", False, plan.path.name)
        try:
            if not plan.path.is_file():
                raise errors.DataInvalid(plan.at, "ffmpeg made no file")
            info = await self._runner.prober.probe(made, at=plan.at, folder=self._folder, guard=None)
        except errors.DataInvalid as error:
            if self.finishing:  # it had not written enough yet for a file that can be played
                output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)
                return
            raise errors.BackendExecutionFailed(
                f"{plan.at}: what ffmpeg made cannot be read: {error}", code=errors.Code.INTERNAL
            ) from error
        size = plan.path.stat().st_size
        self._tell()
        artifact = await self._context.artifacts.put(
            plan.path, filename=plan.path.name, media_type=plan.container.media_type
        )
        await asyncio.to_thread(os.unlink, plan.path)
        output.result.files.append(
            pipeline_pb2.OutputFile(
                name=plan.path.name,
                role=pipeline_pb2.FILE_ROLE_MEDIA,
                artifact=artifact.name,
                media_type=plan.container.media_type,
                size_bytes=size,
            )
        )
        output.result.media_info.CopyFrom(info)
        length = info.format.duration if info.format.HasField("duration") else to_duration(output.meter.done)
        if length is not None:
            output.result.media_duration.CopyFrom(length)
        output.result.ended_early = self.finishing and output.result.return_code != 0
        output.meter.progress.size_bytes = max(output.meter.progress.size_bytes, size)
        output.end(pipeline_pb2.OUTPUT_STATE_SUCCEEDED)
        self._tell()

    def _fail(self, output: _Output, error: errors.OneContainerError) -> None:
        output.end(pipeline_pb2.OUTPUT_STATE_FAILED, error)
        if self._request.all_or_nothing:
            self._stopping = True
            for child in self._children:
                child.kill()
        self._tell()

    def _bytes_made(self) -> int:
        """Bytes of all outputs together."""
        return sum(output.meter.progress.size_bytes for output in self.outputs)

    def _why(self, output: _Output, code: int) -> errors.OneContainerError:
        if self._guard and (self._guard.refused or self._guard.unreachable):
            index = next(number for number, one in enumerate(self._inputs) if one.source.http)
            return failure(self._inputs[index].source, [], at=f"inputs[{index}].source", guard=self._guard)
        return process_failure(code, list(output.result.last_lines), output.plan.at)

    def _redact(self, line: str, plan: OutputPlan) -> str:
        """A line of the log without the sidecar's folders, and without URLs, whose queries may be secret."""
        for index, one in enumerate(self._inputs):
            for text in (one.source.address, one.source.address.removeprefix("file:")):
                line = line.replace(text, f"{{input{index}}}")
        for text in (f"file:{plan.path}", str(plan.path)):
            line = line.replace(text, "{output}")
        return line.replace(str(self._folder), "{scratch}")


def _least(bound: int, asked: int) -> int:
    return min(bound, asked) if bound and asked else bound or asked
