"""Writes of the ledger, as functions on a connection in a write transaction: create, claim, and whatever moves a job."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.errors import LeaseLost, OneContainerError, RequestIdReused
from onecontainer.ids import new_id
from onecontainer.jobs import moves
from onecontainer.jobs.ledger import AttemptArtifacts, Changed, Created, Granted, Outcome, Reported, Worker
from onecontainer.jobs.model import LEASED, TERMINAL, AttemptState, NewJob, State
from onecontainer.jobs.tables import attempts, dead_letters, inputs, jobs, labels, request_ids

DECIDING = [jobs.c[name] for name in moves.DECIDING]
_LEASED = jobs.c.state.in_(sorted(int(state) for state in LEASED))
_SET_BY_POSITION: sa.BindParameter[int] = sa.bindparam("b_position")
_GRANTING = (
    *(
        "position",
        "id",
        "service_uid",
        "attempt",
        "fence",
        "service",
        "method",
        "payload",
        "payload_artifact",
        "options",
    ),
    *("total_deadline", "resume", "principal", "traceparent", "request_id", "cancel_mode", "start_time", "sequence"),
)
_GRANT = [jobs.c[name] for name in _GRANTING]


def create(connection: Connection, new: Sequence[NewJob], now: int, retention: int) -> list[Created]:
    """Inserts jobs; one with a known request_id is answered with the job of then."""
    answers: list[Created] = []
    rows: list[dict[str, Any]] = []
    keyed: list[dict[str, Any]] = []
    for job in new:
        if job.request_id:
            known = _known(connection, job, now, keyed)
            if known is not None:
                answers.append(known)
                continue
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
        rows.append(_insert_values(job))
        answers.append(Created(job.id))
    if rows:
        connection.execute(jobs.insert(), rows)
    created = {row["id"] for row in rows}
    label_rows = [
        {"job": job.id, "key": key, "value": value}
        for job in new
        if job.id in created
        for key, value in job.labels.items()
    ]
    input_rows = [{"job": job.id, "artifact": name} for job in new if job.id in created for name in job.inputs]
    for table, values in ((request_ids, keyed), (labels, label_rows), (inputs, input_rows)):
        if values:
            connection.execute(table.insert(), values)
    return answers


def _known(connection: Connection, job: NewJob, now: int, pending: Iterable[dict[str, Any]]) -> Created | None:
    key = (job.principal, job.method.full_name, job.request_id)
    for other in pending:
        if key == (other["principal"], other["method"], other["request_id"]):
            return _replay(job, other["hash"], other["job"])
    where = sa.and_(
        request_ids.c.principal == key[0], request_ids.c.method == key[1], request_ids.c.request_id == key[2]
    )
    row = connection.execute(sa.select(request_ids).where(where)).one_or_none()
    if row is None:
        return None
    gone = row.expire_time <= now or connection.scalar(sa.select(jobs.c.id).where(jobs.c.id == row.job)) is None
    if gone:
        connection.execute(request_ids.delete().where(where))
        return None
    return _replay(job, row.hash, row.job)


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


def claim(
    connection: Connection, worker: Worker, limit: int, max_running: int, now: int, lease: int
) -> tuple[list[Granted], Outcome]:
    """Claims the best queued jobs of the worker's service: lane first, then age."""
    busy = connection.scalar(
        sa.select(sa.func.count()).select_from(jobs).where(jobs.c.service_uid == worker.service_uid, _LEASED)
    )
    room = min(limit, max_running - int(busy or 0))
    if room <= 0:
        return [], Outcome()
    rows = connection.execute(
        sa.select(*_GRANT)
        .where(jobs.c.service_uid == worker.service_uid, jobs.c.state == int(State.QUEUED))
        .order_by(jobs.c.priority.desc(), jobs.c.position)
        .limit(room)
        .with_for_update(skip_locked=True)
    ).all()
    if not rows:
        return [], Outcome()
    outcome = Outcome()
    grants: list[Granted] = []
    updates: list[dict[str, Any]] = []
    for row in rows:
        granted, attempt_deadline = _grant(row, now)
        grants.append(granted)
        updates.append(
            {
                "b_position": row.position,
                "state": int(State.RUNNING),
                "sequence": row.sequence + 1,
                "instance": worker.instance,
                "gateway": worker.gateway,
                "start_time": row.start_time or now,
                "attempt_start_time": now,
                "attempt_deadline": attempt_deadline,
                "lease_expiry": now + lease,
                "progress_time": now,
            }
        )
        outcome.changed.append(
            Changed(row.id, row.service_uid, State.RUNNING, row.sequence + 1, row.attempt, row.fence, worker.instance)
        )
    _update(connection, updates)
    return grants, outcome


