"""The outbox: what has yet to be told to the broker, as functions on a connection.

The outbox of work is the queue itself: a queued job with ``published_time`` 0 is not on the broker. That of events is a table of
its own, written in the transaction that moves the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.clock import Clock
from onecontainer.database import Database
from onecontainer.jobs.ledger import Changed
from onecontainer.jobs.model import State, shown
from onecontainer.jobs.tables import IN_LEASE, NONE, QUEUED, events, jobs

_WITH_ERROR = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED, State.RETRY_WAIT})
UNPUBLISHED = sa.and_(QUEUED, jobs.c.published_time == NONE)
PUBLISHED = sa.and_(QUEUED, jobs.c.published_time > NONE)
_RECORD = [
    jobs.c[name]
    for name in ("position", "id", "service", "service_uid", "method", "attempt", "fence", "payload", "traceparent")
]


def waiting_services(connection: Connection) -> list[tuple[str, str]]:
    """Services (name, uid) with jobs that are not on the broker."""
    query = sa.select(jobs.c.service, jobs.c.service_uid).where(UNPUBLISHED).distinct()
    return [(row.service, row.service_uid) for row in connection.execute(query)]


def to_publish(connection: Connection, service_uid: str, window: int, max_running: int) -> list[Any]:
    """The best jobs of a service that are to go to the broker now: lane first, then age.

    At most ``window`` unclaimed ones are there at a time, so that order stays the ledger's; and none that could not run
    beside those that run or are there already, if ``max_running`` is not 0.
    """
    unclaimed = int(connection.scalar(_count(jobs.c.service_uid == service_uid, PUBLISHED)) or 0)
    room = window - unclaimed
    if max_running:
        running = int(connection.scalar(_count(jobs.c.service_uid == service_uid, IN_LEASE)) or 0)
        room = min(room, max_running - running - unclaimed)
    if room <= 0:
        return []
    query = sa.select(*_RECORD).where(jobs.c.service_uid == service_uid, UNPUBLISHED)
    return list(connection.execute(query.order_by(jobs.c.priority.desc(), jobs.c.position).limit(room)).all())


def _count(*where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(sa.func.count()).select_from(jobs).where(*where)


def published(connection: Connection, rows: Sequence[Any], now: int) -> None:
    """Notes that these are on the broker; one that was claimed meanwhile is left alone."""
    if rows:
        connection.execute(
            jobs.update()
            .where(jobs.c.position == sa.bindparam("b_position"), jobs.c.fence == sa.bindparam("b_fence"), QUEUED)
            .values(published_time=now),
            [{"b_position": row.position, "b_fence": row.fence} for row in rows],
        )


def publish_again(connection: Connection, before: int) -> int:
    """What was published before then and is still unclaimed goes to the broker again, with the same fence; how many."""
    result = connection.execute(jobs.update().where(PUBLISHED, jobs.c.published_time < before).values(published_time=0))
    return result.rowcount


def oldest_events(connection: Connection, limit: int) -> list[Any]:
    """Events that are not on the broker, oldest first."""
    return list(connection.execute(sa.select(events).order_by(events.c.position).limit(limit)).all())


def events_sent(connection: Connection, last_position: int) -> None:
    """Forgets the events up to this one."""
    connection.execute(events.delete().where(events.c.position <= last_position))


def record_events(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Adds events, in the transaction that they tell of."""
    if rows:
        connection.execute(events.insert(), list(rows))


def event_rows(
    connection: Connection, changed: Sequence[Changed], created: Sequence[str], now: int
) -> list[dict[str, Any]]:
    """The events of what a transaction has done so far: a row for each change, and one for each job that was created."""
    ids = {change.id for change in changed} | set(created)
    if not ids:
        return []
    columns = (jobs.c.id, jobs.c.service, jobs.c.method, jobs.c.principal, jobs.c.error)
    rows = {row.id: row for row in connection.execute(sa.select(*columns).where(jobs.c.id.in_(ids)))}
    found: list[dict[str, Any]] = []
    for job in created:
        row = rows[job]
        event = _event(row, now, sequence=1, new_state=State.QUEUED)
        found.append({"job": job, "event": event.SerializeToString()})
    for change in changed:
        if change.old_state == change.state:
            continue  # progress, or a cancel that only changed its mode
        event = _event(rows[change.id], now, sequence=change.sequence, new_state=change.state)
        event.attempt = change.attempt
        if change.old_state is not None:
            event.old_state = job_pb2.JobState.ValueType(int(shown(change.old_state)))
        found.append({"job": change.id, "event": event.SerializeToString()})
    return found


def _event(row: Any, now: int, *, sequence: int, new_state: State) -> event_pb2.JobEvent:
    event = event_pb2.JobEvent(
        job=f"jobs/{row.id}",
        sequence=sequence,
        service=row.service,
        method=row.method,
        new_state=job_pb2.JobState.ValueType(int(shown(new_state))),
        principal=row.principal,
    )
    event.time.FromMicroseconds(now)
    if row.error is not None and new_state in _WITH_ERROR:
        event.error.ParseFromString(row.error)
    return event


class SqlOutbox:
    """The outbox of the ledger in the same database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def waiting_services(self) -> list[tuple[str, str]]:
        return await self._database.read(waiting_services)

    async def to_publish(self, service_uid: str, window: int, max_running: int) -> list[Any]:
        return await self._database.read(lambda c: to_publish(c, service_uid, window, max_running))

    async def published(self, rows: Sequence[Any]) -> None:
        await self._database.write(lambda c: published(c, rows, self._clock.now()))

    async def publish_again(self, before: int) -> int:
        return await self._database.write(lambda c: publish_again(c, before))

    async def oldest_events(self, limit: int) -> list[Any]:
        return await self._database.read(lambda c: oldest_events(c, limit))

    async def events_sent(self, last_position: int) -> None:
        await self._database.write(lambda c: events_sent(c, last_position))
