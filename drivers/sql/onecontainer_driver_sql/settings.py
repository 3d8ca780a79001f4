"""Where the database is, from the service's options and endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from onecontainer.driver import errors
from onecontainer.driver.records.names import is_identifier

_POSTGRES = ("postgresql", "postgres", "postgresql+asyncpg")
_POSTGRES_QUERY = frozenset({"sslmode", "sslrootcert"})
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
EMBEDDED_FILE = "database.sqlite3"


@dataclass(frozen=True, slots=True)
class Settings:
    """The URL's driver name is ``postgresql`` or ``sqlite``; the latter has a file, never memory."""

    url: URL
    schema: str = ""
    pool_size: int = 10
    connect_timeout: float = 10.0
    statement_timeout: float = 0.0

    @property
    def is_postgres(self) -> bool:
        return self.url.drivername == "postgresql"


def read_settings(options: Mapping[str, Any], endpoints: Mapping[str, str], state_dir: Path) -> Settings:
    """Raises FieldInvalid of the option that is wrong; its value, which may be a secret, is not in the message."""
    text = options.get("url") or ""
    if not text:
        text = _from_endpoints(options, endpoints) or f"sqlite:///{state_dir / EMBEDDED_FILE}"
    url = _parse(text)
    schema = options.get("schema") or ""
    if schema and not is_identifier(schema):
        raise errors.FieldInvalid("options.schema", "must be a letter or `_`, then letters, digits and `_`")
    if schema and url.drivername == "sqlite":
        raise errors.FieldInvalid("options.schema", "SQLite has no schemas")
    pool_size = options.get("pool_size")
    pool_size = 10 if pool_size is None else int(pool_size)
    if not 1 <= pool_size <= 1000:
        raise errors.FieldInvalid("options.pool_size", "must be from 1 to 1000")
    connect_timeout = options.get("connect_timeout")
    connect_timeout = 10.0 if connect_timeout is None else float(connect_timeout)
    if connect_timeout <= 0:
        raise errors.FieldInvalid("options.connect_timeout", "must be more than 0")
    return Settings(
        url=url,
        schema=schema,
        pool_size=pool_size,
        connect_timeout=connect_timeout,
        statement_timeout=float(options.get("statement_timeout") or 0.0),
    )


def _from_endpoints(options: Mapping[str, Any], endpoints: Mapping[str, str]) -> str | URL:
    if not endpoints:
        return ""
    if len(endpoints) > 1:
        raise errors.FieldInvalid("endpoints", "name one endpoint, or give option `url`")
    endpoint = next(iter(endpoints.values()))
    if "://" in endpoint:
        return endpoint
    host, colon, port = endpoint.rpartition(":")
    if not colon:
        host, port = endpoint, "5432"
    if not port.isdigit():
        raise errors.FieldInvalid("endpoints", "must be HOST:PORT, or a URL")
    return URL.create(
        "postgresql",
        username=options.get("user") or None,
        password=options.get("password") or None,
        host=host.strip("[]"),
        port=int(port),
        database=options.get("database") or None,
    )


def _parse(given: str | URL) -> URL:
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        raise errors.FieldInvalid(
            "options.url", "is not a database URL: postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if url.drivername in _POSTGRES:
        for name, value in url.query.items():
            if name not in _POSTGRES_QUERY:
                raise errors.FieldInvalid("options.url", f"has parameter {name!r}; it may have sslmode and sslrootcert")
            if name == "sslmode" and value not in _SSL_MODES:
                raise errors.FieldInvalid("options.url", f"sslmode must be one of {', '.join(_SSL_MODES)}")
        return url.set(drivername="postgresql")
    if url.drivername in ("sqlite", "sqlite+aiosqlite"):
        if not url.database or url.database == ":memory:" or url.query:
            raise errors.FieldInvalid("options.url", "names no file: sqlite:////var/lib/app/data.sqlite3")
        return url.set(drivername="sqlite")
    raise errors.FieldInvalid("options.url", "is neither of PostgreSQL (postgresql://…) nor of SQLite (sqlite:///…)")
