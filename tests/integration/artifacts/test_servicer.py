"""ArtifactService over a real server: both listeners, the real store and a real database."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from onecontainer.api.artifact.v1 import artifact_pb2, artifact_pb2_grpc
from onecontainer.artifacts import sql
from onecontainer.artifacts.artifacts import Artifacts
from onecontainer.artifacts.files import FileArtifactStore
from onecontainer.artifacts.servicer import ArtifactServicer
from onecontainer.clock import SystemClock
from onecontainer.database import Database
from onecontainer.errors import OneContainerError, Reason
from onecontainer.rpc import status
from onecontainer.rpc.channel import open_channel, server_options
from onecontainer.rpc.server import Call, Metadata, service_handler
from onecontainer.rpc.writing import send_all
from tests.fakes.artifacts import FakeJobs
from tests.fixtures.sending import sending

MIB = 1 << 20
SERVICE = artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"]


class Known:
    """Everybody is who the listener says."""

    def __init__(self, principal: str, identity: object) -> None:
        self._call = Call(principal, identity=identity)

    def authenticate(self, metadata: Metadata) -> Call:
        return self._call


@dataclass
class World:
    folder: Path
    jobs: FakeJobs
    public: artifact_pb2_grpc.ArtifactServiceAsyncStub
    internal: artifact_pb2_grpc.ArtifactServiceAsyncStub

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    jobs = FakeJobs()
    servers = []
    async with (
        Database(f"sqlite:///{tmp_path}/test.db") as database,
        FileArtifactStore(tmp_path / "artifacts") as store,
    ):
        sql.metadata.create_all(database.engine)
        artifacts = Artifacts(database, store, jobs, SystemClock())
        for internal, known in ((False, Known("alice", None)), (True, Known("sidecar", "instance-1"))):
            server = grpc.aio.server(options=server_options())
            server.add_generic_rpc_handlers(
                [service_handler(ArtifactServicer(artifacts, internal=internal), SERVICE, known)]
            )
            target = f"unix:{tmp_path}/{'internal' if internal else 'public'}.sock"
            server.add_insecure_port(target)
            await server.start()
            servers.append((server, open_channel(target)))
        stubs = [artifact_pb2_grpc.ArtifactServiceStub(channel) for _, channel in servers]
        yield World(tmp_path / "artifacts", jobs, *stubs)  # type: ignore[arg-type]
        for server, channel in servers:
            await channel.close()
            await server.stop(None)


def messages(*parts: bytes, **header: object) -> list[artifact_pb2.UploadRequest]:
    head = artifact_pb2.UploadHeader(**header)  # type: ignore[arg-type]
    return [artifact_pb2.UploadRequest(header=head), *(artifact_pb2.UploadRequest(data=part) for part in parts)]


async def stream(requests: Iterable[artifact_pb2.UploadRequest]) -> AsyncIterator[artifact_pb2.UploadRequest]:
    for request in requests:
        yield request


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what happens on the server's side, of which the client is not told."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def failure(call: object) -> OneContainerError:
    with pytest.raises(grpc.RpcError) as caught:
        await call  # type: ignore[misc]
    return status.from_rpc_error(caught.value)


async def download(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub, name: str, offset: int = 0, limit: int = 0
) -> tuple[artifact_pb2.Artifact, bytes]:
    request = artifact_pb2.DownloadRequest(name=name, offset=offset, limit_bytes=limit)
    responses = [response async for response in stub.Download(request)]
    assert [response.HasField("artifact") for response in responses] == [True] + [False] * (len(responses) - 1)
    assert max(len(response.data) for response in responses) <= MIB
    return responses[0].artifact, b"".join(response.data for response in responses)


async def test_up_and_down(world: World) -> None:
    data = os.urandom(3 * MIB + 17)
    requests = messages(data[:MIB], b"", data[MIB:], filename="x.bin", labels={"a": "b"}, size_bytes=len(data))
    made = await world.public.Upload(stream(requests))
    assert made.name.startswith("artifacts/")
    assert (made.size_bytes, made.sha256) == (len(data), hashlib.sha256(data).digest())
    assert (made.state, made.principal, made.filename) == (artifact_pb2.ARTIFACT_STATE_READY, "alice", "x.bin")
    assert made.HasField("create_time")
    assert not made.HasField("expire_time")
    assert await download(world.public, made.name) == (made, data)
    assert await download(world.public, made.name, MIB + 1) == (made, data[MIB + 1 :])
    assert await download(world.public, made.name, 5, 7) == (made, data[5:12])
    assert await download(world.public, made.name, len(data)) == (made, b"")
    assert await world.public.GetArtifact(artifact_pb2.GetArtifactRequest(name=made.name)) == made
    # A sidecar reads its input the same way.
    assert await download(world.internal, made.name) == (made, data)


async def test_empty_artifact(world: World) -> None:
    made = await world.public.Upload(stream(messages()))
    assert await download(world.public, made.name) == (made, b"")


@pytest.mark.parametrize(
    ("requests", "reason", "field"),
    [
        ([], Reason.FIELD_REQUIRED, "header"),
        ([artifact_pb2.UploadRequest(data=b"x")], Reason.FIELD_REQUIRED, "header"),
        ([artifact_pb2.UploadRequest()], Reason.FIELD_REQUIRED, "header"),
        (messages() + messages(), Reason.FIELD_INVALID, "header"),
        (messages(bytes(4 * MIB + 1)), Reason.FIELD_INVALID, "data"),
        (messages(filename="../x"), Reason.FIELD_INVALID, "header.filename"),
        (messages(b"x", size_bytes=2), Reason.DATA_INVALID, "header.size_bytes"),
        (messages(b"x", sha256=b"x" * 32), Reason.DATA_INVALID, "header.sha256"),
        (messages(attempt=artifact_pb2.AttemptRef(job="jobs/j", attempt=1)), Reason.FIELD_INVALID, "header.attempt"),
    ],
)
async def test_refused_uploads_leave_nothing(
    world: World, requests: list[artifact_pb2.UploadRequest], reason: Reason, field: str
) -> None:
    error = await failure(sending(world.public.Upload(), requests))
    assert error.reason is reason
    assert [violation.field for violation in error.violations] == [field]
    assert world.files() == []


async def test_a_refusal_does_not_wait_for_the_rest(world: World) -> None:
    async def endless() -> AsyncIterator[artifact_pb2.UploadRequest]:
        yield messages(size_bytes=1)[0]
        while True:
            yield artifact_pb2.UploadRequest(data=b"xx")

    call = world.public.Upload()
    await asyncio.wait_for(send_all(call, endless()), 120)
    error = await failure(call)
    assert error.reason is Reason.DATA_INVALID
    assert world.files() == []


async def test_cancelled_uploads_leave_nothing(world: World) -> None:
    """Many at once, so that the end of a stream meets its cancellation in every order; none may become an artifact."""

    async def cancelled(number: int) -> None:
        sent = asyncio.Event()

        async def requests() -> AsyncIterator[artifact_pb2.UploadRequest]:
            for request in messages(*[bytes(MIB)] * (number % 4)):
                yield request
            sent.set()
            await asyncio.Event().wait()

        call = world.public.Upload(requests())
        await sent.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    await asyncio.gather(*[cancelled(number) for number in range(100)])
    await until(lambda: not world.files())
    listed = await world.public.ListArtifacts(artifact_pb2.ListArtifactsRequest())
    assert list(listed.artifacts) == []


async def test_a_broken_connection_leaves_nothing(world: World, tmp_path: Path) -> None:
    channel = open_channel(f"unix:{tmp_path}/public.sock")
    sent = asyncio.Event()

    async def requests() -> AsyncIterator[artifact_pb2.UploadRequest]:
        for request in messages(bytes(MIB)):
            yield request
        sent.set()
        await asyncio.Event().wait()

    call = artifact_pb2_grpc.ArtifactServiceStub(channel).Upload(requests())
    await sent.wait()
    await until(lambda: bool(world.files()))
    await channel.close()
    with pytest.raises((grpc.RpcError, asyncio.CancelledError)):
        await call
    await until(lambda: not world.files())
    listed = await world.public.ListArtifacts(artifact_pb2.ListArtifactsRequest())
    assert list(listed.artifacts) == []


async def test_a_sidecar_uploads_for_its_attempt(world: World) -> None:
    world.jobs.start("jobs/j", 3, principal="carol", instance="instance-1")
    attempt = artifact_pb2.AttemptRef(job="jobs/j", attempt=1, fence=3)
    made = await world.internal.Upload(stream(messages(b"x", attempt=attempt)))
    assert (made.state, made.principal, made.job) == (artifact_pb2.ARTIFACT_STATE_STAGED, "carol", "jobs/j")
    assert await download(world.internal, made.name) == (made, b"x")
    request = artifact_pb2.GetArtifactRequest(name=made.name)
    assert (await failure(world.public.GetArtifact(request))).reason is Reason.RESOURCE_NOT_FOUND

    world.jobs.start("jobs/j", 4, principal="carol", instance="instance-1")
    error = await failure(sending(world.internal.Upload(), messages(b"x", attempt=attempt)))
    assert error.reason is Reason.LEASE_LOST
    world.jobs.start("jobs/j", 3, principal="carol", instance="instance-2")
    error = await failure(sending(world.internal.Upload(), messages(b"x", attempt=attempt)))
    assert error.reason is Reason.PERMISSION_DENIED


async def test_a_sidecar_neither_lists_nor_deletes(world: World) -> None:
    made = await world.public.Upload(stream(messages(b"x")))
    calls = (
        world.internal.ListArtifacts(artifact_pb2.ListArtifactsRequest()),
        world.internal.DeleteArtifact(artifact_pb2.DeleteArtifactRequest(name=made.name)),
    )
    for call in calls:
        assert (await failure(call)).reason is Reason.PERMISSION_DENIED


async def test_pages(world: World) -> None:
    names = [(await world.public.Upload(stream(messages(b"x", filename=f"{n % 2}")))).name for n in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        request = artifact_pb2.ListArtifactsRequest(page_size=2, page_token=token)
        response = await world.public.ListArtifacts(request)
        seen += [artifact.name for artifact in response.artifacts]
        if not (token := response.next_page_token):
            break
        last_token = token
    assert sorted(seen) == sorted(names)
    assert len(seen) == 5
    for wrong in (
        artifact_pb2.ListArtifactsRequest(page_token=last_token, filter='filename = "1"'),
        artifact_pb2.ListArtifactsRequest(page_token="x"),
        artifact_pb2.ListArtifactsRequest(page_size=-1),
        artifact_pb2.ListArtifactsRequest(filter='sha256 = "x"'),
    ):
        assert (await failure(world.public.ListArtifacts(wrong))).reason is Reason.FIELD_INVALID


async def test_delete(world: World) -> None:
    made = await world.public.Upload(stream(messages(b"x")))
    request = artifact_pb2.DeleteArtifactRequest(name=made.name)
    world.jobs.users[made.name] = "jobs/j"
    assert (await failure(world.public.DeleteArtifact(request))).reason is Reason.RESOURCE_IN_USE
    world.jobs.users.clear()
    await world.public.DeleteArtifact(request)
    assert world.files() == []
    assert (await failure(world.public.DeleteArtifact(request))).reason is Reason.RESOURCE_NOT_FOUND


async def test_damage(world: World) -> None:
    made = await world.public.Upload(stream(messages(b"abc")))
    world.files()[0].write_bytes(b"abX")

    async def read() -> None:
        await download(world.public, made.name)

    assert (await failure(read())).reason is Reason.DATA_CORRUPT


@pytest.mark.parametrize("name", ["", "artifacts/", "artifacts/../../etc/passwd", "x"])
async def test_wrong_names(world: World, name: str) -> None:
    error = await failure(world.public.GetArtifact(artifact_pb2.GetArtifactRequest(name=name)))
    assert error.reason is (Reason.FIELD_INVALID if name else Reason.FIELD_REQUIRED)
    assert error.violations[0].field == "name"


async def test_wrong_offset(world: World) -> None:
    made = await world.public.Upload(stream(messages(b"abc")))

    async def read() -> None:
        await download(world.public, made.name, 4)

    assert (await failure(read())).violations[0].field == "offset"
