"""Reads of the ledger, as functions on a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from onecontainer.errors import FieldInvalid, ResourceNotFound
from onecontainer.jobs.ledger import AttemptArtifacts, JobView, Page, not_found
from onecontainer.jobs.model import TERMINAL, State
from onecontainer.jobs.sql_writes import KEPT_ATTEMPTS
from onecontainer.jobs.tables import (
    IN_LEASE,
    LIVE,
    NONE,
    NOT_RUNNING,
    QUEUED,
    attempts,
    dead_letters,
    inputs,
    jobs,
    labels,
)
from onecontainer.rpc.filters import micros_of
from onecontainer.statements import Query, Texts, among

_SUMMARY = [column for column in jobs.c if column.name not in ("payload", "result", "resume")]
_ALL = [column for column in jobs.c if column.name not in ("payload", "resume")]
_COLUMNS = {
    "service": jobs.c.service,
    "method": jobs.c.method,
    "principal": jobs.c.principal,
    "retry_of": jobs.c.retry_of,
}
JOB_FIELDS = ("service", "state", "method", "principal", "retry_of")
JOB_TIMES = ("create_time",)
LETTER_FIELDS = ("service", "job")


# Statements of the hot path are built once.
_job = sa.bindparam("job", type_=sa.Text)
_NAMED = among(jobs.c.id, sa.bindparam("ids", type_=Texts))
_GET = Query(sa.select(*_ALL).where(jobs.c.id == _job))
_VIEWS = Query(sa.select(*_ALL).where(_NAMED))
_TERMINAL = Query(sa.select(*_ALL).where(_NAMED, jobs.c.end_time > NONE))
_KNOWN = sa.select(jobs.c.id).where(_NAMED)
_ATTEMPTS = (
    sa.select(attempts).where(among(attempts.c.job, sa.bindparam("ids", type_=Texts))).order_by(attempts.c.fence)
)

MOST_AHEAD = 1000
"""A place further back is told as this one: counting takes time, and GetJob is to be as quick with a deep queue."""


def _ahead(*where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    waiting = sa.select(jobs.c.position).where(jobs.c.service_uid == sa.bindparam("uid"), QUEUED, *where)
    return sa.select(sa.func.count()).select_from(waiting.limit(MOST_AHEAD).subquery())


# Two ranges of the queue's index: the lanes above, and what is older in its own.
_AHEAD = (
    _ahead(jobs.c.priority > sa.bindparam("priority")),
    _ahead(jobs.c.priority == sa.bindparam("priority"), jobs.c.position < sa.bindparam("position")),
)


def get(connection: Connection, job: str, artifacts: AttemptArtifacts, *, place: bool = False) -> JobView:
    """A job with its attempts and artifacts, and with ``place`` its place in the queue, up to `MOST_AHEAD`.

    Raises:
        ResourceNotFound: there is no such job.
    """
    rows = _GET.all(connection, {"job": job})
    if not rows:
        raise not_found(job)
    row = rows[0]
    position = None
    if place and row.state == State.QUEUED:
        values = {"uid": row.service_uid, "priority": row.priority, "position": row.position}
        position = min(MOST_AHEAD, sum(int(connection.scalar(query, values) or 0) for query in _AHEAD))
    return _whole(connection, [row], artifacts, position)[0]


def _whole(
    connection: Connection, rows: Sequence[Any], artifacts: AttemptArtifacts, position: int | None = None
) -> list[JobView]:
    """Jobs with their earlier attempts and the artifacts they made."""
    # One that succeeded at once has no attempt but the one in its own row.
    tried = [row.id for row in rows if row.fence > 1 or (row.state in TERMINAL and row.state != State.SUCCEEDED)]
    earlier: dict[str, list[Any]] = {}
    for attempt in connection.execute(_ATTEMPTS, {"ids": tried}) if tried else ():
        earlier.setdefault(attempt.job, []).append(attempt)
    over = [row.id for row in rows if row.state in TERMINAL]
    made = artifacts.of_jobs(connection, over) if over else {}
    return [
        JobView(row, tuple(earlier.get(row.id, ())[-KEPT_ATTEMPTS:]), made.get(row.id, ()), position) for row in rows
    ]


def ended(connection: Connection, ids: Sequence[str], artifacts: AttemptArtifacts) -> tuple[list[JobView], list[str]]:
    """Those of the jobs that have ended, in the order in which they did; and the ids of those that are not there."""
    rows = _TERMINAL.all(connection, {"ids": ids})
    found = _whole(connection, sorted(rows, key=lambda row: int(row.end_time)), artifacts)
    left = set(ids).difference(row.id for row in rows)
    missing = left.difference(connection.scalars(_KNOWN, {"ids": sorted(left)})) if left else left
    return found, sorted(missing)


def views(connection: Connection, ids: Sequence[str]) -> dict[str, JobView]:
    """Jobs by id, without attempts, artifacts and queue position."""
    return {row.id: JobView(row) for row in _VIEWS.all(connection, {"ids": ids})}


def payload(connection: Connection, job: str) -> Any:
    """The row with what is needed to run the job again.

    Raises:
        ResourceNotFound: there is no such job.
    """
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job)).one_or_none()
    if row is None:
        raise not_found(job)
    return row


def page(connection: Connection, terms: Sequence[tuple[str, str, str]], limit: int, before: int) -> Page:
    """Jobs, newest first, from before a position on (0: from the newest)."""
    query = sa.select(*_SUMMARY)
    for term in terms:
        query = query.where(_job_condition(*term))
    if before:
        query = query.where(jobs.c.position < before)
    rows = connection.execute(query.order_by(jobs.c.position.desc()).limit(limit + 1)).all()
    return _page(rows, limit)


def _page(rows: Sequence[Any], limit: int) -> Page:
    more = len(rows) > limit
    kept = tuple(rows[:limit])
    return Page(kept, kept[-1].position if more else 0)


def _job_condition(name: str, operator: str, value: str) -> sa.ColumnElement[bool]:
    if name == "create_time":
        return _compare_time(jobs.c.create_time, operator, value)
    if name == "state":
        if value not in State.__members__ or value == "EXPIRING":
            known = ", ".join(state for state in State.__members__ if state != "EXPIRING")
            raise FieldInvalid("filter", f"there is no state {value!r}; known are {known}")
        states = [State[value]] + ([State.EXPIRING] if value == "CANCELLING" else [])
        if states == [State.RUNNING]:
            # They are few, and found by their leases; a scan for the newest of them would go through all jobs.
            running = sa.select(jobs.c.position).where(IN_LEASE, jobs.c.state == int(State.RUNNING))
            return jobs.c.position.in_(running)
        # In the words of the partial index.
        return sa.and_(NOT_RUNNING, jobs.c.state.in_([int(state) for state in states]))
    if name.startswith("labels."):
        key = name.removeprefix("labels.")
        return jobs.c.id.in_(sa.select(labels.c.job).where(labels.c.key == key, labels.c.value == value))
    if name == "service":
        value = _service_name(value)
    if name in ("retry_of", "job"):
        value = value.removeprefix("jobs/")
    if name == "retry_of" and value:
        # In the words of its partial index.
        return sa.and_(jobs.c.retry_of == value, jobs.c.retry_of != sa.literal_column("''"))
    return _COLUMNS[name] == value


def _service_name(value: str) -> str:
    return value if value.startswith("services/") else f"services/{value}"


def _compare_time(column: sa.Column[int], operator: str, value: str) -> sa.ColumnElement[bool]:
    moment = micros_of(value)
    comparisons = {">": column > moment, "<": column < moment, ">=": column >= moment, "<=": column <= moment}
    return comparisons[operator]


def count_live(connection: Connection, service_uid: str) -> int:
    """Jobs of a service that have not ended."""
    query = sa.select(sa.func.count()).select_from(jobs)
    return int(connection.scalar(query.where(jobs.c.service_uid == service_uid, LIVE)) or 0)


def count_queued(connection: Connection, service_uid: str) -> int:
    """Jobs of a service that wait for a worker."""
    query = sa.select(sa.func.count()).select_from(jobs)
    return int(connection.scalar(query.where(jobs.c.service_uid == service_uid, QUEUED)) or 0)


def user_of(connection: Connection, artifact: str) -> str | None:
    """A live job whose request names the artifact (``artifacts/{artifact}``)."""
    return connection.scalar(sa.select(inputs.c.job).where(inputs.c.artifact == artifact).limit(1))


def letters(connection: Connection, terms: Sequence[tuple[str, str, str]], limit: int, before: int) -> Page:
    """Dead letters, newest first."""
    query = sa.select(dead_letters)
    for name, _operator, value in terms:
        wanted = value.removeprefix("jobs/") if name == "job" else _service_name(value)
        query = query.where(dead_letters.c[name] == wanted)
    if before:
        query = query.where(dead_letters.c.position < before)
    return _page(connection.execute(query.order_by(dead_letters.c.position.desc()).limit(limit + 1)).all(), limit)


def letter(connection: Connection, name: str) -> Any:
    """One dead letter by its id.

    Raises:
        ResourceNotFound: there is none.
    """
    row = connection.execute(sa.select(dead_letters).where(dead_letters.c.id == name)).one_or_none()
    if row is None:
        full = f"deadLetters/{name}"
        raise ResourceNotFound(f"there is no {full}", resource=("onecontainer.dev/DeadLetter", full))
    return row
