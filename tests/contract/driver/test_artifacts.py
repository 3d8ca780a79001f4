"""Artifacts as a handler sees them, over a real socket, with a gateway that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from onecontainer import errors
from onecontainer.driver.artifacts import ArtifactLink, Artifacts
from onecontainer.driver.context import JobAttempt
from onecontainer.rpc.channel import open_channel
from tests.contract.driver.echo import in_time
from tests.contract.driver.test_worker import grant
from tests.fakes.lease import FakeGateway

MIB = 1024 * 1024


@pytest.fixture
async def gateway(folder: Path) -> AsyncIterator[FakeGateway]:
    async with FakeGateway(folder) as gateway:
        yield gateway


@pytest.fixture
async def link(gateway: FakeGateway) -> AsyncIterator[ArtifactLink]:
    async with open_channel(gateway.target) as channel:
        yield ArtifactLink(lambda: channel, (("authorization", "Bearer s3cret"),))


@pytest.fixture
def artifacts(link: ArtifactLink) -> Artifacts:
    """Those of a direct call."""
    return link.for_call(None, lambda: 30.0)


@pytest.fixture
def of_a_job(link: ArtifactLink, gateway: FakeGateway) -> Artifacts:
    gateway.leases["jobs/1", 7] = grant(fence=7)
    return link.for_call(JobAttempt("jobs/1", 1, 7), lambda: 30.0)


async def test_a_file_goes_up_and_comes_down(artifacts: Artifacts, tmp_path: Path, gateway: FakeGateway) -> None:
    source, target = tmp_path / "source.bin", tmp_path / "target.bin"
    source.write_bytes(bytes(range(256)) * (3 * MIB // 256) + b"end")
    made = await artifacts.put(source, media_type="video/mp4", labels={"k": "v"})
    assert (made.filename, made.size_bytes) == ("source.bin", 3 * MIB + 3)
    assert dict(gateway.uploads[0].labels) == {"k": "v"}
    assert not gateway.uploads[0].HasField("attempt")
    await artifacts.fetch(made.name, target)
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.bin", "target.bin"]
    assert [piece async for piece in artifacts.read(made.name, offset=3 * MIB)] == [b"end"]
    assert (await artifacts.get(made.name)).media_type == "video/mp4"


async def test_what_is_not_there_is_a_typed_error_and_no_file(artifacts: Artifacts, tmp_path: Path) -> None:
    for call in (artifacts.get("artifacts/0"), artifacts.fetch("artifacts/0", tmp_path / "x")):
        with pytest.raises(errors.ResourceNotFound):
            await call
    assert list(tmp_path.iterdir()) == []


async def test_a_small_read_has_a_limit(artifacts: Artifacts, gateway: FakeGateway) -> None:
    name = gateway.keep(b"12345").name
    assert await artifacts.read_bytes(name, 5) == b"12345"
    with pytest.raises(errors.FieldInvalid):
        await artifacts.read_bytes(name, 4)


async def test_an_upload_of_an_attempt_that_is_not_the_current_one(of_a_job: Artifacts, gateway: FakeGateway) -> None:
    await of_a_job.put_bytes(b"x")
    assert gateway.uploads[0].attempt.fence == 7
    await gateway.take_away(("jobs/1", 7))
    with pytest.raises(errors.LeaseLost):
        await of_a_job.put_bytes(b"x")


async def test_a_direct_call_is_told_that_the_gateway_is_away(artifacts: Artifacts, gateway: FakeGateway) -> None:
    await gateway.stop()
    with pytest.raises(errors.OneContainerError) as caught:
        await artifacts.get("artifacts/1")
    assert caught.value.code is errors.Code.UNAVAILABLE


async def test_a_job_waits_for_the_gateway(of_a_job: Artifacts, gateway: FakeGateway, tmp_path: Path) -> None:
    await gateway.stop()
    path = tmp_path / "made"
    path.write_bytes(b"x" * MIB)
    waiting = [asyncio.ensure_future(of_a_job.put(path)), asyncio.ensure_future(of_a_job.put_bytes(b"y"))]
    await asyncio.sleep(0)
    await gateway.start()
    made = await in_time(asyncio.gather(*waiting))
    assert sorted(artifact.size_bytes for artifact in made) == [1, MIB]


async def test_a_download_goes_on_where_it_broke_off(of_a_job: Artifacts, gateway: FakeGateway, tmp_path: Path) -> None:
    data = bytes(range(256)) * (8 * MIB // 256)
    name = gateway.keep(data).name
    received = bytearray()
    async for piece in of_a_job.read(name):
        received += piece
        if len(received) == 2 * MIB:
            await gateway.stop()
            await gateway.start()
    assert received == data


async def test_one_that_was_cancelled_does_not_wait(link: ArtifactLink, gateway: FakeGateway) -> None:
    await gateway.stop()
    cancelled = link.for_call(JobAttempt("jobs/1", 1, 7), lambda: 30.0, lambda: True)
    with pytest.raises(errors.OneContainerError):
        await in_time(cancelled.put_bytes(b"x"))
