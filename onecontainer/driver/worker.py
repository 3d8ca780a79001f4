"""The worker: takes jobs while it has free slots, has them run here or by a driver beside it, and reports what becomes of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import grpc
from google.protobuf import any_pb2
from google.rpc import status_pb2

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2_grpc, job_pb2
from onecontainer.api.type.v1 import progress_pb2
from onecontainer.driver.artifacts import Metadata
from onecontainer.driver.attempts import Attempt, Failed, Outcome
from onecontainer.driver.context import EventSink
from onecontainer.driver.lifecycle import Sidecar
from onecontainer.driver.reports import MAX_BATCH_BYTES, Backoff, OnSettled, Reports
from onecontainer.driver.runs import failure
from onecontainer.driver.source import Reject, Source, source_maker
from onecontainer.errors import (
    CredentialsInvalid,
    Draining,
    NotAttached,
    NotFinishable,
    OneContainerError,
    Reason,
)
from onecontainer.rpc import status

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
"""What the last reports get to be acknowledged at the end. What is left then is the ledger's to find out, by the lease."""
LAST_POLL_SECONDS = 2.0


OnOutcome = Callable[[object, Outcome], None]
"""Told once of each attempt that was started how it ended; the first argument is the attempt."""


class RunnableAttempt(Protocol):
    """One attempt of a job; `Attempt` runs it in this process."""

    @property
    def grant(self) -> lease_pb2.Grant: ...

    @property
    def key(self) -> tuple[str, int]:
        """Job and fence."""
        ...

    def start(self) -> None:
        """Starts it. Raises what it is to be refused with; then nobody is told of an outcome."""
        ...

    def finish(self) -> None:
        """End early, keep what is done. Raises NotFinishable."""
        ...

    def cancel(self) -> None:
        """Stop at once: the job was cancelled."""
        ...

    def abort(self, reason: status_pb2.Status) -> None:
        """Stop at once; its outcome is `failed` with this status."""
        ...

    def lose(self) -> None:
        """The lease is lost: stop at once, there is nothing to report."""
        ...

    def give_back(self) -> None:
        """Its outcome is `released` if its handler has not begun. Without effect if it has."""
        ...


class Attempts(Protocol):
    """Where attempts run: what a worker makes them with."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Metadata of errors: service and driver."""
        ...

    @property
    def max_message_bytes(self) -> int:
        """Largest message to the gateway."""
        ...

    def attempt(self, grant: lease_pb2.Grant, sink: EventSink, on_outcome: OnOutcome) -> RunnableAttempt:
        """An attempt that can be started."""
        ...


