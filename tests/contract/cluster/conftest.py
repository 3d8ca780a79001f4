"""One PostgreSQL for all tests here, and for each a schema with the tables of gateways."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest
import sqlalchemy as sa

from onecontainer.cluster import sql
from onecontainer.database import Database
from tests.fixtures.postgresql import private_postgresql

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    with private_postgresql() as place:
        yield place


@pytest.fixture
def database_url(postgresql: str) -> str:
    """An empty schema."""
    url = f"postgresql+psycopg://{postgresql}"
    schema = f"c{next(_numbers)}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    engine.dispose()
    return f"{url}?options=-csearch_path%3D{schema}"


@pytest.fixture
async def databases(database_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """The same database, as two gateways have it."""
    async with Database(database_url) as one, Database(database_url) as two:
        sql.metadata.create_all(one.engine)
        yield one, two
