"""The ledger on SQLAlchemy: SQLite, or PostgreSQL when several gateways run."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from google.rpc import status_pb2
from sqlalchemy.engine import Connection

from onecontainer.clock import Clock
from onecontainer.database import Database
from onecontainer.errors import OneContainerError, StateInvalid
from onecontainer.jobs import moves, sql_leases, sql_outbox, sql_reads, sql_writes
from onecontainer.jobs.ledger import (
    AttemptArtifacts,
    Changed,
    Created,
    Decision,
    Granted,
    JobView,
    Outcome,
    Page,
    Reported,
    Worker,
    not_found,
)
from onecontainer.jobs.model import LEASED, SECOND, TERMINAL, CancelMode, NewJob, State
from onecontainer.jobs.tables import IN_LEASE, LIVE, NONE, QUEUED, WAITING, dead_letters, facts, jobs, request_ids

T = TypeVar("T")
Tell = Callable[[Connection, Sequence[Changed], Collection[str]], None]
"""Tells others of changes, and of services that may have jobs to take, when the transaction commits."""
LAST_SWEEP = "last_sweep"
_DATABASE_NOW = sa.select(
    sa.cast(sa.func.floor(sa.extract("epoch", sa.func.clock_timestamp()) * SECOND), sa.BigInteger)
)
SWEEP_BATCH = 500
SWEEP_MOVES = 2000
"""At most so many jobs of a kind in one sweep, so that calls do not wait for it; the next one takes the rest."""


class SqlLedger:
    """The truth about jobs. See `Ledger` for what each method promises."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        artifacts: AttemptArtifacts,
        *,
        lease: float = 30.0,
        retention: float = 7 * 86400.0,
        request_id_retention: float = 7 * 86400.0,
        rng: random.Random | None = None,
        database_clock: bool | None = None,
        record_events: bool = False,
        tell: Tell | None = None,
    ) -> None:
        """Durations in seconds: of a lease, how long ended jobs are kept, and how long request_ids are.

        With ``record_events`` each transition goes to the outbox of events in its transaction. ``tell`` takes part in each as
        well: other gateways are to hear of it.

        One clock judges leases: the database's where several gateways share it (``database_clock``; by default on
        PostgreSQL), else ``clock``.
        """
        self._database = database
        self._clock = clock
        self._artifacts = artifacts
        self._lease = int(lease * SECOND)
        self._retention = int(retention * SECOND)
        self._request_id_retention = int(request_id_retention * SECOND)
        self._rng = rng or random.Random()
        self._record_events = record_events
        self._tell = tell
        self._database_clock = database.dialect == "postgresql" if database_clock is None else database_clock

    async def _write(self, fn: Callable[[Connection], T]) -> T:
        """One write transaction; what it changes goes to the outbox of events with it, and other gateways are told."""
        if not self._record_events and self._tell is None:
            return await self._database.write(fn)

        def run(connection: Connection) -> T:
            result = fn(connection)
            outcome = (
                next((part for part in result if isinstance(part, Outcome)), None)
                if isinstance(result, tuple)
                else result
            )
            if isinstance(outcome, Outcome) and outcome.changed:
                if self._record_events:
                    sql_outbox.record_events(connection, outcome.changed, (), self._now(connection))
                if self._tell is not None:
                    self._tell(connection, outcome.changed, ())
            return result

        return await self._database.write(run)

    def _now(self, connection: Connection) -> int:
        if not self._database_clock:
            return self._clock.now()
        return int(connection.scalar(_DATABASE_NOW) or 0)

    async def create(self, new: Sequence[NewJob]) -> list[Created]:
        def run(connection: Connection) -> list[Created]:
            now = self._now(connection)
            answers = sql_writes.create(connection, new, now, self._request_id_retention, self._artifacts)
            if self._record_events:
                made = [job for job, answer in zip(new, answers, strict=True) if answer.id == job.id]
                sql_outbox.record_events(connection, (), made, now)
            if self._tell is not None:
                self._tell(connection, (), {job.service_uid for job in new})
            return answers

        return await self._database.write(run)

    async def claim(self, worker: Worker, limit: int, max_running: int) -> tuple[list[Granted], Outcome]:
        return await self._write(lambda c: sql_leases.claim(c, worker, limit, max_running, self._now(c), self._lease))

    async def claim_records(
        self, worker: Worker, wanted: Sequence[tuple[str, int]], max_running: int
    ) -> tuple[list[Granted | Decision], Outcome]:
        return await self._write(
            lambda c: sql_leases.claim_records(c, worker, wanted, max_running, self._now(c), self._lease)
        )

    async def regrant(self, worker: Worker, fences: Sequence[tuple[str, int]]) -> list[Granted]:
        return await self._write(lambda c: sql_leases.regrant(c, worker, fences, self._now(c), self._lease))

    async def report(self, worker: Worker, reports: Sequence[Reported]) -> Outcome:
        return await self._write(
            lambda c: sql_leases.report(c, worker, reports, self._artifacts, self._now(c), self._lease, self._rng)
        )

    async def cancel(self, job: str, mode: CancelMode) -> Outcome:
        def run(connection: Connection) -> Outcome:
            rows = sql_writes.select_for_update(connection, jobs.c.id == job)
            if not rows:
                raise not_found(job)
            row, now, outcome = rows[0], self._now(connection), Outcome()
            asked_before = row.cancel_mode in (mode, CancelMode.ABORT)
            if State(row.state) not in TERMINAL and not (State(row.state) in LEASED and asked_before):
                sql_writes.apply(connection, [moves.cancel(row, now, mode)], self._artifacts, outcome, now)
            return outcome

        return await self._write(run)

    async def cancel_service(self, service_uid: str) -> Outcome:
        def move(row: Any, now: int) -> moves.Move:
            return moves.cancel(row, now, CancelMode.ABORT, "its service was deleted")

        return await self._move_all(move, jobs.c.service_uid == service_uid, LIVE)

    async def refuse_methods(self, service_uid: str, methods: Sequence[str], error: OneContainerError) -> Outcome:
        return await self._write(
            lambda c: sql_writes.refuse(c, service_uid, methods, error, self._artifacts, self._now(c))
        )

    async def lose(self, *, instance: str = "", other_gateways_than: str | None = None) -> Outcome:
        if other_gateways_than is None:
            where = jobs.c.instance == instance
        else:
            where = sa.and_(jobs.c.gateway != "", jobs.c.gateway != other_gateways_than)
        return await self._move_all(lambda row, now: moves.lose(row, now, self._rng), IN_LEASE, where)

    async def _move_all(self, move: Callable[[Any, int], moves.Move | None], *where: sa.ColumnElement[bool]) -> Outcome:
        def run(connection: Connection) -> Outcome:
            now, outcome = self._now(connection), Outcome()
            rows = sql_writes.select_for_update(connection, *where)
            done = [found for row in rows if (found := move(row, now)) is not None]
            sql_writes.apply(connection, done, self._artifacts, outcome, now)
            return outcome

        return await self._write(run)

    async def sweep(self) -> Outcome:
        """One look at everything that time does to jobs; call it about once a second.

        After a gap of half a lease since the last one, for example because the gateway was away, every lease is first
        given one full new term: the workers could not renew them.
        """
        return await self._write(self._sweep)

    def _sweep(self, connection: Connection) -> Outcome:
        now, outcome = self._now(connection), Outcome()
        last = connection.scalar(sa.select(facts.c.value).where(facts.c.name == LAST_SWEEP))
        if last is None:
            connection.execute(facts.insert(), [{"name": LAST_SWEEP, "value": now}])
        elif abs(now - last) >= SECOND // 4:
            connection.execute(facts.update().where(facts.c.name == LAST_SWEEP).values(value=now))
        if last is not None and now - last > self._lease // 2:
            self._renew_all(connection, now)
        # Those in their grace do not move yet, and must not take the places of others.
        moving = sa.or_(jobs.c.state != int(State.EXPIRING), jobs.c.total_deadline < now - moves.ABORT_GRACE)
        looks: list[tuple[Callable[[Any], moves.Move | None], sa.Column[int], tuple[sa.ColumnElement[bool], ...]]] = [
            (lambda row: moves.total_timeout(row, now), jobs.c.total_deadline, (LIVE, moving)),
            (lambda row: moves.queue_timeout(row, now), jobs.c.queue_deadline, (QUEUED, jobs.c.queue_deadline > NONE)),
            (lambda row: moves.due(row, now), jobs.c.due_time, (WAITING,)),
        ]
        for move, time, where in looks:
            rows = sql_writes.select_due(connection, time, now, SWEEP_MOVES, *where)
            done = [found for row in rows if (found := move(row)) is not None]
            sql_writes.apply(connection, done, self._artifacts, outcome, now)
        # Those that run are few, and each is looked at for its lease and for its own timeouts.
        rows = sql_writes.select_for_update(connection, IN_LEASE)
        late = [found for row in rows if (found := self._late(row, now)) is not None]
        sql_writes.apply(connection, late, self._artifacts, outcome, now)
        self._tidy(connection, now)
        return outcome

    def _late(self, row: Any, now: int) -> moves.Move | None:
        if row.lease_expiry <= now:
            return moves.lose(row, now, self._rng)
        return moves.overdue(row, now, self._rng)

    def _renew_all(self, connection: Connection, now: int) -> None:
        """Gives every running attempt a full new term, also of its own timeouts: its reports had nowhere to go."""
        late = sa.and_(jobs.c.attempt_deadline > NONE, jobs.c.attempt_deadline < now)
        connection.execute(
            jobs.update()
            .where(IN_LEASE)
            .values(
                lease_expiry=now + self._lease,
                progress_time=now,
                attempt_deadline=sa.case((late, now), else_=jobs.c.attempt_deadline),
            )
        )

    def _tidy(self, connection: Connection, now: int) -> None:
        rows = connection.execute(
            sa.select(jobs.c.position, jobs.c.id, jobs.c.end_time, jobs.c.expire_time)
            .where(jobs.c.tidy_time > NONE, jobs.c.tidy_time <= now)
            .order_by(jobs.c.tidy_time)
            .limit(SWEEP_BATCH)
        ).all()
        expired = [row.id for row in rows if row.expire_time]
        sql_writes.expire(connection, expired, self._artifacts, self._retention)
        # What has no result that has yet to go stays until its record is old enough.
        kept = [row for row in rows if not row.expire_time and row.end_time + self._retention > now]
        sql_writes.update(
            connection, [{"b_position": row.position, "tidy_time": row.end_time + self._retention} for row in kept]
        )
        old = {row.id for row in rows}.difference(expired, (row.id for row in kept))
        sql_writes.delete(connection, sorted(old), self._artifacts)
        connection.execute(request_ids.delete().where(request_ids.c.expire_time <= now))
        connection.execute(dead_letters.delete().where(dead_letters.c.create_time <= now - self._retention))

    async def delete(self, job: str) -> None:
        def run(connection: Connection) -> None:
            rows = sql_writes.select_for_update(connection, jobs.c.id == job)
            if not rows:
                raise not_found(job)
            if State(rows[0].state) not in TERMINAL:
                raise StateInvalid(f"jobs/{job} has not ended (it is {State(rows[0].state).name}); cancel it first")
            sql_writes.delete(connection, [job], self._artifacts)

        await self._write(run)

    async def expire(self, job: str) -> None:
        await self._write(lambda c: sql_writes.expire(c, [job], self._artifacts, self._retention))

    async def get(self, job: str, *, place: bool = False) -> JobView:
        return await self._database.read(lambda c: sql_reads.get(c, job, self._artifacts, place=place))

    async def views(self, jobs: Sequence[str]) -> dict[str, JobView]:
        """Several jobs at once, without attempts, artifacts and queue position."""
        return await self._database.read(lambda c: sql_reads.views(c, jobs))

    async def ended(self, jobs: Sequence[str]) -> tuple[list[JobView], list[str]]:
        """Those of the jobs that have ended, with attempts and artifacts; and the ids of those that are not there."""
        return await self._database.read(lambda c: sql_reads.ended(c, jobs, self._artifacts))

    async def payload(self, job: str) -> Any:
        """The row with all that is needed to run the job again."""
        return await self._database.read(lambda c: sql_reads.payload(c, job))

    async def page(self, terms: Sequence[tuple[str, str, str]], limit: int, before: int) -> Page:
        return await self._database.read(lambda c: sql_reads.page(c, terms, limit, before))

    async def ending(self, instance: str) -> list[Changed]:
        """Jobs whose running attempt at this instance is to end: what a worker is told when it connects again."""

        def run(connection: Connection) -> list[Changed]:
            rows = connection.execute(
                sa.select(*sql_writes.DECIDING).where(
                    IN_LEASE,
                    jobs.c.instance == instance,
                    jobs.c.state.in_([int(State.CANCELLING), int(State.EXPIRING)]),
                )
            )
            return [
                Changed(
                    *(row.id, row.service_uid, State(row.state), row.sequence, row.attempt, row.fence, row.instance),
                    cancel_mode=row.cancel_mode,
                )
                for row in rows
            ]

        return await self._database.read(run)

    async def live(self, service_uid: str) -> int:
        return await self._database.read(lambda c: sql_reads.count_live(c, service_uid))

    async def queued(self, service_uid: str) -> int:
        return await self._database.read(lambda c: sql_reads.count_queued(c, service_uid))

    async def user_of(self, artifact: str) -> str | None:
        """The id of a live job whose request names ``artifacts/{artifact}``."""
        return await self._database.read(lambda c: sql_reads.user_of(c, artifact))

    async def dead_letters(self, terms: Sequence[tuple[str, str, str]], limit: int, before: int) -> Page:
        return await self._database.read(lambda c: sql_reads.letters(c, terms, limit, before))

    async def dead_letter(self, name: str) -> Any:
        return await self._database.read(lambda c: sql_reads.letter(c, name))

    async def redriven(self, name: str, job: str) -> None:
        await self._write(
            lambda c: c.execute(dead_letters.update().where(dead_letters.c.id == name).values(redriven_as=job))
        )

    async def reject(self, service: str, error: status_pb2.Status, origin: bytes) -> None:
        await self._write(lambda c: sql_writes.reject(c, service, error, origin, self._now(c)))
