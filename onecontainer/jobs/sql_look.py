"""The reads of a `Lookout` on SQLAlchemy."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from onecontainer.database import Database
from onecontainer.jobs import sql_writes
from onecontainer.jobs.ledger import Changed
from onecontainer.jobs.model import State
from onecontainer.jobs.tables import IN_LEASE, LIVE, QUEUED, jobs

_SEQUENCES = sa.select(jobs.c.id, jobs.c.sequence).where(jobs.c.id.in_(sa.bindparam("ids", expanding=True)))
_LIVE = sa.select(jobs.c.id).where(jobs.c.id.in_(sa.bindparam("ids", expanding=True)), LIVE)
_ENDING = sa.select(*sql_writes.DECIDING).where(
    IN_LEASE,
    jobs.c.state.in_([int(State.CANCELLING), int(State.EXPIRING)]),
    jobs.c.instance.in_(sa.bindparam("instances", expanding=True)),
)


class SqlView:
    """`View` of the ledger's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sequences(self, jobs: Collection[str]) -> dict[str, int]:
        rows = await self._database.read(lambda c: c.execute(_SEQUENCES, {"ids": list(jobs)}).all())
        return {row.id: row.sequence for row in rows}

    async def ended(self, jobs: Collection[str]) -> list[str]:
        rows = await self._database.read(lambda c: c.execute(_LIVE, {"ids": list(jobs)}).all())
        return list(set(jobs) - {row.id for row in rows})

    async def queued(self, services: Collection[str]) -> list[str]:
        # One index probe a service, however long its queue is.
        probes = [
            sa.select(sa.literal(uid)).where(sa.exists().where(jobs.c.service_uid == uid, QUEUED)) for uid in services
        ]
        return await self._database.read(lambda c: list(c.scalars(sa.union_all(*probes)).all()))

    async def ending(self, instances: Collection[str]) -> list[Changed]:
        rows = await self._database.read(lambda c: c.execute(_ENDING, {"instances": list(instances)}).all())
        return [
            Changed(
                *(row.id, row.service_uid, State(row.state), row.sequence, row.attempt, row.fence, row.instance),
                cancel_mode=row.cancel_mode,
            )
            for row in rows
        ]
