"""Database driver for PostgreSQL and SQLite."""

from onecontainer_driver_sql.driver import SqlDriver

__all__ = ["SqlDriver"]
