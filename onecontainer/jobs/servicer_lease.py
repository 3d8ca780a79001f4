"""JobLeaseService on the internal listener: grants down, reports up, commands down."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.errors import (
    Code,
    DataInvalid,
    FieldInvalid,
    MessageTooLarge,
    OneContainerError,
    PermissionDenied,
    StateInvalid,
    TotalTimeout,
)
from onecontainer.jobs import mapping
from onecontainer.jobs.changes import Bell, Changes
from onecontainer.jobs.dispatch.port import Dispatch
from onecontainer.jobs.ledger import Changed, Decision, Granted, Ledger, Reported, Worker
from onecontainer.jobs.model import CancelMode, State
from onecontainer.jobs.servicer import job_id
from onecontainer.rpc.server import Context, current_call
from onecontainer.rpc.status import MAX_JOB_STATUS_BYTES, bounded, to_status

MAX_GRANTS = 1000
RETRY_LATER_MICROS = 200_000
"""After so long a record that met a full service may be claimed again."""
INLINE_RESULT_BYTES = 1024 * 1024
"""Largest result that a report may carry, as the contract has it; larger ones are artifacts."""
MAX_BACKLOG = 10_000
"""Reports of one worker that may wait for the ledger; then its stream is not read on, which is the back-pressure."""

WorkerOf = Callable[[object], tuple[Worker, int] | None]
"""The worker of an authenticated identity, and how many jobs of its service may run at once."""


class JobLeaseServicer:
    """Serves `onecontainer.api.job.v1.JobLeaseService`."""

    def __init__(
        self, ledger: Ledger, changes: Changes, dispatch: Dispatch, worker_of: WorkerOf, *, lease: float
    ) -> None:
        """``lease`` in seconds."""
        self._ledger = ledger
        self._changes = changes
        self._dispatch = dispatch
        self._worker_of = worker_of
        self._lease = lease
        self._streams: dict[str, _ReportStream] = {}
        changes.listen(self._changed)

    def _worker(self) -> tuple[Worker, int]:
        found = self._worker_of(current_call().identity)
        if found is None:
            raise PermissionDenied("only sidecar instances poll, claim and report")
        return found

    async def PollJobs(self, request: lease_pb2.PollJobsRequest, context: Context) -> lease_pb2.PollJobsResponse:
        worker, max_running = self._worker()
        if not 1 <= request.max_grants <= MAX_GRANTS:
            raise FieldInvalid("max_grants", f"must be 1 to {MAX_GRANTS}")
        held = [(job_id(item.job, f"held[{index}].job"), item.fence) for index, item in enumerate(request.held)]
        wait = max(0.0, request.wait.ToMicroseconds() / 1e6)
        left = context.time_remaining()
        if left is not None:
            # Answer before the deadline: a claim whose answer is thrown away costs a lease.
            wait = max(0.0, min(wait, left - 1.0))
        grants = await self._dispatch.poll(worker, request.max_grants, max_running, wait, held)
        return lease_pb2.PollJobsResponse(grants=[mapping.grant_to_proto(grant, self._lease) for grant in grants])

    async def ClaimJobs(self, request: lease_pb2.ClaimJobsRequest, context: Context) -> lease_pb2.ClaimJobsResponse:
        worker, max_running = self._worker()
        if len(request.claims) > MAX_GRANTS or not 0 <= request.best_queued <= MAX_GRANTS:
            raise FieldInvalid("claims", f"at most {MAX_GRANTS} claims, and best_queued 0 to {MAX_GRANTS}")
        wanted = [(job_id(claim.job, f"claims[{i}].job"), claim.fence) for i, claim in enumerate(request.claims)]
        held = [(job_id(item.job, f"held[{index}].job"), item.fence) for index, item in enumerate(request.held)]
        unconfirmed = self._dispatch.unconfirmed
        answers: list[Granted | Decision] = [Decision.RETRY_LATER] * len(wanted)
        # What the claims name is answered there, the first time or again.
        grants: list[Granted] = await unconfirmed.again(worker, [*held, *wanted], MAX_GRANTS)
        if not grants:
            if wanted:
                claim = self._ledger.claim_records(worker, wanted, max_running)
                answers = await unconfirmed.claimed(worker, claim)
                grants.extend(answer for answer in answers[len(wanted) :] if isinstance(answer, Granted))
            if request.best_queued:
                best = self._ledger.claim(worker, request.best_queued, max_running)
                grants.extend(await unconfirmed.claimed(worker, best))
        return lease_pb2.ClaimJobsResponse(
            results=[self._claim_result(answer) for answer in answers[: len(wanted)]],
            grants=[mapping.grant_to_proto(grant, self._lease) for grant in grants],
        )

    def _claim_result(self, answer: Granted | Decision) -> lease_pb2.ClaimResult:
        if isinstance(answer, Granted):
            grant = mapping.grant_to_proto(answer, self._lease)
            return lease_pb2.ClaimResult(decision=lease_pb2.CLAIM_DECISION_GRANTED, grant=grant)
        if answer is Decision.SKIP:
            return lease_pb2.ClaimResult(decision=lease_pb2.CLAIM_DECISION_SKIP)
        return lease_pb2.ClaimResult(
            decision=lease_pb2.CLAIM_DECISION_RETRY_LATER, retry_after=mapping.micros(RETRY_LATER_MICROS)
        )

    async def ReportJobs(
        self, requests: AsyncIterator[lease_pb2.ReportJobsRequest], context: Context
    ) -> AsyncIterator[lease_pb2.ReportJobsResponse]:
        worker, _ = self._worker()
        stream = _ReportStream(worker, self._ledger, self._changes)
        old = self._streams.get(worker.instance)
        self._streams[worker.instance] = stream
        if old is not None:
            old.replace()
        try:
            for change in await self._ledger.ending(worker.instance):
                stream.command(change)
            async for response in stream.run(requests):
                yield response
        finally:
            if self._streams.get(worker.instance) is stream:
                del self._streams[worker.instance]

    def connected(self) -> list[str]:
        """Instances whose report stream ends here."""
        return list(self._streams)

    def stop_claiming(self, instance: str) -> None:
        """Tells an instance to claim nothing more."""
        stream = self._streams.get(instance)
        if stream is not None:
            stream.send(lease_pb2.Command(stop_claiming=lease_pb2.StopClaiming()))

    def _changed(self, change: Changed) -> None:
        if change.instance and (change.lost or change.orders):
            stream = self._streams.get(change.instance)
            if stream is not None:
                stream.command(change)


class _ReportStream:
    """One worker's stream. What comes while the ledger commits goes in the next commit: no transaction per report."""

    def __init__(self, worker: Worker, ledger: Ledger, changes: Changes) -> None:
        self._worker = worker
        self._ledger = ledger
        self._changes = changes
        self._reports: deque[Reported] = deque()
        self._rejected: deque[lease_pb2.Report] = deque()
        self._too_large: deque[tuple[Reported, OneContainerError]] = deque()
        self._commands: list[lease_pb2.Command] = []
        self._bell = Bell()
        self._room = asyncio.Event()
        self._room.set()
        self._last = 0
        self._replaced = False

    def replace(self) -> None:
        """A newer stream of the same instance has come."""
        self._replaced = True
        self._bell.ring()

    def send(self, command: lease_pb2.Command) -> None:
        self._commands.append(command)
        self._bell.ring()

    def command(self, change: Changed) -> None:
        """Tells the worker what a change of one of its jobs means for it."""
        command = lease_pb2.Command(job=f"jobs/{change.id}", attempt=change.attempt, fence=change.fence)
        if change.lost:
            command.lease_lost.SetInParent()
        elif change.state == State.EXPIRING:
            command.abort.CopyFrom(to_status(TotalTimeout("the job did not end within total_timeout")))
        else:
            command.cancel = job_pb2.CancelMode.ValueType(change.cancel_mode or int(CancelMode.ABORT))
        self.send(command)

    async def run(
        self, requests: AsyncIterator[lease_pb2.ReportJobsRequest]
    ) -> AsyncIterator[lease_pb2.ReportJobsResponse]:
        reader = asyncio.create_task(self._read(requests))
        reader.add_done_callback(lambda _done: self._bell.ring())
        try:
            while True:
                if not (self._reports or self._commands or self._rejected or self._too_large):
                    if self._replaced:
                        raise StateInvalid("a newer stream of this instance has replaced this one", code=Code.ABORTED)
                    if reader.done():
                        # The worker closed its half, or sent what cannot be read.
                        reader.result()
                        return
                    await self._bell.wait()
                response = lease_pb2.ReportJobsResponse()
                await self._take(response)
                response.commands.extend(self._commands)
                self._commands.clear()
                if response.acknowledged_sequence or response.commands:
                    yield response
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[lease_pb2.ReportJobsRequest]) -> None:
        async for request in requests:
            for report in request.reports:
                if report.sequence <= self._last:
                    raise FieldInvalid("reports.sequence", f"{report.sequence} does not rise over {self._last}")
                self._last = report.sequence
                if report.WhichOneof("event") == "rejected":
                    self._rejected.append(report)
                elif len(report.succeeded.result) > INLINE_RESULT_BYTES:
                    # Not kept, not even for a moment: one worker must not fill the gateway's memory.
                    size = len(report.succeeded.result)
                    report.succeeded.ClearField("result")
                    self._too_large.append((reported_from_proto(report), _result_too_large(size)))
                else:
                    self._reports.append(reported_from_proto(report))
            self._bell.ring()
            if len(self._reports) > MAX_BACKLOG:
                self._room.clear()
                await self._room.wait()

    async def _take(self, response: lease_pb2.ReportJobsResponse) -> None:
        reports, rejected, refused = list(self._reports), list(self._rejected), list(self._too_large)
        self._reports.clear()
        self._rejected.clear()
        self._too_large.clear()
        self._room.set()
        if reports:
            outcome = await self._ledger.report(self._worker, reports)
            self._changes.publish(outcome.changed)
            refused.extend(outcome.refused)
        for item, error in sorted(refused, key=lambda pair: pair[0].sequence):
            response.refused.add(
                sequence=item.sequence, job=f"jobs/{item.id}", fence=item.fence, error=to_status(error)
            )
        for report in rejected:
            error = report.rejected.error
            await self._ledger.reject(
                self._worker.service, error, report.rejected.origin.SerializeToString(deterministic=True)
            )
        response.acknowledged_sequence = max(
            [
                0,
                *(item.sequence for item in reports),
                *(report.sequence for report in rejected),
                *(item.sequence for item, _ in refused),
            ]
        )


