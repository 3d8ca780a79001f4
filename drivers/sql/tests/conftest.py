"""A private PostgreSQL, and one database of each backend for a test."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.driver import open_database
from onecontainer_driver_sql.settings import read_settings

from tests.fixtures.postgresql import private_postgresql

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL of its own, on loopback."""
    with private_postgresql() as place:
        yield f"postgresql://{place}"


@pytest.fixture
async def schema(postgres: str) -> str:
    """A schema that no other test uses."""
    name = f"t{next(_numbers)}"
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute(f"CREATE SCHEMA {name}")
    finally:
        await connection.close()
    return name


@pytest.fixture
async def pg(postgres: str, schema: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(read_settings({"url": postgres, "schema": schema}, {}, tmp_path)) as database:
        yield database


@pytest.fixture
async def lite(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(read_settings({}, {}, tmp_path)) as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest) -> Database:
    """Each test that takes it runs on both."""
    found: Database = request.getfixturevalue("lite" if request.param == "sqlite" else "pg")
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def options(request: pytest.FixtureRequest) -> dict[str, str]:
    """Of a service on each, whose database has no tables."""
    if request.param == "sqlite":
        return {}
    return {"url": request.getfixturevalue("postgres"), "schema": request.getfixturevalue("schema")}