def _grant(row: Any, now: int) -> tuple[Granted, int]:
    options = job_options_pb2.JobOptions.FromString(row.options)
    attempt_timeout = options.attempt_timeout.ToMicroseconds()
    left = max(1, row.total_deadline - now)
    granted = Granted(
        id=row.id,
        attempt=row.attempt,
        fence=row.fence,
        service=row.service,
        method=row.method,
        payload=row.payload,
        payload_artifact=row.payload_artifact,
        # The total timeout is the ledger's to see; the worker is told of its own.
        run_timeout=min(attempt_timeout, left) if attempt_timeout else 0,
        stall_timeout=options.stall_timeout.ToMicroseconds(),
        resume=row.resume,
        principal=row.principal,
        traceparent=row.traceparent,
        request_id=row.request_id,
        cancel_mode=row.cancel_mode,
    )
    return granted, now + attempt_timeout if attempt_timeout else 0


def regrant(
    connection: Connection, worker: Worker, fences: Sequence[tuple[str, int]], now: int, lease: int
) -> list[Granted]:
    """Grants again what this instance holds but did not hear of: the answer got lost."""
    wanted = set(fences)
    rows = connection.execute(
        sa.select(*_GRANT).where(jobs.c.id.in_([job for job, _ in fences]), jobs.c.instance == worker.instance, _LEASED)
    ).all()
    rows = [row for row in rows if (row.id, row.fence) in wanted]
    _update(connection, [{"b_position": row.position, "lease_expiry": now + lease} for row in rows])
    return [_grant(row, now)[0] for row in rows]


def report(
    connection: Connection,
    worker: Worker,
    reports: Sequence[Reported],
    artifacts: AttemptArtifacts,
    now: int,
    lease: int,
    rng: random.Random,
) -> Outcome:
    """Takes what a worker tells. A report with the current fence counts, whatever the clock says; one with an old fence is refused."""
    rows = {row.id: row for row in select_for_update(connection, jobs.c.id.in_({item.id for item in reports}))}
    outcome = Outcome()
    done: list[moves.Move] = []
    renewed: dict[str, dict[str, Any]] = {}
    for item in reports:
        row = rows.get(item.id)
        if row is None or row.fence != item.fence or row.service_uid != worker.service_uid:
            outcome.refused.append((item, LeaseLost("the attempt is not the current one any more: stop it")))
        elif State(row.state) not in LEASED:
            # The same report again, after its acknowledgement got lost: what it told is in the ledger already.
            continue
        elif row.instance != worker.instance:
            outcome.refused.append((item, LeaseLost("the attempt is another instance's")))
        else:
            move = _outcome_move(row, item, now, rng)
            if move is not None:
                done.append(move)
                renewed.pop(item.id, None)
                # Later reports of this batch meet the row as it is now.
                rows[item.id] = _Moved(row, move.values)
            else:
                values = renewed.setdefault(item.id, {"b_position": row.position, "lease_expiry": now + lease})
                _note(item, row, now, values)
    apply(connection, done, artifacts, outcome, now)
    for job, values in renewed.items():
        if "progress" in values:
            row = rows[job]
            values["sequence"] = row.sequence + 1
            outcome.changed.append(
                Changed(
                    row.id, row.service_uid, State(row.state), row.sequence + 1, row.attempt, row.fence, row.instance
                )
            )
    _update(connection, list(renewed.values()))
    return outcome


class _Moved:
    """A row with changed columns."""

    def __init__(self, row: Any, values: dict[str, Any]) -> None:
        self.__dict__.update({name: getattr(row, name) for name in moves.DECIDING})
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _outcome_move(row: Any, item: Reported, now: int, rng: random.Random) -> moves.Move | None:
    if item.kind == "succeeded":
        return moves.succeed(row, now, item.result, item.artifact, item.ended_early)
    if item.kind == "failed":
        return moves.fail(row, now, item.value, rng)
    if item.kind == "stopped":
        return moves.stop(row, now, item.value, rng)
    if item.kind == "released":
        return moves.release(row, now)
    return None


