"""One pipeline under way: one process at a time per output, and what becomes of each."""

from __future__ import annotations

import asyncio
import functools
import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.driver import Context, errors, to_status
from onecontainer_driver_ffmpeg.egress import EgressGuard
from onecontainer_driver_ffmpeg.failures import complaints, pipeline_failure, process_failure, too_large
from onecontainer_driver_ffmpeg.media_info import to_duration
from onecontainer_driver_ffmpeg.plan import BoundInput, OutputPlan
from onecontainer_driver_ffmpeg.prober import Prober, failure
from onecontainer_driver_ffmpeg.process import Bounds, Child, run, running_child
from onecontainer_driver_ffmpeg.progress import OutputMeter, PipelineMeter, ProgressReader
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.storing import describe_file, folder_bytes, remove_files, store_files
from onecontainer_driver_ffmpeg.targets.target import Collection, Made, NothingMade, Started
from onecontainer_driver_ffmpeg.uploads import upload_files

# How long ffmpeg gets after CancelJob with mode FINISH: to get on with the end of a file, and to say goodbye to a receiver.
_FINISH_GRACE, _LIVE_FINISH_GRACE = 20.0, 3.0
_INTERRUPTED = 255
# What it says if it was told to end while it still opened its sources; version 5.1 ends with 1 then, version 9 with 0.
_NOT_BEGUN = "Immediate exit requested"
# Where in its memory ffmpeg has what it speaks of.
_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")
# How often a folder with many files is looked at, in seconds.
_SIZE_INTERVAL = 0.3


@dataclass
class RunningOutput:
    """An output of a pipeline under way. `collection` is there from state STORING on; `moved`: the loop's time when ffmpeg last got on."""

    plan: OutputPlan
    meter: OutputMeter
    result: pipeline_pb2.OutputResult
    error: errors.OneContainerError | None = None
    over_size: bool = False
    moved: float = 0.0
    given_up: bool = False
    child: Child | None = None
    collection: Collection = field(default_factory=lambda: Collection([]))

    def enter(self, state: pipeline_pb2.OutputState.ValueType) -> None:
        self.result.state = self.meter.progress.state = state

    def end(self, state: pipeline_pb2.OutputState.ValueType, error: errors.OneContainerError | None = None) -> None:
        self.error = error
        self.result.state = state
        self.meter.end(state, early=self.result.ended_early)
        if error:
            self.result.error.CopyFrom(to_status(error))
        for upload in self.result.uploads:
            if upload.state == pipeline_pb2.UPLOAD_STATE_PENDING:
                upload.state = pipeline_pb2.UPLOAD_STATE_SKIPPED


