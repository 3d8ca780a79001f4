"""What artifacts need from others: a place for bytes, and the ledger's word on jobs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.engine import Connection

from onecontainer.artifacts.model import Attempt
from onecontainer.errors import LeaseLost


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """An entry of the store. `modify_time` is in microseconds since 1970-01-01 UTC, by the store's clock."""

    key: str
    size_bytes: int
    modify_time: int


class BlobWriter(Protocol):
    """A blob that is being written. It does not exist before `commit`, and then it is there as a whole."""

    async def write(self, data: bytes) -> None:
        """Appends. Returns when the store has taken it: that is the back-pressure. Raises LimitExceeded: no space."""
        ...

    async def commit(self) -> None:
        """Makes it durable and visible. Raises LimitExceeded: no space."""
        ...


class ArtifactStore(Protocol):
    """Keeps blobs of bytes by key. Keys are `[0-9a-f]{32}` and are written once."""

    def create(self, key: str) -> AbstractAsyncContextManager[BlobWriter]:
        """A new blob. Leaving the context without commit, however, leaves nothing behind."""
        ...

    def read(self, key: str, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on, `limit` of them at the most, in chunks of at most 1 MiB.

        Raises:
            BlobMissing: there is no such blob, or it was deleted meanwhile.
            DataCorrupt: the store cannot read it.
        """
        ...

    async def delete(self, key: str) -> None:
        """Removes a blob; no error if there is none."""
        ...

    async def exists(self, key: str) -> bool:
        """Whether there is such a blob."""
        ...

    def entries(self) -> AsyncIterator[StoredBlob]:
        """All blobs, in any order; those that come or go meanwhile may be among them or not."""
        ...

    async def remove_partial(self) -> int:
        """Removes what writers that died left behind, never what a living one is at. Returns how many."""
        ...


class BlobMissing(Exception):  # a fact about the store, which its caller turns into a typed error
    """No blob has that key."""


class JobsView(Protocol):
    """What the ledger tells of jobs, within a transaction of the artifacts' own."""

    def principal_of(self, connection: Connection, attempt: Attempt, identity: object) -> str:
        """Whose job it is.

        Args:
            attempt: must be the job's current one, by its fence.
            identity: of the caller (`Call.identity`); None: the system itself, which may always.

        Raises:
            LeaseLost: the attempt is not the current one, or the job has ended or is not there.
            PermissionDenied: the caller is no instance of the job's service.
        """
        ...

    def user_of(self, connection: Connection, name: str) -> str | None:
        """`jobs/{job}` of a job that has not ended and has the artifact `artifacts/{artifact}` as input; None: no job has."""
        ...


class NoJobs:
    """The view where there are no jobs: no attempt is current, and nothing is in use."""

    def principal_of(self, connection: Connection, attempt: Attempt, identity: object) -> str:
        raise LeaseLost(f"{attempt.job} has no attempt with fence {attempt.fence}")

    def user_of(self, connection: Connection, name: str) -> str | None:
        return None
