"""What a service's settings do in the cluster: its keyspace, its consistency, and one session for all of its calls."""

from __future__ import annotations

import asyncio

import pytest
from onecontainer_driver_cassandra import writing
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.settings import read_settings

from drivers.cassandra.tests.calls import INT, Q, create, select, typed
from drivers.cassandra.tests.conftest import ACCOUNT
from onecontainer.api.db.v1 import query_pb2, record_pb2
from onecontainer.driver import errors
from tests.fixtures.cassandra import DATACENTER, CassandraNode
from tests.fixtures.records import equals, insertion, record
from tests.fixtures.sidecar import TIMEOUT

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_replication_and_consistency_are_those_that_were_asked_for(node: CassandraNode) -> None:
    """Three replicas of one node: what asks for two of them is told that they are not up, what asks for one is answered."""
    settings = ACCOUNT | {"keyspace": "Three", "replication": {DATACENTER: 3}, "request_timeout": TIMEOUT}
    one = record_pb2.WriteOptions(consistency=query_pb2.CONSISTENCY_ONE)
    where = equals("id", 1)
    async with Database(read_settings(settings, {"one": node.address})) as database:
        await create(database, "items", typed("id", INT), key=["id"])
        with pytest.raises(errors.BackendUnreachable, match="too few replicas"):
            await writing.insert_records(database, insertion("items", record(id=1)))
        assert (await writing.insert_records(database, insertion("items", record(id=1), options=one))).applied
        with pytest.raises(errors.BackendUnreachable, match="too few replicas"):
            await select(database, "items", Q(where=where))
        found = await select(database, "items", Q(where=where, consistency=query_pb2.CONSISTENCY_ONE))
        assert found == [{"id": 1}]
    # Whoever comes next finds the keyspace as it is, whatever its own settings say.
    async with Database(
        read_settings(settings | {"replication": {DATACENTER: 1}, "consistency": "ONE"}, {"one": node.address})
    ) as database:
        assert await select(database, "items", Q(where=where)) == [{"id": 1}]


async def test_all_calls_go_over_one_session(db: Database, table: str) -> None:
    await create(db, table, typed("id", INT), key=["id"])

    async def connections() -> set[bytes | None]:
        return {port for (port,) in await db.session.ask("SELECT port FROM system_views.clients")}

    before = await connections()
    await asyncio.gather(
        *(writing.insert_records(db, insertion(table, record(id=number))) for number in range(100)),
        *(select(db, table, Q(where=equals("id", number))) for number in range(100)),
    )
    # Those of others, which an earlier test has closed, may be told for a while; none is new.
    assert set() < await connections() <= before
