"""Where the ledger and the artifacts meet: each takes part in the other's transactions through a port, and neither imports the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from onecontainer.artifacts import sql as artifact_rows
from onecontainer.artifacts.artifacts import Artifacts
from onecontainer.artifacts.model import Attempt, Upload
from onecontainer.artifacts.model import State as ArtifactState
from onecontainer.errors import LeaseLost, PermissionDenied
from onecontainer.jobs import sql_reads
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.ledger import Ledger
from onecontainer.jobs.model import LEASED, SECOND, State
from onecontainer.jobs.tables import jobs
from onecontainer.sidecars.model import InstanceIdentity
from onecontainer.statements import Texts, among

KEPT_AFTER_END = 8 * 86400 * SECOND
"""A request in the artifact store outlives its job's record (7 days), so that the job can be run again; microseconds."""

_MADE = (
    # Not by state: SQLite would go through all that are STAGED.
    sa.select(artifact_rows.artifacts.c.job, artifact_rows.artifacts.c.state).where(
        among(artifact_rows.artifacts.c.job, sa.bindparam("jobs", type_=Texts))
    )
)


class AttemptArtifacts:
    """What becomes of an attempt's artifacts when the ledger moves its job."""

    def settle(
        self,
        connection: Connection,
        accepted: Sequence[tuple[str, int]],
        dropped: Sequence[tuple[str, int]],
        kept: Mapping[tuple[str, int], Sequence[str]],
    ) -> None:
        names = [f"jobs/{job}" for job, _ in (*accepted, *dropped)]
        if not names:
            return
        # Most jobs make no artifacts: one look tells which of them did.
        made = connection.execute(_MADE, {"jobs": names})
        staged = {row.job for row in made if row.state == ArtifactState.STAGED.value}
        for job, fence in accepted:
            if f"jobs/{job}" in staged:
                artifact_rows.promote(connection, f"jobs/{job}", fence)
                artifact_rows.discard(connection, f"jobs/{job}", except_fence=fence)
        for job, fence in dropped:
            if f"jobs/{job}" in staged:
                if (job, fence) in kept:
                    artifact_rows.promote(connection, f"jobs/{job}", fence, names=kept[job, fence])
                artifact_rows.discard(connection, f"jobs/{job}")

    def of_jobs(self, connection: Connection, jobs: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        names = artifact_rows.names_of_jobs(connection, [f"jobs/{job}" for job in jobs])
        return {job.removeprefix("jobs/"): tuple(found) for job, found in names.items()}

    def discard(self, connection: Connection, jobs: Sequence[str]) -> None:
        for job in jobs:
            artifact_rows.remove_job(connection, f"jobs/{job}")

    def remove(self, connection: Connection, names: Sequence[str]) -> None:
        for name in names:
            artifact_rows.delete(connection, name.removeprefix("artifacts/"))


class LedgerView:
    """What the artifacts ask the ledger."""

    def principal_of(self, connection: Connection, attempt: Attempt, identity: object) -> str:
        row = connection.execute(
            sa.select(jobs.c.principal, jobs.c.state, jobs.c.fence, jobs.c.service_uid).where(
                jobs.c.id == attempt.job.removeprefix("jobs/")
            )
        ).one_or_none()
        if isinstance(identity, InstanceIdentity) and row is not None and row.service_uid != identity.service_uid:
            raise PermissionDenied(f"{identity.instance} may not upload for a job of another service")
        if row is None or row.fence != attempt.fence or State(row.state) not in LEASED:
            raise LeaseLost(f"the attempt of {attempt.job} with fence {attempt.fence} is not the current one: stop it")
        # Not who holds the lease: a driver beside a worker uploads with its own token for the attempt that the worker claimed.
        principal: str = row.principal
        return principal

    def user_of(self, connection: Connection, name: str) -> str | None:
        job = sql_reads.user_of(connection, name)
        return f"jobs/{job}" if job is not None else None


class LiveJobs:
    """What the catalog asks of jobs when a service is deleted."""

    def __init__(self, ledger: Ledger, changes: Changes) -> None:
        self._ledger = ledger
        self._changes = changes

    async def count(self, service_uid: str) -> int:
        return await self._ledger.live(service_uid)

    async def cancel_all(self, service_uid: str) -> None:
        outcome = await self._ledger.cancel_service(service_uid)
        self._changes.publish(outcome.changed)


class ArtifactArchives:
    """What plug-in drivers are installed from."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    async def read(self, name: str, max_bytes: int) -> bytes:
        # `get` first: what an attempt has only staged, or what has expired, is nobody's to install.
        return await self._artifacts.read((await self._artifacts.get(name)).name, max_bytes=max_bytes)


class ArtifactPayloads:
    """Keeps requests that are too large for the ledger in the artifact store."""

    def __init__(self, artifacts: Artifacts, max_bytes: int) -> None:
        self._artifacts = artifacts
        self._max_bytes = max_bytes

    async def put(self, job: str, data: bytes, principal: str, keep: int) -> str:
        upload = Upload(
            filename=f"{job}.request.binpb",
            media_type="application/x-protobuf",
            labels={"onecontainer.request-of": job},
            ttl=keep + KEPT_AFTER_END,
        )
        return (await self._artifacts.put(data, upload, principal=principal)).name

    async def get(self, name: str) -> bytes:
        return await self._artifacts.read(name, max_bytes=self._max_bytes)
