"""Artifacts for handlers: a client of the ArtifactService on the gateway's internal listener."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from onecontainer.api.artifact.v1 import artifact_pb2, artifact_pb2_grpc
from onecontainer.errors import Code, DataCorrupt, FieldInvalid, OneContainerError
from onecontainer.rpc import status
from onecontainer.rpc.writing import send_all

if TYPE_CHECKING:
    from onecontainer.driver.context import JobAttempt

log = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Waits between tries while the gateway is away; the last one is repeated."""

T = TypeVar("T")

Metadata = tuple[tuple[str, str], ...]
Remaining = Callable[[], float | None]


@contextmanager
def typed_errors() -> Iterator[None]:
    """Turns a failed call to the gateway into the typed error that the gateway raised."""
    try:
        yield
    except grpc.RpcError as error:
        raise status.from_rpc_error(error) from error


class Patience:
    """Tries again while the gateway is away, for an attempt goes on without it. It may be away for longer than the lease."""

    def __init__(self, given_up: Callable[[], bool] = lambda: False) -> None:
        self._given_up = given_up
        self._tries = 0

    def reset(self) -> None:
        """It is there again."""
        self._tries = 0

    async def bear(self, error: OneContainerError) -> None:
        """Waits before the next try. Raises the error if it is another one, or if nobody wants the result any more."""
        if error.code is not Code.UNAVAILABLE or self._given_up():
            raise error
        wait = max(RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS) - 1)], error.retry_after or 0.0)
        self._tries += 1
        log.info("the gateway is away, next try in %g s: %s", wait, error)
        await asyncio.sleep(wait)

    async def insist(self, bring: Callable[[], Awaitable[T]]) -> T:
        """Brings something, in as many tries as that takes."""
        while True:
            try:
                return await bring()
            except OneContainerError as error:
                await self.bear(error)


class ArtifactLink:
    """The sidecar's way to the ArtifactService: one for all calls."""

    def __init__(self, connect: Callable[[], grpc.aio.Channel], metadata: Metadata) -> None:
        """`connect` is asked once, in the loop, when the first artifact is wanted."""
        self._connect = connect
        self.metadata = metadata

    @cached_property
    def stub(self) -> artifact_pb2_grpc.ArtifactServiceAsyncStub:
        # The stub is generated as if for both kinds of channel; this is the asyncio one.
        stub: artifact_pb2_grpc.ArtifactServiceAsyncStub = artifact_pb2_grpc.ArtifactServiceStub(self._connect())
        return stub

    def for_call(
        self, job: JobAttempt | None, remaining: Remaining, given_up: Callable[[], bool] = lambda: False
    ) -> Artifacts:
        """The artifacts as one call, or one attempt, sees them. `given_up`: whether it is not worth while to wait for the gateway."""
        return Artifacts(self, job, remaining, given_up)


class Artifacts:
    """Gets and puts artifacts. Every method raises the gateway's typed error: ResourceNotFound, LeaseLost, LimitExceeded, …

    Names are full: `artifacts/{artifact}`. In a job all of it waits for a gateway that is away, and a download goes on where it
    broke off; in a direct call, whose caller waits, that is an error.
    """

    def __init__(
        self, link: ArtifactLink, job: JobAttempt | None, remaining: Remaining, given_up: Callable[[], bool]
    ) -> None:
        self._given_up = given_up if job is not None else lambda: True
        self._link = link
        self._job = job
        self._remaining = remaining

    async def get(self, name: str) -> artifact_pb2.Artifact:
        """What is known of an artifact, without its bytes."""

        async def bring() -> artifact_pb2.Artifact:
            with typed_errors():
                return await self._link.stub.GetArtifact(
                    artifact_pb2.GetArtifactRequest(name=name), metadata=self._link.metadata, timeout=self._remaining()
                )

        return await Patience(self._given_up).insist(bring)

    async def read(self, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes from an offset on, in pieces of at most 1 MiB."""
        patience = Patience(self._given_up)
        while True:
            try:
                async for piece in self._read_once(name, offset):
                    patience.reset()
                    offset += len(piece)
                    yield piece
                return
            except OneContainerError as error:
                await patience.bear(error)

    async def _read_once(self, name: str, offset: int) -> AsyncIterator[bytes]:
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
        return await Patience(self._given_up).insist(lambda: self._upload(header, _pieces_of_file(path)))

    async def put_bytes(
        self,
        data: bytes,
        *,
        filename: str = "",
        media_type: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> artifact_pb2.Artifact:
        """Uploads bytes, as `put` does with a file."""
        header = self._header(filename, media_type, len(data), labels)
        return await Patience(self._given_up).insist(lambda: self._upload(header, _pieces_of_bytes(data)))

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
