"""Reads of the ledger, as functions on a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from onecontainer.errors import FieldInvalid, ResourceNotFound
from onecontainer.jobs.ledger import AttemptArtifacts, JobView, Page
from onecontainer.jobs.model import TERMINAL, State
from onecontainer.jobs.sql_writes import KEPT_ATTEMPTS
from onecontainer.jobs.tables import LIVE, QUEUED, attempts, dead_letters, inputs, jobs, labels
from onecontainer.rpc.filters import micros_of

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


def not_found(job: str) -> ResourceNotFound:
    """The error for a job that is not there."""
    name = f"jobs/{job}"
    return ResourceNotFound(
        f"there is no job {name}; ended jobs are kept for 7 days", resource=("onecontainer.dev/Job", name)
    )


# Statements of the hot path are built once.
_job = sa.bindparam("job", type_=sa.Text)
_ids: sa.BindParameter[Sequence[str]] = sa.bindparam("ids", expanding=True)
_GET = sa.select(*_ALL).where(jobs.c.id == _job)
_VIEWS = sa.select(*_ALL).where(jobs.c.id.in_(_ids))
_ENDED = sa.select(attempts).where(attempts.c.job == _job).order_by(attempts.c.fence.desc()).limit(KEPT_ATTEMPTS)

_waiting = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.service_uid == sa.bindparam("uid"), QUEUED)
# Two ranges of the queue's index: the lanes above, and what is older in its own.
_AHEAD = (
    _waiting.where(jobs.c.priority > sa.bindparam("priority")),
    _waiting.where(jobs.c.priority == sa.bindparam("priority"), jobs.c.position < sa.bindparam("position")),
)


def get(connection: Connection, job: str, artifacts: AttemptArtifacts, *, place: bool = False) -> JobView:
    """A job with its attempts and artifacts, and with ``place`` its place in the queue, which takes the longer the deeper it is.

    Raises:
        ResourceNotFound: there is no such job.
    """
    row = connection.execute(_GET, {"job": job}).one_or_none()
    if row is None:
        raise not_found(job)
    ended: Sequence[Any] = ()
    if row.fence > 1 or row.state in TERMINAL:
        ended = connection.execute(_ENDED, {"job": job}).all()
    position = None
    if place and row.state == State.QUEUED:
        values = {"uid": row.service_uid, "priority": row.priority, "position": row.position}
        position = sum(int(connection.scalar(query, values) or 0) for query in _AHEAD)
    made = artifacts.of_job(connection, job) if row.state in TERMINAL else ()
    return JobView(row, tuple(reversed(ended)), made, position)


def views(connection: Connection, ids: Sequence[str]) -> dict[str, JobView]:
    """Jobs by id, without attempts, artifacts and queue position."""
    found: dict[str, JobView] = {}
    for start in range(0, len(ids), 500):
        rows = connection.execute(_VIEWS, {"ids": ids[start : start + 500]})
        found.update((row.id, JobView(row)) for row in rows)
    return found


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
        return jobs.c.state.in_([int(state) for state in states])
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