class SidecarAttempts:
    """Attempts in this process, by the sidecar's own driver."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self.max_message_bytes = sidecar.settings.max_message_bytes

    @property
    def facts(self) -> Mapping[str, str]:
        return self._sidecar.facts

    def attempt(self, grant: lease_pb2.Grant, sink: EventSink, on_outcome: OnOutcome) -> Attempt:
        return Attempt(self._sidecar, grant, sink, on_outcome)


class Worker:
    """Takes jobs of one service. Everything in the loop's thread.

    A gateway that is away does not touch running attempts: what they report waits, and is sent when it is back.
    """

    def __init__(
        self,
        attempts: Attempts,
        source: Callable[[Reject], Source],
        channel: grpc.aio.Channel,
        metadata: Metadata,
        slots: int,
    ) -> None:
        self._attempts = attempts
        self._source = source(self._reject)
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        stub: job_lease_service_pb2_grpc.JobLeaseServiceAsyncStub = job_lease_service_pb2_grpc.JobLeaseServiceStub(
            channel
        )
        # A batch may go over its bound by one report, which is at most 1 MiB.
        batch = min(MAX_BATCH_BYTES, attempts.max_message_bytes // 2)
        self._reports = Reports(lambda: stub.ReportJobs(metadata=metadata), self, max_batch_bytes=batch)
        self._held: dict[tuple[str, int], _Run] = {}
        """From the grant until its outcome is in the ledger."""
        self._ended: set[tuple[str, int]] = set()
        """What has left `_held` since the poll that is under way was asked."""
        self._early: dict[tuple[str, int], list[lease_pb2.Command]] = {}
        """What came for unknown leases since then: a command may overtake the answer that grants its lease."""
        self._busy = 0
        self._claiming = True
        self._slot_free = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._claim()), asyncio.create_task(self._reports.run())]

    def stop_claiming(self) -> None:
        """Takes no more jobs; what is granted from now on is given back. A poll that is under way is left to answer."""
        self._claiming = False
        self._slot_free.set()
        for run in list(self._held.values()):
            run.attempt.give_back()

    async def close(self) -> None:
        """Ends it. The sidecar has ended the attempts before; their last reports are brought to the gateway if it is there."""
        self.stop_claiming()
        claim, reports = self._tasks
        if not claim.done():
            claim.cancel()
            await asyncio.wait((claim,))
            await self._give_back_what_got_lost()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._reports.wait_empty()
        except TimeoutError:
            log.warning("the gateway does not answer: %d attempts are not reported", len(self._held))
        reports.cancel()
        await asyncio.wait((reports,))
        for run in self._held.values():
            run.quiet()
        await self._source.close()

    async def _give_back_what_got_lost(self) -> None:
        """The poll that was broken off may have been answered: a last one shows what this worker does not know it holds."""
        try:
            async with asyncio.timeout(LAST_POLL_SECONDS):
                for grant in await self._source.poll(self._slots, list(self._held), wait=0.0):
                    self._take(grant)
        except (OneContainerError, TimeoutError) as error:
            log.info("the last poll failed: %s", error)

    # --- from the source to the handler --------------------------------------------------------------------------------

    async def _claim(self) -> None:
        backoff = Backoff()
        while self._claiming:
            free = self._slots - self._busy
            if free <= 0:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            self._ended.clear()
            self._early.clear()
            try:
                for grant in await self._source.poll(free, list(self._held)):
                    self._take(grant)
            except CredentialsInvalid as error:
                self.dismissed(error)
            except OneContainerError as error:
                log.info("no jobs can be polled now: %s", error)
                await backoff.wait(error.retry_after)
            except Exception:
                # A defect must not end the claiming: without it the sidecar looks well and does nothing.
                log.exception("claiming failed")
                await backoff.wait()
            else:
                backoff.reset()
        # What it has read ahead is for those who still claim.
        await self._source.close()

    def _take(self, grant: lease_pb2.Grant) -> None:
        key = (grant.job, grant.fence)
        if key in self._held or key in self._ended:
            return  # given again, for a poll that was asked before it was known, or before it had ended
        run = _Run(self, grant)
        self._held[key] = run
        self._busy += 1
        if not self._claiming:
            run.outcome(run.attempt, lease_pb2.Released(cause="the worker takes no more jobs"))
            return
        try:
            run.attempt.start()
        except (Draining, NotAttached) as error:
            run.outcome(run.attempt, lease_pb2.Released(cause=error.message))
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must get an outcome
            run.outcome(run.attempt, Failed(failure(error, grant.method, run.facts())))
        for command in self._early.pop(key, ()):
            self._obey(run, command)

    def _reject(self, record: lease_pb2.Rejected, settled: Callable[[], None]) -> None:
        """Reports a record that is no job: the ledger's dead letters are the truth about it."""
        self._reports.add(lease_pb2.Report(rejected=record), lambda _refusal: settled())

    @property
    def attempts(self) -> Attempts:
        return self._attempts

    @property
    def reports(self) -> Reports:
        return self._reports

    def slot_freed(self) -> None:
        self._busy -= 1
        self._slot_free.set()

    def forget(self, key: tuple[str, int]) -> None:
        self._held.pop(key, None)
        self._ended.add(key)

    # --- Listener: what comes down the stream --------------------------------------------------------------------------

    def command(self, command: lease_pb2.Command) -> None:
        if command.HasField("stop_claiming"):
            self.stop_claiming()
            return
        key = (command.job, command.fence)
        run = self._held.get(key)
        if run is not None:
            self._obey(run, command)
        elif key not in self._ended:
            self._early.setdefault(key, []).append(command)

    @staticmethod
    def _obey(run: _Run, command: lease_pb2.Command) -> None:
        attempt, kind = run.attempt, command.WhichOneof("command")
        if kind == "lease_lost":
            run.lose()
        elif kind == "abort":
            attempt.abort(command.abort)
        elif kind == "cancel" and command.cancel == job_pb2.CANCEL_MODE_FINISH:
            try:
                attempt.finish()
            except NotFinishable as error:
                log.warning("%s: %s", command.job, error)
        elif kind == "cancel":
            attempt.cancel()

    def refused(self, report: lease_pb2.RefusedReport) -> None:
        run = self._held.get((report.job, report.fence))
        if run is not None and status.from_status(report.error).reason is Reason.LEASE_LOST:
            run.lose()

    def dismissed(self, error: CredentialsInvalid) -> None:
        log.error("the gateway does not know this instance any more, so it stops: %s", error)
        self.stop_claiming()
        for run in list(self._held.values()):
            run.lose()


