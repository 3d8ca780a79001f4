"""A ledger on a real database, with a clock that stands still until a test moves it on."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from onecontainer.database import Database
from tests.fixtures.jobs_gateway import JobsGateway
from tests.fixtures.ledger_desk import Desk, create_tables
from tests.fixtures.postgresql import private_postgresql

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    with private_postgresql() as place:
        yield place


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/gateway.db"
    url = f"postgresql+psycopg://{request.getfixturevalue('postgresql')}"
    schema = f"t{next(_numbers)}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    engine.dispose()
    return f"{url}?options=-csearch_path%3D{schema}"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as database:
        create_tables(database)
        yield database


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[JobsGateway]:
    """The job half of a gateway, on SQLite."""
    async with Database(f"sqlite:///{tmp_path}/gateway.db") as database:
        create_tables(database)
        async with JobsGateway(Desk(database), tmp_path) as gateway:
            yield gateway
