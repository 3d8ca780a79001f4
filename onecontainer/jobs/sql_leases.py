"""What workers do in the ledger, as functions on a connection in a write transaction: claim, claim again, report."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.errors import LeaseLost
from onecontainer.jobs import moves, sql_writes
from onecontainer.jobs.ledger import AttemptArtifacts, Changed, Decision, Granted, Outcome, Reported, Worker
from onecontainer.jobs.model import LEASED, CancelMode, State
from onecontainer.jobs.tables import IN_LEASE, NONE, QUEUED, jobs
from onecontainer.statements import Numbers, Query, Texts, among

_GRANT = [
    jobs.c[name]
    for name in (
        *("position", "id", "service_uid", "attempt", "fence", "service", "method", "payload", "payload_artifact"),
        *("options", "total_deadline", "resume", "principal", "traceparent", "request_id", "cancel_mode"),
        *("start_time", "sequence", "state", "attempt_deadline", "priority"),
    )
]

# Statements of the hot path are built once.
_uid, _now = sa.bindparam("uid", type_=sa.Text), sa.bindparam("now", type_=sa.BigInteger)
_BUSY = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.service_uid == _uid, IN_LEASE)
_best = (
    sa.select(*_GRANT)
    .where(jobs.c.service_uid == _uid, QUEUED)
    # What is past its time is the sweeper's, however late that is.
    .where(jobs.c.total_deadline > _now, sa.or_(jobs.c.queue_deadline == NONE, jobs.c.queue_deadline > _now))
    .order_by(jobs.c.priority.desc(), jobs.c.position)
    .limit(sa.bindparam("room", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)
_BEST = Query(_best)
_BETTER = Query(_best.where(jobs.c.priority > sa.bindparam("lane", type_=sa.Integer)))
_named = among(jobs.c.id, sa.bindparam("ids", type_=Texts))
_REPORTED = Query(sa.select(*sql_writes.DECIDING).where(_named).with_for_update())
_NAMED = Query(
    sa.select(*_GRANT, jobs.c.instance, jobs.c.queue_deadline)
    .where(_named, jobs.c.service_uid == _uid)
    .with_for_update()
)
_RUN = (
    jobs.update()
    .where(among(jobs.c.position, sa.bindparam("positions", type_=Numbers)))
    .values(
        state=int(State.RUNNING),
        sequence=jobs.c.sequence + 1,
        instance=sa.bindparam("instance"),
        gateway=sa.bindparam("gateway"),
        start_time=sa.case((jobs.c.start_time == NONE, _now), else_=jobs.c.start_time),
        attempt_start_time=_now,
        attempt_deadline=NONE,
        lease_expiry=sa.bindparam("expiry", type_=sa.BigInteger),
        progress_time=_now,
    )
)


def claim(
    connection: Connection, worker: Worker, limit: int, max_running: int, now: int, lease: int
) -> tuple[list[Granted], Outcome]:
    """Claims the best queued jobs of the worker's service: lane first, then age."""
    room = min(limit, _room(connection, worker.service_uid, max_running))
    if room <= 0:
        return [], Outcome()
    rows = _BEST.all(connection, {"uid": worker.service_uid, "now": now, "room": room})
    grants, outcome = _claimed(connection, worker, rows, now, lease)
    outcome.emptied = len(rows) < room
    return grants, outcome


