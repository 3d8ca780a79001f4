"""Owners on a real PostgreSQL: a service has one, and another one only when the first one's lease has ended."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from onecontainer.cluster.owners import View, view_from_text, view_to_text
from onecontainer.cluster.sql import SqlOwners, gateways
from onecontainer.database import Database
from onecontainer.errors import DriverUnreachable
from onecontainer.sidecars.model import RuntimeKind, ServiceState, Sidecar, SidecarState

LONG = 3600.0
A, B = "gateways/a", "gateways/b"


class Told:
    """Counts what is told."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, _connection: Connection) -> None:
        self.times += 1


def owners(database: Database, name: str, node: str = "", *, told: Told | None = None) -> SqlOwners:
    return SqlOwners(database, name, node or name, lambda: f"{name}.example:50051", LONG, told or Told())


async def expire(database: Database, name: str) -> None:
    """The lease of a gateway ends."""
    await database.write(lambda c: c.execute(gateways.update().where(gateways.c.name == name).values(expire_time=1)))


@pytest.fixture
async def pair(databases: tuple[Database, Database]) -> tuple[SqlOwners, SqlOwners]:
    a, b = owners(databases[0], A), owners(databases[1], B)
    await a.join()
    await b.join()
    return a, b


async def owner_of(one: SqlOwners, uid: str, wanted: tuple[str, ...] = ()) -> str:
    found = {owner.service_uid: owner for owner in await one.renew(wanted)}
    return found[uid].gateway if uid in found else ""


async def test_the_first_one_owns_a_service_as_long_as_it_lives(
    databases: tuple[Database, Database], pair: tuple[SqlOwners, SqlOwners]
) -> None:
    a, b = pair
    assert await owner_of(a, "s", ("s",)) == A
    assert await owner_of(b, "s", ("s",)) == A
    (seen,) = await b.renew([])
    assert seen.address == f"{A}.example:50051"
    assert seen.live
    await expire(databases[0], A)
    (seen,) = await b.renew([])
    assert not seen.live
    assert await owner_of(b, "s", ("s",)) == B
    # It was only slow: it finds another owner, and does not take the service back.
    assert await owner_of(a, "s", ("s",)) == B


async def test_one_that_owns_a_service_itself_takes_over_another(
    databases: tuple[Database, Database], pair: tuple[SqlOwners, SqlOwners]
) -> None:
    """Whether an owner lives is asked of the owner of this service, not of any."""
    a, b = pair
    await a.renew(["s"])
    await b.renew(["t"])
    await expire(databases[0], A)
    assert await owner_of(b, "s", ("s", "t")) == B
    assert await owner_of(b, "t") == B


async def test_one_that_owns_a_service_itself_releases_only_what_is_free(
    databases: tuple[Database, Database], pair: tuple[SqlOwners, SqlOwners]
) -> None:
    a, b = pair
    await a.renew(["s"])
    await b.renew(["t"])
    await b.release("s")
    assert await owner_of(b, "s") == A
    await expire(databases[0], A)
    await b.release("s")
    assert await owner_of(b, "s") == ""
    assert await owner_of(b, "t") == B


async def test_a_late_renewal_keeps_what_nobody_has_taken(
    databases: tuple[Database, Database], pair: tuple[SqlOwners, SqlOwners]
) -> None:
    a, b = pair
    await a.renew(["s"])
    await expire(databases[0], A)
    assert await owner_of(a, "s", ("s",)) == A
    assert await owner_of(b, "s", ("s",)) == A


async def test_of_two_that_want_it_at_once_one_gets_it(pair: tuple[SqlOwners, SqlOwners]) -> None:
    a, b = pair
    for number in range(20):
        uid = f"s{number}"
        await asyncio.gather(a.renew([uid]), b.renew([uid]))
        assert await owner_of(a, uid) == await owner_of(b, uid) != ""


async def test_what_is_released_or_left_is_free(pair: tuple[SqlOwners, SqlOwners]) -> None:
    a, b = pair
    await a.renew(["s", "t"])
    await b.release("s")  # not its own
    assert await owner_of(b, "s", ("s",)) == A
    await a.release("s")
    assert await owner_of(b, "s", ("s",)) == B
    await a.leave()
    assert await owner_of(b, "t", ("t",)) == B


