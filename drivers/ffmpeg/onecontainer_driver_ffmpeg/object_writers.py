"""How files get into object stores: obstore for S3 and Azure, gcloud-aio-storage for Google, whose JSON interface emulators speak too.

Both stream a file in parts and retry single requests. All they say goes through the proxy whose address they are given.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from onecontainer.driver import errors

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

PART_BYTES = 8 * 1024 * 1024
MOST_PARTS = 9_000
"""S3 takes 10,000 parts of one object."""
PARTS_AT_ONCE = 4
LONGEST_UPLOAD = 24 * 3600
"""Of one file to Google, in seconds: there it is one request, whose end the job's own timeouts decide."""
_PIECE = 1024 * 1024
_GOOGLE = "https://www.googleapis.com"
_SCOPES = ["https://www.googleapis.com/auth/devstorage.read_write"]

Sent = Callable[[int], None]
"""Takes the bytes of the file that were read so far."""


class Writer(Protocol):
    """An open way to one bucket."""

    async def put(self, name: str, path: Path, size: int, media_type: str, sent: Sent) -> None:
        """Makes or replaces an object. Raises what the library raises."""
        ...


class Open(Protocol):
    """Opens the way through a proxy."""

    def __call__(self, proxy: str) -> contextlib.AbstractAsyncContextManager[Writer]: ...


class ObstoreWriter:
    """S3 and Azure."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, name: str, path: Path, size: int, media_type: str, sent: Sent) -> None:
        import obstore

        attributes: Any = {"Content-Type": media_type} if media_type else None
        if size <= PART_BYTES:
            await obstore.put_async(self._store, name, path, attributes=attributes, use_multipart=False)
            return
        part = max(PART_BYTES, -(-size // MOST_PARTS))
        pieces = _pieces(path, sent)
        async with contextlib.aclosing(pieces):
            await obstore.put_async(
                self._store,
                name,
                pieces,
                attributes=attributes,
                use_multipart=True,
                chunk_size=part,
                max_concurrency=PARTS_AT_ONCE,
            )


def obstore_opener(make: Callable[[ClientConfig, RetryConfig], ObjectStore]) -> Open:
    """Of a store that `make` makes with these settings of its HTTP client and its retries."""

    @contextlib.asynccontextmanager
    async def open_store(proxy: str) -> AsyncIterator[Writer]:
        client: ClientConfig = {
            "proxy_url": proxy,
            "allow_http": True,
            "connect_timeout": "10s",
            # Of one request, which has at most a part in it.
            "timeout": "300s",
        }
        # Rounds are counted by who calls; this is for a single answer that fails.
        retry: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=60)}
        yield ObstoreWriter(make(client, retry))

    return open_store


async def _pieces(path: Path, sent: Sent) -> AsyncGenerator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    total = 0
    try:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece
            total += len(piece)
            sent(total)
    finally:
        await asyncio.to_thread(file.close)


class GcsWriter:
    """Google Cloud Storage, or an emulator of it."""

    def __init__(self, storage: Any, bucket: str) -> None:
        self._storage = storage
        self._bucket = bucket

    async def put(self, name: str, path: Path, size: int, media_type: str, sent: Sent) -> None:
        file = await asyncio.to_thread(path.open, "rb")
        watch = asyncio.create_task(_watch(file, sent))
        try:
            told = await self._storage.upload(
                self._bucket,
                name,
                file,
                content_type=media_type,
                force_resumable_upload=size > PART_BYTES,
                timeout=LONGEST_UPLOAD,
            )
        finally:
            watch.cancel()
            await asyncio.wait([watch])
            await asyncio.to_thread(file.close)
        # A resumed request may be answered without an object in the answer: then it is not there whole.
        if not isinstance(told, Mapping) or int(told.get("size", -1)) != size:
            raise errors.BackendUnreachable("the store did not confirm the whole file", retry_after=1.0, hop="backend")


async def _watch(file: io.BufferedReader, sent: Sent) -> None:
    while True:
        await asyncio.sleep(0.5)
        with contextlib.suppress(ValueError):  # closed since
            sent(file.tell())


class _Fixed:
    """A token as the library asks for it."""

    def __init__(self, text: str) -> None:
        self._text = text

    async def get(self) -> str:
        return self._text


def gcs_opener(bucket: str, endpoint: str, credentials: Mapping[str, str] | None, service_file: str) -> Open:
    """Of a bucket. `endpoint` is an emulator's, which is shown no credentials. `credentials` None: the machine's; with a
    `bearer_token` that one, else `service_file` is the JSON of a service account or user."""

    @contextlib.asynccontextmanager
    async def open_bucket(proxy: str) -> AsyncIterator[Writer]:
        from aiohttp import ClientSession
        from gcloud.aio.storage import Storage

        async with ClientSession(proxy=proxy, trust_env=False) as client:
            session: Any = client  # what the library says of its sessions is said of those of another library too
            if endpoint:
                storage = Storage(session=session, api_root=endpoint, api_is_dev=True, token=cast("Any", _Fixed("")))
            else:
                token = await _token(session, credentials, service_file)
                storage = Storage(session=session, api_root=_GOOGLE, api_is_dev=False, token=token)
            yield GcsWriter(storage, bucket)

    return open_bucket


async def _token(session: Any, credentials: Mapping[str, str] | None, service_file: str) -> Any:
    """A token that is there. CredentialsInvalid if Google gives none for these credentials, or they are none."""
    from aiohttp import ClientConnectionError, ClientResponseError
    from gcloud.aio.auth import Token

    if credentials is not None and "bearer_token" in credentials:
        return _Fixed(credentials["bearer_token"])
    try:
        token = Token(
            service_file=None if credentials is None else io.StringIO(service_file),
            session=session,
            scopes=_SCOPES,
        )
        # Once: `get` would try again for a while, and who calls counts attempts.
        await token.refresh(timeout=10)
    except (ClientConnectionError, TimeoutError):
        raise
    except ClientResponseError as error:
        if error.status >= 500 or error.status == 429:
            raise
        raise errors.CredentialsInvalid(f"Google gives no token for the credentials (status {error.status})") from None
    except Exception:  # noqa: BLE001 - of whatever kind: a key that is none; its text must not be told
        raise errors.CredentialsInvalid("the credentials hold no key that can be used") from None
    return token
