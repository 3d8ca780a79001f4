"""The record of artifacts in the gateway's database. Functions on a connection: they are part of their caller's transaction.

A row that goes leaves its key in `artifact_garbage`, in the same transaction; the sweeper removes the bytes and then the key. So
bytes are never gone while a row still promises them, and never forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from onecontainer.artifacts.model import COLLECTION, Artifact, Attempt, State
from onecontainer.rpc.filters import Term
from onecontainer.statements import Texts, among

metadata = sa.MetaData()

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.LargeBinary(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("principal", sa.Text, nullable=False),
    # Null: it was uploaded, not made by a job.
    sa.Column("job", sa.Text),
    sa.Column("attempt", sa.Integer),
    sa.Column("fence", sa.BigInteger),
    # Microseconds since 1970-01-01 UTC.
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("expire_time", sa.BigInteger),
    # Digests of what a request_id is unique within, and of what must be equal in a replay.
    sa.Column("request_key", sa.String(64), unique=True),
    sa.Column("request_hash", sa.String(64)),
    sa.Index("artifacts_newest", "create_time", "id"),
    sa.Index("artifacts_job", "job", "fence"),
    sa.Index("artifacts_expire", "expire_time"),
    sa.Index("artifacts_state", "state"),
)

artifact_garbage = sa.Table(
    "artifact_garbage",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
)


# --- for the ledger ----------------------------------------------------------------------------------------------------


def promote(
    connection: Connection,
    job: str,
    fence: int,
    expire_time: int | None = None,
    names: Sequence[str] | None = None,
) -> int:
    """Makes what the attempt with this fence has uploaded READY; part of the transaction that accepts its outcome.

    Args:
        job: `jobs/{job}`.
        expire_time: when they go, in microseconds since 1970-01-01 UTC; None: with the job.
        names: only these of them, `artifacts/{artifact}`; None: all.

    Returns: how many.
    """
    update = (
        artifacts.update()
        .where(artifacts.c.job == job, artifacts.c.fence == fence, artifacts.c.state == State.STAGED)
        .values(state=State.READY.value, expire_time=expire_time)
    )
    if names is None:
        return connection.execute(update).rowcount
    ids = [name.removeprefix(COLLECTION) for name in names]
    update = update.where(among(artifacts.c.id, sa.bindparam("kept", type_=Texts)))
    return connection.execute(update, {"kept": ids}).rowcount


def discard(connection: Connection, job: str, *, except_fence: int | None = None) -> int:
    """Removes what attempts of the job have STAGED, but for the one with `except_fence`. Returns how many.

    Nothing breaks if this is not called: the sweeper finds what no current attempt owns.
    """
    condition = (artifacts.c.job == job) & (artifacts.c.state == State.STAGED)
    if except_fence is not None:
        condition &= artifacts.c.fence != except_fence
    return _remove(connection, condition)


def remove_job(connection: Connection, job: str) -> int:
    """Removes everything that the job has made: its result_ttl is over, or it is deleted. Returns how many."""
    return _remove(connection, artifacts.c.job == job)


def set_job_expiry(connection: Connection, job: str, expire_time: int | None) -> None:
    """Sets when that what the job has made goes, in microseconds since 1970-01-01 UTC; None: with the job."""
    connection.execute(artifacts.update().where(artifacts.c.job == job).values(expire_time=expire_time))


_OF_JOBS = (
    # Not by state: SQLite would go through all that are READY.
    sa.select(artifacts.c.job, artifacts.c.id, artifacts.c.state)
    .where(among(artifacts.c.job, sa.bindparam("jobs", type_=Texts)))
    .order_by(artifacts.c.create_time, artifacts.c.id)
)


def names_of_jobs(connection: Connection, jobs: Sequence[str]) -> dict[str, list[str]]:
    """Names of the READY artifacts that each of the jobs has made, oldest first; a job that made none is not there."""
    found: dict[str, list[str]] = {}
    for row in connection.execute(_OF_JOBS, {"jobs": jobs}):
        if row.state == State.READY:
            found.setdefault(row.job, []).append(f"artifacts/{row.id}")
    return found


# --- rows --------------------------------------------------------------------------------------------------------------


def insert(connection: Connection, artifact: Artifact, request_key: str | None, request_hash: str | None) -> None:
    attempt = artifact.attempt
    connection.execute(
        artifacts.insert().values(
            id=artifact.id,
            filename=artifact.filename,
            media_type=artifact.media_type,
            size_bytes=artifact.size_bytes,
            sha256=artifact.sha256,
            state=artifact.state.value,
            labels=dict(artifact.labels),
            principal=artifact.principal,
            job=attempt.job if attempt else None,
            attempt=attempt.attempt if attempt else None,
            fence=attempt.fence if attempt else None,
            create_time=artifact.create_time,
            expire_time=artifact.expire_time,
            request_key=request_key,
            request_hash=request_hash,
        )
    )


def find(connection: Connection, artifact_id: str) -> Artifact | None:
    row = connection.execute(artifacts.select().where(artifacts.c.id == artifact_id)).one_or_none()
    return None if row is None else _from_row(row)


def find_request(connection: Connection, request_key: str) -> tuple[Artifact, str] | None:
    """The artifact that an earlier upload with this key made, and the hash of that request."""
    row = connection.execute(artifacts.select().where(artifacts.c.request_key == request_key)).one_or_none()
    return None if row is None else (_from_row(row), row.request_hash)


def forget_request(connection: Connection, artifact_id: str) -> None:
    """Frees the artifact's request_id for another upload."""
    connection.execute(
        artifacts.update().where(artifacts.c.id == artifact_id).values(request_key=None, request_hash=None)
    )


