"""A cluster with accounts and TLS: the password and the key come by reference, and who is not let in is told so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from onecontainer_driver_cassandra.database import Database
from onecontainer_driver_cassandra.settings import read_settings

from drivers.cassandra.tests.calls import INT, TEXT, create, select, typed
from drivers.cassandra.tests.conftest import ACCOUNT
from onecontainer.client import Client
from onecontainer.driver import errors
from onecontainer.sidecars.authority import Authority
from tests.fixtures.cassandra import CassandraNode, Secured
from tests.fixtures.processes import GatewayProcess, running

pytestmark = pytest.mark.asyncio(loop_scope="session")
APP, PASSWORD = "app", "O'Brien's"
TIMEOUT = 60.0


@pytest.fixture(scope="module")
def options(authority: Authority, secured: Secured) -> dict[str, Any]:
    """Those of the superuser, who is let in."""
    return {
        "keyspace": "guarded",
        **ACCOUNT,
        "tls": True,
        "tls_ca": authority.ca_pem().decode(),
        "tls_certificate": secured.client.cert.decode(),
        "tls_key": secured.client.key.decode(),
        "request_timeout": TIMEOUT,
        "connect_timeout": TIMEOUT,
    }


def connected(node: CassandraNode, options: dict[str, Any], **more: Any) -> Database:
    return Database(read_settings(options | more, {"one": node.address}))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def account(node: CassandraNode, options: dict[str, Any]) -> None:
    """An account that may use the keyspace, and nothing else."""
    async with connected(node, options) as admin:
        await admin.version()
        quoted = PASSWORD.replace("'", "''")
        await admin.session.define(f"CREATE ROLE IF NOT EXISTS {APP} WITH PASSWORD = '{quoted}' AND LOGIN = true")
        await admin.session.define(f"GRANT ALL PERMISSIONS ON KEYSPACE guarded TO {APP}")


async def test_an_account_that_may_use_the_keyspace(
    node: CassandraNode, options: dict[str, Any], account: None
) -> None:
    async with connected(node, options, user=APP, password=PASSWORD) as database:
        await create(database, "own", typed("id", INT), typed("name", TEXT), key=["id"])
        assert await select(database, "own") == []
    # It may not make another one, and is told that it lacks the right.
    async with connected(node, options, user=APP, password=PASSWORD, keyspace="elsewhere") as database:
        with pytest.raises(errors.BackendExecutionFailed) as raised:
            await database.version()
        assert raised.value.code is errors.Code.PERMISSION_DENIED


@pytest.mark.parametrize("user", [APP, "nobody", ""])
async def test_who_has_not_the_password_is_not_let_in(
    node: CassandraNode, options: dict[str, Any], account: None, user: str
) -> None:
    password = "not-this-one" if user else ""
    async with connected(node, options, user=user, password=password) as database:
        with pytest.raises(errors.BackendExecutionFailed) as raised:
            await database.version()
    assert raised.value.code is errors.Code.PERMISSION_DENIED
    assert "not-this-one" not in str(raised.value)


@pytest.mark.parametrize("wrong", ["another authority", "no certificate", "another address"])
async def test_connections_are_checked_from_both_sides(
    node: CassandraNode, options: dict[str, Any], authority: Authority, wrong: str, tmp_path: Path
) -> None:
    given = dict(options, connect_timeout=10.0)
    place = node.address
    match wrong:
        case "another authority":
            given["tls_ca"] = Authority(tmp_path / "other").ca_pem().decode()
        case "no certificate":
            given["tls_certificate"] = given["tls_key"] = ""
        case _:
            place = place.replace("127.0.0.1", "127.0.0.2")
    async with Database(read_settings(given, {"one": place})) as database:
        with pytest.raises(errors.BackendUnreachable):
            await database.version()
    if wrong == "another address":
        async with Database(read_settings({**options, "tls_verify_hostname": False}, {"one": place})) as database:
            assert (await database.version()).startswith("5.")


async def test_a_service_with_its_password_and_key_by_reference(
    node: CassandraNode, options: dict[str, Any], account: None, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    for name, secret in (("PASSWORD", PASSWORD), ("KEY", options["tls_key"])):
        (secrets / name).touch(mode=0o600)
        (secrets / name).write_text(secret)
    given = options | {"user": APP, "password": "secrets/PASSWORD", "tls_key": "secrets/KEY"}

    def use() -> None:
        gateway = GatewayProcess(tmp_path / "data", secrets_dir=str(secrets))
        with running(gateway), Client(gateway.address) as client:
            shown = client.services.create(
                "guarded", "cassandra", app_version="5.0.9", endpoints={"one": node.address}, options=given
            )
            assert PASSWORD not in str(shown)
            client.services.wait_ready("guarded", timeout=120)
            client.db.create_table("guarded", "items", {"id": "int64", "name": "text"}, key=["id"])
            client.db.insert("guarded", "items", [{"id": 1, "name": "n"}])
            assert client.db.select("guarded", "items", {"id": 1}) == [{"id": 1, "name": "n"}]

    await asyncio.to_thread(use)
