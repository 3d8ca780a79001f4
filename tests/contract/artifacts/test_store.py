"""What every ArtifactStore does: the real one and the fake pass the same tests."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from onecontainer.artifacts.files import FileArtifactStore
from onecontainer.artifacts.model import CHUNK_BYTES
from onecontainer.artifacts.ports import ArtifactStore, BlobMissing
from onecontainer.clock import SystemClock
from onecontainer.errors import LimitExceeded
from tests.fakes.artifacts import FakeArtifactStore

KEY = "0123456789abcdef" * 2
OTHER = "f" * 32


@pytest.fixture(params=["files", "fake"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ArtifactStore]:
    if request.param == "fake":
        yield FakeArtifactStore(SystemClock())
    else:
        async with FileArtifactStore(tmp_path / "artifacts") as files:
            yield files


async def put(store: ArtifactStore, key: str, *parts: bytes) -> None:
    async with store.create(key) as writer:
        for part in parts:
            await writer.write(part)
        await writer.commit()


async def get(store: ArtifactStore, key: str, offset: int = 0, limit: int | None = None) -> bytes:
    async with aclosing(store.read(key, offset, limit)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def keys(store: ArtifactStore) -> set[str]:
    return {entry.key async for entry in store.entries()}


async def test_bytes_come_back(store: ArtifactStore, tmp_path: Path) -> None:
    # A file system's clock lags: by a tick, or for as long as the processor that moves it on stands still.
    (tmp_path / "now").touch()
    before = min(time.time_ns(), (tmp_path / "now").stat().st_mtime_ns) // 1000
    await put(store, KEY, b"abc", b"", b"def")
    await put(store, OTHER)
    assert await get(store, KEY) == b"abcdef"
    assert await get(store, OTHER) == b""
    entries = {entry.key: entry async for entry in store.entries()}
    assert {key: entry.size_bytes for key, entry in entries.items()} == {KEY: 6, OTHER: 0}
    assert before <= entries[KEY].modify_time <= time.time_ns() // 1000
    assert await store.exists(KEY)


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [(0, 0, b""), (2, None, b"cdef"), (2, 3, b"cde"), (6, None, b""), (9, 3, b""), (4, 100, b"ef")],
)
async def test_ranges(store: ArtifactStore, offset: int, limit: int | None, expected: bytes) -> None:
    await put(store, KEY, b"abcdef")
    assert await get(store, KEY, offset, limit) == expected


async def test_chunks_are_bounded(store: ArtifactStore) -> None:
    data = os.urandom(2 * CHUNK_BYTES + 5)
    await put(store, KEY, data)
    async with aclosing(store.read(KEY, 1)) as stream:
        chunks = [chunk async for chunk in stream]
    assert b"".join(chunks) == data[1:]
    assert max(map(len, chunks)) <= CHUNK_BYTES


async def test_not_there_before_commit(store: ArtifactStore) -> None:
    async with store.create(KEY) as writer:
        await writer.write(b"abc")
        assert not await store.exists(KEY)
        assert await keys(store) == set()
        with pytest.raises(BlobMissing):
            await get(store, KEY)
        await writer.commit()
        assert await store.exists(KEY)


async def test_nothing_stays_without_commit(store: ArtifactStore) -> None:
    async with store.create(KEY) as writer:
        await writer.write(b"abc")
    with pytest.raises(ZeroDivisionError):
        async with store.create(KEY) as writer:
            await writer.write(b"abc")
            raise ZeroDivisionError
    assert not await store.exists(KEY)
    assert await store.remove_partial() == 0
    with pytest.raises(ValueError, match="closed"):
        await writer.write(b"more")
    await put(store, KEY, b"again")
    assert await get(store, KEY) == b"again"


async def test_nothing_stays_after_cancel(store: ArtifactStore) -> None:
    begun = asyncio.Event()

    async def upload() -> None:
        async with store.create(KEY) as writer:
            while True:
                await writer.write(bytes(CHUNK_BYTES))
                begun.set()
                await asyncio.sleep(0)

    task = asyncio.create_task(upload())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await store.exists(KEY)
    assert await store.remove_partial() == 0


async def test_delete(store: ArtifactStore) -> None:
    await put(store, KEY, b"abc")
    await store.delete(KEY)
    await store.delete(KEY)
    assert not await store.exists(KEY)
    with pytest.raises(BlobMissing):
        await get(store, KEY)


async def test_a_reader_notices_a_delete(store: ArtifactStore) -> None:
    await put(store, KEY, bytes(3 * CHUNK_BYTES))
    async with aclosing(store.read(KEY)) as chunks:
        assert len(await anext(chunks)) == CHUNK_BYTES
        await store.delete(KEY)
        with pytest.raises(BlobMissing):
            await anext(chunks)


@pytest.mark.parametrize("key", ["", "a", "../" + "a" * 29, "A" * 32, "a" * 33, "a" * 31 + "\n"])
async def test_a_key_is_no_path(store: ArtifactStore, key: str) -> None:
    with pytest.raises(ValueError):
        async with store.create(key):
            pass
    with pytest.raises(ValueError):
        await get(store, key)
    with pytest.raises(ValueError):
        await store.delete(key)


async def test_full(store: ArtifactStore, small_files: int) -> None:
    if isinstance(store, FakeArtifactStore):
        store.capacity = small_files
    with pytest.raises(LimitExceeded, match="space"):
        await put(store, KEY, *[bytes(CHUNK_BYTES)] * (small_files // CHUNK_BYTES + 1))
    assert await keys(store) == set()
    assert await store.remove_partial() == 0


@pytest.fixture
def small_files() -> object:
    """Bytes beyond which no file of this process can grow: the same error path as a disk that is full."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 3 * CHUNK_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
