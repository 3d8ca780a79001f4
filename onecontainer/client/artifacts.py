"""Artifacts: bytes up and down, piece by piece, with their digest checked."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import IO

from onecontainer.api.artifact.v1 import artifact_pb2 as pb
from onecontainer.api.artifact.v1.artifact_pb2_grpc import ArtifactServiceStub
from onecontainer.client.calls import Caller
from onecontainer.client.names import all_pages, full_name, seconds, short_name
from onecontainer.errors import DataCorrupt, FieldInvalid

CHUNK_BYTES = 1024 * 1024
OnBytes = Callable[[int, int | None], object]
"""Is told how many bytes are through, and how many there are (None: not known)."""


class Artifacts:
    """Stored bytes.

    Attributes:
        stub: the generated ArtifactService stub.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.stub = caller.stub(ArtifactServiceStub, pb.DESCRIPTOR.services_by_name["ArtifactService"])

    async def upload(
        self,
        source: str | Path | bytes,
        *,
        filename: str | None = None,
        media_type: str = "",
        labels: Mapping[str, str] | None = None,
        ttl: float | None = None,
        request_id: str = "",
        on_progress: OnBytes | None = None,
        timeout: float | None = None,
    ) -> pb.Artifact:
        """Stores a file (its path) or bytes. The file is read piece by piece; a digest that differs afterwards is DataCorrupt.

        `filename` is the file's own unless it is given. Not repeated by itself: give a `request_id` to repeat it safely.
        """
        content, name, size = await asyncio.to_thread(_open, source)
        try:
            header = pb.UploadHeader(
                filename=name if filename is None else filename,
                media_type=media_type,
                size_bytes=size,
                labels=labels or {},
                ttl=seconds(ttl),
                request_id=request_id,
            )
            digest = hashlib.sha256()

            async def parts() -> AsyncGenerator[pb.UploadRequest]:
                yield pb.UploadRequest(header=header)
                done = 0
                while piece := await asyncio.to_thread(_read, content, digest):
                    yield pb.UploadRequest(data=piece)
                    done += len(piece)
                    if on_progress is not None:
                        on_progress(done, size)

            artifact = await self._caller.send(self.stub.Upload, parts(), timeout=timeout)
        finally:
            content.close()
        if artifact.sha256 != digest.digest():
            raise DataCorrupt(f"{artifact.name} is not what was sent: its digest differs. Delete it and upload again")
        return artifact

    async def download(
        self,
        name: str,
        path: str | Path,
        *,
        resume: bool = True,
        on_progress: OnBytes | None = None,
        timeout: float | None = None,
    ) -> Path:
        """Writes an artifact to a file, or under its own name into a folder, piece by piece; returns the file's path.

        Until all is there and its digest is right, the bytes are in a hidden file beside it; `resume` goes on with such a
        file that an earlier download left. A broken connection is resumed in any case.
        """
        name = full_name("artifacts", name)
        target = Path(path)
        if await asyncio.to_thread(target.is_dir):
            found = await self.get(name)
            target /= Path(found.filename).name or short_name(name)
        if not await asyncio.to_thread(target.parent.is_dir):
            raise FieldInvalid("path", f"there is no folder {target.parent}")
        partial = target.with_name(f".{target.name}.{short_name(name)}.part")
        sink = await asyncio.to_thread(_Sink, partial, resume)
        artifact: pb.Artifact | None = None
        try:
            if sink.size > 0 and sink.size > (await self.get(name)).size_bytes:
                sink.restart()
            async with aclosing(self._pieces(name, lambda: sink.size, 0, timeout)) as answers:
                async for answer in answers:
                    if answer.HasField("artifact"):
                        artifact = answer.artifact
                    if answer.data:
                        await asyncio.to_thread(sink.add, answer.data)
                    if on_progress is not None:
                        on_progress(sink.size, artifact.size_bytes if artifact is not None else None)
        finally:
            sink.close()
        if artifact is None or sink.size != artifact.size_bytes or sink.digest.digest() != artifact.sha256:
            partial.unlink()
            raise DataCorrupt(f"{name}: what arrived does not have its size and digest; download it again")
        partial.replace(target)
        return target

    async def read(
        self, name: str, *, offset: int = 0, limit: int = 0, timeout: float | None = None
    ) -> AsyncGenerator[bytes]:
        """The bytes from an offset on, piece by piece, over broken connections. `limit` 0: to the end. The digest is not checked."""
        done = 0
        async with aclosing(self._pieces(name, lambda: offset + done, limit, timeout)) as answers:
            async for answer in answers:
                if answer.data:
                    done += len(answer.data)
                    yield answer.data

    async def read_all(self, name: str, *, timeout: float | None = None) -> bytes:
        """All bytes at once, digest checked: for what is known to be small."""
        found = await self.get(name)
        content = b"".join([piece async for piece in self.read(name, timeout=timeout)])
        if hashlib.sha256(content).digest() != found.sha256:
            raise DataCorrupt(f"{found.name}: what arrived does not have its digest; download it again")
        return content

    async def _pieces(
        self, name: str, position: Callable[[], int], limit: int, timeout: float | None
    ) -> AsyncGenerator[pb.DownloadResponse]:
        """Messages of a download; each new start begins at `position()`."""
        begin = position()

        def start(left: float | None) -> AsyncGenerator[pb.DownloadResponse]:
            offset = position()
            request = pb.DownloadRequest(
                name=full_name("artifacts", name),
                offset=offset,
                limit_bytes=max(0, limit - (offset - begin)) if limit else 0,
            )
            return self._caller.stream(self.stub.Download, request, timeout=left)

        async with aclosing(self._caller.resumed(start, timeout=timeout)) as answers:
            async for answer in answers:
                yield answer
                if limit and position() - begin >= limit:
                    return

    async def get(self, name: str, *, timeout: float | None = None) -> pb.Artifact:
        """What is known of an artifact; raises ResourceNotFound."""
        request = pb.GetArtifactRequest(name=full_name("artifacts", name))
        return await self._caller.unary(self.stub.GetArtifact, request, timeout=timeout)

    async def list(
        self,
        *,
        filter: str = "",  # noqa: A002 - the contract's word
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Sequence[pb.Artifact]:
        """Artifacts that the filter takes, newest first."""

        async def fetch(size: int, token: str) -> tuple[Sequence[pb.Artifact], str]:
            request = pb.ListArtifactsRequest(page_size=size, page_token=token, filter=filter)
            page = await self._caller.unary(self.stub.ListArtifacts, request, timeout=timeout)
            return page.artifacts, page.next_page_token

        return [artifact async for artifact in all_pages(fetch, limit)]

    async def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Deletes an artifact; raises ResourceInUse while a live job needs it."""
        request = pb.DeleteArtifactRequest(name=full_name("artifacts", name))
        await self._caller.unary(self.stub.DeleteArtifact, request, timeout=timeout)


class _Sink:
    """The file that a download grows in, and the digest of what is in it."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._file = path.open("r+b" if resume and path.exists() else "w+b")
        self.digest = hashlib.sha256()
        self.size = 0
        while piece := self._file.read(CHUNK_BYTES):
            self.digest.update(piece)
            self.size += len(piece)

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.digest = hashlib.sha256()
        self.size = 0

    def close(self) -> None:
        self._file.close()


def _open(source: str | Path | bytes) -> tuple[IO[bytes], str, int]:
    """The content, its file name and its length in bytes."""
    if isinstance(source, bytes):
        return io.BytesIO(source), "", len(source)
    path = Path(source)
    content = path.open("rb")
    return content, path.name, os.fstat(content.fileno()).st_size


def _read(content: IO[bytes], digest: hashlib._Hash) -> bytes:
    piece = content.read(CHUNK_BYTES)
    digest.update(piece)
    return piece