def _result_too_large(size: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"the result has {size} bytes, more than the {INLINE_RESULT_BYTES} of a report: upload it as an artifact and report again",
        metadata={"limit_bytes": str(INLINE_RESULT_BYTES), "size_bytes": str(size)},
    )


def reported_from_proto(report: lease_pb2.Report) -> Reported:
    """A report, decoded. Raises FieldInvalid or DataInvalid for one that says nothing."""
    kind = report.WhichOneof("event")
    if kind is None:
        raise DataInvalid("reports.event", "is missing")
    reported = Reported(report.sequence, job_id(report.job, "reports.job"), report.attempt, report.fence, kind)
    return _with_value(reported, report, kind)


def _with_value(base: Reported, report: lease_pb2.Report, kind: str) -> Reported:
    common = (base.sequence, base.id, base.attempt, base.fence, base.kind)
    if kind == "succeeded":
        outcome = report.succeeded
        if outcome.WhichOneof("outcome") == "result_artifact":
            return Reported(*common, artifact=outcome.result_artifact, ended_early=outcome.ended_early)
        return Reported(*common, result=outcome.result, ended_early=outcome.ended_early)
    if kind == "failed":
        # Bounded before it waits: one worker must not fill the gateway's memory.
        error = bounded(report.failed, MAX_JOB_STATUS_BYTES)
        return Reported(*common, value=error, kept_artifacts=tuple(report.kept_artifacts))
    if kind == "stopped":
        return Reported(*common, value=report.stopped.error)
    if kind == "progress":
        return Reported(*common, value=report.progress.SerializeToString())
    if kind == "checkpoint":
        return Reported(*common, value=report.checkpoint.SerializeToString())
    if kind == "started":
        return Reported(*common, value=report.started.idempotent if report.started.HasField("idempotent") else None)
    return base
