"""The catalog in the gateway's database. Times are microseconds since 1970-01-01 UTC."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from onecontainer.catalog.model import DriverRecord, JobLimits, ServiceRecord
from onecontainer.catalog.ports import Replay
from onecontainer.database import Database
from onecontainer.errors import EtagMismatch, ResourceConflict
from onecontainer.sidecars.model import RuntimeKind, RuntimeSpec

metadata = sa.MetaData()
Tell = Callable[[Connection, str], None]
"""Takes part in each transaction that changes services, with the uid of one that is made: other gateways are to hear of it."""

services = sa.Table(
    "services",
    metadata,
    sa.Column("uid", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("app_version", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("endpoints", sa.JSON, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False),
    sa.Column("driver", sa.Text, nullable=False),
    sa.Column("runtime", sa.JSON, nullable=False),
    sa.Column("job_limits", sa.JSON, nullable=False),
    sa.Column("assigned_driver", sa.Text, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("update_time", sa.BigInteger, nullable=False),
)

drivers = sa.Table(
    "drivers",
    metadata,
    sa.Column("name", sa.String(256), primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("descriptor_digest", sa.String(80), nullable=False),
    sa.Column("create_time", sa.BigInteger, nullable=False),
)

descriptor_sets = sa.Table(
    "descriptor_sets",
    metadata,
    sa.Column("digest", sa.String(80), primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

catalog_request_ids = sa.Table(
    "catalog_request_ids",
    metadata,
    sa.Column("principal", sa.String(256), primary_key=True),
    sa.Column("method", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("request_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("response", sa.LargeBinary, nullable=False),
    sa.Column("expire_time", sa.BigInteger, nullable=False),
    sa.Index("catalog_request_ids_expire", "expire_time"),
)


class SqlCatalogStore:
    """`CatalogStore` on SQLAlchemy Core."""

    def __init__(self, database: Database, tell: Tell | None = None) -> None:
        self._database = database
        self._tell = tell if tell is not None else nobody

    async def load(self) -> list[ServiceRecord]:
        rows = await self._database.read(
            lambda connection: connection.execute(sa.select(services).order_by(services.c.name)).all()
        )
        return [_record(row) for row in rows]

    async def create(self, record: ServiceRecord, replay: Replay | None) -> None:
        def write(connection: Connection) -> None:
            taken = connection.execute(sa.select(services.c.uid).where(services.c.name == record.name)).first()
            if taken is not None:
                raise _taken(record)
            try:
                connection.execute(sa.insert(services).values(_row(record)))
                if replay is not None:
                    table = catalog_request_ids
                    connection.execute(sa.delete(table).where(table.c.expire_time <= record.create_time))
                    connection.execute(sa.insert(table).values(asdict(replay)))
            except exc.IntegrityError:
                # Another gateway was faster by the time between our look and our insert.
                raise _taken(record) from None
            self._tell(connection, record.uid)

        await self._database.write(write)

    async def update(self, record: ServiceRecord, replaces: int) -> None:
        def write(connection: Connection) -> None:
            changed = connection.execute(
                sa.update(services)
                .where(services.c.uid == record.uid, services.c.revision == replaces)
                .values(_row(record))
            )
            if changed.rowcount != 1:
                raise EtagMismatch(f"somebody else changed {record.name}: get it, and apply your change to that")
            self._tell(connection, "")

        await self._database.write(write)

    async def delete(self, uid: str) -> None:
        def write(connection: Connection) -> None:
            connection.execute(sa.delete(services).where(services.c.uid == uid))
            self._tell(connection, "")

        await self._database.write(write)

    async def replay(self, principal: str, method: str, request_id: str, now: int) -> Replay | None:
        table = catalog_request_ids
        row = await self._database.read(
            lambda connection: connection.execute(
                sa.select(table).where(
                    table.c.principal == principal,
                    table.c.method == method,
                    table.c.request_id == request_id,
                    table.c.expire_time > now,
                )
            ).first()
        )
        return None if row is None else Replay(**row._mapping)

    async def drivers_seen(
        self, found: Iterable[DriverRecord], descriptors: Mapping[str, bytes], now: int
    ) -> dict[str, int]:
        records = list(found)

        def write(connection: Connection) -> dict[str, int]:
            if connection.dialect.name == "postgresql":
                # Gateways that start together find the same drivers.
                connection.execute(sa.text("LOCK TABLE drivers IN SHARE ROW EXCLUSIVE MODE"))
            known = {row.name: row for row in connection.execute(sa.select(drivers))}
            since: dict[str, int] = {}
            for record in records:
                values = {"digest": record.digest, "descriptor_digest": record.descriptor_digest}
                row = known.get(record.name)
                if row is None:
                    connection.execute(sa.insert(drivers).values(name=record.name, create_time=now, **values))
                elif row.digest != record.digest:
                    connection.execute(
                        sa.update(drivers).where(drivers.c.name == record.name).values(create_time=now, **values)
                    )
                since[record.name] = row.create_time if row is not None and row.digest == record.digest else now
            stored = {row.digest for row in connection.execute(sa.select(descriptor_sets.c.digest))}
            for digest, data in descriptors.items():
                if digest not in stored:
                    connection.execute(sa.insert(descriptor_sets).values(digest=digest, data=data))
            return since

        return await self._database.write(write)


def nobody(_connection: Connection, _made: str) -> None:
    """Where no other gateway shares the database, nobody is told."""


def _taken(record: ServiceRecord) -> ResourceConflict:
    return ResourceConflict(
        f"{record.name} is there already: choose another id, or update that one",
        resource=("onecontainer.dev/Service", record.name),
    )


def _row(record: ServiceRecord) -> dict[str, Any]:
    runtime = asdict(record.runtime) | {"kind": record.runtime.kind.value if record.runtime.kind else None}
    return {
        "uid": record.uid,
        "name": record.name,
        "app": record.app,
        "app_version": record.app_version,
        "description": record.description,
        "endpoints": dict(record.endpoints),
        "options": dict(record.options),
        "labels": dict(record.labels),
        "driver": record.driver,
        "runtime": runtime | {"devices": list(record.runtime.devices)},
        "job_limits": asdict(record.job_limits),
        "assigned_driver": record.assigned_driver,
        "generation": record.generation,
        "revision": record.revision,
        "create_time": record.create_time,
        "update_time": record.update_time,
    }


def _record(row: sa.Row[Any]) -> ServiceRecord:
    values = dict(row._mapping)
    runtime = values.pop("runtime")
    kind = runtime.pop("kind")
    return ServiceRecord(
        **values
        | {
            "runtime": RuntimeSpec(
                **runtime | {"kind": RuntimeKind(kind) if kind else None, "devices": tuple(runtime["devices"])}
            ),
            "job_limits": JobLimits(**values["job_limits"]),
        }
    )
