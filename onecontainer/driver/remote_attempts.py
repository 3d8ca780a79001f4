"""Attempts that a driver in another process runs: DriverService.Run turned into what a worker reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing, suppress

from google.rpc import status_pb2

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver.artifacts import ArtifactLink, Artifacts
from onecontainer.driver.attempts import INLINE_RESULT_BYTES, Failed, Outcome, job_status_bytes
from onecontainer.driver.context import EventSink, JobAttempt
from onecontainer.driver.progress import ProgressRelay
from onecontainer.driver.remote import ASK_AGAIN_SECONDS, RemoteDriver, events_of
from onecontainer.driver.worker import OnOutcome
from onecontainer.errors import (
    AttemptTimeout,
    Cancelled,
    Code,
    Draining,
    DriverMisimplemented,
    DriverUnreachable,
    LeaseLost,
    OneContainerError,
    Reason,
    Stalled,
)
from onecontainer.rpc import status
from onecontainer.rpc.channel import MAX_MESSAGE_BYTES

log = logging.getLogger(__name__)

STOP_GRACE = 2.0
"""What an attempt gets to end after StopRun; then its call is cancelled, which says the same in another way."""
GONE_SECONDS = 30.0
"""So long a worker waits for the real end of an attempt whose call it has cancelled."""
NOT_BEGUN = frozenset({Reason.DRAINING, Reason.NOT_ATTACHED, Reason.WRONG_INSTANCE})
"""Reasons by which a driver refuses a Run before anything has begun: the attempt is given back."""


class RemoteAttempts:
    """Where attempts run: at one driver. Knows those that have not ended."""

    def __init__(
        self, driver: RemoteDriver, artifacts: ArtifactLink, max_message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        self.driver = driver
        self.artifacts = artifacts
        self.max_message_bytes = max_message_bytes
        self.running: dict[tuple[str, int], RemoteAttempt] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def facts(self) -> Mapping[str, str]:
        return self.driver.facts

    def attempt(self, grant: lease_pb2.Grant, sink: EventSink, on_outcome: OnOutcome) -> RemoteAttempt:
        return RemoteAttempt(self, grant, sink, on_outcome)

    def entered(self, attempt: RemoteAttempt) -> None:
        self.running[attempt.key] = attempt
        self._idle.clear()

    def left(self, attempt: RemoteAttempt) -> None:
        self.running.pop(attempt.key, None)
        if not self.running:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()


class RemoteAttempt:
    """One attempt. Everything in the loop's thread."""

    def __init__(
        self, attempts: RemoteAttempts, grant: lease_pb2.Grant, sink: EventSink, on_outcome: OnOutcome
    ) -> None:
        self.grant = grant
        self.key = (grant.job, grant.fence)
        self._attempts = attempts
        self._driver = attempts.driver
        self._sink = sink
        self._on_outcome = on_outcome
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._stopper: asyncio.Task[None] | None = None
        self._finisher: asyncio.Task[None] | None = None
        self._declarations: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self.progress = ProgressRelay(self._loop, sink.progress)
        """What the driver tells of it."""
        self._start_time = self._loop.time()
        self._entered = False
        self._sent = False
        self._begun = False
        self._ended = asyncio.Event()
        self._stop_error: OneContainerError | None = None
        self._abort_status: status_pb2.Status | None = None
        self._lost = False

    def __str__(self) -> str:
        """For people."""
        grant, latest = self.grant, self.progress.latest
        text = (
            f"{grant.job}: attempt {grant.attempt} of {grant.method} for {self._loop.time() - self._start_time:.0f} s"
        )
        if latest is None:
            return text
        total = f" of {latest.total:g}" if latest.HasField("total") else ""
        return f"{text}, {latest.done:g}{total} {latest.unit}".rstrip()

    def start(self) -> None:
        """Starts it; whatever hinders it becomes its outcome."""
        self._attempts.entered(self)
        self._task = asyncio.create_task(self._run(), name=f"run of {self.grant.job}")

    # --- being told ----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """End early, keep what is done; what the driver thinks of it is in the log."""
        if not self._sent:
            # The grant tells it.
            self.grant.cancel_mode = job_pb2.CANCEL_MODE_FINISH
        elif self._finisher is None:
            self._finisher = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        while not self._ended.is_set():
            try:
                # Not found: the order has overtaken the Run.
                if await self._driver.stop_run(self.grant, job_pb2.CANCEL_MODE_FINISH):
                    return
            except OneContainerError as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    log.warning("%s cannot be ended early: %s", self.grant.job, error)
                    return
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    def cancel(self, why: str = "the job was cancelled") -> None:
        """Stop at once; its outcome is `stopped`, or a success that came first."""
        self._stop(Cancelled(why, hop="sidecar"))

    def abort(self, reason: status_pb2.Status) -> None:
        """Stop at once; its outcome is `failed` with this status."""
        if self._stop_error is None:
            self._abort_status = reason
            self._stop(status.from_status(reason))

    def lose(self) -> None:
        """The lease is lost: stop at once, there is nothing to report."""
        self._lost = True
        self._stop(LeaseLost("another attempt of this job has been started", hop="sidecar"))

    def give_back(self) -> None:
        """Not here: its outcome is `released` if it has not been sent. Without effect if it has."""
        if not self._sent:
            self.drain()

    def drain(self) -> None:
        """Stop at once, for the worker ends: it is given back, begun or not."""
        self._stop(Draining("the worker was stopped while this ran", retry_after=1.0))

    def _stop(self, error: OneContainerError) -> None:
        if self._stop_error is not None or self._task is None:
            return
        self._stop_error = error
        if self._sent:
            self._stopper = asyncio.create_task(self._stop_run(self._task))
        elif self._entered:
            self._task.cancel()
        # Else the task has not begun; it looks at the error first. Cancelled now, it would never come to an outcome.

    async def _stop_run(self, task: asyncio.Task[None]) -> None:
        try:
            found = await self._driver.stop_run(self.grant, job_pb2.CANCEL_MODE_ABORT)
        except OneContainerError as error:
            log.info("%s: StopRun failed, so the call is cancelled: %s", self.grant.job, error)
            found = False
        if found:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE):
                    await self._ended.wait()
        if not self._ended.is_set():
            task.cancel()

    # --- from the grant to the outcome ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._entered = True
        outcome: Outcome
        try:
            outcome = await self._drive()
        except asyncio.CancelledError:
            # Only `_stop` cancels this task.
            outcome = await self._cut_off()
        except OneContainerError as error:
            outcome = self._broken(error) if self._sent else self._outcome_of(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must get an outcome
            outcome = Failed(self._failed(error))
        self._settle(outcome)

    async def _drive(self) -> Outcome:
        if self.grant.cancel_mode == job_pb2.CANCEL_MODE_ABORT:
            self._stop_error = Cancelled("the job was cancelled", hop="sidecar")
        if self._stop_error is not None:
            raise self._stop_error
        await self._bring_request()
        await self._driver.connect()
        self._sent = True
        self._set_timers()
        async with aclosing(events_of(self._driver.run(self.grant))) as events:
            async for event in events:
                kind = event.WhichOneof("event")
                if kind == "started":
                    self._declare(event.started)
                elif kind == "progress":
                    self.progress.tell(event.progress)
                elif kind == "checkpoint":
                    self._sink.checkpoint(event.checkpoint)
                elif kind is not None:
                    self._ended.set()
                    return await self._last(event)
                self._begun = True
        raise DriverMisimplemented("the driver ended Run without a last event: succeeded, failed or stopped")

    async def _bring_request(self) -> None:
        if self.grant.WhichOneof("payload") != "request_artifact":
            return
        limit = min(self._attempts.max_message_bytes, self._driver.info.max_message_bytes or MAX_MESSAGE_BYTES)
        self.grant.request = await self._artifacts().read_bytes(self.grant.request_artifact, limit)

    def _declare(self, started: lease_pb2.Started) -> None:
        """Not waited for: the driver does not wait either, and what else it tells must be read."""

        async def declare() -> None:
            # One that is refused has lost its lease, and the worker is told of that.
            with suppress(OneContainerError):
                await self._sink.started(started)

        task = asyncio.create_task(declare())
        self._declarations.add(task)
        task.add_done_callback(self._declarations.discard)

    async def _last(self, event: driver_pb2.RunResponse) -> Outcome:
        if self._lost:
            return None
        if self._abort_status is not None:
            # It held on beyond its time: what it brings is too late.
            return Failed(self._abort_status)
        if event.HasField("succeeded"):
            return await self._succeeded(event.succeeded)
        if event.HasField("stopped"):
            # Why it was told to stop is known here; a driver that stopped it by itself says why.
            if self._stop_error is not None or not event.stopped.error.code:
                return self._outcome_of(self._told_to_stop())
            return lease_pb2.Stopped(error=self._told(event.stopped.error))
        if not event.failed.code:
            raise DriverMisimplemented("the driver ended Run with `failed`, but without an error in it")
        error = status.from_status(event.failed)
        error.kept_artifacts = tuple(event.kept_artifacts)
        told = self._stop_error is not None and isinstance(error, Cancelled)
        return self._outcome_of(self._told_to_stop() if told else error)

    async def _succeeded(self, succeeded: lease_pb2.Succeeded) -> lease_pb2.Succeeded:
        if len(succeeded.result) > INLINE_RESULT_BYTES:
            artifact = await self._artifacts().put_bytes(succeeded.result, media_type="application/x-protobuf")
            return lease_pb2.Succeeded(result_artifact=artifact.name, ended_early=succeeded.ended_early)
        return succeeded

    def _told(self, error: status_pb2.Status) -> status_pb2.Status:
        """The driver's own status; one without a reason of ours, or without a code, gets what its code stands for."""
        return status.to_status(status.from_status(error), hop="sidecar", metadata=self._facts())

    async def _cut_off(self) -> Outcome:
        """It was stopped before it had an outcome. Where it may still run, its end is waited for: its slot is not free before."""
        if self._sent and not self._ended.is_set():
            with suppress(TimeoutError, OneContainerError):
                async with asyncio.timeout(GONE_SECONDS):
                    await self._driver.wait_gone(self.grant)
        return self._outcome_of(self._told_to_stop())

    def _told_to_stop(self) -> OneContainerError:
        if self._stop_error is None:
            self._stop_error = Cancelled("the driver stopped the attempt", hop="sidecar")
        return self._stop_error

    def _outcome_of(self, error: OneContainerError) -> Outcome:
        """The outcome of an attempt that ended by an error."""
        if self._lost:
            return None
        if self._abort_status is not None:
            return Failed(self._abort_status)
        if error is self._stop_error:
            if isinstance(error, Draining) and not self._sent:
                return lease_pb2.Released(cause=error.message)
            return lease_pb2.Stopped(error=self._failed(error))
        if not self._begun and (error.reason in NOT_BEGUN or (not self._sent and isinstance(error, DriverUnreachable))):
            self._driver.doubt()
            return lease_pb2.Released(cause=error.message)
        return Failed(self._failed(error), error.kept_artifacts)

    def _broken(self, error: OneContainerError) -> Outcome:
        """The outcome of a Run that ended by an error of the call instead of a last event."""
        if self._stop_error is not None:
            # What breaks while it is being stopped is a consequence.
            return self._outcome_of(self._stop_error)
        if error.code is Code.UNAVAILABLE and error.reason is Reason.DRIVER_UNREACHABLE:
            # Whether the handler has begun is not known, so it is not as if it had never been.
            self._driver.doubt()
            error = DriverUnreachable(f"the connection to the driver broke: {error.message}", retry_after=1.0)
        return self._outcome_of(error)

    def _settle(self, outcome: Outcome) -> None:
        self._ended.set()
        for timer in self._timers:
            timer.cancel()
        for task in (*self._declarations, self._finisher, self._stopper):
            if task is not None:
                task.cancel()
        self.progress.close()
        self._on_outcome(self, None if self._lost else outcome)
        self._attempts.left(self)

    def _facts(self) -> dict[str, str]:
        return {**self._driver.facts, "job": self.grant.job, "attempt": str(self.grant.attempt)}

    def _failed(self, error: Exception) -> status_pb2.Status:
        most = job_status_bytes(self._attempts.max_message_bytes)
        return status.to_status(error, hop="sidecar", metadata=self._facts(), most=most)

    # --- time ----------------------------------------------------------------------------------------------------------

    def _set_timers(self) -> None:
        grant = self.grant
        self.progress.last_change = self._loop.time()
        if grant.HasField("run_timeout"):
            limit = grant.run_timeout.ToMicroseconds() / 1e6
            late = AttemptTimeout(f"the attempt did not end within {limit:g} s", hop="sidecar")
            self._timers.append(self._loop.call_later(limit, self._abort, late))
        if grant.HasField("stall_timeout"):
            self._watch_stall(grant.stall_timeout.ToMicroseconds() / 1e6)

    def _watch_stall(self, limit: float) -> None:
        idle = self._loop.time() - self.progress.last_change
        if idle >= limit:
            self._abort(Stalled(f"the attempt made no progress for {limit:g} s", hop="sidecar"))
        else:
            self._timers.append(self._loop.call_later(limit - idle, self._watch_stall, limit))

    def _abort(self, error: OneContainerError) -> None:
        self.abort(self._failed(error))

    # --- what is too large for a message -------------------------------------------------------------------------------

    def _artifacts(self) -> Artifacts:
        job = JobAttempt(self.grant.job, self.grant.attempt, self.grant.fence)
        return self._attempts.artifacts.for_call(job, lambda: None, lambda: self._stop_error is not None)