def _note(item: Reported, row: Any, now: int, values: dict[str, Any]) -> None:
    """Adds what a report that ends nothing leaves in the row."""
    if item.kind == "progress":
        values |= {"progress": item.value, "progress_time": now}
    elif item.kind == "checkpoint":
        values["resume"] = item.value
    elif item.kind == "started" and item.value is False:
        values["idempotent"] = False


def select_for_update(connection: Connection, *where: sa.ColumnElement[bool]) -> list[Any]:
    """The deciding columns of the jobs that fit, locked on databases with row locks."""
    return list(connection.execute(sa.select(*DECIDING).where(*where).with_for_update()).all())


def apply(
    connection: Connection, done: Sequence[moves.Move], artifacts: AttemptArtifacts, outcome: Outcome, now: int
) -> None:
    """Writes moves, the attempts they ended, dead letters, and what becomes of the attempts' artifacts."""
    if not done:
        return
    _update(connection, [{"b_position": move.row.position, **move.values} for move in done])
    ended_attempts = [move.attempt for move in done if move.attempt is not None]
    if ended_attempts:
        connection.execute(attempts.insert(), ended_attempts)
    letters = [
        {
            "id": new_id(),
            "service": move.row.service,
            "job": move.row.id,
            "error": move.values["error"],
            "create_time": now,
        }
        for move in done
        if move.dead_letter
    ]
    if letters:
        connection.execute(dead_letters.insert(), letters)
    over = [move.row.id for move in done if move.ended]
    if over:
        connection.execute(inputs.delete().where(inputs.c.job.in_(over)))
    accepted = [(move.row.id, move.row.fence) for move in done if move.state == State.SUCCEEDED]
    dropped = [
        (move.row.id, move.row.fence)
        for move in done
        if move.state != State.SUCCEEDED and move.row.attempt_start_time and (move.ended or move.attempt is not None)
    ]
    artifacts.settle(connection, accepted, dropped)
    for move in done:
        values = move.values
        outcome.changed.append(
            Changed(
                move.row.id,
                move.row.service_uid,
                move.state,
                values["sequence"],
                values.get("attempt", move.row.attempt),
                move.row.fence,
                move.row.instance,
                values.get("cancel_mode", move.row.cancel_mode),
                left_lease=State(move.row.state) in LEASED and move.state not in LEASED,
                lost=move.attempt is not None and move.attempt["state"] == AttemptState.LOST,
            )
        )


def _update(connection: Connection, updates: Sequence[dict[str, Any]]) -> None:
    """Sets columns by position; rows that set the same columns go in one statement."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for values in updates:
        groups.setdefault(tuple(sorted(values)), []).append(values)
    for names, group in groups.items():
        columns: dict[str, Any] = {name: sa.bindparam(name) for name in names if name != "b_position"}
        connection.execute(jobs.update().where(jobs.c.position == _SET_BY_POSITION).values(columns), group)


def delete(connection: Connection, ids: Sequence[str], artifacts: AttemptArtifacts) -> None:
    """Removes jobs and all that belongs to them."""
    if ids:
        artifacts.discard(connection, ids)
        requests = connection.scalars(
            sa.select(jobs.c.payload_artifact).where(jobs.c.id.in_(ids), jobs.c.payload_artifact != "")
        ).all()
        artifacts.remove(connection, requests)
        connection.execute(jobs.delete().where(jobs.c.id.in_(ids)))


def expire(connection: Connection, ids: Sequence[str], artifacts: AttemptArtifacts) -> None:
    """Removes the results of ended jobs and the artifacts they made; the rows stay."""
    if ids:
        artifacts.discard(connection, ids)
        connection.execute(
            jobs.update()
            .where(jobs.c.id.in_(ids))
            .values(result=None, result_artifact="", result_expired=True, expire_time=0, sequence=jobs.c.sequence + 1)
        )


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
        jobs.c.state.in_([int(State.QUEUED), int(State.RETRY_WAIT)]),
        jobs.c.method.not_in(methods),
    )
    apply(connection, [moves.refuse(row, now, error) for row in rows], artifacts, outcome, now)
    return outcome


def live_clause() -> sa.ColumnElement[bool]:
    """Jobs that have not ended."""
    return jobs.c.state.not_in(sorted(int(state) for state in TERMINAL))