def page(
    connection: Connection, terms: Sequence[Term], *, now: int, size: int, after: tuple[int, str] | None
) -> list[Artifact]:
    """READY artifacts that have not expired and meet all terms, newest first, behind `after` (create_time, id)."""
    query = artifacts.select().where(
        artifacts.c.state == State.READY, sa.or_(artifacts.c.expire_time.is_(None), artifacts.c.expire_time > now)
    )
    for term in terms:
        query = query.where(_condition(term))
    if after is not None:
        create_time, artifact_id = after
        query = query.where(
            sa.or_(
                artifacts.c.create_time < create_time,
                sa.and_(artifacts.c.create_time == create_time, artifacts.c.id < artifact_id),
            )
        )
    query = query.order_by(artifacts.c.create_time.desc(), artifacts.c.id.desc()).limit(size)
    return [_from_row(row) for row in connection.execute(query)]


def _condition(term: Term) -> sa.ColumnElement[bool]:
    prefix, _, key = term.field.partition(".")
    if key and prefix == "labels":
        label: sa.ColumnElement[str] = artifacts.c.labels[key].as_string()
        return label == term.value
    column: sa.ColumnElement[str] = artifacts.c[term.field]
    return column == term.value


def delete(connection: Connection, artifact_id: str) -> bool:
    """Removes a row. False: there was none."""
    return _remove(connection, artifacts.c.id == artifact_id) > 0


def _remove(connection: Connection, condition: sa.ColumnElement[bool]) -> int:
    connection.execute(artifact_garbage.insert().from_select(["id"], sa.select(artifacts.c.id).where(condition)))
    return connection.execute(artifacts.delete().where(condition)).rowcount


def _from_row(row: sa.Row[Any]) -> Artifact:
    labels: Mapping[str, str] = row.labels
    return Artifact(
        id=row.id,
        filename=row.filename,
        media_type=row.media_type,
        size_bytes=row.size_bytes,
        sha256=bytes(row.sha256),
        state=State(row.state),
        labels=labels,
        principal=row.principal,
        attempt=None if row.job is None else Attempt(row.job, row.attempt, row.fence),
        create_time=row.create_time,
        expire_time=row.expire_time,
    )


# --- for the sweeper ---------------------------------------------------------------------------------------------------


def expired(connection: Connection, now: int, limit: int) -> list[Artifact]:
    """Artifacts whose time is over, oldest first."""
    query = artifacts.select().where(artifacts.c.expire_time <= now).order_by(artifacts.c.expire_time).limit(limit)
    return [_from_row(row) for row in connection.execute(query)]


def staged(connection: Connection, after: str, limit: int) -> list[Artifact]:
    """STAGED artifacts with an id behind `after`, by id."""
    query = artifacts.select().where(artifacts.c.state == State.STAGED, artifacts.c.id > after)
    return [_from_row(row) for row in connection.execute(query.order_by(artifacts.c.id).limit(limit))]


def garbage(connection: Connection, limit: int) -> list[str]:
    """Keys whose bytes are to be removed."""
    return list(connection.execute(sa.select(artifact_garbage.c.id).limit(limit)).scalars())


def garbage_removed(connection: Connection, ids: Iterable[str]) -> None:
    connection.execute(artifact_garbage.delete().where(artifact_garbage.c.id.in_(list(ids))))


def add_garbage(connection: Connection, artifact_id: str) -> None:
    """Has the bytes of a key removed that no row names, unless that is done already."""
    known = connection.execute(sa.select(artifact_garbage.c.id).where(artifact_garbage.c.id == artifact_id)).first()
    if known is None and find(connection, artifact_id) is None:
        connection.execute(artifact_garbage.insert().values(id=artifact_id))


def unknown_ids(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Those of `ids` that no row names."""
    known = set(connection.execute(sa.select(artifacts.c.id).where(artifacts.c.id.in_(ids))).scalars())
    return [artifact_id for artifact_id in ids if artifact_id not in known]


def ids_after(connection: Connection, after: str, limit: int) -> list[str]:
    """Ids behind `after`, in order."""
    query = sa.select(artifacts.c.id).where(artifacts.c.id > after).order_by(artifacts.c.id).limit(limit)
    return list(connection.execute(query).scalars())