class PipelineRun:
    """One pipeline.

    `slots` bounds the processes of all pipelines of the service, `room` the bytes of all outputs together, so that with the copies of
    the inputs they stay within `max_scratch_bytes`.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        room: int,
        prober: Prober,
        slots: asyncio.Semaphore,
        request: media_pb2.RunPipelineRequest,
        context: Context,
        plans: Sequence[OutputPlan],
        inputs: Sequence[BoundInput],
        guard: EgressGuard | None,
    ) -> None:
        self._prober = prober
        self._slots = slots
        self._request = request
        self._context = context
        self._inputs = inputs
        self._guard = guard
        self._folder = context.scratch
        self._stopping = False
        self.finishing = False
        self.warnings: list[pipeline_pb2.Warning] = []
        clock = asyncio.get_running_loop().time
        self.outputs = [
            RunningOutput(
                plan,
                OutputMeter(plan.key, plan.expected, clock, passes=len(plan.commands)),
                pipeline_pb2.OutputResult(
                    key=plan.key,
                    state=pipeline_pb2.OUTPUT_STATE_PENDING,
                    streams=plan.streams,
                    live_url=plan.written.live_url,
                    uploads=[pipeline_pb2.UploadResult(state=pipeline_pb2.UPLOAD_STATE_PENDING) for _ in plan.uploads],
                ),
            )
            for plan in plans
        ]
        self._meter = PipelineMeter([output.meter for output in self.outputs], clock)
        limits = request.limits
        self._bounds = Bounds(
            memory_bytes=_least(settings.max_memory_bytes, limits.max_memory_bytes),
            file_bytes=_least(_least(settings.max_output_bytes, limits.max_output_bytes), room),
            cpu_seconds=math.ceil(settings.max_cpu_time),
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
        """Raises if an output failed: its own error if there is one, else one for all, with `result` in its details."""
        failed = [output.error for output in self.outputs if output.error]
        if failed:
            raise pipeline_failure(failed, result, all_or_nothing=self._request.all_or_nothing)

    def _tell(self) -> None:
        self._context.progress(
            self._meter.done, self._meter.total, "seconds", self._meter.message(), self._meter.details()
        )

    def _children(self) -> list[Child]:
        return [output.child for output in self.outputs if output.child]

    async def _watch_finishing(self) -> None:
        await self._context.wait_finishing()
        if self._context.cancelled:
            return
        self.finishing = True
        begin = asyncio.get_running_loop().time()
        for child in self._children():
            child.interrupt()
        await asyncio.sleep(_LIVE_FINISH_GRACE)
        for output in self.outputs:
            if output.child and not output.plan.target.makes_files:
                output.child.kill()
        # Encoders hold back frames, which a slow one on a busy machine takes long to write. As long as more comes it is let do so.
        clock = asyncio.get_running_loop().time
        while waiting := [output for output in self.outputs if output.child]:
            await asyncio.sleep(1.0)
            for output in waiting:
                if output.child and clock() - max(output.moved, begin) > _FINISH_GRACE:
                    output.given_up = True
                    output.child.kill()

    async def _one(self, output: RunningOutput) -> None:
        async with self._slots:
            if self._stopping or self.finishing:
                output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)
                return
            output.meter.start()
            output.result.state = pipeline_pb2.OUTPUT_STATE_RUNNING
            for folder in ("", *output.plan.written.folders):
                await asyncio.to_thread((output.plan.folder / folder).mkdir, parents=True, exist_ok=True)
            try:
                async with output.plan.target.started() as started:
                    for at, message in started.warnings:
                        self._warn(at, message)
                    made = await self._transcode(output, started)
                if made:  # what a target makes after ffmpeg takes processes too, so it belongs to the slot
                    await self._collect(output)
            except errors.OneContainerError as error:
                self._fail(output, error)
        if not self._request.all_or_nothing:
            await self._finish_storing(output)

    async def _finish_storing(self, output: RunningOutput) -> None:
        if output.result.state != pipeline_pb2.OUTPUT_STATE_STORING:
            return
        if self._stopping:
            output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)
            return
        try:
            await self._store(output)
        except errors.OneContainerError as error:
            self._fail(output, error)

    async def _transcode(self, output: RunningOutput, started: Started) -> bool:
        """Runs ffmpeg, once or in two passes. True: it has made what it should; else the output has ended."""
        plan = output.plan
        live = not plan.target.makes_files
        for number, command in enumerate(plan.commands):
            output.meter.begin_pass(number)
            code, lines = await self._run_pass(output, started.command(command), started.stdin)
            seen = [_ADDRESS.sub("", plan.redact(started.redact(line))) for line in lines]
            if number == len(plan.commands) - 1 or code != 0:
                output.result.command.extend(plan.shown)
                output.result.return_code = code
                output.result.last_lines.extend(seen)
            if self._stopping:
                output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)
                return False
            if output.given_up:
                self._warn(plan.at, f"cut off: nothing more came for {_FINISH_GRACE:.0f} s after it was told to finish")
                output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)
                return False
            if output.over_size or self._bytes_made() > self._bounds.file_bytes > 0:
                raise too_large(plan.at)
            if self.finishing and code in (0, 1) and any(_NOT_BEGUN in line for line in seen):
                output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)
                return False
            # A live sink has nothing that an end could spoil.
            if code != 0 and not (self.finishing and (live or code in (_INTERRUPTED, -signal.SIGTERM))):
                raise self._why(output, code, started)
            if self.finishing and number < len(plan.commands) - 1:
                output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)  # the first pass makes nothing that can be played
                return False
        if plan.pass_log:
            await asyncio.to_thread(remove_files, plan.pass_log.parent, f"{plan.pass_log.name}-*")
        if output.meter.done >= plan.limit - 0.5 and (plan.expected is None or plan.expected < plan.limit - 1):
            raise errors.LimitExceeded(f"{plan.at} is longer than {plan.limit:.0f} s, the bound on its length")
        if (complaint := complaints(list(output.result.last_lines))) and not (self.finishing and live):
            self._warn(plan.at, f"made, but ffmpeg told of errors: {complaint}")
        return True

    async def _run_pass(self, output: RunningOutput, command: Sequence[str], stdin: bytes) -> tuple[int, list[str]]:
        """Return code and last lines of one ffmpeg process."""
        plan = output.plan

        def on_block(block: dict[str, str]) -> None:
            if not plan.target.total_size_told:
                block.pop("total_size", None)
            # Telling what has not moved would hide a stall.
            if output.meter.update(block):
                output.moved = asyncio.get_running_loop().time()
                self._tell()
            if self._bytes_made() > self._bounds.file_bytes > 0:
                output.over_size = True
                child.kill()

        environment = {**(self._guard.environment() if self._guard else {}), **plan.written.environment}
        async with running_child(
            command, folder=plan.folder, bounds=self._bounds, environment=environment, stdin=stdin
        ) as child:
            output.child = child
            # Said while this process was being started.
            if self._stopping:
                child.kill()
            elif self.finishing:
                child.interrupt()
            watch = asyncio.create_task(self._watch_size(output))
            try:
                code = await child.wait(ProgressReader(on_block).feed)
            finally:
                output.child = None
                watch.cancel()
                await asyncio.wait([watch])
        return code, child.log.lines()

    async def _watch_size(self, output: RunningOutput) -> None:
        """Counts the bytes of an output with many files, which ffmpeg does not tell."""
        while output.plan.target.makes_files and not output.plan.target.total_size_told:
            output.meter.count_bytes(await asyncio.to_thread(folder_bytes, output.plan.folder))
            await asyncio.sleep(_SIZE_INTERVAL)

    async def _collect(self, output: RunningOutput) -> None:
        """Finds what was made. Leaves the output STORING, or ended."""
        plan = output.plan
        live = not plan.target.makes_files
        output.result.ended_early = self.finishing and (live or output.result.return_code != 0)
        if length := to_duration(output.meter.done):
            output.result.media_duration.CopyFrom(length)
        if live:
            # A listener whose receiver never came has sent nothing.
            nothing = self.finishing and not output.meter.done
            output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED if nothing else pipeline_pb2.OUTPUT_STATE_SUCCEEDED)
            self._tell()
            return
        made = Made(
            folder=plan.folder,
            tracks=plan.tracks,
            length=output.meter.done,
            expected=plan.expected,
            ended_early=output.result.ended_early,
            run=functools.partial(self._run_more, plan),
            warn=self._warn,
        )
        try:
            output.collection = await plan.target.collect(made)
        except NothingMade:
            self._end_unreadable(output, "ffmpeg made nothing")
            return
        if output.collection.probe:
            try:
                info = await self._prober.probe(output.collection.probe, at=plan.at, folder=self._folder, guard=None)
            except errors.DataInvalid as error:
                self._end_unreadable(output, f"what ffmpeg made cannot be read: {error}")
                return
            output.result.media_info.CopyFrom(info)
            if info.format.HasField("duration"):
                output.result.media_duration.CopyFrom(info.format.duration)
        if output.collection.length is not None and (length := to_duration(output.collection.length)):
            output.result.media_duration.CopyFrom(length)
        output.meter.count_bytes(await asyncio.to_thread(folder_bytes, plan.folder))
        if self._bytes_made() > self._bounds.file_bytes > 0:
            raise too_large(plan.at)
        output.enter(pipeline_pb2.OUTPUT_STATE_STORING)

    def _end_unreadable(self, output: RunningOutput, told: str) -> None:
        """Of an output that was ended early it only means that not enough had been written yet."""
        if not output.result.ended_early:
            raise errors.BackendExecutionFailed(f"{output.plan.at}: {told}", code=errors.Code.INTERNAL)
        output.result.ended_early = False
        output.result.ClearField("media_duration")
        output.end(pipeline_pb2.OUTPUT_STATE_CANCELLED)

    async def _run_more(self, plan: OutputPlan, arguments: Sequence[str]) -> None:
        """Runs ffmpeg on what it has made."""
        head = [plan.commands[0][0], "-nostdin", "-hide_banner", "-loglevel", "repeat+level+warning", "-nostats", "-y"]
        finished = await run([*head, *arguments], folder=plan.folder, bounds=self._bounds)
        if finished.return_code != 0:
            raise process_failure(finished.return_code, [plan.redact(line) for line in finished.last_lines], plan.at)

    async def _store(self, output: RunningOutput) -> None:
        """Puts the files that were made into the artifact store."""
        self._tell()
        made = output.collection.files
        if output.plan.target.output.upload_only:
            files = [await describe_file(file, "") for file in made]
        else:
            files = await store_files(made, self._context.artifacts)
        await self._upload(output)
        output.result.files.extend(files)
        await asyncio.to_thread(remove_files, output.plan.folder, "*")
        output.end(pipeline_pb2.OUTPUT_STATE_SUCCEEDED)
        self._tell()

    async def _upload(self, output: RunningOutput) -> None:
        """Uploads the files to the caller's own storage. All uploads are tried; raises the first error."""

        def tell(note: str) -> None:
            output.meter.note = note
            self._tell()

        failures = [
            await upload_files(plan, output.collection.files, result, tell)
            for plan, result in zip(output.plan.uploads, output.result.uploads, strict=True)
        ]
        for error in failures:
            if error:
                raise error

    def _warn(self, at: str, message: str) -> None:
        self.warnings.append(pipeline_pb2.Warning(field=at, message=message))

    def _fail(self, output: RunningOutput, error: errors.OneContainerError) -> None:
        output.end(pipeline_pb2.OUTPUT_STATE_FAILED, error)
        output.result.ClearField("files")
        if self._request.all_or_nothing:
            self._stopping = True
            for child in self._children():
                child.kill()
        self._tell()

    def _bytes_made(self) -> int:
        """Bytes of all outputs together."""
        return sum(output.meter.progress.size_bytes for output in self.outputs)

    def _why(self, output: RunningOutput, code: int, started: Started) -> errors.OneContainerError:
        if self._guard and (self._guard.refused or self._guard.unreachable):
            index = next(number for number, one in enumerate(self._inputs) if one.source.http)
            return failure(self._inputs[index].source, [], at=f"inputs[{index}].source", guard=self._guard)
        lines = list(output.result.last_lines)
        return started.failure(lines) or process_failure(code, lines, output.plan.at)


def _least(bound: int, asked: int) -> int:
    return min(bound, asked) if bound and asked else bound or asked
