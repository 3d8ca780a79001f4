"""Artifacts for handlers: a client of the ArtifactService on the gateway's internal listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from onecontainer.api.artifact.v1 import artifact_pb2, artifact_pb2_grpc
from onecontainer.errors import DataCorrupt, FieldInvalid
from onecontainer.rpc import status
from onecontainer.rpc.writing import send_all

if TYPE_CHECKING:
    from onecontainer.driver.context import JobAttempt

CHUNK_BYTES = 1024 * 1024

Metadata = tuple[tuple[str, str], ...]
Remaining = Callable[[], float | None]


@contextmanager
def typed_errors() -> Iterator[None]:
    """Turns a failed call to the gateway into the typed error that the gateway raised."""
    try:
        yield
    except grpc.RpcError as error:
        raise status.from_rpc_error(error) from error


class ArtifactLink:
    """The sidecar's way to the ArtifactService: one for all calls."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        # The stub is generated as if for both kinds of channel; this is the asyncio one.
        self.stub: artifact_pb2_grpc.ArtifactServiceAsyncStub = artifact_pb2_grpc.ArtifactServiceStub(channel)
        self.metadata = metadata

    def for_call(self, job: JobAttempt | None, remaining: Remaining) -> Artifacts:
        """The artifacts as one call, or one attempt, sees them."""
        return Artifacts(self, job, remaining)


class Artifacts:
    """Gets and puts artifacts. Every method raises the gateway's typed error: ResourceNotFound, LeaseLost, LimitExceeded, …

    Names are full: `artifacts/{artifact}`.
    """

    def __init__(self, link: ArtifactLink, job: JobAttempt | None, remaining: Remaining) -> None:
        self._link = link
        self._job = job
        self._remaining = remaining

    async def get(self, name: str) -> artifact_pb2.Artifact:
        """What is known of an artifact, without its bytes."""
        with typed_errors():
            return await self._link.stub.GetArtifact(
                artifact_pb2.GetArtifactRequest(name=name), metadata=self._link.metadata, timeout=self._remaining()
            )

    async def read(self, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes from an offset on, in pieces of at most 1 MiB."""
        call = self._link.stub.Download(
            artifact_pb2.DownloadRequest(name=name, offset=offset),
            metadata=self._link.metadata,
            timeout=self._remaining(),
        )
        try:
            with typed_errors():
                async for response in call:
                    if response.data:
                        yield response.data
        finally:
            call.cancel()

    async def read_bytes(self, name: str, limit_bytes: int) -> bytes:
        """All bytes of a small artifact. Raises FieldInvalid, before it reads them, if it has more than `limit_bytes`."""
        artifact = await self.get(name)
        if artifact.size_bytes > limit_bytes:
            raise FieldInvalid(
                "name", f"{name} has {artifact.size_bytes} bytes, more than the {limit_bytes} allowed here"
            )
        data = bytearray()
        async for piece in self.read(name):
            data += piece
        if len(data) != artifact.size_bytes:
            raise DataCorrupt(f"{name} ended after {len(data)} of {artifact.size_bytes} bytes")
        return bytes(data)

    async def fetch(self, name: str, path: Path) -> None:
        """Writes the bytes to a file. A file that is not there, whole, is not there at all."""
        part = path.with_name(f".{path.name}.part")
        try:
            # Opened, written and closed in threads: a slow disk must not hold up the loop.
            file = await asyncio.to_thread(part.open, "wb")
            try:
                async for piece in self.read(name):
                    await asyncio.to_thread(file.write, piece)
            finally:
                await asyncio.to_thread(file.close)
            await asyncio.to_thread(part.replace, path)
        finally:
            await asyncio.to_thread(part.unlink, True)

    async def put(
        self,
        path: Path,
        *,
        filename: str | None = None,
        media_type: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> artifact_pb2.Artifact:
        """Uploads a file. `filename` None: the file's own. In a job it is kept only if this attempt's outcome is accepted."""
        size = (await asyncio.to_thread(path.stat)).st_size
        header = self._header(path.name if filename is None else filename, media_type, size, labels)
        return await self._upload(header, _pieces_of_file(path))

    async def put_bytes(
        self,
        data: bytes,
        *,
        filename: str = "",
        media_type: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> artifact_pb2.Artifact:
        """Uploads bytes, as `put` does with a file."""
        return await self._upload(self._header(filename, media_type, len(data), labels), _pieces_of_bytes(data))

    def _header(
        self, filename: str, media_type: str, size: int, labels: Mapping[str, str] | None
    ) -> artifact_pb2.UploadHeader:
        header = artifact_pb2.UploadHeader(
            filename=filename, media_type=media_type, size_bytes=size, labels=dict(labels or {})
        )
        if self._job is not None:
            header.attempt.job = self._job.name
            header.attempt.attempt = self._job.attempt
            header.attempt.fence = self._job.fence
        return header

    async def _upload(self, header: artifact_pb2.UploadHeader, pieces: AsyncIterator[bytes]) -> artifact_pb2.Artifact:
        async def requests() -> AsyncIterator[artifact_pb2.UploadRequest]:
            yield artifact_pb2.UploadRequest(header=header)
            async for piece in pieces:
                yield artifact_pb2.UploadRequest(data=piece)

        with typed_errors():
            call = self._link.stub.Upload(metadata=self._link.metadata, timeout=self._remaining())
            await send_all(call, requests())
            return await call


async def _pieces_of_file(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield piece
    finally:
        await asyncio.to_thread(file.close)


async def _pieces_of_bytes(data: bytes) -> AsyncIterator[bytes]:
    for offset in range(0, len(data), CHUNK_BYTES):
        yield data[offset : offset + CHUNK_BYTES]
