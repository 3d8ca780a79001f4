"""Artifacts in a folder.

A blob is written into `tmp/`, brought to the disk (fsync) and renamed to its place, so it is there whole or not at all, also
after a loss of power. A file in `tmp/` is locked by its writer: what is not locked was left by a process that died. All file
operations run on threads of the store's own, so that a slow disk neither blocks the event loop nor uses up others' threads.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from onecontainer.artifacts.model import CHUNK_BYTES, is_artifact_id
from onecontainer.artifacts.ports import BlobMissing, StoredBlob
from onecontainer.errors import DataCorrupt, LimitExceeded

T = TypeVar("T")
THREADS = 4
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def folder_of_url(url: str) -> Path:
    """The folder of `file:///FOLDER`. Raises ValueError if it is another kind of URL."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc or not parts.path:
        raise ValueError(f"{url!r} is not file:///FOLDER")
    return Path(unquote(parts.path))


class FileArtifactStore:
    """An ArtifactStore in a folder of a local disk. An async context manager; it makes the folder, for its owner only."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tmp = root / "tmp"
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="artifact-io")

    async def __aenter__(self) -> FileArtifactStore:
        await self._run(self._make_folders)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await asyncio.to_thread(self._executor.shutdown)

    def _make_folders(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tmp.mkdir(mode=0o700, exist_ok=True)

    async def _run(self, call: Callable[[], T]) -> T:
        """The result of a blocking call on one of our threads.

        A caller that is cancelled is held until the call has ended: else its files would be closed under it.
        """
        future = asyncio.get_running_loop().run_in_executor(self._executor, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # looked at, so that it is not reported as never retrieved
            raise

    def _path(self, key: str) -> Path:
        if not is_artifact_id(key):
            raise ValueError(f"not a key: {key!r}")
        # 256 folders keep each one small enough for tools that list it.
        return self._root / key[:2] / key

    # --- writing -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def create(self, key: str) -> AsyncIterator[_Writer]:
        writer = await self._open_writer(key)
        try:
            yield writer
        finally:
            await self._run(writer.discard)

    async def _open_writer(self, key: str) -> _Writer:
        opened: list[_Writer] = []
        try:
            await self._run(lambda: opened.append(_Writer(self._path(key), self._tmp, self._run)))
            return opened[0]
        except asyncio.CancelledError:
            for writer in opened:
                await self._run(writer.discard)
            raise

    # --- reading -------------------------------------------------------------------------------------------------------

    async def read(self, key: str, offset: int = 0, limit: int | None = None) -> AsyncGenerator[bytes, None]:
        path = self._path(key)
        descriptors: list[int] = []
        try:
            await self._run(lambda: descriptors.append(_open_for_reading(path)))
            descriptor = descriptors[0]
            left = limit
            while left is None or left > 0:
                size = CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)
                data = await self._run(lambda at=offset, size=size: _read_at(descriptor, at, size))  # type: ignore[misc]
                if not data:
                    return
                yield data
                offset += len(data)
                left = None if left is None else left - len(data)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    # --- housekeeping --------------------------------------------------------------------------------------------------

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await self._run(lambda: path.unlink(missing_ok=True))

    async def exists(self, key: str) -> bool:
        path = self._path(key)
        return await self._run(path.exists)

    async def entries(self) -> AsyncIterator[StoredBlob]:
        folders = await self._run(
            lambda: [path for path in self._root.iterdir() if path != self._tmp and path.is_dir()]
        )
        for folder in folders:
            for entry in await self._run(lambda folder=folder: _blobs_in(folder)):  # type: ignore[misc]
                yield entry

    async def remove_partial(self) -> int:
        return await self._run(self._remove_partial)

    def _remove_partial(self) -> int:
        removed = 0
        for path in self._tmp.iterdir():
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                    removed += 1
                except BlockingIOError:
                    pass  # its writer lives
                finally:
                    os.close(descriptor)
        return removed


class _Writer:
    """One file in `tmp/` on its way to its place. Made, and its blocking methods called, on the store's threads."""

    def __init__(self, target: Path, tmp: Path, run: Callable[[Callable[[], None]], object]) -> None:
        self._target = target
        self._run = run
        self._path, descriptor = _new_locked_file(tmp, target.name)
        self._descriptor: int | None = descriptor
        self._committed = False

    async def write(self, data: bytes) -> None:
        await self._run(lambda: self._append(data))  # type: ignore[misc]

    async def commit(self) -> None:
        await self._run(self._commit)  # type: ignore[misc]

    def _append(self, data: bytes) -> None:
        if self._descriptor is None:
            raise ValueError("the writer is closed")
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise _typed(error) from error

    def _commit(self) -> None:
        if self._descriptor is None:
            raise ValueError("the writer is closed")
        try:
            os.fsync(self._descriptor)
            self._target.parent.mkdir(mode=0o700, exist_ok=True)
            self._path.rename(self._target)
            self._committed = True
            for folder in (self._target.parent, self._target.parent.parent):
                _sync_folder(folder)
        except OSError as error:
            raise _typed(error) from error

    def discard(self) -> None:
        """Closes it; without a commit its file goes."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            if not self._committed:
                self._path.unlink(missing_ok=True)
            os.close(descriptor)


def _new_locked_file(folder: Path, name: str) -> tuple[Path, int]:
    while True:
        path = folder / f"{name}.{os.urandom(4).hex()}"
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _typed(error) from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        # Between our open and our lock somebody took it for a dead writer's.
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_for_reading(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BlobMissing(path.name) from None
    except OSError as error:
        raise _typed(error) from error


def _read_at(descriptor: int, offset: int, size: int) -> bytes:
    try:
        if os.fstat(descriptor).st_nlink == 0:
            raise BlobMissing("deleted while it was read")
        return os.pread(descriptor, size, offset)
    except OSError as error:
        raise _typed(error) from error


def _blobs_in(folder: Path) -> list[StoredBlob]:
    found = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if is_artifact_id(entry.name):
                    stat = entry.stat()
                    found.append(StoredBlob(entry.name, stat.st_size, stat.st_mtime_ns // 1000))
    return found


def _typed(error: OSError) -> Exception:
    if error.errno in _NO_SPACE:
        return LimitExceeded(f"no space is left for the artifact: {os.strerror(error.errno)}")
    if error.errno == errno.EIO:
        return DataCorrupt(f"the artifact's bytes cannot be read or written: {error.strerror}")
    return error
