"""Owners of sidecars in a database that several gateways share: PostgreSQL. Its clock judges the leases."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from onecontainer.cluster.owners import Owner, View, view_from_text, view_to_text
from onecontainer.database import Database

metadata = sa.MetaData()

gateways = sa.Table(
    "gateways",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("expire_time", sa.BigInteger, nullable=False),
)

sidecar_owners = sa.Table(
    "sidecar_owners",
    metadata,
    sa.Column("service_uid", sa.String(36), primary_key=True),
    sa.Column("gateway", sa.Text, nullable=False),
    sa.Column("view", sa.Text, nullable=False, server_default=""),
)

SECOND = 1_000_000
FORGOTTEN = 3600 * SECOND
"""Microseconds after the end of its lease when a gateway's record goes."""
_NOW = sa.cast(sa.func.floor(sa.extract("epoch", sa.func.clock_timestamp()) * SECOND), sa.BigInteger)
# Not EXISTS with the row's gateway inside: the WHERE of an ON CONFLICT encloses no query to which it could be correlated, and it
# would ask whether anybody alive owns anything.
_LIVE = sidecar_owners.c.gateway.in_(sa.select(gateways.c.name).where(gateways.c.expire_time > _NOW))
_ALL = sa.select(
    sidecar_owners.c.service_uid,
    sidecar_owners.c.gateway,
    sidecar_owners.c.view,
    sa.func.coalesce(gateways.c.address, "").label("address"),
    sa.func.coalesce(gateways.c.expire_time > _NOW, sa.false()).label("live"),
).select_from(sidecar_owners.outerjoin(gateways, gateways.c.name == sidecar_owners.c.gateway))


class SqlOwners:
    """`Owners` of one gateway."""

    def __init__(
        self,
        database: Database,
        gateway: str,
        node: str,
        address: Callable[[], str],
        lease: float,
        tell: Callable[[Connection], None],
    ) -> None:
        """``node`` names the data folder, ``address()`` is where others reach the gateway, ``lease`` is in seconds.

        ``tell`` tells them, with the transaction, that something has changed.
        """
        self._database = database
        self._gateway = gateway
        self._node = node
        self._address = address
        self._lease = int(lease * SECOND)
        self._tell = tell

    async def join(self) -> None:
        def run(connection: Connection) -> None:
            earlier = sa.and_(gateways.c.node == self._node, gateways.c.name != self._gateway)
            self._inherit(connection, sa.select(gateways.c.name).where(earlier))
            connection.execute(gateways.delete().where(earlier))
            connection.execute(gateways.delete().where(gateways.c.expire_time < _NOW - FORGOTTEN))
            self._live_on(connection)
            self._tell(connection)

        await self._database.write(run)

    def _inherit(self, connection: Connection, earlier: sa.Select[Any]) -> None:
        """What they own becomes this gateway's at once: were it free, another one would take it as soon as it is told."""
        theirs = (
            sa.select(sidecar_owners.c.service_uid)
            .where(sidecar_owners.c.gateway.in_(earlier))
            .order_by(sidecar_owners.c.service_uid)  # as `renew` does, and for the same reason
            .with_for_update()
        )
        inherited = sidecar_owners.c.service_uid.in_(connection.scalars(theirs).all())
        connection.execute(sidecar_owners.update().where(inherited).values(gateway=self._gateway, view=""))

    async def renew(self, wanted: Collection[str]) -> list[Owner]:
        def run(connection: Connection) -> list[Any]:
            self._live_on(connection)
            rows = connection.execute(_ALL).all()
            taken = {row.service_uid for row in rows if row.live}
            free = sorted(set(wanted) - taken)  # in one order, so that two gateways cannot wait for each other
            if not free:
                return list(rows)
            for service_uid in free:
                self.take(connection, service_uid)
            self._tell(connection)
            return list(connection.execute(_ALL).all())

        rows = await self._database.write(run)
        return [Owner(row.service_uid, row.gateway, row.address, row.live, view_from_text(row.view)) for row in rows]

    def _live_on(self, connection: Connection) -> None:
        mine = {
            "name": self._gateway,
            "node": self._node,
            "address": self._address(),
            "expire_time": _NOW + self._lease,
        }
        connection.execute(insert(gateways).values(mine).on_conflict_do_update(index_elements=["name"], set_=mine))

    def take(self, connection: Connection, service_uid: str) -> None:
        """Makes this gateway the owner of a service, unless another one that lives is."""
        connection.execute(
            insert(sidecar_owners)
            .values(service_uid=service_uid, gateway=self._gateway)
            .on_conflict_do_update(
                # Of two that want it at once the second one finds the first one living.
                index_elements=["service_uid"],
                set_={"gateway": self._gateway, "view": ""},
                where=sa.not_(_LIVE),
            )
        )

    async def take_over(self, service_uid: str) -> None:
        def run(connection: Connection) -> None:
            mine = {"gateway": self._gateway, "view": ""}
            connection.execute(
                insert(sidecar_owners)
                .values(service_uid=service_uid, gateway=self._gateway)
                .on_conflict_do_update(index_elements=["service_uid"], set_=mine)
            )
            self._tell(connection)

        await self._database.write(run)

    async def show(self, service_uid: str, view: View) -> None:
        def run(connection: Connection) -> None:
            mine = sa.and_(sidecar_owners.c.service_uid == service_uid, sidecar_owners.c.gateway == self._gateway)
            if connection.execute(sidecar_owners.update().where(mine).values(view=text)).rowcount:
                self._tell(connection)

        text = view_to_text(view)
        await self._database.write(run)

    async def release(self, service_uid: str) -> None:
        def run(connection: Connection) -> None:
            releasable = sa.or_(sidecar_owners.c.gateway == self._gateway, sa.not_(_LIVE))
            if connection.execute(
                sidecar_owners.delete().where(sidecar_owners.c.service_uid == service_uid, releasable)
            ).rowcount:
                self._tell(connection)

        await self._database.write(run)

    async def leave(self) -> None:
        def run(connection: Connection) -> None:
            connection.execute(sidecar_owners.delete().where(sidecar_owners.c.gateway == self._gateway))
            connection.execute(gateways.delete().where(gateways.c.name == self._gateway))
            self._tell(connection)

        await self._database.write(run)
