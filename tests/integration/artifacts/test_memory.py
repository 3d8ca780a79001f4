"""1 GiB up and down, with the server in a process of its own whose memory is watched."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from onecontainer.api.artifact.v1 import artifact_pb2, artifact_pb2_grpc
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.writing import send_all

MIB = 1 << 20
PARTS = 1024
SERVER = """
import asyncio, sys
import grpc
from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.artifacts import sql
from onecontainer.artifacts.artifacts import Artifacts
from onecontainer.artifacts.files import FileArtifactStore
from onecontainer.artifacts.ports import NoJobs
from onecontainer.artifacts.servicer import ArtifactServicer
from onecontainer.clock import SystemClock
from onecontainer.database import Database
from onecontainer.rpc.channel import server_options
from onecontainer.rpc.server import StaticTokens, service_handler
from pathlib import Path

async def main(folder):
    async with Database(f"sqlite:///{folder}/db") as database, FileArtifactStore(folder / "artifacts") as store:
        sql.metadata.create_all(database.engine)
        servicer = ArtifactServicer(Artifacts(database, store, NoJobs(), SystemClock()))
        server = grpc.aio.server(options=server_options())
        service = artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"]
        server.add_generic_rpc_handlers([service_handler(servicer, service, StaticTokens({}, "somebody"))])
        server.add_insecure_port(f"unix:{folder}/s")
        await server.start()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await server.stop(None)

asyncio.run(main(Path(sys.argv[1])))
"""


def peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def upload(stub: artifact_pb2_grpc.ArtifactServiceAsyncStub, parts: int) -> tuple[artifact_pb2.Artifact, bytes]:
    digest = hashlib.sha256()
    block = os.urandom(MIB)

    async def requests() -> AsyncIterator[artifact_pb2.UploadRequest]:
        yield artifact_pb2.UploadRequest(header=artifact_pb2.UploadHeader(size_bytes=parts * MIB))
        for number in range(parts):
            data = number.to_bytes(8) + block[8:]
            digest.update(data)
            yield artifact_pb2.UploadRequest(data=data)

    call = stub.Upload()
    await send_all(call, requests())
    return await call, digest.digest()


async def download(stub: artifact_pb2_grpc.ArtifactServiceAsyncStub, name: str) -> bytes:
    digest = hashlib.sha256()
    async for response in stub.Download(artifact_pb2.DownloadRequest(name=name)):
        digest.update(response.data)
        # A reader that is slower than the disk: what it has not taken must not pile up in the server.
        await asyncio.sleep(0)
    return digest.digest()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_gibibyte_takes_little_memory(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(tmp_path), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        async with open_channel(f"unix:{tmp_path}/s") as channel:
            stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
            warm, _ = await upload(stub, 1)
            await download(stub, warm.name)
            before = peak_kib(process.pid)
            made, sent = await upload(stub, PARTS)
            assert (made.size_bytes, made.sha256) == (PARTS * MIB, sent)
            assert await download(stub, made.name) == sent
            grown = (peak_kib(process.pid) - before) / 1024
            print(f"memory grew by {grown:.0f} MiB")
            assert grown < 64
            await stub.DeleteArtifact(artifact_pb2.DeleteArtifactRequest(name=made.name))
    finally:
        process.stdin.close()
        await process.wait()
