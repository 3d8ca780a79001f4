"""The migrations lead to the schema that the code has, from nothing and again."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from onecontainer.database import open_engine
from onecontainer.errors import StateInvalid
from onecontainer.gateway import migrations


def test_migrations_lead_to_the_codes_schema_and_a_second_upgrade_does_nothing(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'db'}")
    try:
        migrations.upgrade(engine)
        migrations.upgrade(engine)
        with engine.begin() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, migrations.metadata()) == []
    finally:
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
