"""DriverService: maps its messages to calls of the Sidecar, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from google.protobuf import any_pb2

import onecontainer
from onecontainer.api.driver.v1 import driver_pb2 as pb
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.type.v1 import progress_pb2
from onecontainer.driver.attempts import Attempt, Failed, Outcome
from onecontainer.driver.calls import time_remaining
from onecontainer.driver.lifecycle import Sidecar
from onecontainer.errors import Draining, FieldInvalid, ResourceConflict
from onecontainer.rpc.manifest import manifest_to_proto
from onecontainer.rpc.server import Context
from onecontainer.rpc.status import to_status
from onecontainer.rpc.texts import sendable

CONTRACT_VERSION = "1.0"
DRAIN_SECONDS = 600.0
DETACH_MARGIN = 0.2
"""Part of Detach's deadline that is kept back for aborting what does not end, and for closing the backend."""


class DriverServicer:
    """Serves DriverService for one sidecar."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    async def GetDriverInfo(self, _request: pb.GetDriverInfoRequest, _context: Context) -> pb.GetDriverInfoResponse:
        sidecar = self._sidecar
        return pb.GetDriverInfoResponse(
            manifest=manifest_to_proto(sidecar.manifest),
            methods=[method.full_name for method in sidecar.methods.values() if method.handler is not None],
            max_message_bytes=sidecar.settings.max_message_bytes,
            contract_version=CONTRACT_VERSION,
            instance=sidecar.instance,
            service=sidecar.service,
            sdk_version=onecontainer.__version__,
        )

    async def Attach(self, request: pb.AttachRequest, _context: Context) -> pb.AttachResponse:
        await self._sidecar.attach(request)
        return pb.AttachResponse()

    async def Detach(self, _request: pb.DetachRequest, context: Context) -> pb.DetachResponse:
        remaining = time_remaining(context)
        await self._sidecar.detach(None if remaining is None else remaining * (1 - DETACH_MARGIN))
        return pb.DetachResponse()

    async def Probe(self, _request: pb.ProbeRequest, _context: Context) -> pb.ProbeResponse:
        result = await self._sidecar.probe()
        return pb.ProbeResponse(
            ready=result.ready,
            message=sendable(result.message),
            backend_version=sendable(result.backend_version),
            details={sendable(key): sendable(value) for key, value in result.details.items()},
            backend=sendable(result.backend),
        )

    async def Run(self, request: pb.RunRequest, context: Context) -> AsyncIterator[pb.RunResponse]:
        grant = request.grant
        if (grant.job, grant.fence) in self._sidecar.attempts:
            raise ResourceConflict(
                f"{grant.job} runs here already with the fence {grant.fence}", resource=("Job", grant.job)
            )
        events = _RunEvents()
        attempt = Attempt(self._sidecar, grant, events, events.outcome)
        attempt.start()
        # However the call ends, even between two events: what still runs then is aborted.
        gone = "the caller of Run has gone away"
        context.add_done_callback(cast(Any, lambda _context: attempt.cancel(gone)))  # a type that only stubs know
        while (event := await events.next()) is not None:
            yield event
            events.sent()

    async def StopRun(self, request: pb.StopRunRequest, _context: Context) -> pb.StopRunResponse:
        attempt = self._sidecar.attempts.get((request.job, request.fence))
        if attempt is None or attempt.grant.attempt != request.attempt:
            return pb.StopRunResponse(found=False)
        if request.mode == job_pb2.CANCEL_MODE_FINISH:
            attempt.finish()
        else:
            attempt.cancel()
        return pb.StopRunResponse(found=True)

    async def Drain(self, request: pb.DrainRequest, _context: Context) -> pb.DrainResponse:
        timeout = DRAIN_SECONDS
        if request.HasField("timeout"):
            timeout = request.timeout.seconds + request.timeout.nanos / 1e9
            if timeout < 0:
                raise FieldInvalid("timeout", "must not be negative")
        return pb.DrainResponse(aborted_count=await self._sidecar.drain(timeout))


class _RunEvents:
    """The events of one Run, in order: an EventSink whose other end is the call's stream."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[pb.RunResponse | None] = asyncio.Queue()
        self._unsent: dict[int, asyncio.Future[None]] = {}
        self._put = 0
        self._sent = 0

    def _add(self, event: pb.RunResponse) -> None:
        self._queue.put_nowait(event)
        self._put += 1

    async def next(self) -> pb.RunResponse | None:
        """The next event, None after the last one."""
        return await self._queue.get()

    def sent(self) -> None:
        """The event that `next` gave last is on its way."""
        self._sent += 1
        waiter = self._unsent.pop(self._sent, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def progress(self, progress: progress_pb2.Progress) -> None:
        self._add(pb.RunResponse(progress=progress))

    def checkpoint(self, details: any_pb2.Any) -> None:
        self._add(pb.RunResponse(checkpoint=details))

    async def started(self, started: lease_pb2.Started) -> None:
        self._add(pb.RunResponse(started=started))
        waiter = self._unsent[self._put] = asyncio.get_running_loop().create_future()
        await waiter

    def outcome(self, _attempt: Attempt, outcome: Outcome) -> None:
        """Takes the last event."""
        if isinstance(outcome, lease_pb2.Succeeded):
            self._add(pb.RunResponse(succeeded=outcome))
        elif isinstance(outcome, lease_pb2.Stopped):
            self._add(pb.RunResponse(stopped=outcome))
        elif isinstance(outcome, Failed):
            self._add(pb.RunResponse(failed=outcome.error, kept_artifacts=outcome.kept_artifacts))
        elif isinstance(outcome, lease_pb2.Released):
            # Run's caller, who holds the lease, is the one to give it back.
            self._add(pb.RunResponse(failed=to_status(Draining(outcome.cause, retry_after=1.0), hop="sidecar")))
        self._queue.put_nowait(None)
