"""Plug-ins in the gateway's database: their files as an archive, so that each gateway that shares it has them. Times in microseconds."""

from __future__ import annotations

import sqlalchemy as sa
from google.rpc import status_pb2
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from onecontainer.catalog.plugins import Plugin, in_use
from onecontainer.catalog.sql import Tell, metadata, nobody, services
from onecontainer.database import Database
from onecontainer.errors import ResourceConflict, ResourceNotFound
from onecontainer.rpc.status import from_status, to_status

plugins = sa.Table(
    "plugins",
    metadata,
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("archive", sa.LargeBinary, nullable=False),
    sa.Column("quarantine", sa.LargeBinary, nullable=True),
    sa.Column("create_time", sa.BigInteger, nullable=False),
)
FACTS = [column for column in plugins.c if column.name != "archive"]


class SqlPluginStore:
    """`PluginStore` on SQLAlchemy Core."""

    def __init__(self, database: Database, tell: Tell | None = None) -> None:
        self._database = database
        self._tell = tell if tell is not None else nobody

    async def plugins(self) -> list[Plugin]:
        rows = await self._database.read(
            lambda connection: connection.execute(sa.select(*FACTS).order_by(plugins.c.name)).all()
        )
        return [
            Plugin(
                row.name,
                row.digest,
                row.origin,
                row.create_time,
                None if row.quarantine is None else from_status(status_pb2.Status.FromString(row.quarantine)),
            )
            for row in rows
        ]

    async def archive(self, name: str) -> bytes:
        found: bytes | None = await self._database.read(
            lambda connection: connection.execute(
                sa.select(plugins.c.archive).where(plugins.c.name == name)
            ).scalar_one_or_none()
        )
        if found is None:
            raise _not_found(name)
        return found

    async def add(self, plugin: Plugin, archive: bytes) -> None:
        quarantine = None if plugin.quarantine is None else to_status(plugin.quarantine).SerializeToString()

        def write(connection: Connection) -> None:
            there = connection.execute(sa.select(plugins.c.digest).where(plugins.c.name == plugin.name)).scalar()
            if there == plugin.digest:
                return  # another gateway was faster, or a caller who did not wait for the answer
            if there is not None:
                raise _taken(plugin)
            try:
                connection.execute(
                    sa.insert(plugins).values(
                        name=plugin.name,
                        digest=plugin.digest,
                        origin=plugin.origin,
                        archive=archive,
                        quarantine=quarantine,
                        create_time=plugin.create_time,
                    )
                )
            except exc.IntegrityError:
                raise _taken(plugin) from None
            self._tell(connection, "")

        await self._database.write(write)

    async def remove(self, name: str) -> None:
        def write(connection: Connection) -> None:
            # Another gateway may have assigned it since this one looked.
            users = connection.execute(
                sa.select(services.c.name).where(services.c.assigned_driver == name).order_by(services.c.name)
            ).scalars()
            if used := list(users):
                raise in_use(name, used)
            if connection.execute(sa.delete(plugins).where(plugins.c.name == name)).rowcount != 1:
                raise _not_found(name)
            self._tell(connection, "")

        await self._database.write(write)


def _taken(plugin: Plugin) -> ResourceConflict:
    return ResourceConflict(
        f"another gateway has just installed {plugin.name} with another content: raise `version` in metadata.json",
        resource=("onecontainer.dev/Driver", plugin.name),
    )


def _not_found(name: str) -> ResourceNotFound:
    return ResourceNotFound(f"the plug-in {name} is gone", resource=("onecontainer.dev/Driver", name))
