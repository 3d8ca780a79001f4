"""A real Cassandra for all tests of the driver; they share an event loop, for one session serves them all."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.settings import read_settings

from tests.fixtures.cassandra import CassandraNode, private_cassandra

_numbers = itertools.count()


@pytest.fixture(scope="session")
def node() -> Iterator[CassandraNode]:
    with private_cassandra() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def db(node: CassandraNode) -> AsyncIterator[Database]:
    # Not the default's 10 s: a machine that runs other tests besides may need more to change a schema.
    options = {"keyspace": "Tests", "request_timeout": 60.0, "connect_timeout": 60.0}
    async with Database(read_settings(options, {"one": node.address})) as database:
        yield database


@pytest.fixture
def table() -> str:
    """The id of a table that no other test uses."""
    return f"Table_{next(_numbers)}"
