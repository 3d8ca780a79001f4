"""The echo driver: every behaviour that tests of the gateway and of jobs need from a driver."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from onecontainer.driver import Attachment, Context, Driver, ProbeResult, errors
from onecontainer_driver_echo import echo_pb2


class LesserDriver(Driver):
    """Without the methods that declare no idempotency: what a service is left with after a change to an older driver."""

    services = (echo_pb2.DESCRIPTOR.services_by_name["EchoService"],)

    async def attach(self, attachment: Attachment) -> None:
        self.options = attachment.options

    async def probe(self) -> ProbeResult:
        if self.options["broken"]:
            raise errors.BackendUnreachable("the option `broken` is set")
        return ProbeResult(ready=True, message=str(self.options["greeting"]))

    async def echo(self, request: echo_pb2.EchoRequest, context: Context) -> echo_pb2.EchoResponse:
        if request.delay:
            await asyncio.sleep(request.delay)
        if request.behaviour:
            return await _misbehave(request.behaviour)
        return echo_pb2.EchoResponse(payload=request.payload)

    async def down(self, request: echo_pb2.EchoRequest, context: Context) -> AsyncIterator[echo_pb2.EchoResponse]:
        for index in range(request.count):
            if request.behaviour and index == request.count - 1:
                await _misbehave(request.behaviour)
            yield echo_pb2.EchoResponse(payload=request.payload)

    async def up(self, requests: AsyncIterator[echo_pb2.EchoRequest], context: Context) -> echo_pb2.EchoResponse:
        size = 0
        async for request in requests:
            size += len(request.payload)
        return echo_pb2.EchoResponse(payload=str(size).encode())

    async def both(
        self, requests: AsyncIterator[echo_pb2.EchoRequest], context: Context
    ) -> AsyncIterator[echo_pb2.EchoResponse]:
        async for request in requests:
            yield echo_pb2.EchoResponse(payload=request.payload)

    async def work(self, request: echo_pb2.WorkRequest, context: Context) -> echo_pb2.WorkResult:
        return await _work(request, context)


class EchoDriver(LesserDriver):
    async def echo_once(self, request: echo_pb2.EchoRequest, context: Context) -> echo_pb2.EchoResponse:
        return await self.echo(request, context)

    async def work_once(self, request: echo_pb2.WorkRequest, context: Context) -> echo_pb2.WorkResult:
        return await _work(request, context)


async def _misbehave(behaviour: str) -> echo_pb2.EchoResponse:
    if behaviour == "exit":
        os._exit(3)
    if behaviour == "hang":
        await asyncio.Event().wait()
    if behaviour == "garbage":
        return "not a message"  # type: ignore[return-value]
    if behaviour == "typed":
        raise errors.DataInvalid("payload", "is not what was hoped for")
    raise RuntimeError(f"the driver was told to {behaviour}")


async def _work(request: echo_pb2.WorkRequest, context: Context) -> echo_pb2.WorkResult:
    attempt = context.job.attempt if context.job is not None else 0
    name = context.job.name if context.job is not None else "-"
    _mark(request, f"begin {name} {attempt}")
    resumed = echo_pb2.WorkResult()
    if context.job is not None and context.job.resume_details is not None:
        context.job.resume_details.Unpack(resumed)
    if request.checkpoint:
        context.checkpoint(echo_pb2.WorkResult(resumed_from=attempt))
    if request.behaviour == "partial":
        raise await _partial(request, context, attempt)
    if request.behaviour and request.behaviour != "resume":
        await _misbehave(request.behaviour)
    if attempt <= request.failing_attempts:
        raise _failure(request)
    if request.behaviour == "resume":
        return echo_pb2.WorkResult(steps=await _resumed(request, context))
    steps = await (asyncio.to_thread(_block, request, context) if request.blocking else _steps(request, context))
    while request.wait_file and not Path(request.wait_file).exists():  # noqa: ASYNC110 - nothing tells of a file
        await asyncio.sleep(0.05)
    artifact = ""
    if request.artifact_bytes:
        path = context.scratch / "made.bin"
        path.write_bytes(os.urandom(request.artifact_bytes))
        artifact = (await context.artifacts.put(path, filename="made.bin")).name
    _mark(request, f"end {name} {attempt}")
    return echo_pb2.WorkResult(
        steps=steps, payload=bytes(request.result_bytes), artifact=artifact, resumed_from=resumed.resumed_from
    )


def _failure(request: echo_pb2.WorkRequest) -> errors.OneContainerError:
    kind = errors.BY_REASON[errors.Reason(request.fail_reason or errors.Reason.BACKEND_UNREACHABLE)]
    code = errors.Code(request.fail_code) if request.fail_code else None
    return kind("not yet", code=code, retry_after=request.fail_retry_after or None)


async def _partial(request: echo_pb2.WorkRequest, context: Context, attempt: int) -> errors.OneContainerError:
    """A failure that leaves one of two artifacts, and says so in a message of its own."""
    good, _bad = [(await context.artifacts.put_bytes(b"made", filename=name)).name for name in ("good.bin", "bad.bin")]
    told = echo_pb2.WorkResult(steps=attempt, artifact=good, payload=bytes(request.result_bytes))
    return _failure(request).with_details(told, kept_artifacts=[good])


async def _steps(request: echo_pb2.WorkRequest, context: Context) -> int:
    for step in range(request.steps):
        if context.finishing:
            return step
        await asyncio.sleep(request.step_seconds)
        context.progress(step + 1, request.steps, unit="steps")
    return request.steps


async def _resumed(request: echo_pb2.WorkRequest, context: Context) -> int:
    """The steps from the checkpoint on; the first attempt fails half-way."""
    reached = done = 0
    job = context.job
    if job is not None and job.resume_details is not None:
        earlier = echo_pb2.WorkResult()
        job.resume_details.Unpack(earlier)
        reached = earlier.steps
    while reached < request.steps:
        await asyncio.sleep(request.step_seconds)
        reached, done = reached + 1, done + 1
        context.checkpoint(echo_pb2.WorkResult(steps=reached))
        if job is not None and job.attempt == 1 and reached == request.steps // 2:
            raise errors.BackendUnreachable("half of it is done")
    return done


def _block(request: echo_pb2.WorkRequest, context: Context) -> int:
    for step in range(request.steps):
        if context.cancelled or context.finishing:
            return step
        time.sleep(request.step_seconds)
        context.progress(step + 1, request.steps, unit="steps")
    return request.steps


def _mark(request: echo_pb2.WorkRequest, line: str) -> None:
    if request.mark_file:
        # One write of a short line to a file in append mode is atomic.
        with Path(request.mark_file).open("a") as file:
            file.write(line + "\n")
