"""The database's schema, by Alembic. `upgrade` brings any older one to the newest; revisions expand before they contract."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from onecontainer.errors import StateInvalid

LOCK = 0x6F636D67


def metadata() -> list[sa.MetaData]:
    """The tables of all features."""
    from onecontainer.artifacts import sql as artifacts
    from onecontainer.catalog import sql as catalog
    from onecontainer.catalog import sql_plugins
    from onecontainer.cluster import sql as cluster
    from onecontainer.jobs import tables as jobs

    assert sql_plugins.plugins.metadata is catalog.metadata
    return [catalog.metadata, jobs.metadata, artifacts.metadata, cluster.metadata]


def upgrade(engine: sa.Engine) -> None:
    """Brings the schema of this database to the newest revision. A database of a newer oneContainer is refused.

    Raises:
        StateInvalid: the database has a revision that is not known here.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Of several gateways that start together one migrates, and the others find it done.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK}, hashtext(current_schema()))")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StateInvalid(
                f"the database is of a newer oneContainer than this one ({error}): install that one again"
            ) from error
