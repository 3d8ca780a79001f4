from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from sqlalchemy.engine import Connection

from onecontainer.artifacts import sql
from onecontainer.artifacts.artifacts import Artifacts
from onecontainer.artifacts.model import Attempt, State, Upload
from onecontainer.errors import (
    DataCorrupt,
    DataInvalid,
    FieldInvalid,
    LeaseLost,
    LimitExceeded,
    PermissionDenied,
    RequestIdReused,
    ResourceInUse,
    ResourceNotFound,
)
from onecontainer.rpc.filters import parse_filter
from tests.unit.artifacts.conftest import World

SECOND = 1_000_000


async def test_upload_and_read(world: World) -> None:
    made = await world.upload(b"abc", b"", b"def", filename="a.txt", labels={"k": "v"}, size_bytes=6)
    assert made == await world.artifacts.get(made.name)
    assert (made.size_bytes, made.sha256) == (6, hashlib.sha256(b"abcdef").digest())
    assert (made.filename, made.media_type, made.labels) == ("a.txt", "text/plain", {"k": "v"})
    assert (made.state, made.principal, made.attempt, made.expire_time) == (State.READY, "alice", None, None)
    assert made.create_time == world.clock.now()
    assert await world.content(made) == b"abcdef"
    assert await world.content(made, 2, 3) == b"cde"
    assert await world.content(made, 6) == b""
    assert await world.artifacts.read(made.name, max_bytes=6) == b"abcdef"
    with pytest.raises(LimitExceeded):
        await world.artifacts.read(made.name, max_bytes=5)


async def test_empty(world: World) -> None:
    made = await world.upload(size_bytes=0)
    assert made.sha256 == hashlib.sha256().digest()
    assert await world.content(made) == b""


@pytest.mark.parametrize(("offset", "limit"), [(-1, 0), (4, 0), (0, -1)])
async def test_wrong_range(world: World, offset: int, limit: int) -> None:
    made = await world.upload(b"abc")
    with pytest.raises(FieldInvalid):
        await world.content(made, offset, limit)


