"""A private PostgreSQL, and one database of each backend for a test."""

from __future__ import annotations

import collections
import ctypes
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from onecontainer_driver_sql.database import Database
from onecontainer_driver_sql.driver import open_database
from onecontainer_driver_sql.settings import read_settings

_numbers = itertools.count()


def _programs() -> Path | None:
    """The folder of initdb: Debian keeps it off PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL of its own, on loopback, in a folder that goes afterwards."""
    programs = _programs()
    if programs is None:
        missing = "PostgreSQL is not installed: apt-get install postgresql"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    # It refuses to run as root.
    user: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="ocpg-"))
    if os.getuid() == 0:
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    common: dict[str, Any] = {
        "cwd": folder,
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "env": {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"], "HOME": str(folder)},
        **user,
    }
    data = str(folder / "data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        initdb = [str(programs / "initdb"), "-D", data, "-U", "tester", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        subprocess.run(initdb, check=True, **common)
        settings = [f"-p{port}", "-h127.0.0.1", f"-k{folder}", "-cfsync=off", "-cfull_page_writes=off"]
        server = subprocess.Popen(
            [str(programs / "postgres"), "-D", data, *settings],
            stderr=subprocess.PIPE,
            preexec_fn=_end_with_parent,
            **common,
        )
        assert server.stderr is not None
        log = iter(server.stderr.readline, b"")
        said = []
        for line in log:
            said.append(line.decode())
            if "ready to accept connections" in said[-1]:
                break
        else:
            pytest.fail("PostgreSQL did not start:\n" + "".join(said))
        reader = threading.Thread(target=collections.deque, args=(log, 0))  # or the pipe would fill
        reader.start()
        try:
            yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait()
            reader.join()
            server.stderr.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> None:
    """Between fork and exec: a test run that is killed leaves no server behind (prctl, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


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
