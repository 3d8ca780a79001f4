from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from onecontainer.artifacts import sql
from onecontainer.artifacts.artifacts import Artifacts
from onecontainer.artifacts.model import Artifact, Upload
from onecontainer.artifacts.sweep import ArtifactSweeper
from onecontainer.clock import ManualClock
from onecontainer.database import Database
from tests.fakes.artifacts import FakeArtifactStore, FakeJobs


@dataclass
class World:
    database: Database
    store: FakeArtifactStore
    jobs: FakeJobs
    clock: ManualClock
    artifacts: Artifacts
    sweeper: ArtifactSweeper

    async def upload(
        self, *parts: bytes, principal: str = "alice", identity: object = None, **header: object
    ) -> Artifact:
        async def stream() -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        upload = Upload(**header)  # type: ignore[arg-type]
        return await self.artifacts.upload(upload, stream(), principal=principal, identity=identity)

    async def content(self, artifact: Artifact, offset: int = 0, limit: int = 0) -> bytes:
        return b"".join([chunk async for chunk in self.artifacts.download(artifact, offset, limit)])


@pytest.fixture
async def world(tmp_path: Path, ids: Iterator[str]) -> AsyncIterator[World]:
    clock = ManualClock()
    jobs = FakeJobs()
    store = FakeArtifactStore(clock)
    async with Database(f"sqlite:///{tmp_path}/test.db") as database:
        sql.metadata.create_all(database.engine)
        artifacts = Artifacts(database, store, jobs, clock, new_id=lambda: next(ids), max_bytes=1 << 20)
        yield World(database, store, jobs, clock, artifacts, ArtifactSweeper(database, store, jobs, clock))


@pytest.fixture
def ids() -> Iterator[str]:
    return (f"{number:032x}" for number in range(1, 1 << 20))
