"""A real driver with a service of its own, all four call shapes and a long-running method, for the SDK's tests.

The service is declared here, not in protos/, as a plug-in's would be: its descriptors are all that anybody knows of it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.options.v1 import options_pb2
from onecontainer.driver import Attachment, Context, Driver, ProbeResult, errors
from onecontainer.rpc.manifest import Manifest
from onecontainer.rpc.options import Option

PACKAGE = "onecontainer.test.sdk.v1"
Field = descriptor_pb2.FieldDescriptorProto


def _declare() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="onecontainer/test/sdk/v1/echo.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[job_pb2.DESCRIPTOR.name, options_pb2.DESCRIPTOR.name],
    )
    request = file.message_type.add(name="EchoRequest")
    request.field.add(name="service", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    for name in ("EchoResponse", "WorkResult"):
        file.message_type.add(name=name)
    for message in file.message_type:
        message.field.add(name="text", number=3, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
        message.field.add(name="number", number=4, type=Field.TYPE_INT64, label=Field.LABEL_OPTIONAL)
    service = file.service.add(name="EchoService")
    shapes = {
        "Echo": (False, False),
        "EchoBlocking": (False, False),
        "Count": (False, True),
        "CountBlocking": (False, True),
        "Sum": (True, False),
        "SumBlocking": (True, False),
        "Chat": (True, True),
        "ChatBlocking": (True, True),
        "Absent": (False, False),
        "AbsentStream": (True, True),
    }
    for name, (client, server) in shapes.items():
        service.method.add(
            name=name,
            input_type=f".{PACKAGE}.EchoRequest",
            output_type=f".{PACKAGE}.EchoResponse",
            client_streaming=client,
            server_streaming=server,
        )
    for name, finishable in (("Work", True), ("WorkBlocking", False)):
        method = service.method.add(
            name=name, input_type=f".{PACKAGE}.EchoRequest", output_type=".onecontainer.api.job.v1.Job"
        )
        declared = method.options.Extensions[options_pb2.long_running]
        declared.result_type = f"{PACKAGE}.WorkResult"
        declared.finishable = finishable
    pool = descriptor_pool.Default()
    pool.Add(file)  # type: ignore[attr-defined]
    return pool.FindFileByName(file.name)


FILE = _declare()
SERVICE = FILE.services_by_name["EchoService"]
EchoRequest: Any = message_factory.GetMessageClass(FILE.message_types_by_name["EchoRequest"])
EchoResponse: Any = message_factory.GetMessageClass(FILE.message_types_by_name["EchoResponse"])
WorkResult: Any = message_factory.GetMessageClass(FILE.message_types_by_name["WorkResult"])

MANIFEST = Manifest(
    name="echo",
    version="1.0",
    app="echo",
    scope="hpc",
    entry_point="echo:EchoDriver",
    services=[SERVICE.full_name],
    options=[
        Option(name="greeting", type="string", default="hello", description="What it says."),
        Option(name="password", type="string", sensitive=True, description="Not used."),
        Option(name="patience", type="duration", default="1.5s", description="Seconds."),
        Option(name="mode", type="string", allowed_values=["loud", "soft"], description="How."),
    ],
)


class EchoDriver(Driver):
    """What a request's `text` says decides what happens; tests wait on the attributes."""

    services = (SERVICE,)

    def __init__(self) -> None:
        self.attachment: Attachment | None = None
        self.events: list[str] = []
        self.contexts: list[Context] = []
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.release = asyncio.Event()
        self.thread_entered = threading.Event()
        self.thread_left = threading.Event()
        self.thread_release = threading.Event()
        self.received: list[str] = []
        self.probe_answer: object = ProbeResult(ready=True, message="fine", details={"who": "me"})
        self.attach_error: Exception | None = None

    async def attach(self, attachment: Attachment) -> None:
        self.events.append("attach")
        if self.attach_error is not None:
            raise self.attach_error
        self.attachment = attachment

    async def detach(self) -> None:
        self.events.append("detach")
        self.attachment = None

    async def probe(self) -> ProbeResult:
        if isinstance(self.probe_answer, Exception):
            raise self.probe_answer
        return self.probe_answer  # type: ignore[return-value]

    # --- async ---------------------------------------------------------------------------------------------------------

    async def _do(self, text: str, context: Context) -> None:
        self.contexts.append(context)
        self.entered.set()
        try:
            match text:
                case "wait":
                    await self.release.wait()
                case "stubborn":
                    while not self.release.is_set():
                        try:
                            await self.release.wait()
                        except asyncio.CancelledError:
                            self.received.append("cancel swallowed")
                case "finish":
                    await context.wait_finishing()
                case "typed":
                    raise errors.BackendExecutionFailed("the backend said no", code=errors.Code.RESOURCE_EXHAUSTED)
                case "surrogate":
                    context.progress(7, message="at a\udc80b")
                    raise errors.DataInvalid("inputs", "a\udc80b is no image")
                case "misshapen":
                    raise errors.BackendUnreachable("gone", retry_after=cast(Any, "soon"))
                case "unforeseen":
                    raise ValueError("a password is in here")
                case "exit":
                    sys.exit(7)
                case "cancelled":
                    raise asyncio.CancelledError
                case "scratch":
                    (context.scratch / "file").write_text("x")
                    self.received.append(str(context.scratch))
                case "declare":
                    await context.declare(idempotent=False)
                    self.received.append("declared")
                case "checkpoint":
                    context.checkpoint(wrappers_pb2.Int64Value(value=41))
                    await self.release.wait()
                case "artifact":
                    path = context.scratch / "out.txt"
                    path.write_bytes(b"made by an attempt")
                    self.received.append((await context.artifacts.put(path, media_type="text/plain")).name)
        finally:
            self.left.set()

    async def echo(self, request: Any, context: Context) -> Any:
        await self._do(request.text, context)
        if request.text == "wrong type":
            return WorkResult(text="not an EchoResponse")
        if request.text == "nothing":
            return None
        return EchoResponse(
            text="x" * request.number if request.text == "large" else request.text, number=request.number
        )

    async def count(self, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            for number in range(request.number):
                yield EchoResponse(number=number)
            await self._do(request.text, context)
        finally:
            self.received.append("stream closed")

    async def sum(self, requests: AsyncIterator[Any], context: Context) -> Any:
        total = 0
        async for request in requests:
            self.received.append(request.text)
            total += request.number
            await self._do(request.text, context)
        self.received.append("end of requests")
        return EchoResponse(number=total)

    async def chat(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        try:
            async for request in requests:
                await self._do(request.text, context)
                yield EchoResponse(text=request.text)
            self.received.append("end of requests")
        finally:
            self.received.append("stream closed")

    async def work(self, request: Any, context: Context) -> Any:
        for number in range(0 if request.text == "large" else request.number):
            context.progress(number + 1, request.number, unit="steps")
        await self._do(request.text, context)
        resumed = 0
        if context.job is not None and context.job.resume_details is not None:
            value = wrappers_pb2.Int64Value()
            context.job.resume_details.Unpack(value)
            resumed = value.value
        text = "y" * request.number if request.text == "large" else "finished early" if context.finishing else "done"
        return WorkResult(text=text, number=resumed)

    # --- blocking ------------------------------------------------------------------------------------------------------

    def _block(self, text: str, context: Context) -> None:
        self.contexts.append(context)
        self.thread_entered.set()
        try:
            match text:
                case "wait":
                    while not context.cancelled and not self.thread_release.wait(0.002):
                        pass
                    if context.cancelled:
                        raise errors.Cancelled("I was told to")
                case "stubborn":
                    self.thread_release.wait()
                case "unforeseen":
                    raise ValueError("a password is in here")
                case "stop iteration":
                    raise StopIteration
                case "declare":
                    context.run_sync(context.declare(idempotent=False))
                    self.received.append("declared")
        finally:
            self.thread_left.set()

    def echo_blocking(self, request: Any, context: Context) -> Any:
        self._block(request.text, context)
        return EchoResponse(text=f"{request.text} in {threading.current_thread().name}", number=request.number)

    def count_blocking(self, request: Any, context: Context) -> Iterator[Any]:
        for number in range(request.number):
            yield EchoResponse(number=number)
        self._block(request.text, context)

    def sum_blocking(self, requests: Iterator[Any], context: Context) -> Any:
        total = 0
        for request in requests:
            total += request.number
            self._block(request.text, context)
        self.received.append("end of requests")
        return EchoResponse(number=total)

    def chat_blocking(self, requests: Iterator[Any], context: Context) -> Iterator[Any]:
        for request in requests:
            self._block(request.text, context)
            yield EchoResponse(text=request.text)

    def work_blocking(self, request: Any, context: Context) -> Any:
        for number in range(request.number):
            context.progress(number + 1, request.number, unit="steps")
        self._block(request.text, context)
        return WorkResult(text="done")


async def in_time(awaitable: Any, seconds: float = 120.0) -> Any:
    """Waits for a condition, and fails the test instead of hanging when it does not come."""
    return await asyncio.wait_for(awaitable, seconds)


async def thread_event(event: threading.Event) -> None:
    """Waits for an event that a handler's thread sets."""
    assert await asyncio.to_thread(event.wait, 120.0)


async def until(condition: Any, seconds: float = 120.0) -> None:
    """Waits for something that has no event of its own, looking again at each turn of the loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.002)
