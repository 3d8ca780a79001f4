"""The ledger on SQLAlchemy: SQLite, or PostgreSQL when several gateways run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from google.rpc import status_pb2
from sqlalchemy.engine import Connection

from onecontainer.clock import Clock
from onecontainer.database import Database
from onecontainer.errors import OneContainerError, StateInvalid
from onecontainer.ids import new_id
from onecontainer.jobs import moves, sql_reads, sql_writes
from onecontainer.jobs.ledger import (
    AttemptArtifacts,
    Changed,
    Created,
    Granted,
    JobView,
    Outcome,
    Page,
    Reported,
    Worker,
)
from onecontainer.jobs.model import LEASED, SECOND, TERMINAL, CancelMode, NewJob, State
from onecontainer.jobs.tables import dead_letters, facts, jobs, request_ids

LAST_SWEEP = "last_sweep"
SWEEP_BATCH = 500


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
    ) -> None:
        """Durations in seconds: of a lease, how long ended jobs are kept, and how long request_ids are."""
        self._database = database
        self._clock = clock
        self._artifacts = artifacts
        self._lease = int(lease * SECOND)
        self._retention = int(retention * SECOND)
        self._request_id_retention = int(request_id_retention * SECOND)
        self._rng = rng or random.Random()

    async def create(self, new: Sequence[NewJob]) -> list[Created]:
        now = self._clock.now()
        return await self._database.write(lambda c: sql_writes.create(c, new, now, self._request_id_retention))

    async def claim(self, worker: Worker, limit: int, max_running: int) -> tuple[list[Granted], Outcome]:
        return await self._database.write(
            lambda c: sql_writes.claim(c, worker, limit, max_running, self._clock.now(), self._lease)
        )

    async def regrant(self, worker: Worker, fences: Sequence[tuple[str, int]]) -> list[Granted]:
        return await self._database.write(
            lambda c: sql_writes.regrant(c, worker, fences, self._clock.now(), self._lease)
        )

    async def report(self, worker: Worker, reports: Sequence[Reported]) -> Outcome:
        return await self._database.write(
            lambda c: sql_writes.report(c, worker, reports, self._artifacts, self._clock.now(), self._lease, self._rng)
        )

    async def cancel(self, job: str, mode: CancelMode) -> Outcome:
        def run(connection: Connection) -> Outcome:
            rows = sql_writes.select_for_update(connection, jobs.c.id == job)
            if not rows:
                raise sql_reads.not_found(job)
            row, now, outcome = rows[0], self._clock.now(), Outcome()
            asked_before = row.cancel_mode in (mode, CancelMode.ABORT)
            if State(row.state) not in TERMINAL and not (State(row.state) in LEASED and asked_before):
                sql_writes.apply(connection, [moves.cancel(row, now, mode)], self._artifacts, outcome, now)
            return outcome

        return await self._database.write(run)

    async def cancel_service(self, service_uid: str) -> Outcome:
        def move(row: Any, now: int) -> moves.Move:
            return moves.cancel(row, now, CancelMode.ABORT, "its service was deleted")

        return await self._move_all(move, jobs.c.service_uid == service_uid, sql_writes.live_clause())

    async def refuse_methods(self, service_uid: str, methods: Sequence[str], error: OneContainerError) -> Outcome:
        return await self._database.write(
            lambda c: sql_writes.refuse(c, service_uid, methods, error, self._artifacts, self._clock.now())
        )

    async def lose(self, *, instance: str = "", other_gateways_than: str | None = None) -> Outcome:
        leased = jobs.c.state.in_(sorted(int(state) for state in LEASED))
        if other_gateways_than is None:
            where = jobs.c.instance == instance
        else:
            where = sa.and_(jobs.c.gateway != "", jobs.c.gateway != other_gateways_than)
        return await self._move_all(lambda row, now: moves.lose(row, now, self._rng), leased, where)

    async def _move_all(self, move: Callable[[Any, int], moves.Move | None], *where: sa.ColumnElement[bool]) -> Outcome:
        def run(connection: Connection) -> Outcome:
            now, outcome = self._clock.now(), Outcome()
            rows = sql_writes.select_for_update(connection, *where)
            done = [found for row in rows if (found := move(row, now)) is not None]
            sql_writes.apply(connection, done, self._artifacts, outcome, now)
            return outcome

        return await self._database.write(run)

    async def sweep(self) -> Outcome:
        """One look at everything that time does to jobs; call it about once a second.

        After a gap of half a lease since the last one, for example because the gateway was away, every lease is first
        given one full new term: the workers could not renew them.
        """
        return await self._database.write(self._sweep)

    def _sweep(self, connection: Connection) -> Outcome:
        now, outcome = self._clock.now(), Outcome()
        state = jobs.c.state
        leased = state.in_(sorted(int(value) for value in LEASED))
        last = connection.scalar(sa.select(facts.c.value).where(facts.c.name == LAST_SWEEP))
        if last is None:
            connection.execute(facts.insert(), [{"name": LAST_SWEEP, "value": now}])
        elif now - last >= SECOND // 4:
            connection.execute(facts.update().where(facts.c.name == LAST_SWEEP).values(value=now))
        if last is not None and now - last > self._lease // 2:
            connection.execute(jobs.update().where(leased).values(lease_expiry=now + self._lease))
        looks: list[tuple[Callable[[Any], moves.Move | None], tuple[sa.ColumnElement[bool], ...]]] = [
            (lambda row: moves.total_timeout(row, now), (sql_writes.live_clause(), jobs.c.total_deadline <= now)),
            (
                lambda row: moves.queue_timeout(row, now),
                (state == int(State.QUEUED), jobs.c.queue_deadline > 0, jobs.c.queue_deadline <= now),
            ),
            (lambda row: moves.lose(row, now, self._rng), (leased, jobs.c.lease_expiry <= now)),
            (lambda row: moves.overdue(row, now, self._rng), (leased, jobs.c.attempt_start_time > 0)),
            (lambda row: moves.due(row, now), (state == int(State.RETRY_WAIT), jobs.c.due_time <= now)),
        ]
        for move, where in looks:
            rows = sql_writes.select_for_update(connection, *where)
            done = [found for row in rows if (found := move(row)) is not None]
            sql_writes.apply(connection, done, self._artifacts, outcome, now)
        self._tidy(connection, now)
        return outcome

    def _tidy(self, connection: Connection, now: int) -> None:
        expired = connection.scalars(
            sa.select(jobs.c.id).where(jobs.c.expire_time > 0, jobs.c.expire_time <= now).limit(SWEEP_BATCH)
        ).all()
        sql_writes.expire(connection, expired, self._artifacts)
        old = connection.scalars(
            sa.select(jobs.c.id).where(jobs.c.end_time > 0, jobs.c.end_time <= now - self._retention).limit(SWEEP_BATCH)
        ).all()
        # A job whose result is kept for longer than records are stays with it.
        old = [job for job in old if not _keeps_result(connection, job)]
        sql_writes.delete(connection, old, self._artifacts)
        connection.execute(request_ids.delete().where(request_ids.c.expire_time <= now))
        connection.execute(dead_letters.delete().where(dead_letters.c.create_time <= now - self._retention))

    async def delete(self, job: str) -> None:
        def run(connection: Connection) -> None:
            rows = sql_writes.select_for_update(connection, jobs.c.id == job)
            if not rows:
                raise sql_reads.not_found(job)
            if State(rows[0].state) not in TERMINAL:
                raise StateInvalid(f"jobs/{job} has not ended (it is {State(rows[0].state).name}); cancel it first")
            sql_writes.delete(connection, [job], self._artifacts)

        await self._database.write(run)

    async def expire(self, job: str) -> None:
        await self._database.write(lambda c: sql_writes.expire(c, [job], self._artifacts))

    async def get(self, job: str) -> JobView:
        return await self._database.read(lambda c: sql_reads.get(c, job, self._artifacts))

    async def views(self, jobs: Sequence[str]) -> dict[str, JobView]:
        """Several jobs at once, without attempts, artifacts and queue position."""
        return await self._database.read(lambda c: sql_reads.views(c, jobs))

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
                    jobs.c.instance == instance, jobs.c.state.in_([int(State.CANCELLING), int(State.EXPIRING)])
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
        await self._database.write(
            lambda c: c.execute(dead_letters.update().where(dead_letters.c.id == name).values(redriven_as=job))
        )

    async def reject(self, service: str, error: status_pb2.Status, origin: bytes) -> None:
        row = {
            "id": new_id(),
            "service": service,
            "error": error.SerializeToString(),
            "origin": origin,
            "create_time": self._clock.now(),
        }
        await self._database.write(lambda c: c.execute(dead_letters.insert(), [row]))


def _keeps_result(connection: Connection, job: str) -> bool:
    row = connection.execute(
        sa.select(jobs.c.result_expired, jobs.c.result, jobs.c.result_artifact).where(jobs.c.id == job)
    ).one_or_none()
    return row is not None and not row.result_expired and (row.result is not None or bool(row.result_artifact))
