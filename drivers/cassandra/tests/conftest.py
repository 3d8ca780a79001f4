"""A real Cassandra for all tests of the driver; they share an event loop, for one session serves them all."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.settings import read_settings

from onecontainer.rpc.tls import KeyPair
from onecontainer.sidecars.authority import Authority
from tests.fixtures.cassandra import SUPERUSER, CassandraNode, Secured, private_cassandra

_numbers = itertools.count()


ACCOUNT = {"user": SUPERUSER, "password": SUPERUSER}


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Which the node's certificate is of."""
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="session")
def secured(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Secured:
    folder = tmp_path_factory.mktemp("client")
    key, cert = folder / "client.key", folder / "client.crt"
    # It signs itself, which is enough for the node to know it.
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-days", "2", "-subj", "/CN=client", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made, check=True, capture_output=True)
    return Secured(authority.issue(["127.0.0.1"]), KeyPair(cert.read_bytes(), key.read_bytes()))


@pytest.fixture(scope="session")
def node(secured: Secured) -> Iterator[CassandraNode]:
    """One node for all: most of what it costs is its start."""
    with private_cassandra(secured=secured) as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def db(node: CassandraNode) -> AsyncIterator[Database]:
    # Not the default's 10 s: a machine that runs other tests besides may need more to change a schema.
    options = ACCOUNT | {"keyspace": "Tests", "request_timeout": 60.0, "connect_timeout": 60.0}
    async with Database(read_settings(options, {"one": node.address})) as database:
        yield database


@pytest.fixture
def table() -> str:
    """The id of a table that no other test uses."""
    return f"Table_{next(_numbers)}"