async def test_small_parts_are_gathered(world: World) -> None:
    made = await world.upload(*[b"x" * 1000] * 1000)
    assert made.size_bytes == 1_000_000
    assert await world.content(made) == b"x" * 1_000_000


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ({"size_bytes": 2}, DataInvalid),
        ({"size_bytes": 4}, DataInvalid),
        ({"sha256": b"x" * 32}, DataInvalid),
        ({"size_bytes": (1 << 20) + 1}, LimitExceeded),
        ({"filename": "a/b"}, FieldInvalid),
    ],
)
async def test_nothing_is_kept_of_what_is_refused(
    world: World, header: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await world.upload(b"abc", **header)
    assert_nothing(world)


async def test_too_large(world: World) -> None:
    with pytest.raises(LimitExceeded, match="1048576"):
        await world.upload(*[bytes(1 << 18)] * 5)
    assert_nothing(world)


async def test_disk_full(world: World) -> None:
    world.store.capacity = 1 << 18
    with pytest.raises(LimitExceeded, match="space"):
        await world.upload(*[bytes(1 << 18)] * 2)
    assert_nothing(world)


async def test_cancelled(world: World) -> None:
    half = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield bytes(1 << 19)
        yield bytes(1 << 19)
        half.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(world.artifacts.upload(Upload(), parts(), principal="alice"))
    await half.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_nothing(world)


def assert_nothing(world: World) -> None:
    assert world.store.blobs == {}
    assert world.store.partial == {}


# --- request ids -------------------------------------------------------------------------------------------------------


async def test_a_replay_is_the_first_one(world: World) -> None:
    first = await world.upload(b"abc", request_id="r", filename="f")
    world.clock.advance(1)
    assert await world.upload(b"ab", b"c", request_id="r", filename="f") == first
    assert len(world.store.blobs) == 1
    # Another principal's is another one.
    assert await world.upload(b"abc", request_id="r", filename="f", principal="bob") != first


@pytest.mark.parametrize("other", [{"filename": "g"}, {"labels": {"a": "b"}}, {"ttl": 1}, {"media_type": "a/b"}])
async def test_a_request_id_is_for_one_request(world: World, other: dict[str, object]) -> None:
    first = await world.upload(b"abc", request_id="r", filename="f")
    for body, header in [(b"abd", {"filename": "f"}), (b"abc", {"filename": "f"} | other)]:
        with pytest.raises(RequestIdReused) as caught:
            await world.upload(body, request_id="r", **header)
        assert caught.value.resource == ("onecontainer.dev/Artifact", first.name)
    assert len(world.store.blobs) == 1


async def test_a_request_id_is_free_again_after_its_artifact(world: World) -> None:
    first = await world.upload(b"abc", request_id="r", ttl=SECOND)
    world.clock.advance(1)
    second = await world.upload(b"abd", request_id="r")
    assert second.id != first.id
    await world.artifacts.delete(second.name)
    third = await world.upload(b"abe", request_id="r")
    assert await world.content(third) == b"abe"


async def test_replays_at_the_same_time(world: World) -> None:
    made = await asyncio.gather(*[world.upload(b"abc", request_id="r") for _ in range(8)])
    assert len({artifact.id for artifact in made}) == 1
    await world.sweeper.sweep()
    assert set(world.store.blobs) == {made[0].id}


async def test_another_gateway_is_faster_with_the_same_request_id(world: World) -> None:
    """Between our look and our row comes the row of another gateway, which only PostgreSQL allows: here the clock brings it."""
    attempt = world.jobs.start("jobs/j", 1, principal="p", instance="i")
    first = await world.upload(b"abc", attempt=attempt, request_id="r")
    upload = Upload(attempt=attempt, request_id="r")
    key, request_hash = upload.request_key("p"), upload.request_hash(first.sha256)
    await world.database.write(lambda c: sql.forget_request(c, first.id))
    connections = []
    principal_of = world.jobs.principal_of

    class Jobs:
        user_of = world.jobs.user_of

        def principal_of(self, connection: Connection, attempt: Attempt, identity: object) -> str:
            connections.append(connection)
            return principal_of(connection, attempt, identity)

    class Clock:
        def now(self) -> int:
            table = sql.artifacts
            values = {"request_key": key, "request_hash": request_hash}
            connections[-1].execute(table.update().where(table.c.id == first.id).values(values))
            return world.clock.now()

    async def parts() -> AsyncIterator[bytes]:
        yield b"abc"

    artifacts = Artifacts(world.database, world.store, Jobs(), Clock())
    assert await artifacts.upload(upload, parts(), principal="x") == first
    await world.sweeper.sweep()
    assert set(world.store.blobs) == {first.id}


# --- attempts ----------------------------------------------------------------------------------------------------------


async def test_an_attempt_stages(world: World) -> None:
    attempt = world.jobs.start("jobs/j", 7, principal="carol", instance="me")
    made = await world.upload(b"abc", attempt=attempt, identity="me", principal="sidecar", ttl=5)
    assert (made.state, made.principal, made.expire_time) == (State.STAGED, "carol", None)
    assert await world.artifacts.get(made.name, identity="me") == made
    for stranger in (None, "other"):
        with pytest.raises(ResourceNotFound):
            await world.artifacts.get(made.name, identity=stranger)
    assert await world.artifacts.page([], size=10) == []
    with pytest.raises(ResourceNotFound):
        await world.artifacts.delete(made.name)
    # The system itself reads a staged result while it accepts the outcome.
    assert await world.artifacts.read(made.name, max_bytes=3) == b"abc"


async def test_the_accepted_outcome_makes_its_artifacts_ready(world: World) -> None:
    old = world.jobs.start("jobs/j", 7, principal="carol", instance="me")
    lost = await world.upload(b"old", attempt=old)
    new = world.jobs.start("jobs/j", 8, principal="carol", instance="me")
    kept = await world.upload(b"new", attempt=new)

    promoted = await world.database.write(lambda c: sql.promote(c, "jobs/j", 8, world.clock.now() + SECOND))
    assert promoted == 1
    assert (await world.artifacts.get(kept.name)).state is State.READY
    assert await world.database.read(lambda c: sql.names_of_jobs(c, ["jobs/j"])) == {"jobs/j": [kept.name]}
    assert [one.name for one in await world.artifacts.page([], size=10)] == [kept.name]

    assert (await world.sweeper.sweep()).stale == 1
    assert set(world.store.blobs) == {kept.id}
    with pytest.raises(ResourceNotFound):
        await world.artifacts.read(lost.name, max_bytes=3)

    world.clock.advance(1)
    with pytest.raises(ResourceNotFound):
        await world.artifacts.get(kept.name)


async def test_discard(world: World) -> None:
    attempts = [world.jobs.start("jobs/j", fence, principal="p", instance="i") for fence in (1,)]
    await world.upload(b"1", attempt=attempts[0])
    attempt = world.jobs.start("jobs/j", 2, principal="p", instance="i")
    kept = await world.upload(b"2", attempt=attempt)
    assert await world.database.write(lambda c: sql.discard(c, "jobs/j", except_fence=2)) == 1
    assert (await world.sweeper.sweep()).blobs == 1
    assert set(world.store.blobs) == {kept.id}
    assert await world.database.write(lambda c: sql.discard(c, "jobs/j")) == 1


async def test_remove_job_takes_everything_it_made_and_nothing_else(world: World) -> None:
    uploaded = await world.upload(b"input")
    await world.upload(b"output", attempt=world.jobs.start("jobs/j", 1, principal="p", instance="i"))
    await world.database.write(lambda c: sql.promote(c, "jobs/j", 1))
    assert await world.database.write(lambda c: sql.remove_job(c, "jobs/j")) == 1
    await world.sweeper.sweep()
    assert set(world.store.blobs) == {uploaded.id}


async def test_an_old_fence_cannot_upload(world: World) -> None:
    world.jobs.start("jobs/j", 2, principal="p", instance="i")
    with pytest.raises(LeaseLost):
        await world.upload(b"abc", attempt=Attempt("jobs/j", 1, 1))
    with pytest.raises(PermissionDenied):
        await world.upload(b"abc", attempt=Attempt("jobs/j", 1, 2), identity="stranger")
    assert_nothing(world)


async def test_a_lease_that_is_lost_while_uploading(world: World) -> None:
    attempt = world.jobs.start("jobs/j", 1, principal="p", instance="i")

    async def parts() -> AsyncIterator[bytes]:
        yield b"abc"
        world.jobs.start("jobs/j", 2, principal="p", instance="i")

    with pytest.raises(LeaseLost):
        await world.artifacts.upload(Upload(attempt=attempt), parts(), principal="x", identity="i")
    assert_nothing(world)


# --- listing -----------------------------------------------------------------------------------------------------------


async def test_list_is_newest_first_and_filtered(world: World) -> None:
    made = []
    for number in range(5):
        made.append(await world.upload(b"x", filename=f"{number % 2}.txt", labels={"a.b": str(number)}))
        world.clock.advance(number % 2)  # some have the same time
    newest = sorted(made, key=lambda one: (one.create_time, one.id), reverse=True)
    assert await world.artifacts.page([], size=10) == newest
    assert await world.artifacts.page([], size=2) == newest[:2]
    position = (newest[1].create_time, newest[1].id)
    assert await world.artifacts.page([], size=2, after=position) == newest[2:4]

    async def names(text: str) -> list[str]:
        terms = parse_filter(text, ("job", "principal", "filename", "media_type"), labels=True)
        return [one.labels["a.b"] for one in await world.artifacts.page(terms, size=10)]

    assert await names('filename = "1.txt"') == ["3", "1"]
    assert await names('labels.a.b = "2" AND media_type = "text/plain"') == ["2"]
    assert await names('labels.a = "2"') == []
    assert await names('principal = "bob"') == []


# --- removing ----------------------------------------------------------------------------------------------------------


async def test_delete(world: World) -> None:
    made = await world.upload(b"abc")
    await world.artifacts.delete(made.name)
    assert_nothing(world)
    for call in (world.artifacts.delete(made.name), world.artifacts.get(made.name)):
        with pytest.raises(ResourceNotFound):
            await call
    assert await world.database.read(lambda c: sql.garbage(c, 10)) == []


async def test_what_a_live_job_needs_stays(world: World) -> None:
    made = await world.upload(b"abc", ttl=SECOND)
    world.jobs.users[made.name] = "jobs/j"
    with pytest.raises(ResourceInUse) as caught:
        await world.artifacts.delete(made.name)
    assert caught.value.metadata["job"] == "jobs/j"
    world.clock.advance(2)
    assert (await world.sweeper.sweep()).expired == 0
    assert await world.content(await world.artifacts.get(made.name)) == b"abc"
    world.jobs.users.clear()
    with pytest.raises(ResourceNotFound):
        await world.artifacts.get(made.name)
    assert (await world.sweeper.sweep()).expired == 1
    assert_nothing(world)


async def test_a_download_breaks_off_when_its_artifact_goes(world: World) -> None:
    world.artifacts._max_bytes = 1 << 30
    made = await world.upload(*[bytes(1 << 20)] * 3)
    async with aclosing(world.artifacts.download(made)) as chunks:
        await anext(chunks)
        await world.artifacts.delete(made.name)
        with pytest.raises(ResourceNotFound):
            await anext(chunks)


@pytest.mark.parametrize("damage", [b"abX", b"ab", b"", None])
async def test_damage_is_noticed(world: World, damage: bytes | None) -> None:
    made = await world.upload(b"abc")
    if damage is None:
        del world.store.blobs[made.id]
    else:
        world.store.blobs[made.id] = (damage, 0)
    with pytest.raises(DataCorrupt, match=made.name):
        await world.content(made)


# --- sweeping ----------------------------------------------------------------------------------------------------------


async def test_sweep_removes_in_batches(world: World) -> None:
    for _ in range(450):
        await world.upload(b"x", ttl=SECOND)
    kept = await world.upload(b"y", ttl=3 * SECOND)
    world.clock.advance(2)
    swept = await world.sweeper.sweep()
    assert (swept.expired, swept.stale, swept.blobs) == (450, 0, 450)
    assert set(world.store.blobs) == {kept.id}
    assert await world.database.read(lambda c: sql.garbage(c, 10)) == []


async def test_reconcile(world: World) -> None:
    good = await world.upload(b"good")
    lost = await world.upload(b"lost")
    del world.store.blobs[lost.id]
    orphan, young = "e" * 32, "f" * 32
    world.store.blobs[orphan] = (b"orphan", world.clock.now())
    world.clock.advance(3601)
    world.store.blobs[young] = (b"its upload is about to be recorded", world.clock.now())
    found = await world.sweeper.reconcile()
    assert (found.orphans, found.missing) == (1, (lost.name,))
    assert set(world.store.blobs) == {good.id, young}
    # A row is never dropped for missing bytes: the disk may just not be mounted.
    assert await world.artifacts.get(lost.name) == lost
