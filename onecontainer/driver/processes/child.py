"""Started by the warden as `python -P -m onecontainer.driver.processes.child FD`: the driver once more, for its isolated handlers.

The loop has the main thread. So a plain `def`, which blocks a thread of its own, can be told of a cancel; whatever blocks the loop, or
the whole interpreter, is ended by the warden.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from google.protobuf import any_pb2
from google.rpc import status_pb2

from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.type.v1 import progress_pb2
from onecontainer.driver.artifacts import ArtifactLink
from onecontainer.driver.context import CallFacts, Context, JobAttempt
from onecontainer.driver.driver import Driver
from onecontainer.driver.lifecycle import call_own
from onecontainer.driver.methods import DriverMethod, methods_of
from onecontainer.driver.processes.frames import READ_AHEAD_BYTES, Frame, Kind, receive, send
from onecontainer.driver.processes.recipe import Recipe
from onecontainer.driver.runs import Execution, failure, kept_of, unforeseen
from onecontainer.errors import Cancelled, OneContainerError
from onecontainer.rpc import status

TERMINATED = 128 + signal.SIGTERM


class Events:
    """`EventSink` whose other end is the sidecar's context."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._waiting: deque[asyncio.Future[None]] = deque()

    def progress(self, progress: progress_pb2.Progress) -> None:
        send(self._writer, Frame(Kind.PROGRESS, progress.SerializeToString()))

    def checkpoint(self, details: any_pb2.Any) -> None:
        send(self._writer, Frame(Kind.CHECKPOINT, details.SerializeToString()))

    async def started(self, started: lease_pb2.Started) -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        send(self._writer, Frame(Kind.STARTED, started.SerializeToString()))
        await answer

    def recorded(self, refusal: bytes) -> None:
        """The answer to the oldest `started`; the sidecar takes them in order."""
        answer = self._waiting.popleft()
        if answer.done():
            return
        if refusal:
            answer.set_exception(status.from_status(status_pb2.Status.FromString(refusal)))
        else:
            answer.set_result(None)


class Child:
    """The driver's object in this process, and the handler that runs."""

    def __init__(self, driver: Driver, recipe: Recipe, writer: asyncio.StreamWriter) -> None:
        self._driver = driver
        self._methods: Mapping[str, DriverMethod] = methods_of(driver, driver.services)
        self._artifacts: ArtifactLink | None = recipe.artifact_link()
        self._facts = {"service": recipe.service}
        self._writer = writer
        self._events = Events(writer)
        self._execution: Execution | None = None
        self._leaving = False

    def terminate(self) -> None:
        """SIGTERM: the handler is told to stop, and the process ends with it."""
        self._leaving = True
        if self._execution is None:
            leave(TERMINATED)
        self._execution.stop(Cancelled("the handler's process was told to end", hop="sidecar"))

    def take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.RUN:
                self._run(lease_pb2.Grant.FromString(frame.data), frame)
            case Kind.FINISH if self._execution is not None:
                self._execution.finish()
            case Kind.RECORDED:
                self._events.recorded(frame.data)

    def _run(self, grant: lease_pb2.Grant, frame: Frame) -> None:
        loop = asyncio.get_running_loop()
        method = self._methods[grant.method]
        job = None
        if grant.job:
            details = grant.resume_details if grant.HasField("resume_details") else None
            job = JobAttempt(grant.job, grant.attempt, grant.fence, details)
        limit = grant.run_timeout.seconds + grant.run_timeout.nanos / 1e9 if grant.HasField("run_timeout") else None
        context = Context(
            CallFacts(
                service=grant.service,
                principal=grant.principal,
                request_id=grant.request_id,
                traceparent=grant.traceparent,
                deadline=None if limit is None else loop.time() + limit,
                metadata=frame.facts["metadata"],
                job=job,
            ),
            loop,
            sink=None if job is None else self._events,
            artifacts=self._artifacts,
            scratch_root=Path(frame.facts["scratch"]),
        )
        self._execution = Execution(method, context, self._facts)
        if frame.facts["finishing"]:
            self._execution.finish()
        self._execution.start(method.request_class.FromString(grant.request), None, self._ended)

    def _ended(self, execution: Execution) -> None:
        self._execution = None
        if self._leaving:
            leave(TERMINATED)
        facts = {"reusable": not _has_children()}
        try:
            frame = Frame(Kind.DONE, execution.encode(execution.result()), facts)
        except Exception as error:  # noqa: BLE001 - whatever it is, the sidecar waits for an outcome
            told = failure(error, execution.method.full_name, most=status.MAX_JOB_STATUS_BYTES)
            frame = Frame(Kind.FAILED, told.SerializeToString(), {**facts, "kept_artifacts": kept_of(error)})
        send(self._writer, frame)

    async def detach(self) -> None:
        """Lets go of the backend, if no handler has it."""
        if self._execution is None:
            await call_own(self._driver, self._driver.detach)


def _has_children() -> bool:
    """Whether the handler left a process behind. It goes with this one, and must not see another handler's run."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def leave(code: int) -> NoReturn:
    """Ends the process at once: neither a thread that blocks nor an executor's is waited for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _attached(recipe: Recipe, writer: asyncio.StreamWriter) -> Child:
    try:
        driver = recipe.driver()
    except Exception as error:
        raise unforeseen(error, f"making {recipe.entry} in a child process") from error
    child = Child(driver, recipe, writer)
    await call_own(driver, driver.attach, recipe.attachment())
    return child


async def main(handle: int) -> int:
    """The exit code."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, leave, TERMINATED)
    connection = socket.socket(fileno=handle)
    connection.set_inheritable(False)
    reader, writer = await asyncio.open_unix_connection(sock=connection, limit=READ_AHEAD_BYTES)
    first = await receive(reader)
    if first is None:
        return 3
    recipe = Recipe.from_facts(first.facts)
    logging.basicConfig(
        level=recipe.log_level.upper(),
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)-7s %(name)s [{os.getpid()}]: %(message)s",
    )
    try:
        child = await _attached(recipe, writer)
    except OneContainerError as error:
        send(writer, Frame(Kind.FAILED, failure(error, f"attaching {recipe.entry}").SerializeToString()))
        await writer.drain()
        return 1
    loop.add_signal_handler(signal.SIGTERM, child.terminate)
    send(writer, Frame(Kind.READY))
    while (frame := await receive(reader)) is not None:
        child.take(frame)
    await child.detach()
    return 0


if __name__ == "__main__":
    # A crash in C code leaves the stack of its thread, which the sidecar passes on; the others would only push it out.
    faulthandler.enable(all_threads=False)
    with asyncio.Runner() as runner:
        leave(runner.run(main(int(sys.argv[1]))))
