"""The migrations lead to the schema that the code has, from nothing and again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from onecontainer.database import open_engine
from onecontainer.errors import StateInvalid
from onecontainer.gateway import migrations
from tests.fixtures.postgresql import private_postgresql


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'db'}"
        return
    with private_postgresql() as place:
        yield f"postgresql+psycopg://{place}"


def test_migrations_lead_to_the_codes_schema_and_a_second_upgrade_does_nothing(url: str) -> None:
    engine = open_engine(url)
    try:
        migrations.upgrade(engine)
        migrations.upgrade(engine)
        with engine.begin() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, migrations.metadata()) == []
    finally:
        engine.dispose()


def test_of_gateways_that_start_together_one_migrates() -> None:
    with private_postgresql() as place:
        engines = [open_engine(f"postgresql+psycopg://{place}") for _ in range(3)]
        try:
            with ThreadPoolExecutor(len(engines)) as threads:
                list(threads.map(migrations.upgrade, engines))
        finally:
            for engine in engines:
                engine.dispose()


def test_a_database_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'db'}")
    try:
        migrations.upgrade(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(StateInvalid, match="newer oneContainer"):
            migrations.upgrade(engine)
    finally:
        engine.dispose()
