"""Options and endpoints; what is wrong is told without the secrets in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onecontainer_driver_sql.driver import open_database
from onecontainer_driver_sql.settings import read_settings

from onecontainer.driver import errors

SECRET = "hunter2"


def test_without_anything_it_is_a_file_in_the_state_folder(tmp_path: Path) -> None:
    settings = read_settings({}, {}, tmp_path)
    assert settings.url.drivername == "sqlite"
    assert settings.url.database == str(tmp_path / "database.sqlite3")
    assert not settings.is_postgres


@pytest.mark.parametrize(
    ("options", "endpoints", "url"),
    [
        ({"url": "postgresql://u:p@h:1/d"}, {}, "postgresql://u:p@h:1/d"),
        ({"url": "postgres://u:p@h/d?sslmode=require"}, {"n": "ignored:1"}, "postgresql://u:p@h/d?sslmode=require"),
        ({"url": "postgresql+asyncpg://h/d"}, {}, "postgresql://h/d"),
        ({}, {"n": "postgresql://u@h/d"}, "postgresql://u@h/d"),
        (
            {"user": "u", "password": "p@:/", "database": "d"},
            {"n": "db.example:6000"},
            "postgresql://u:p%40%3A%2F@db.example:6000/d",
        ),
        ({}, {"n": "db.example"}, "postgresql://db.example:5432"),
        ({}, {"n": "[::1]:5432"}, "postgresql://[::1]:5432"),
        ({"url": "sqlite:////var/x.db"}, {}, "sqlite:////var/x.db"),
    ],
)
def test_where_the_database_is(options: dict[str, Any], endpoints: dict[str, str], url: str, tmp_path: Path) -> None:
    assert read_settings(options, endpoints, tmp_path).url.render_as_string(hide_password=False) == url


@pytest.mark.parametrize(
    ("options", "endpoints", "path"),
    [
        ({"url": f"nonsense {SECRET}"}, {}, "options.url"),
        ({"url": f"mysql://u:{SECRET}@h/d"}, {}, "options.url"),
        ({"url": f"postgresql://u:{SECRET}@h/d?host=/tmp"}, {}, "options.url"),
        ({"url": f"postgresql://u:{SECRET}@h/d?sslmode=maybe"}, {}, "options.url"),
        ({"url": f"postgresql://u:{SECRET}@h:port/d"}, {}, "options.url"),
        ({"url": "sqlite://"}, {}, "options.url"),
        ({"url": "sqlite:///:memory:"}, {}, "options.url"),
        ({"url": "sqlite:////x?mode=ro"}, {}, "options.url"),
        ({"schema": "a b"}, {"n": "h:1"}, "options.schema"),
        ({"schema": "a"}, {}, "options.schema"),
        ({"pool_size": 0}, {}, "options.pool_size"),
        ({"connect_timeout": 0.0}, {}, "options.connect_timeout"),
        ({}, {"a": "h:1", "b": "h:2"}, "endpoints"),
        ({}, {"a": "h:port"}, "endpoints"),
    ],
)
def test_wrong_settings(options: dict[str, Any], endpoints: dict[str, str], path: str, tmp_path: Path) -> None:
    with pytest.raises(errors.FieldInvalid) as raised:
        read_settings(options, endpoints, tmp_path)
    assert raised.value.violations[0].field == path
    assert SECRET not in str(raised.value)


def test_the_folder_of_a_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(errors.FieldInvalid, match="is not there"):
        open_database(read_settings({"url": f"sqlite:///{tmp_path}/no/x.db"}, {}, tmp_path))
