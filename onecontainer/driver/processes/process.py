"""One child as its sidecar sees it: started, attached, running one handler at a time, ended."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import status_pb2

from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.type.v1 import progress_pb2
from onecontainer.driver.context import Context
from onecontainer.driver.methods import DriverMethod
from onecontainer.driver.processes.frames import Frame, Kind, receive, send
from onecontainer.driver.processes.recipe import Recipe
from onecontainer.driver.processes.warded import Link, WardedProcess, end_of, spawn
from onecontainer.errors import DriverUnreachable, OneContainerError
from onecontainer.rpc import status

CHILD_MODULE = "onecontainer.driver.processes.child"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a handler ended: with its result or with a typed error. `reusable`: the child may run the next one."""

    result: Message | None
    error: OneContainerError | None
    reusable: bool


class ChildProcess(WardedProcess):
    """A warden and the child in its care. Everything in the loop's thread."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._attached = asyncio.create_task(self._wait_attached())
        # Looked at even if nobody comes to take this child.
        self._attached.add_done_callback(lambda task: task.cancelled() or task.exception())
        self.idle_since = 0.0
        """When it was given back, on the loop's clock."""

    @classmethod
    async def start(cls, recipe: Recipe) -> ChildProcess:
        """Starts one; it becomes ready by itself. To be called in the thread whose end is the sidecar's, as `spawn`.

        Raises DriverUnreachable if there is no room for another process.
        """
        child = cls(await spawn(("-P", "-m", CHILD_MODULE)))
        send(child._writer, Frame(Kind.ATTACH, facts=recipe.to_facts()))
        return child

    # --- state ---------------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether it can be used, or will be."""
        broken = self._attached.done() and (self._attached.cancelled() or self._attached.exception() is not None)
        return not broken and self.running

    @property
    def attached(self) -> bool:
        """Whether a handler could start at once."""
        return self.alive and self._attached.done()

    async def wait_attached(self) -> None:
        """Returns when it is ready. Raises what its `attach` raised, or that it died."""
        await asyncio.shield(self._attached)

    async def _wait_attached(self) -> None:
        frame = await receive(self._reader)
        if frame is None:
            raise await self._died("while it attached")
        if frame.kind is Kind.FAILED:
            raise status.from_status(status_pb2.Status.FromString(frame.data))

    # --- one handler ---------------------------------------------------------------------------------------------------

    async def run(self, method: DriverMethod, request: Message, context: Context) -> Outcome:
        """Runs the handler to its end. Raises DriverUnreachable if the child dies of it."""
        self._output.forget()
        send(self._writer, _run_frame(method, request, context))
        finishing = asyncio.create_task(self._tell_finishing(context))
        try:
            while True:
                frame = await receive(self._reader)
                if frame is None:
                    raise await self._died(f"in {method.full_name}")
                if frame.kind in (Kind.DONE, Kind.FAILED):
                    return _outcome(method, frame)
                await self._take(frame, context)
        finally:
            finishing.cancel()

    async def _tell_finishing(self, context: Context) -> None:
        await context.wait_finishing()
        if context.finishing:
            send(self._writer, Frame(Kind.FINISH))

    async def _take(self, frame: Frame, context: Context) -> None:
        match frame.kind:
            case Kind.PROGRESS:
                context._relay_progress(progress_pb2.Progress.FromString(frame.data))
            case Kind.CHECKPOINT:
                context._relay_checkpoint(any_pb2.Any.FromString(frame.data))
            case Kind.STARTED:
                started = lease_pb2.Started.FromString(frame.data)
                refusal = b""
                try:
                    await context.declare(idempotent=started.idempotent if started.HasField("idempotent") else None)
                except OneContainerError as error:
                    refusal = status.to_status(error, hop="sidecar").SerializeToString()
                send(self._writer, Frame(Kind.RECORDED, refusal))

    # --- the end -------------------------------------------------------------------------------------------------------

    async def leave(self, timeout: float) -> None:
        """Lets an idle child detach and go; one that does not is killed. Returns when nothing is left of it."""
        if self.attached:
            self._writer.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """Ends it and all that it started. Returns when nothing is left of it."""
        await super().kill()
        self._attached.cancel()

    async def _died(self, where: str) -> DriverUnreachable:
        await self.ended()
        return died(self._process.returncode or 0, where, self._output.lines())


def died(return_code: int, where: str, last_lines: list[str]) -> DriverUnreachable:
    """The error for a child that ended without an outcome; minus the signal's number if a signal ended it. It may be tried again."""
    how, facts = end_of(return_code)
    said = "\n".join(["; its last lines:", *last_lines]) if last_lines else ""
    return DriverUnreachable(
        f"the handler's process {how} {where}{said}", metadata=facts, retry_after=1.0, hop="sidecar"
    )


def _run_frame(method: DriverMethod, request: Message, context: Context) -> Frame:
    grant = lease_pb2.Grant(
        service=context.service,
        method=method.full_name,
        request=request.SerializeToString(),
        principal=context.principal,
        request_id=context.request_id,
        traceparent=context.traceparent,
    )
    if context.job is not None:
        grant.job, grant.attempt, grant.fence = context.job.name, context.job.attempt, context.job.fence
        if context.job.resume_details is not None:
            grant.resume_details.CopyFrom(context.job.resume_details)
    remaining = context.time_remaining()
    if remaining is not None:
        grant.run_timeout.CopyFrom(status.duration(remaining))
    # Its folder is ours to remove: a child that is killed removes nothing.
    return Frame(
        Kind.RUN,
        grant.SerializeToString(),
        {"metadata": dict(context.metadata), "scratch": str(context.scratch), "finishing": context.finishing},
    )


def _outcome(method: DriverMethod, frame: Frame) -> Outcome:
    reusable = bool(frame.facts.get("reusable"))
    if frame.kind is Kind.FAILED:
        error = status.from_status(status_pb2.Status.FromString(frame.data))
        return Outcome(None, error.with_details(kept_artifacts=frame.facts.get("kept_artifacts", ())), reusable)
    return Outcome(method.result_class.FromString(frame.data), None, reusable)
