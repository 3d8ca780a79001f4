"""The outbox: what has yet to be told to the broker, as functions on a connection.

The outbox of work is the queue itself: a queued job with ``published_time`` 0 is not on the broker. That of events is a table of
its own, written in the transaction that moves the job.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from google.protobuf import timestamp_pb2
from google.rpc import status_pb2
from sqlalchemy.engine import Connection

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.clock import Clock
from onecontainer.database import Database
from onecontainer.jobs.ledger import Changed
from onecontainer.jobs.model import SECOND, NewJob, State, shown
from onecontainer.jobs.tables import IN_LEASE, NONE, QUEUED, events, jobs
from onecontainer.rpc.status import brief
from onecontainer.statements import Bulk, Numbers, Query, among

_SHOWN = {state: job_pb2.JobState.ValueType(int(shown(state))) for state in State}
_INSERT_EVENTS = Bulk(events.insert().values(events=sa.bindparam("events")))
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


_uid = sa.bindparam("uid", type_=sa.Text)
_ON_BROKER = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.service_uid == _uid, PUBLISHED)
_RUNNING = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.service_uid == _uid, IN_LEASE)
_BEST = Query(
    sa.select(*_RECORD)
    .where(jobs.c.service_uid == _uid, UNPUBLISHED)
    .order_by(jobs.c.priority.desc(), jobs.c.position)
    .limit(sa.bindparam("room", type_=sa.Integer))
)
_MARKS = Bulk(
    jobs.update()
    .where(jobs.c.position == sa.bindparam("b_position"), jobs.c.fence == sa.bindparam("b_fence"), QUEUED)
    .values(published_time=sa.bindparam("now"))
)


def to_publish(
    connection: Connection, service_uid: str, window: int, max_running: int, sent: Collection[tuple[str, int]] = ()
) -> list[Any]:
    """The best jobs of a service that are to go to the broker now: lane first, then age.

    At most ``window`` unclaimed ones are there at a time, so that order stays the ledger's; and none that could not run
    beside those that run or are there already, if ``max_running`` is not 0. ``sent`` (job and fence) are there without a mark.
    """
    unclaimed = len(sent) + int(connection.scalar(_ON_BROKER, {"uid": service_uid}) or 0)
    room = window - unclaimed
    if max_running:
        running = int(connection.scalar(_RUNNING, {"uid": service_uid}) or 0)
        room = min(room, max_running - running - unclaimed)
    if room <= 0:
        return []
    rows = _BEST.all(connection, {"uid": service_uid, "room": room + len(sent)})
    return [row for row in rows if (row.id, row.fence) not in sent][:room]


def published(connection: Connection, rows: Iterable[tuple[int, int]], now: int) -> None:
    """Notes that these (position and fence) are on the broker; one that was claimed meanwhile is left alone."""
    marks = [{"b_position": position, "b_fence": fence, "now": now} for position, fence in rows]
    if marks:
        _MARKS.run(connection, marks)


def unclaimed_services(connection: Connection, before: int) -> list[tuple[str, str]]:
    """Services (name, uid) with jobs that were published before then and are still unclaimed."""
    query = sa.select(jobs.c.service, jobs.c.service_uid).where(PUBLISHED, jobs.c.published_time < before).distinct()
    return [(row.service, row.service_uid) for row in connection.execute(query)]


def publish_again(connection: Connection, service_uid: str, before: int, slots: int) -> int:
    """What was published before then and is still unclaimed goes to the broker again, with the same fence; how many.

    None while all slots of the service are taken. Its jobs wait for a slot then, they are not lost: of jobs that take hours
    there would be a record a minute, each of which is read, asked for and skipped before the next job can begin.
    """
    if int(connection.scalar(_RUNNING, {"uid": service_uid}) or 0) >= slots:
        return 0
    unclaimed = (jobs.c.service_uid == service_uid, PUBLISHED, jobs.c.published_time < before)
    return connection.execute(jobs.update().where(*unclaimed).values(published_time=0)).rowcount


def oldest_events(connection: Connection, limit: int) -> list[Any]:
    """Events that are not on the broker, oldest first: a row for each transaction, at most so many."""
    return list(connection.execute(sa.select(events).order_by(events.c.position).limit(limit)).all())


def events_sent(connection: Connection, positions: Sequence[int]) -> None:
    """Forgets these rows of events."""
    connection.execute(
        events.delete().where(among(events.c.position, sa.bindparam("sent", type_=Numbers))), {"sent": positions}
    )


def record_events(connection: Connection, changed: Sequence[Changed], created: Sequence[NewJob], now: int) -> None:
    """Keeps the events of what a transaction has done, in that transaction: one for each transition, and for each new job."""
    told = [_event(job.id, 1, job.service, job.method.full_name, job.principal, State.QUEUED, now) for job in created]
    for change in changed:
        if change.old_state == change.state:
            continue  # progress, or a cancel that only changed its mode
        event = _event(
            *(change.id, change.sequence, change.service, change.method, change.principal, change.state, now)
        )
        event.attempt = change.attempt
        if change.old_state is not None:
            event.old_state = _SHOWN[change.old_state]
        if change.error is not None and change.state in _WITH_ERROR:
            event.error.CopyFrom(brief(status_pb2.Status.FromString(change.error)))
        told.append(event)
    if told:
        _INSERT_EVENTS.run(connection, [{"events": event_pb2.JobEvents(events=told).SerializeToString()}])


def _event(
    job: str, sequence: int, service: str, method: str, principal: str, state: State, now: int
) -> event_pb2.JobEvent:
    return event_pb2.JobEvent(
        job=f"jobs/{job}",
        sequence=sequence,
        service=service,
        method=method,
        new_state=_SHOWN[state],
        principal=principal,
        time=timestamp_pb2.Timestamp(seconds=now // SECOND, nanos=now % SECOND * 1000),
    )


class SqlOutbox:
    """The outbox of the ledger in the same database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def waiting_services(self) -> list[tuple[str, str]]:
        return await self._database.read(waiting_services)

    async def to_publish(
        self, service_uid: str, window: int, max_running: int, sent: Collection[tuple[str, int]] = ()
    ) -> list[Any]:
        return await self._database.read(lambda c: to_publish(c, service_uid, window, max_running, sent))

    async def published(self, rows: Sequence[tuple[int, int]]) -> None:
        await self._database.write(lambda c: published(c, rows, self._clock.now()))

    async def unclaimed_services(self, before: int) -> list[tuple[str, str]]:
        return await self._database.read(lambda c: unclaimed_services(c, before))

    async def publish_again(self, service_uid: str, before: int, slots: int) -> int:
        return await self._database.write(lambda c: publish_again(c, service_uid, before, slots))

    async def oldest_events(self, limit: int) -> list[Any]:
        return await self._database.read(lambda c: oldest_events(c, limit))

    async def events_sent(self, positions: Sequence[int]) -> None:
        await self._database.write(lambda c: events_sent(c, positions))