async def test_a_gateway_that_starts_again_has_its_services_at_once(databases: tuple[Database, Database]) -> None:
    """The lock of the data folder says that the earlier one has ended: nobody waits for its lease."""
    before = owners(databases[0], A, "node")
    await before.join()
    await before.renew(["s"])
    after = owners(databases[1], "gateways/a2", "node")
    await after.join()
    # Another one hears of it first, and comes too late.
    other = owners(databases[0], B)
    await other.join()
    assert await owner_of(other, "s", ("s",)) == "gateways/a2"
    assert await owner_of(after, "s", ("s",)) == "gateways/a2"


async def test_a_gateway_that_starts_again_has_only_what_nobody_has_taken(
    databases: tuple[Database, Database], pair: tuple[SqlOwners, SqlOwners]
) -> None:
    a, b = pair
    await a.renew(["s", "t"])
    await b.renew(["u"])
    await expire(databases[0], A)
    await b.renew(["t", "u"])
    after = owners(databases[0], "gateways/a2", A)
    await after.join()
    found = {owner.service_uid: owner.gateway for owner in await after.renew(["s", "t", "u"])}
    assert found == {"s": "gateways/a2", "t": B, "u": B}


async def test_the_others_see_what_an_owner_shows_and_are_told(databases: tuple[Database, Database]) -> None:
    told = Told()
    a, b = owners(databases[0], A, told=told), owners(databases[1], B)
    await a.join()
    await b.join()
    await a.renew(["s"])
    before = told.times
    await a.renew(["s"])
    assert told.times == before  # a renewal alone is no news
    error = DriverUnreachable("it died", retry_after=1.0)
    sidecar = Sidecar(
        *("sidecars/s-1", "services/s", "s", "drivers/echo-1.0.0", RuntimeKind.PROCESS, SidecarState.BACKOFF),
        error=error,
        restart_count=3,
        create_time=5,
    )
    await a.show("s", View(ServiceState.UNAVAILABLE, error, "", frozenset({"x/Y"}), 7, (sidecar,)))
    assert told.times == before + 1
    (seen,) = await b.renew([])
    assert seen.view.state is ServiceState.UNAVAILABLE
    assert seen.view.methods == {"x/Y"}
    assert isinstance(seen.view.error, DriverUnreachable)
    assert seen.view.error.message == "it died"
    (shown,) = seen.view.sidecars
    assert (shown.name, shown.state, shown.restart_count) == ("sidecars/s-1", SidecarState.BACKOFF, 3)
    assert str(shown.error) == str(error)
    # Whoever has lost it shows nothing any more.
    await expire(databases[0], A)
    await b.renew(["s"])
    await a.show("s", View(ServiceState.READY))
    (seen,) = await b.renew([])
    assert seen.view == View()


async def test_gateways_that_are_long_gone_are_forgotten(databases: tuple[Database, Database]) -> None:
    await owners(databases[0], A).join()
    await expire(databases[0], A)
    await owners(databases[1], B).join()
    assert await databases[0].read(lambda c: c.scalars(sa.select(gateways.c.name)).all()) == [B]


def test_a_view_of_a_newer_release_is_read() -> None:
    text = view_to_text(View(ServiceState.READY, instance="sidecars/s"))
    newer = text[:-1] + ', "added": 1}'
    assert view_from_text(newer) == View(ServiceState.READY, instance="sidecars/s")


async def test_a_service_whose_sidecar_has_come_here_is_taken_from_one_that_lives(
    pair: tuple[SqlOwners, SqlOwners],
) -> None:
    a, b = pair
    await a.renew(["s"])
    await a.show("s", View(instance="sidecars/s-1"))
    await b.take_over("s")
    await b.take_over("t")  # nobody had it
    found = {owner.service_uid: owner for owner in await a.renew(["s", "t"])}
    assert {uid: owner.gateway for uid, owner in found.items()} == {"s": B, "t": B}
    assert found["s"].view == View()
    # What the old owner still shows is not seen any more.
    await a.show("s", View(instance="sidecars/s-1"))
    (seen,) = [owner for owner in await b.renew([]) if owner.service_uid == "s"]
    assert seen.view == View()
