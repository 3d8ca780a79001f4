"""Records that go by themselves: their time is in a column that answers do not show, reads leave out what is over, writes remove it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from onecontainer.api.db.v1 import record_pb2
from onecontainer_driver_sql.model import EXPIRY, Backend, TableInfo

Condition = sa.ColumnElement[bool]


def alive(backend: Backend, table: TableInfo) -> Condition:
    """That a record's time is not over, by the backend's clock; true in tables without expiry."""
    if not table.expires:
        return sa.true()
    moment = table.sa.columns[EXPIRY]
    return sa.or_(moment.is_(None), moment > backend.now(0))


async def sweep(backend: Backend, connection: AsyncConnection, table: TableInfo) -> None:
    """Removes what is over, before a write: its keys and unique values are free then. An index finds it, and nothing is removed twice."""
    if not table.expires:
        return
    over = table.sa.columns[EXPIRY] <= backend.now(0)
    key = [table.sa.columns[name] for name in table.primary_key]
    if key and backend.skips_locked:
        # What another write is removing is not waited for; who needs that very key waits for it anyway.
        chosen = sa.select(*key).where(over).with_for_update(skip_locked=True)
        over = sa.tuple_(*key).in_(chosen) if len(key) > 1 else key[0].in_(chosen)
    await connection.execute(sa.delete(table.sa).where(over))


async def moment(
    backend: Backend, connection: AsyncConnection, table: TableInfo, options: record_pb2.WriteOptions
) -> Any:
    """When what is written now is over, as a parameter of the column; None: never."""
    if not options.HasField("ttl"):
        return None
    return await connection.scalar(
        sa.select(sa.type_coerce(backend.now(options.ttl.seconds), table.sa.columns[EXPIRY].type))
    )