class _Run:
    """An attempt and its reports: the EventSink of its handler, its heartbeats, its outcome."""

    __slots__ = ("_ended", "_interval", "_timer", "_worker", "attempt")

    def __init__(self, worker: Worker, grant: lease_pb2.Grant) -> None:
        self._worker = worker
        self.attempt = worker.attempts.attempt(grant, self, self.outcome)
        self._ended = False
        interval = grant.heartbeat_interval
        self._interval = interval.seconds + interval.nanos / 1e9
        self._timer: asyncio.TimerHandle | None = None
        if self._interval > 0:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)

    def facts(self) -> dict[str, str]:
        grant = self.attempt.grant
        return {**self._worker.attempts.facts, "job": grant.job, "attempt": str(grant.attempt)}

    def _report(self, settled: OnSettled | None = None, **event: object) -> None:
        grant = self.attempt.grant
        report = lease_pb2.Report(job=grant.job, attempt=grant.attempt, fence=grant.fence, **event)  # type: ignore[arg-type]
        self._worker.reports.add(report, settled)

    def _beat(self) -> None:
        self._report(heartbeat=lease_pb2.Heartbeat())
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)

    def quiet(self) -> None:
        """No more heartbeats."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lose(self) -> None:
        """The lease is another's: the handler is stopped, and nothing more is said of it."""
        self.quiet()
        self._worker.forget(self.attempt.key)
        self.attempt.lose()

    # --- EventSink -----------------------------------------------------------------------------------------------------

    def progress(self, progress: progress_pb2.Progress) -> None:
        self._report(progress=progress)

    def checkpoint(self, details: any_pb2.Any) -> None:
        self._report(checkpoint=details)

    async def started(self, started: lease_pb2.Started) -> None:
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settled(error: OneContainerError | None) -> None:
            if recorded.done():
                return
            if error is None:
                recorded.set_result(None)
            else:
                recorded.set_exception(error)

        self._report(settled, started=started)
        await recorded

    # --- the end -------------------------------------------------------------------------------------------------------

    def outcome(self, _attempt: object, outcome: Outcome) -> None:
        if self._ended:
            return
        self._ended = True
        self.quiet()
        self._worker.slot_freed()
        try:
            self._tell(outcome)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must get an outcome
            self._tell(Failed(failure(error, self.attempt.grant.method, self.facts())))

    def _tell(self, outcome: Outcome) -> None:
        if outcome is None:
            self._settled(None)
        elif isinstance(outcome, lease_pb2.Succeeded):
            self._report(self._settled, succeeded=outcome)
        elif isinstance(outcome, lease_pb2.Stopped):
            self._report(self._settled, stopped=outcome)
        elif isinstance(outcome, lease_pb2.Released):
            self._report(self._settled, released=outcome)
        else:
            self._report(self._settled, failed=outcome.error, kept_artifacts=outcome.kept_artifacts)

    def _settled(self, error: OneContainerError | None) -> None:
        if error is not None:
            log.info("the outcome of %s was refused: %s", self.attempt.grant.job, error)
        self._worker.forget(self.attempt.key)


def start_worker(
    sidecar: Sidecar, job_source: driver_pb2.JobSource, channel: grpc.aio.Channel, metadata: Metadata
) -> Worker | None:
    """A worker that runs, None if Attach names no source of jobs. Raises FieldInvalid for a source that is not built in."""
    source = source_maker(job_source, channel, metadata, sidecar.facts["service"], sidecar.settings.secrets)
    if source is None:
        return None
    worker = Worker(SidecarAttempts(sidecar), source, channel, metadata, job_source.slots)
    worker.start()
    return worker
