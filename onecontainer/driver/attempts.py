"""One attempt of a job, from its grant to its outcome: for the worker and for DriverService.Run alike."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2

from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.driver.artifacts import Artifacts
from onecontainer.driver.context import CallFacts, EventSink, JobAttempt
from onecontainer.driver.lifecycle import Sidecar
from onecontainer.driver.methods import DriverMethod
from onecontainer.driver.runs import Execution, check_size, decode, failure, kept_of, unforeseen
from onecontainer.errors import (
    AttemptTimeout,
    Cancelled,
    CapabilityMissing,
    Draining,
    FieldRequired,
    LeaseLost,
    NotAttached,
    NotFinishable,
    OneContainerError,
    Stalled,
    StateInvalid,
    WrongInstance,
)
from onecontainer.rpc import status

log = logging.getLogger(__name__)

INLINE_RESULT_BYTES = 1024 * 1024
"""A larger result is an artifact."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed. `kept_artifacts` stay if this is the end of the job."""

    error: status_pb2.Status
    kept_artifacts: tuple[str, ...] = ()


Outcome: TypeAlias = lease_pb2.Succeeded | Failed | lease_pb2.Stopped | lease_pb2.Released | None
"""How it ended: succeeded, failed, stopped, given back; None: the lease is lost, so there is nothing to report."""


