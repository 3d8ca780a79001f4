"""Writes of the ledger, as functions on a connection in a write transaction: create, delete, and whatever moves a job."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from google.rpc import status_pb2
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from onecontainer.errors import OneContainerError, RequestIdReused
from onecontainer.ids import new_id
from onecontainer.jobs import moves
from onecontainer.jobs.ledger import AttemptArtifacts, Changed, Created, Outcome
from onecontainer.jobs.model import LEASED, NewJob, State
from onecontainer.jobs.tables import (
    QUEUED,
    WAITING,
    attempts,
    dead_letters,
    inputs,
    jobs,
    labels,
    rarely,
    request_ids,
)
from onecontainer.rpc.status import brief
from onecontainer.statements import Bulk, Texts, among

DECIDING = [jobs.c[name] for name in moves.DECIDING]
KEPT_ATTEMPTS = 20
_DELETE_INPUTS = inputs.delete().where(among(inputs.c.job, sa.bindparam("jobs", type_=Texts)))


def _insert(table: sa.Table, *names: str) -> Bulk:
    return Bulk(table.insert().values({name: sa.bindparam(name) for name in names}))


_INSERT_JOBS = _insert(
    jobs,
    *("id", "service", "service_uid", "method", "result_type", "principal", "options", "payload", "payload_artifact"),
    *("request_id", "traceparent", "retry_of", "idempotent", "finishable", "state", "priority", "create_time"),
    *("queue_deadline", "total_deadline"),
)
_INSERT_REQUEST_IDS = _insert(request_ids, "principal", "method", "request_id", "hash", "job", "expire_time")
_INSERT_LABELS = _insert(labels, "job", "key", "value")
_INSERT_INPUTS = _insert(inputs, "job", "artifact")
_INSERT_ATTEMPTS = _insert(attempts, "job", "fence", "number", "state", "instance", "start_time", "end_time", "error")


def create(
    connection: Connection, new: Sequence[NewJob], now: int, retention: int, artifacts: AttemptArtifacts
) -> list[Created]:
    """Inserts jobs; one with a known request_id is answered with the job of then."""
    known = _known(connection, [job for job in new if job.request_id], now)
    answers: list[Created] = []
    made: list[NewJob] = []
    keyed: list[dict[str, Any]] = []
    unused: list[str] = []
    for job in new:
        key = (job.principal, job.method.full_name, job.request_id)
        if job.request_id and key in known:
            answers.append(_replay(job, *known[key]))
            # The request was stored before it was known to be a replay.
            unused += [job.payload_artifact] if job.payload_artifact else []
            continue
        if job.request_id:
            known[key] = (job.request_hash, job.id)
            keyed.append(
                {
                    "principal": job.principal,
                    "method": job.method.full_name,
                    "request_id": job.request_id,
                    "hash": job.request_hash,
                    "job": job.id,
                    "expire_time": now + retention,
                }
            )
        made.append(job)
        answers.append(Created(job.id))
    label_rows = [{"job": job.id, "key": k, "value": value} for job in made for k, value in job.labels.items()]
    input_rows = [{"job": job.id, "artifact": name} for job in made for name in job.inputs]
    for insert, values in (
        (_INSERT_JOBS, [_insert_values(job) for job in made]),
        (_INSERT_REQUEST_IDS, keyed),
        (_INSERT_LABELS, label_rows),
        (_INSERT_INPUTS, input_rows),
    ):
        if values:
            insert.run(connection, values)
    if unused:
        artifacts.remove(connection, unused)
    return answers


_Key = tuple[str, str, str]


def _known(connection: Connection, new: Sequence[NewJob], now: int) -> dict[_Key, tuple[bytes, str]]:
    """Hash and job of the request_ids that were used before; those that do not count any more are removed."""
    if not new:
        return {}
    wanted = {(job.principal, job.method.full_name, job.request_id) for job in new}
    columns = (request_ids.c.principal, request_ids.c.method, request_ids.c.request_id)
    query = (
        sa.select(request_ids, jobs.c.id)
        .select_from(request_ids.outerjoin(jobs, jobs.c.id == request_ids.c.job))
        .where(request_ids.c.request_id.in_({key[2] for key in wanted}))
        .where(request_ids.c.principal.in_({key[0] for key in wanted}))
        .where(request_ids.c.method.in_({key[1] for key in wanted}))
    )
    found: dict[_Key, tuple[bytes, str]] = {}
    for row in connection.execute(query).all():
        key = (row.principal, row.method, row.request_id)
        if key not in wanted:
            continue
        if row.expire_time <= now or row.id is None:
            connection.execute(
                request_ids.delete().where(sa.and_(*(c == v for c, v in zip(columns, key, strict=True))))
            )
        else:
            found[key] = (row.hash, row.job)
    return found


def _replay(job: NewJob, known_hash: bytes, known_job: str) -> Created:
    if known_hash == job.request_hash:
        return Created(known_job, replayed=True)
    return Created(
        "", error=RequestIdReused(f"request_id {job.request_id!r} was used with another request; use a new one")
    )


def _insert_values(job: NewJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "service": job.service,
        "service_uid": job.service_uid,
        "method": job.method.full_name,
        "result_type": job.method.result_type,
        "principal": job.principal,
        "options": job.options,
        "payload": job.payload,
        "payload_artifact": job.payload_artifact,
        "request_id": job.request_id,
        "traceparent": job.traceparent,
        "retry_of": job.retry_of,
        "idempotent": job.method.idempotent,
        "finishable": job.method.finishable,
        "state": int(State.QUEUED),
        "priority": job.priority,
        "create_time": job.create_time,
        "queue_deadline": job.queue_deadline,
        "total_deadline": job.total_deadline,
    }


def select_for_update(connection: Connection, *where: sa.ColumnElement[bool]) -> list[Any]:
    """The deciding columns of the jobs that fit, locked on databases with row locks."""
    return list(connection.execute(sa.select(*DECIDING).where(*where).with_for_update()).all())


def select_due(
    connection: Connection, time: sa.Column[int], now: int, limit: int, *where: sa.ColumnElement[bool]
) -> list[Any]:
    """The same of the jobs whose ``time`` has come, the longest overdue first."""
    query = sa.select(*DECIDING).where(rarely(time <= now), *where).order_by(time).limit(limit)
    return list(connection.execute(query.with_for_update()).all())


def apply(
    connection: Connection, done: Sequence[moves.Move], artifacts: AttemptArtifacts, outcome: Outcome, now: int
) -> None:
    """Writes moves, the attempts they ended, dead letters, and what becomes of the attempts' artifacts."""
    if not done:
        return
    update(connection, [move.values | {"b_position": move.row.position} for move in done])
    ended_attempts = [move.attempt for move in done if move.attempt is not None]
    if ended_attempts:
        _INSERT_ATTEMPTS.run(connection, ended_attempts)
    for attempt in ended_attempts:
        if attempt["fence"] > KEPT_ATTEMPTS:
            _forget_attempts(connection, attempt["job"])
    letters = [
        {
            "id": new_id(),
            "service": move.row.service,
            "job": move.row.id,
            "error": brief(status_pb2.Status.FromString(move.values["error"])).SerializeToString(),
            "create_time": now,
        }
        for move in done
        if move.dead_letter
    ]
    if letters:
        connection.execute(dead_letters.insert(), letters)
    over = [move.row.id for move in done if move.ended]
    if over:
        connection.execute(_DELETE_INPUTS, {"jobs": over})
    accepted = [(move.row.id, move.row.fence) for move in done if move.state == State.SUCCEEDED]
    dropped = [
        (move.row.id, move.row.fence)
        for move in done
        if move.state != State.SUCCEEDED and move.row.attempt_start_time and (move.ended or move.attempt is not None)
    ]
    kept = {(move.row.id, move.row.fence): move.kept for move in done if move.kept}
    artifacts.settle(connection, accepted, dropped, kept)
    outcome.changed.extend(
        Changed(
            *(move.row.id, move.row.service_uid, move.state, move.values["sequence"]),
            # Those of the attempt that this is about, not of the next one.
            *(move.row.attempt, move.row.fence, move.row.instance),
            cancel_mode=move.values.get("cancel_mode", move.row.cancel_mode),
            old_state=State(move.row.state),
            left_lease=move.row.state in LEASED and move.state not in LEASED,
            lost=move.lost,
            orders=move.state in (State.CANCELLING, State.EXPIRING),
            service=move.row.service,
            method=move.row.method,
            principal=move.row.principal,
            error=move.values.get("error"),
        )
        for move in done
    )


