"""What a handler is given besides its request."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from google.protobuf import any_pb2
from google.protobuf.message import Message

from onecontainer.api.job.v1 import job_lease_service_pb2
from onecontainer.api.type.v1 import progress_pb2
from onecontainer.driver.progress import ProgressGate
from onecontainer.errors import StateInvalid

if TYPE_CHECKING:
    from onecontainer.driver.artifacts import ArtifactLink, Artifacts

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JobAttempt:
    """The attempt of a job that a handler runs for.

    `resume_details` is what an earlier attempt left by `context.checkpoint`; None if it left nothing.
    """

    name: str
    attempt: int
    fence: int
    resume_details: any_pb2.Any | None = None


class EventSink(Protocol):
    """Where the events of an attempt go: the worker's report stream, or the stream of DriverService.Run."""

    def progress(self, progress: progress_pb2.Progress) -> None: ...

    def checkpoint(self, details: any_pb2.Any) -> None: ...

    async def started(self, started: job_lease_service_pb2.Started) -> None:
        """Returns when it is recorded. Raises LeaseLost if the attempt is not the current one any more."""
        ...


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What is known of a call before its handler runs."""

    service: str
    principal: str = ""
    request_id: str = ""
    traceparent: str = ""
    deadline: float | None = None
    """On the loop's clock. None: there is none."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    job: JobAttempt | None = None


class Context:
    """One run of a handler: who calls, how long there is, and the ways to tell and to be told.

    All of it may be used from the handler's own thread if it is a plain `def`; coroutines then by `run_sync`.
    """

    def __init__(
        self,
        facts: CallFacts,
        loop: asyncio.AbstractEventLoop,
        *,
        sink: EventSink | None = None,
        artifacts: ArtifactLink | None = None,
        scratch_root: Path | None = None,
    ) -> None:
        self._facts = facts
        self._loop = loop
        self._sink = sink
        self._gate = None if sink is None else ProgressGate(loop, sink.progress)
        self._artifact_link = artifacts
        self._artifacts: Artifacts | None = None
        self._scratch_root = scratch_root
        self._scratch: Path | None = None
        self._scratch_lock = threading.Lock()
        self._cancelled = False
        self._finishing = False
        self._told: asyncio.Event | None = None
        self._created = loop.time()

    # --- who and how long ----------------------------------------------------------------------------------------------

    @property
    def service(self) -> str:
        """`services/{service}`, the one that the sidecar is attached to."""
        return self._facts.service

    @property
    def principal(self) -> str:
        """Who calls, or who made the job. Empty: not known."""
        return self._facts.principal

    @property
    def request_id(self) -> str:
        """The caller's id of this call. Empty: it gave none."""
        return self._facts.request_id

    @property
    def traceparent(self) -> str:
        """W3C trace context of the call. Empty: there is none."""
        return self._facts.traceparent

    @property
    def metadata(self) -> Mapping[str, str]:
        """The caller's other metadata, text values only. Empty for jobs."""
        return self._facts.metadata

    @property
    def job(self) -> JobAttempt | None:
        """The attempt that this is. None: a direct call."""
        return self._facts.job

    def time_remaining(self) -> float | None:
        """Seconds until the deadline, not below 0. None: there is no deadline."""
        deadline = self._facts.deadline
        return None if deadline is None else max(0.0, deadline - self._loop.time())

    # --- being told ----------------------------------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether to stop and keep nothing. A blocking handler asks it often; an async one gets a CancelledError besides."""
        return self._cancelled

    @property
    def finishing(self) -> bool:
        """Whether to end early and return what is done (CancelJob with mode FINISH)."""
        return self._finishing

    async def wait_finishing(self) -> None:
        """Returns when `finishing` or `cancelled` becomes true."""
        if self._told is None:
            self._told = asyncio.Event()
        if not (self._finishing or self._cancelled):
            await self._told.wait()

    # --- telling -------------------------------------------------------------------------------------------------------

    def progress(
        self,
        done: float,
        total: float | None = None,
        unit: str = "",
        message: str = "",
        details: Message | None = None,
    ) -> None:
        """Tells how far the work has come. Does not block; call it as often as you like: at most 4 a second are sent.

        `done` counts units from 0 and does not go down (a lower one counts as the one before). Without effect in a direct call.
        """
        if self._gate is not None:
            self._gate.report(done, total, unit, message, details)

    def checkpoint(self, details: Message) -> None:
        """Leaves a message that the next attempt, should there be one, finds in `context.job.resume_details`. Replaces the last one."""
        if self._sink is not None:
            packed = any_pb2.Any()
            packed.Pack(details)
            self._loop.call_soon_threadsafe(self._sink.checkpoint, packed)

    async def declare(self, *, idempotent: bool | None = None) -> None:
        """Narrows what the method declares, for this request, before its side effects begin; returns when that is recorded.

        `idempotent=False`: this attempt is not run again on its own. Raises LeaseLost if the attempt is not the current one any
        more. Without effect in a direct call.
        """
        if self._sink is not None:
            await self._sink.started(job_lease_service_pb2.Started(idempotent=idempotent))

    # --- tools ---------------------------------------------------------------------------------------------------------

    @property
    def scratch(self) -> Path:
        """A temporary folder of this call alone, removed after it."""
        with self._scratch_lock:
            if self._scratch is None:
                if self._scratch_root is not None:
                    self._scratch_root.mkdir(parents=True, exist_ok=True)
                self._scratch = Path(tempfile.mkdtemp(prefix="call-", dir=self._scratch_root))
            return self._scratch

    @property
    def artifacts(self) -> Artifacts:
        """Artifacts of the gateway. In a job, what is put belongs to the attempt. Raises StateInvalid if Attach named no gateway."""
        if self._artifacts is None:
            if self._artifact_link is None:
                raise StateInvalid(
                    "this sidecar was attached without `job_source.internal_target`: it has no artifacts"
                )
            self._artifacts = self._artifact_link.for_call(
                self._facts.job, self.time_remaining, lambda: self._cancelled
            )
        return self._artifacts

    def run_sync(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the sidecar's loop and waits for it: for handlers that are plain `def`.

        Raises RuntimeError in the loop's own thread, where it would wait for itself.
        """
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            coroutine.close()
            raise RuntimeError("run_sync is for plain `def` handlers: await the coroutine instead")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # --- the SDK's side, in the loop -----------------------------------------------------------------------------------

    @property
    def last_progress(self) -> float:
        """When the handler last told of progress, on the loop's clock; its start if never."""
        return self._created if self._gate is None else self._gate.last_change

    def _relay_progress(self, progress: progress_pb2.Progress) -> None:
        """Progress that a gate in the handler's own process has let through."""
        if self._gate is not None:
            self._gate.relay(progress)

    def _relay_checkpoint(self, details: any_pb2.Any) -> None:
        if self._sink is not None:
            self._sink.checkpoint(details)

    def _finish(self) -> None:
        self._finishing = True
        if self._told is not None:
            self._told.set()

    def _cancel(self) -> None:
        self._cancelled = True
        if self._told is not None:
            self._told.set()

    def _end_of_events(self) -> None:
        if self._gate is not None:
            self._gate.close()

    async def _close(self) -> None:
        if self._scratch is not None:
            await asyncio.to_thread(shutil.rmtree, self._scratch, True)