class Attempt:
    """Runs a grant. Everything in the loop's thread; `on_outcome` is called exactly once, also if it never began."""

    def __init__(
        self, sidecar: Sidecar, grant: lease_pb2.Grant, sink: EventSink, on_outcome: Callable[[Attempt, Outcome], None]
    ) -> None:
        self.grant = grant
        self.key = (grant.job, grant.fence)
        self._sidecar = sidecar
        self._sink = sink
        self._on_outcome = on_outcome
        self._loop = asyncio.get_running_loop()
        self._execution: Execution | None = None
        self._bringing: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._job = JobAttempt(
            grant.job,
            grant.attempt,
            grant.fence,
            grant.resume_details if grant.HasField("resume_details") else None,
        )
        self._finish_asked = False
        self._stop_error: OneContainerError | None = None
        self._abort_status: status_pb2.Status | None = None
        self._lost = False
        self._over = False

    # --- from the grant to the handler ---------------------------------------------------------------------------------

    def check(self) -> DriverMethod:
        """The method. Raises what the attempt is to be refused with, before anything has begun."""
        grant = self.grant
        absent = [name for name in ("job", "attempt", "fence", "method") if not getattr(grant, name)]
        if absent:
            raise FieldRequired(f"grant.{absent[0]}")
        self._sidecar.check_open()
        if grant.service and grant.service != self._sidecar.service:
            raise WrongInstance(
                f"the grant is for {grant.service!r}, but this sidecar serves {self._sidecar.service!r}"
            )
        method = self._sidecar.method(grant.method)
        if not method.runnable:
            raise CapabilityMissing(
                f"{grant.method} has streams: it cannot be run as a job", metadata={"method": grant.method}
            )
        return method

    def start(self) -> None:
        """Starts it. Raises what it is to be refused with; then `on_outcome` is not called."""
        method = self.check()
        if self.grant.WhichOneof("payload") == "request_artifact":
            self._enter()
            self._bringing = asyncio.create_task(self._bring_request(method))
            return
        request = self._decode(method, self.grant.request)
        self._enter()
        self._run(method, request)

    def _decode(self, method: DriverMethod, data: bytes) -> object:
        return decode(method, data, self._sidecar.service)

    def _enter(self) -> None:
        self._sidecar.attempts[self.key] = self

    async def _bring_request(self, method: DriverMethod) -> None:
        try:
            name, limit = self.grant.request_artifact, self._sidecar.settings.max_message_bytes
            data = await self._artifacts().read_bytes(name, limit)
            request = self._decode(method, data)
            if self._stop_error is not None:
                raise self._stop_error
        except asyncio.CancelledError:
            self._settle_unstarted(self._stop_error or Cancelled("the attempt was cancelled"))
        except OneContainerError as error:
            self._settle_unstarted(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must get an outcome
            self._settle(Failed(self._failed(error)))
        else:
            try:
                self._run(method, request)
            except OneContainerError as error:
                self._settle_unstarted(error)
            except Exception as error:  # noqa: BLE001 - as above
                self._settle(Failed(self._failed(error)))

    def _run(self, method: DriverMethod, request: object) -> None:
        grant = self.grant
        limit = _seconds(grant.run_timeout) if grant.HasField("run_timeout") else None
        facts = CallFacts(
            service=self._sidecar.service,
            principal=grant.principal,
            request_id=grant.request_id,
            traceparent=grant.traceparent,
            deadline=None if limit is None else self._loop.time() + limit,
            job=self._job,
        )
        execution = self._sidecar.begin(method, facts, self._sink)
        execution.facts.update(job=grant.job, attempt=str(grant.attempt))
        self._execution = execution
        if limit is not None:
            error = AttemptTimeout(f"the attempt did not end within {limit:g} s", hop="sidecar")
            self._timers.append(self._loop.call_later(limit, self._abort, error))
        if grant.HasField("stall_timeout"):
            self._watch_stall(execution, _seconds(grant.stall_timeout))
        if grant.cancel_mode == job_pb2.CANCEL_MODE_FINISH or self._finish_asked:
            execution.finish()
        execution.start(request, None, self._ended)
        if grant.cancel_mode == job_pb2.CANCEL_MODE_ABORT:
            self.cancel()

    def _watch_stall(self, execution: Execution, limit: float) -> None:
        idle = self._loop.time() - execution.context.last_progress
        if idle >= limit:
            self._abort(Stalled(f"the attempt made no progress for {limit:g} s", hop="sidecar"))
        else:
            self._timers.append(self._loop.call_later(limit - idle, self._watch_stall, execution, limit))

    # --- being told ----------------------------------------------------------------------------------------------------

    @property
    def finishable(self) -> bool:
        method = self._sidecar.methods.get(self.grant.method)
        return method is not None and method.finishable

    def finish(self) -> None:
        """End early, keep what is done. Raises NotFinishable."""
        if not self.finishable:
            raise NotFinishable(f"{self.grant.method} cannot end early: cancel it with mode ABORT")
        self._finish_asked = True
        if self._execution is not None:
            self._execution.finish()

    def cancel(self, why: str = "the job was cancelled") -> None:
        """Stop at once; its outcome is `stopped`, or a success that came first."""
        if self._stop_error is None:
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
        """Not here: its outcome is `released` if its handler has not begun. Without effect if it has."""
        if self._execution is None and self._stop_error is None:
            self._stop(Draining("the worker takes no more jobs", retry_after=1.0))

    def _abort(self, error: OneContainerError) -> None:
        if self._stop_error is None:
            self._abort_status = self._failed(error)
            self._stop(error)

    def _stop(self, error: OneContainerError) -> None:
        self._stop_error = error
        if self._execution is not None:
            self._execution.stop(error)
        if self._bringing is not None:
            # Not at once: a task that is cancelled before its first step would never come to an outcome.
            self._loop.call_soon(self._bringing.cancel)

    # --- from the handler to the outcome -------------------------------------------------------------------------------

    def _ended(self, execution: Execution) -> None:
        outcome: Outcome
        try:
            result = execution.result()
            if self._abort_status is not None:
                # It held on beyond its time: what it brings is too late.
                outcome = Failed(self._abort_status)
            else:
                data = execution.encode(result)
                early = execution.context.finishing
                if len(data) > INLINE_RESULT_BYTES and self._sidecar.artifacts is not None:
                    self._bringing = asyncio.create_task(self._bring_result(execution, data, early))
                    return
                check_size(len(data), self._sidecar.settings.max_message_bytes, "the result")
                outcome = lease_pb2.Succeeded(result=data, ended_early=early)
        except OneContainerError as error:
            outcome = self._outcome_of(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must get an outcome
            outcome = self._outcome_of(unforeseen(error, execution.method.full_name))
        self._settle(outcome, execution)

    async def _bring_result(self, execution: Execution, data: bytes, early: bool) -> None:
        outcome: Outcome
        media_type = f"application/x-protobuf; type={execution.method.result_class.DESCRIPTOR.full_name}"
        try:
            artifact = await self._artifacts().put_bytes(data, media_type=media_type)
            outcome = lease_pb2.Succeeded(result_artifact=artifact.name, ended_early=early)
        except asyncio.CancelledError:
            outcome = self._outcome_of(self._stop_error or Cancelled("the attempt was cancelled"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must get an outcome
            outcome = self._outcome_of(error)
        self._settle(outcome, execution)

    def _outcome_of(self, error: Exception) -> Outcome:
        if self._lost:
            return None
        if self._abort_status is not None:
            return Failed(self._abort_status)
        told = self._stop_error if self._execution is None else self._execution.stop_error
        if isinstance(told, Cancelled | Draining) and (error is told or isinstance(error, Cancelled)):
            # By a cancel of the job, or by a drain of this sidecar: the ledger knows what each of them means.
            return lease_pb2.Stopped(error=self._failed(told))
        return Failed(self._failed(error), kept_of(error))

    def _settle_unstarted(self, error: OneContainerError) -> None:
        outcome = self._outcome_of(error)
        if isinstance(error, Draining | NotAttached) and outcome is not None:
            outcome = lease_pb2.Released(cause=error.message)
        self._settle(outcome)

    def _settle(self, outcome: Outcome, execution: Execution | None = None) -> None:
        try:
            if self._over:
                return
            self._over = True
            for timer in self._timers:
                timer.cancel()
            self._sidecar.attempts.pop(self.key, None)
            self._on_outcome(self, None if self._lost else outcome)
        finally:
            if execution is not None:
                self._sidecar.ended(execution)

    def _failed(self, error: Exception) -> status_pb2.Status:
        facts = {**self._sidecar.facts, "job": self.grant.job, "attempt": str(self.grant.attempt)}
        return failure(error, self.grant.method, facts, job_status_bytes(self._sidecar.settings.max_message_bytes))

    # --- what is too large for a message -------------------------------------------------------------------------------

    def _artifacts(self) -> Artifacts:
        link = self._sidecar.artifacts
        if link is None:
            raise StateInvalid("this sidecar was attached without `job_source.internal_target`: it has no artifacts")
        return link.for_call(self._job, lambda: None)


def job_status_bytes(max_message_bytes: int) -> int:
    """Bound of the status that a worker reports, where messages have this one."""
    return min(status.MAX_JOB_STATUS_BYTES, max(status.MAX_STATUS_BYTES, max_message_bytes // 2))


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