def claim_records(
    connection: Connection,
    worker: Worker,
    wanted: Sequence[tuple[str, int]],
    max_running: int,
    now: int,
    lease: int,
) -> tuple[list[Granted | Decision], Outcome]:
    """Claims the jobs that records name: an answer each, a grant or why there is none; behind them further grants.

    Lanes are strict, whatever was brought to the worker before: where jobs of a higher lane wait they are granted instead, as
    many as would have been, and the records that had to give way are to be asked for again. What the same instance holds
    already with this fence is granted again: the first answer may have been lost.
    """
    room = _room(connection, worker.service_uid, max_running)
    fences = dict(wanted)
    rows = _NAMED.all(connection, {"ids": list(fences), "uid": worker.service_uid})
    current = {row.id: row for row in rows if row.fence == fences[row.id]}
    held = [row for row in current.values() if State(row.state) in LEASED and row.instance == worker.instance]
    free = [
        current[job]
        for job in fences
        if job in current and current[job].state == State.QUEUED and not _is_late(current[job], now)
    ]
    sql_writes.update(connection, [{"b_position": row.position, "lease_expiry": now + lease} for row in held])
    best = _best_of(connection, worker, free, min(room, len(free)), now)
    claimed, outcome = _claimed(connection, worker, best, now, lease)
    grants = {grant.id: grant for grant in claimed}
    grants |= {row.id: _grant(row, now, row.attempt_deadline, _options(row)) for row in held}
    later = {row.id for row in free} - set(grants)
    answers: list[Granted | Decision] = []
    for job, fence in wanted:
        # Popped, so that a second record of the same job in this batch is skipped.
        grant = grants.pop(job, None) if job in current and fences[job] == fence else None
        answers.append(grant or (Decision.RETRY_LATER if job in later else Decision.SKIP))
    # Better ones that no record named, or one of an old fence.
    answers.extend(grant for grant in claimed if grant.id in grants)
    return answers, outcome


def _best_of(connection: Connection, worker: Worker, free: Sequence[Any], room: int, now: int) -> list[Any]:
    """So many of the jobs that are to be claimed, after those of a higher lane that wait too."""
    if room <= 0:
        return []
    lane = min(row.priority for row in free)
    pool = {row.id: row for row in free}
    if lane < job_options_pb2.PRIORITY_HIGH:
        parameters = {"uid": worker.service_uid, "now": now, "room": room, "lane": lane}
        pool |= {row.id: row for row in _BETTER.all(connection, parameters)}
    return sorted(pool.values(), key=lambda row: (-row.priority, row.position))[:room]


def _is_late(row: Any, now: int) -> bool:
    # What is past its time is the sweeper's, however late that is.
    return bool(row.total_deadline <= now or 0 < row.queue_deadline <= now)


def _room(connection: Connection, service_uid: str, max_running: int) -> int:
    """How many more jobs of a service may run."""
    if connection.dialect.name == "postgresql":
        # Two gateways that count at the same time would both find the same room.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(service_uid))))
    busy = connection.scalar(_BUSY, {"uid": service_uid})
    return max_running - int(busy or 0)


def _claimed(
    connection: Connection, worker: Worker, rows: Sequence[Any], now: int, lease: int
) -> tuple[list[Granted], Outcome]:
    outcome = Outcome()
    grants: list[Granted] = []
    deadlines: list[dict[str, Any]] = []
    for row in rows:
        options = _options(row)
        deadline = 0
        if options.HasField("attempt_timeout"):
            deadline = now + options.attempt_timeout.ToMicroseconds()
            deadlines.append({"b_position": row.position, "attempt_deadline": deadline})
        grants.append(_grant(row, now, deadline, options))
        outcome.changed.append(
            Changed(
                *(row.id, row.service_uid, State.RUNNING, row.sequence + 1, row.attempt, row.fence, worker.instance),
                old_state=State.QUEUED,
                service=row.service,
                method=row.method,
                principal=row.principal,
            )
        )
    if rows:
        values = {"instance": worker.instance, "gateway": worker.gateway, "now": now, "expiry": now + lease}
        connection.execute(_RUN, values | {"positions": [row.position for row in rows]})
        sql_writes.update(connection, deadlines)
    return grants, outcome


def _options(row: Any) -> job_options_pb2.JobOptions:
    return job_options_pb2.JobOptions.FromString(row.options)


def _grant(row: Any, now: int, attempt_deadline: int, options: job_options_pb2.JobOptions) -> Granted:
    # The total timeout is the ledger's to see; the worker is told of its own.
    deadline = min(attempt_deadline, row.total_deadline) if attempt_deadline else 0
    return Granted(
        id=row.id,
        attempt=row.attempt,
        fence=row.fence,
        service=row.service,
        method=row.method,
        payload=row.payload,
        payload_artifact=row.payload_artifact,
        run_timeout=max(1, deadline - now) if deadline else 0,
        stall_timeout=options.stall_timeout.ToMicroseconds() if options.HasField("stall_timeout") else 0,
        resume=row.resume,
        principal=row.principal,
        traceparent=row.traceparent,
        request_id=row.request_id,
        cancel_mode=int(CancelMode.ABORT) if row.state == State.EXPIRING else row.cancel_mode,
    )