def _forget_attempts(connection: Connection, job: str) -> None:
    kept = (
        sa.select(attempts.c.fence)
        .where(attempts.c.job == job)
        .order_by(attempts.c.fence.desc())
        .limit(1)
        .offset(KEPT_ATTEMPTS - 1)
    )
    connection.execute(attempts.delete().where(attempts.c.job == job, attempts.c.fence < kept.scalar_subquery()))


def update(connection: Connection, updates: Sequence[dict[str, Any]]) -> None:
    """Sets columns by position; rows that set the same columns go in one statement."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for values in updates:
        groups.setdefault(tuple(values), []).append(values)
    for names, group in groups.items():
        _update_of(names).run(connection, group)


@lru_cache(maxsize=256)
def _update_of(names: tuple[str, ...]) -> Bulk:
    columns: dict[str, Any] = {name: sa.bindparam(name) for name in names if name != "b_position"}
    return Bulk(jobs.update().where(jobs.c.position == sa.bindparam("b_position")).values(columns))


def delete(connection: Connection, ids: Sequence[str], artifacts: AttemptArtifacts) -> None:
    """Removes jobs and all that belongs to them."""
    if ids:
        artifacts.discard(connection, ids)
        requests = connection.scalars(
            sa.select(jobs.c.payload_artifact).where(jobs.c.id.in_(ids), jobs.c.payload_artifact != "")
        ).all()
        artifacts.remove(connection, requests)
        # Without its job a dead letter cannot be redriven.
        connection.execute(dead_letters.delete().where(dead_letters.c.job.in_(ids)))
        connection.execute(jobs.delete().where(jobs.c.id.in_(ids)))


def expire(connection: Connection, ids: Sequence[str], artifacts: AttemptArtifacts, retention: int) -> None:
    """Removes the results of ended jobs and the artifacts they made; the rows stay for ``retention`` microseconds after the end."""
    if ids:
        artifacts.discard(connection, ids)
        connection.execute(
            jobs.update()
            .where(jobs.c.id.in_(ids), sa.not_(jobs.c.result_expired))
            .values(
                result=None,
                result_artifact="",
                # Without a result none has expired.
                result_expired=jobs.c.state == int(State.SUCCEEDED),
                expire_time=0,
                tidy_time=jobs.c.end_time + retention,
                sequence=jobs.c.sequence + 1,
            )
        )


def reject(connection: Connection, service: str, error: status_pb2.Status, origin: bytes, now: int) -> None:
    """Keeps a record that is no job as a dead letter; one that is read again, after a restart or a rebalance, has its letter already."""
    row = {
        # Of the same record at the same place it is the same: whoever reads it, and however often.
        "id": hashlib.sha256(origin).hexdigest()[:32],
        "service": service,
        "error": error.SerializeToString(),
        "origin": origin,
        "create_time": now,
    }
    insert: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(dead_letters).on_conflict_do_nothing(index_elements=["id"]), [row])


def refuse(
    connection: Connection,
    service_uid: str,
    methods: Sequence[str],
    error: OneContainerError,
    artifacts: AttemptArtifacts,
    now: int,
) -> Outcome:
    """Ends the waiting jobs of a service whose methods its new driver does not have."""
    outcome = Outcome()
    rows = select_for_update(
        connection,
        jobs.c.service_uid == service_uid,
        sa.or_(QUEUED, WAITING),
        jobs.c.method.not_in(methods),
    )
    apply(connection, [moves.refuse(row, now, error) for row in rows], artifacts, outcome, now)
    return outcome
