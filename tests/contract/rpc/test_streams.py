"""A client's stream that breaks off is not one that has ended: with the real grpc.aio, which reads both alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from onecontainer.api.artifact.v1 import artifact_pb2, artifact_pb2_grpc
from onecontainer.rpc.channel import open_channel, server_options
from onecontainer.rpc.server import StaticTokens, service_handler

ROUNDS = 50


class Uploads:
    """Takes what it is sent for the whole as soon as its stream ends."""

    def __init__(self) -> None:
        self.received = asyncio.Event()
        self.left = asyncio.Event()
        self.complete = 0

    async def Upload(self, requests: AsyncIterator[artifact_pb2.UploadRequest], _context: Any) -> artifact_pb2.Artifact:
        try:
            async for _ in requests:
                self.received.set()
            self.complete += 1
            return artifact_pb2.Artifact(name="artifacts/whole")
        finally:
            self.left.set()


@pytest.fixture
async def uploads(tmp_path: Path) -> AsyncIterator[tuple[Uploads, Any]]:
    servicer = Uploads()
    server = grpc.aio.server(options=server_options())
    service = artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"]
    server.add_generic_rpc_handlers((service_handler(servicer, service, StaticTokens({}, "anybody")),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, artifact_pb2_grpc.ArtifactServiceStub(channel)
    await server.stop(None)


async def test_a_broken_off_upload_is_never_whole(uploads: tuple[Uploads, Any]) -> None:
    servicer, stub = uploads

    async def half() -> AsyncIterator[artifact_pb2.UploadRequest]:
        yield artifact_pb2.UploadRequest(data=b"half")
        await asyncio.Event().wait()

    for _ in range(ROUNDS):
        servicer.received.clear()
        servicer.left.clear()
        call = stub.Upload(half())
        await asyncio.wait_for(servicer.received.wait(), 120)
        call.cancel()
        await asyncio.wait_for(servicer.left.wait(), 120)
    assert servicer.complete == 0


async def test_an_ended_upload_is_whole(uploads: tuple[Uploads, Any]) -> None:
    servicer, stub = uploads

    async def whole() -> AsyncIterator[artifact_pb2.UploadRequest]:
        yield artifact_pb2.UploadRequest(data=b"all")

    assert (await stub.Upload(whole())).name == "artifacts/whole"
    assert servicer.complete == 1
