"""Storing, finding and giving artifacts: what the servicer and the ledger call."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from onecontainer.artifacts import sql
from onecontainer.artifacts.model import (
    CHUNK_BYTES,
    Artifact,
    State,
    Upload,
    artifact_id,
    check_bytes,
    check_upload,
)
from onecontainer.artifacts.ports import ArtifactStore, BlobMissing, BlobWriter, JobsView
from onecontainer.clock import Clock
from onecontainer.database import Database
from onecontainer.errors import (
    DataCorrupt,
    DataInvalid,
    FieldInvalid,
    LeaseLost,
    LimitExceeded,
    OneContainerError,
    RequestIdReused,
    ResourceInUse,
    ResourceNotFound,
)
from onecontainer.rpc.filters import Term

RESOURCE_TYPE = "onecontainer.dev/Artifact"
MAX_BYTES = 1024**4
# Hashing so little is faster than handing it to a thread.
INLINE_HASH_BYTES = 64 * 1024


def random_id() -> str:
    return secrets.token_hex(16)


class Artifacts:
    """The artifacts of a gateway.

    Args:
        database: with the tables of `onecontainer.artifacts.sql`.
        store: where the bytes are.
        jobs: tells which attempt may upload and which artifacts are in use.
        max_bytes: size of the largest artifact.
    """

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        jobs: JobsView,
        clock: Clock,
        *,
        new_id: Callable[[], str] = random_id,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._database = database
        self._store = store
        self._jobs = jobs
        self._clock = clock
        self._new_id = new_id
        self._max_bytes = max_bytes

    # --- storing -------------------------------------------------------------------------------------------------------

    async def upload(
        self, upload: Upload, parts: AsyncIterator[bytes], *, principal: str, identity: object = None
    ) -> Artifact:
        """Stores the bytes of `parts`; never more than two chunks of 1 MiB and one part are in memory.

        Args:
            principal: who uploads. What an attempt makes belongs to the principal of its job.
            identity: of a sidecar (`Call.identity`); None: the system itself.

        Raises:
            FieldInvalid, DataInvalid: the header, or bytes that are not what it announced.
            LimitExceeded: too large, or no space. Nothing is kept.
            LeaseLost, PermissionDenied: the attempt is not the current one, or not this sidecar's.
            RequestIdReused: the request_id came with other bytes or another header before.
        """
        check_upload(upload)
        if upload.size_bytes is not None:
            self._check_size(upload.size_bytes)
        if upload.attempt is not None:
            attempt = upload.attempt
            principal = await self._database.read(lambda c: self._jobs.principal_of(c, attempt, identity))
        key = self._new_id()
        async with self._store.create(key) as writer:
            size_bytes, sha256 = await self._receive(upload, parts, writer)
            check_bytes(upload, size_bytes, sha256)
            artifact = Artifact(
                id=key,
                filename=upload.filename,
                media_type=upload.effective_media_type,
                size_bytes=size_bytes,
                sha256=sha256,
                state=State.STAGED if upload.attempt else State.READY,
                labels=dict(upload.labels),
                principal=principal,
                attempt=upload.attempt,
                create_time=0,
                expire_time=None,
            )
            if (first := await self._database.read(lambda c: self._replayed(c, upload, artifact))) is not None:
                return first
            await writer.commit()
        return await self._record(upload, artifact, identity)

    async def put(self, data: bytes, upload: Upload | None = None, *, principal: str) -> Artifact:
        """Stores bytes that are in memory, for the system itself: a job's large request or result."""

        async def parts() -> AsyncIterator[bytes]:
            yield data

        return await self.upload(upload or Upload(), parts(), principal=principal)

    async def _receive(self, upload: Upload, parts: AsyncIterator[bytes], writer: BlobWriter) -> tuple[int, bytes]:
        digest = hashlib.sha256()
        size_bytes = 0
        pending = bytearray()

        async def take(data: bytes) -> None:
            if len(data) <= INLINE_HASH_BYTES:
                digest.update(data)
            else:
                await asyncio.to_thread(digest.update, data)
            await writer.write(data)

        async for part in parts:
            size_bytes += len(part)
            self._check_size(size_bytes)
            if upload.size_bytes is not None and size_bytes > upload.size_bytes:
                raise DataInvalid("header.size_bytes", f"announced {upload.size_bytes} bytes, but more came")
            if not pending and len(part) >= CHUNK_BYTES:
                await take(part)
                continue
            # Small parts are gathered: a write costs a change of threads.
            pending += part
            if len(pending) >= CHUNK_BYTES:
                await take(bytes(pending))
                pending.clear()
        if pending:
            await take(bytes(pending))
        return size_bytes, digest.digest()

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise LimitExceeded(f"an artifact may have at most {self._max_bytes} bytes")

    def _replayed(self, connection: Connection, upload: Upload, artifact: Artifact) -> Artifact | None:
        """What the first upload with this request_id made; None: this is the first."""
        request_key = upload.request_key(artifact.principal)
        found = None if request_key is None else sql.find_request(connection, request_key)
        if found is None:
            return None
        first, request_hash = found
        if first.expired(self._clock.now()):
            return None
        if request_hash != upload.request_hash(artifact.sha256):
            raise RequestIdReused(
                f"request_id {upload.request_id!r} was used for {first.name}, with other bytes or another header",
                resource=(RESOURCE_TYPE, first.name),
            )
        return first

    async def _record(self, upload: Upload, artifact: Artifact, identity: object) -> Artifact:
        def record(connection: Connection) -> Artifact:
            if upload.attempt is not None:
                # Once more, in the transaction: between the first look and now the attempt may have lost its lease.
                self._jobs.principal_of(connection, upload.attempt, identity)
            first = self._replayed(connection, upload, artifact)
            if first is not None:
                sql.add_garbage(connection, artifact.id)
                return first
            request_key = upload.request_key(artifact.principal)
            if request_key is not None and (stale := sql.find_request(connection, request_key)) is not None:
                sql.forget_request(connection, stale[0].id)
            now = self._clock.now()
            expire_time = now + upload.ttl if upload.ttl and upload.attempt is None else None
            made = replace(artifact, create_time=now, expire_time=expire_time)
            request_hash = upload.request_hash(artifact.sha256) if request_key else None
            try:
                with connection.begin_nested():
                    sql.insert(connection, made, request_key, request_hash)
            except IntegrityError:
                # Another gateway was faster with the same request_id; now its artifact is found.
                first = self._replayed(connection, upload, artifact)
                if first is None:
                    raise
                sql.add_garbage(connection, artifact.id)
                return first
            return made

        try:
            return await self._database.write(record)
        except (LeaseLost, RequestIdReused):
            # These are sure: there is no row. After any other error there may be one, and the sweeper decides.
            await self._store.delete(artifact.id)
            raise

    # --- finding -------------------------------------------------------------------------------------------------------

    async def get(self, name: str, *, identity: object = None) -> Artifact:
        """The artifact `artifacts/{artifact}`.

        Args:
            identity: of a sidecar, which sees what an attempt of its service has staged; None: only what is READY.

        Raises:
            FieldRequired, FieldInvalid: the name.
            ResourceNotFound: there is none that the caller can see, or it has expired.
        """
        key = artifact_id(name)

        def find(connection: Connection) -> Artifact | None:
            found = sql.find(connection, key)
            return found if found and self._visible(connection, found, identity) else None

        found = await self._database.read(find)
        if found is None:
            raise not_found(name)
        return found

    def _visible(self, connection: Connection, artifact: Artifact, identity: object) -> bool:
        if artifact.state is State.STAGED:
            if identity is None or artifact.attempt is None:
                return False
            try:
                self._jobs.principal_of(connection, artifact.attempt, identity)
            except OneContainerError:
                return False
            return True
        # What a live job needs stays, even beyond its time.
        return not artifact.expired(self._clock.now()) or self._jobs.user_of(connection, artifact.name) is not None

    async def page(self, terms: list[Term], *, size: int, after: tuple[int, str] | None = None) -> list[Artifact]:
        """READY artifacts, newest first, behind `after` (create_time, id)."""
        now = self._clock.now()
        return await self._database.read(lambda c: sql.page(c, terms, now=now, size=size, after=after))

    # --- giving --------------------------------------------------------------------------------------------------------

    async def download(self, artifact: Artifact, offset: int = 0, limit: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on, at most `limit` of them (0: to the end), in chunks of at most 1 MiB.

        Raises:
            FieldInvalid: the offset is beyond the end, or a number is negative.
            ResourceNotFound: it was deleted meanwhile.
            DataCorrupt: the bytes are missing, too few, or, where all were read, not those of the digest.
        """
        if not 0 <= offset <= artifact.size_bytes:
            raise FieldInvalid("offset", f"must be 0 to {artifact.size_bytes}, the length")
        if limit < 0:
            raise FieldInvalid("limit_bytes", "must not be negative")
        expected = min(limit or artifact.size_bytes, artifact.size_bytes - offset)
        whole = expected == artifact.size_bytes
        digest = hashlib.sha256()
        sent = 0
        try:
            async with aclosing(self._store.read(artifact.id, offset, expected)) as chunks:
                async for chunk in chunks:
                    if whole:
                        await asyncio.to_thread(digest.update, chunk)
                    sent += len(chunk)
                    yield chunk
        except BlobMissing:
            if await self._database.read(lambda c: sql.find(c, artifact.id)) is None:
                raise not_found(artifact.name) from None
            raise DataCorrupt(f"{artifact.name}: its bytes are missing") from None
        if sent != expected:
            raise DataCorrupt(f"{artifact.name}: {sent} bytes of {expected} are there")
        if whole and digest.digest() != artifact.sha256:
            raise DataCorrupt(f"{artifact.name}: its bytes have another digest than those that were uploaded")

    async def read(self, name: str, *, max_bytes: int) -> bytes:
        """All bytes of an artifact, STAGED ones too, for the system itself. Raises LimitExceeded if it is larger."""
        key = artifact_id(name)
        artifact = await self._database.read(lambda c: sql.find(c, key))
        if artifact is None:
            raise not_found(name)
        if artifact.size_bytes > max_bytes:
            raise LimitExceeded(f"{name} has {artifact.size_bytes} bytes, more than {max_bytes}")
        async with aclosing(self.download(artifact)) as chunks:
            return b"".join([chunk async for chunk in chunks])

    # --- removing ------------------------------------------------------------------------------------------------------

    async def delete(self, name: str) -> None:
        """Deletes a READY artifact and its bytes.

        Raises:
            ResourceNotFound: there is none.
            ResourceInUse: a job that has not ended needs it.
        """
        key = artifact_id(name)

        def delete(connection: Connection) -> None:
            found = sql.find(connection, key)
            if found is None or found.state is not State.READY or not self._visible(connection, found, None):
                raise not_found(name)
            user = self._jobs.user_of(connection, found.name)
            if user is not None:
                raise ResourceInUse(
                    f"{name} is an input of {user}, which has not ended: cancel it or wait for it",
                    metadata={"job": user},
                    resource=(RESOURCE_TYPE, name),
                )
            sql.delete(connection, key)

        await self._database.write(delete)
        # At once, so that downloads break off and the space is free; if this fails, the sweeper does it.
        await self._store.delete(key)
        await self._database.write(lambda c: sql.garbage_removed(c, [key]))


def not_found(name: str) -> ResourceNotFound:
    return ResourceNotFound(f"{name} does not exist, or has expired", resource=(RESOURCE_TYPE, name))