def regrant(
    connection: Connection, worker: Worker, fences: Sequence[tuple[str, int]], now: int, lease: int
) -> list[Granted]:
    """Grants again what this instance holds but did not hear of: the answer got lost."""
    wanted = set(fences)
    rows = connection.execute(
        sa.select(*_GRANT)
        .where(jobs.c.id.in_([job for job, _ in fences]), jobs.c.instance == worker.instance, IN_LEASE)
        .order_by(jobs.c.priority.desc(), jobs.c.position)
        .with_for_update()
    ).all()
    rows = [row for row in rows if (row.id, row.fence) in wanted]
    sql_writes.update(connection, [{"b_position": row.position, "lease_expiry": now + lease} for row in rows])
    return [_grant(row, now, row.attempt_deadline, job_options_pb2.JobOptions.FromString(row.options)) for row in rows]


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
    named = Counter(item.id for item in reports)
    rows: dict[str, Any] = {row.id: row for row in _REPORTED.all(connection, {"ids": sorted(named)})}
    outcome = Outcome()
    done: list[moves.Move] = []
    notes: dict[str, dict[str, Any]] = {}
    for item in reports:
        row = rows.get(item.id)
        if row is None or row.fence != item.fence or row.service_uid != worker.service_uid:
            outcome.refused.append((item, LeaseLost("the attempt is not the current one any more: stop it")))
        elif row.instance != worker.instance:
            outcome.refused.append((item, LeaseLost("the attempt is another instance's")))
        elif row.state not in LEASED:
            # The same report again, after its acknowledgement got lost: what it told is in the ledger already.
            continue
        elif (move := _outcome_move(row, item, now, rng)) is not None:
            # What was noted in this batch counts with the outcome that follows it.
            move.values = notes.pop(item.id, {}) | move.values
            done.append(move)
            rows[item.id] = _after(row, move.values) if named[item.id] > 1 else None
        else:
            values = notes.setdefault(item.id, {"b_position": row.position, "lease_expiry": now + lease})
            _note(item, now, values)
            if "idempotent" in values:
                rows[item.id] = row._replace(idempotent=False)
    sql_writes.apply(connection, done, artifacts, outcome, now)
    for job, values in notes.items():
        if "progress" in values:
            row = rows[job]
            values["sequence"] = row.sequence + 1
            outcome.changed.append(
                Changed(
                    *(row.id, row.service_uid, State(row.state), row.sequence + 1, row.attempt, row.fence),
                    row.instance,
                    cancel_mode=row.cancel_mode,
                    old_state=State(row.state),
                    service=row.service,
                    method=row.method,
                    principal=row.principal,
                )
            )
    sql_writes.update(connection, list(notes.values()))
    return outcome


def _after(row: Any, values: dict[str, Any]) -> Any:
    """The row as a later report of the same batch meets it."""
    return row._replace(**{name: values[name] for name in row._fields if name in values})


def _outcome_move(row: Any, item: Reported, now: int, rng: random.Random) -> moves.Move | None:
    if item.kind == "succeeded":
        return moves.succeed(row, now, item.result, item.artifact, item.ended_early)
    if item.kind == "failed":
        return moves.fail(row, now, item.value, rng, item.kept_artifacts)
    if item.kind == "stopped":
        return moves.stop(row, now, item.value)
    if item.kind == "released":
        return moves.release(row, now)
    return None


def _note(item: Reported, now: int, values: dict[str, Any]) -> None:
    """Adds what a report that ends nothing leaves in the row."""
    if item.kind == "progress":
        values |= {"progress": item.value, "progress_time": now}
    elif item.kind == "checkpoint":
        values["resume"] = item.value
    elif item.kind == "started" and item.value is False:
        values["idempotent"] = False
