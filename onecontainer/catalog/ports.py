"""What the catalog needs of others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from onecontainer.catalog.model import DriverRecord, ServiceRecord
from onecontainer.errors import OneContainerError
from onecontainer.sidecars.model import Heartbeat, LogLine, ServiceState, Sidecar, Target


@dataclass(frozen=True, slots=True)
class Replay:
    """What a request_id was used for: the hash of the request, and its first answer, serialised."""

    principal: str
    method: str
    request_id: str
    request_hash: bytes
    response: bytes
    expire_time: int


class CatalogStore(Protocol):
    """Keeps the catalog's records. Each write is committed when it returns."""

    async def load(self) -> list[ServiceRecord]: ...

    async def create(self, record: ServiceRecord, replay: Replay | None) -> None:
        """Raises ResourceConflict if the name is taken."""
        ...

    async def update(self, record: ServiceRecord, replaces: int) -> None:
        """Raises EtagMismatch if the stored revision is not `replaces`."""
        ...

    async def delete(self, uid: str) -> None: ...

    async def replay(self, principal: str, method: str, request_id: str, now: int) -> Replay | None:
        """What this request_id was used for; None if for nothing that is still remembered."""
        ...

    async def drivers_seen(
        self, found: Iterable[DriverRecord], descriptors: Mapping[str, bytes], now: int
    ) -> dict[str, int]:
        """Keeps what was found, and tells since when each driver (by name) is known with its digest."""
        ...


class LiveJobs(Protocol):
    """The jobs of a service that have not ended."""

    async def count(self, service_uid: str) -> int: ...

    async def cancel_all(self, service_uid: str) -> None:
        """Queued ones become CANCELLED, running ones are aborted; answers when all have ended or are being aborted."""
        ...


class Sidecars(Protocol):
    """What runs."""

    @property
    def runtimes(self) -> frozenset[str]: ...

    async def apply(self, target: Target, *, restart: bool = False) -> None: ...

    async def unassign(self, uid: str, drain: float) -> None: ...

    async def remove(self, uid: str, drain: float) -> None: ...

    def state(self, uid: str) -> tuple[ServiceState, OneContainerError | None]: ...

    def sidecars(self, uid: str | None = None) -> list[Sidecar]: ...

    def sidecar(self, name: str) -> Sidecar: ...

    async def heartbeat(self, uid: str, timeout: float) -> Heartbeat: ...

    def logs(self, name: str, tail: int, follow: bool) -> AsyncGenerator[list[LogLine], None]: ...

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]: ...


class Secrets(Protocol):
    def problem(self, name: str) -> str:
        """Why a secret cannot be used, empty if it can."""
        ...
