"""Artifacts without a disk and without a ledger. The store passes the same contract suite as the real one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from onecontainer.artifacts.model import CHUNK_BYTES, Attempt, is_artifact_id
from onecontainer.artifacts.ports import BlobMissing, StoredBlob
from onecontainer.clock import Clock
from onecontainer.errors import LeaseLost, LimitExceeded, PermissionDenied


class FakeArtifactStore:
    """Blobs in memory; `capacity` is what a disk has."""

    def __init__(self, clock: Clock, capacity: int = 1 << 30) -> None:
        self.clock = clock
        self.capacity = capacity
        self.blobs: dict[str, tuple[bytes, int]] = {}
        self.partial: dict[str, FakeWriter] = {}

    def used(self) -> int:
        return sum(len(data) for data, _ in self.blobs.values()) + sum(len(one.data) for one in self.partial.values())

    @asynccontextmanager
    async def create(self, key: str) -> AsyncIterator[FakeWriter]:
        self._check(key)
        writer = self.partial[key] = FakeWriter(self, key)
        try:
            yield writer
        finally:
            self.partial.pop(key, None)

    async def read(self, key: str, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        self._check(key)
        if key not in self.blobs:
            raise BlobMissing(key)
        left = len(self.blobs[key][0]) if limit is None else limit
        while left > 0:
            if key not in self.blobs:
                raise BlobMissing(key)
            data = self.blobs[key][0][offset : offset + min(CHUNK_BYTES, left)]
            if not data:
                return
            yield data
            offset += len(data)
            left -= len(data)

    async def delete(self, key: str) -> None:
        self._check(key)
        self.blobs.pop(key, None)

    async def exists(self, key: str) -> bool:
        self._check(key)
        return key in self.blobs

    async def entries(self) -> AsyncIterator[StoredBlob]:
        for key, (data, time) in list(self.blobs.items()):
            yield StoredBlob(key, len(data), time)

    async def remove_partial(self) -> int:
        return 0  # its writers die with it

    @staticmethod
    def _check(key: str) -> None:
        if not is_artifact_id(key):
            raise ValueError(key)


class FakeWriter:
    def __init__(self, store: FakeArtifactStore, key: str) -> None:
        self.store = store
        self.key = key
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        if self.store.partial.get(self.key) is not self:
            raise ValueError("the writer is closed")
        if self.store.used() + len(data) > self.store.capacity:
            raise LimitExceeded("no space is left")
        self.data += data

    async def commit(self) -> None:
        if self.store.partial.pop(self.key, None) is not self:
            raise ValueError("the writer is closed")
        self.store.blobs[self.key] = (bytes(self.data), self.store.clock.now())


@dataclass
class FakeJobs:
    """A JobsView to be filled by hand."""

    fences: dict[str, int] = field(default_factory=dict)
    """Job → its current fence."""
    principals: dict[str, str] = field(default_factory=dict)
    instances: dict[str, object] = field(default_factory=dict)
    """Job → the identity that may upload for it."""
    users: dict[str, str] = field(default_factory=dict)
    """Artifact → live job that needs it."""

    def start(self, job: str, fence: int, *, principal: str, instance: object) -> Attempt:
        self.fences[job] = fence
        self.principals[job] = principal
        self.instances[job] = instance
        return Attempt(job, 1, fence)

    def principal_of(self, connection: Connection, attempt: Attempt, identity: object) -> str:
        if self.fences.get(attempt.job) != attempt.fence:
            raise LeaseLost(f"{attempt.job}: fence {attempt.fence} is not the current one")
        if identity is not None and identity != self.instances[attempt.job]:
            raise PermissionDenied("not this sidecar's job")
        return self.principals[attempt.job]

    def user_of(self, connection: Connection, name: str) -> str | None:
        return self.users.get(name)
