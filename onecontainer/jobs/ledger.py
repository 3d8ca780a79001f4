"""What the ledger takes and gives: the port, and the values that cross it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from google.rpc import status_pb2
from sqlalchemy.engine import Connection

from onecontainer.errors import OneContainerError, ResourceNotFound
from onecontainer.jobs.model import CancelMode, NewJob, State


@dataclass(frozen=True, slots=True)
class Worker:
    """The sidecar instance that claims or reports. ``gateway`` is set if it ends with that gateway."""

    instance: str
    service: str
    service_uid: str
    gateway: str = ""


@dataclass(slots=True)
class Granted:
    """A claimed attempt. Lengths of time in microseconds, 0 = no limit."""

    id: str
    attempt: int
    fence: int
    service: str
    method: str
    payload: bytes | None
    payload_artifact: str
    run_timeout: int
    stall_timeout: int
    resume: bytes | None
    principal: str
    traceparent: str
    request_id: str
    cancel_mode: int


class Decision(Enum):
    """Why a record's claim gave no grant."""

    SKIP = "skip"
    """Taken by another, ended, or of an old fence: the record is done with."""
    RETRY_LATER = "retry later"
    """The service's concurrency is used up, or jobs of a higher lane go first."""


@dataclass(slots=True)
class Reported:
    """One report of a worker, decoded: ``kind`` is the name of the oneof's case in ``job.v1.Report``."""

    sequence: int
    id: str
    attempt: int
    fence: int
    kind: str
    value: Any = None
    result: bytes | None = None
    artifact: str = ""
    ended_early: bool = False
    kept_artifacts: tuple[str, ...] = ()


@dataclass(slots=True)
class Changed:
    """A job after a committed change: what watchers, workers and dispatch are told of.

    ``attempt``, ``fence`` and ``instance`` are those of the attempt that the change is about, not of the next one.
    """

    id: str
    service_uid: str
    state: State
    sequence: int
    attempt: int
    fence: int
    instance: str
    cancel_mode: int = 0
    left_lease: bool = False
    lost: bool = False
    """True: its attempt was given up without the worker's word; the worker, if it lives, is to stop."""
    old_state: State | None = None
    orders: bool = False
    """True: this change asks the worker to end the attempt; ``state`` and ``cancel_mode`` tell how."""
    service: str = ""
    method: str = ""
    principal: str = ""
    error: bytes | None = None
    """With these an event is told; serialised google.rpc.Status."""


@dataclass(slots=True)
class Outcome:
    """What a ledger call changed."""

    changed: list[Changed] = field(default_factory=list)
    refused: list[tuple[Reported, OneContainerError]] = field(default_factory=list)
    emptied: bool = False
    """By a claim: it could have taken more, and there was no more in the queue."""


@dataclass(frozen=True, slots=True)
class Created:
    """Answer to one NewJob: its id, or that of the job that its request_id made before."""

    id: str
    replayed: bool = False
    error: OneContainerError | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as it is read: its row, the attempts before the current one, labels are in its options."""

    row: Any
    attempts: tuple[Any, ...] = ()
    artifacts: tuple[str, ...] = ()
    queue_position: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Rows and the position to go on from; 0 = there are no more."""

    rows: tuple[Any, ...]
    next_position: int


class AttemptArtifacts(Protocol):
    """What the artifact store does inside the ledger's transactions."""

    def settle(
        self,
        connection: Connection,
        accepted: Sequence[tuple[str, int]],
        dropped: Sequence[tuple[str, int]],
        kept: Mapping[tuple[str, int], Sequence[str]],
    ) -> None:
        """Makes the artifacts of accepted (job, fence) READY, and removes those of dropped ones, but for those that ``kept`` names."""
        ...

    def of_jobs(self, connection: Connection, jobs: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Names of the READY artifacts that each of these jobs made, for those that made any."""
        ...

    def discard(self, connection: Connection, jobs: Sequence[str]) -> None:
        """Removes all artifacts that these jobs made."""
        ...

    def remove(self, connection: Connection, names: Sequence[str]) -> None:
        """Removes artifacts by name: requests that were too large for the ledger."""
        ...


class Outbox(Protocol):
    """What has yet to be told to a broker. Rows have the columns of ``jobs`` that a record needs."""

    async def waiting_services(self) -> list[tuple[str, str]]: ...
    async def to_publish(
        self, service_uid: str, window: int, max_running: int, sent: Collection[tuple[str, int]] = ()
    ) -> list[Any]: ...
    async def published(self, rows: Sequence[tuple[int, int]]) -> None: ...
    async def unclaimed_services(self, before: int) -> list[tuple[str, str]]: ...
    async def publish_again(self, service_uid: str, before: int, slots: int) -> int: ...
    async def oldest_events(self, limit: int) -> list[Any]: ...
    async def events_sent(self, positions: Sequence[int]) -> None: ...


class Ledger(Protocol):
    """The truth about jobs. Every method is one transaction; what it returns is committed."""

    async def create(self, new: Sequence[NewJob]) -> list[Created]: ...
    async def claim(self, worker: Worker, limit: int, max_running: int) -> tuple[list[Granted], Outcome]: ...
    async def claim_records(
        self, worker: Worker, wanted: Sequence[tuple[str, int]], max_running: int
    ) -> tuple[list[Granted | Decision], Outcome]:
        """An answer for each of ``wanted``, in their order; behind them grants of better jobs that went first."""
        ...

    async def regrant(self, worker: Worker, fences: Sequence[tuple[str, int]]) -> list[Granted]: ...
    async def report(self, worker: Worker, reports: Sequence[Reported]) -> Outcome: ...
    async def cancel(self, job: str, mode: CancelMode) -> Outcome: ...
    async def cancel_service(self, service_uid: str) -> Outcome: ...
    async def refuse_methods(self, service_uid: str, methods: Sequence[str], error: OneContainerError) -> Outcome: ...
    async def lose(self, *, instance: str = "", other_gateways_than: str | None = None) -> Outcome: ...
    async def sweep(self) -> Outcome: ...
    async def delete(self, job: str) -> None: ...
    async def expire(self, job: str) -> None: ...
    async def get(self, job: str, *, place: bool = False) -> JobView: ...
    async def views(self, jobs: Sequence[str]) -> dict[str, JobView]: ...
    async def ended(self, jobs: Sequence[str]) -> tuple[list[JobView], list[str]]: ...
    async def page(self, terms: Sequence[tuple[str, str, str]], limit: int, before: int) -> Page: ...
    async def payload(self, job: str) -> Any: ...
    async def ending(self, instance: str) -> list[Changed]: ...
    async def user_of(self, artifact: str) -> str | None: ...
    async def live(self, service_uid: str) -> int: ...
    async def queued(self, service_uid: str) -> int: ...
    async def dead_letters(self, terms: Sequence[tuple[str, str, str]], limit: int, before: int) -> Page: ...
    async def dead_letter(self, name: str) -> Any: ...
    async def redriven(self, name: str, job: str) -> None: ...
    async def reject(self, service: str, error: status_pb2.Status, origin: bytes) -> None: ...


def not_found(job: str) -> ResourceNotFound:
    """The error for a job that is not there."""
    name = f"jobs/{job}"
    return ResourceNotFound(
        f"there is no job {name}; ended jobs are kept for 7 days", resource=("onecontainer.dev/Job", name)
    )
