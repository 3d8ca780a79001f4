"""A driver's folder as bytes: which files count, their digest, and archives that are made and unpacked with care."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from onecontainer.errors import DataInvalid, LimitExceeded, OneContainerError

IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "build", "dist", "tests"})
"""Not part of a driver, nor of its digest: they change without a change of the driver."""
MAX_ENTRIES = 10_000
MAX_DEPTH = 32
MAX_NAME_BYTES = 255
GZIP_MAGIC = b"\x1f\x8b"
CHUNK_BYTES = 64 * 1024
ENTRY_OVERHEAD = 4 * 1024
"""What an entry may take in an archive besides its bytes: header, padding, a long name."""


def driver_files(folder: Path) -> Iterator[Path]:
    """The files that make a driver, in a fixed order; caches, tests and hidden ones do not count."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in IGNORED_FOLDERS and not name.startswith("."))
        for name in sorted(files):
            path = Path(root, name)
            if path.is_file() and not name.startswith(".") and not name.endswith(".pyc"):
                yield path


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and the bytes of a driver's files, `sha256:…`."""
    total = hashlib.sha256()
    for path in driver_files(folder):
        name = path.relative_to(folder).as_posix().encode()
        total.update(len(name).to_bytes(4, "big") + name)
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return f"sha256:{total.hexdigest()}"


def pack(folder: Path, max_bytes: int) -> bytes:
    """The driver's files as a gzip tar archive; the same files give the same bytes.

    Raises DataInvalid for a link that leads out of the folder, and LimitExceeded beyond `max_bytes` of files.
    """
    root = folder.resolve()
    budget = _Budget(max_bytes)
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in driver_files(root):
            name = path.relative_to(root).as_posix()
            if not path.resolve().is_relative_to(root):
                raise DataInvalid("source", f"{name} is a link out of the driver's folder: put the file itself there")
            # Counted before it is read: a file of the folder may be of any size.
            budget.entry(name, path.stat().st_size)
            data = path.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def unpack(data: bytes, folder: Path, max_bytes: int) -> None:
    """Unpacks a tar archive, plain or gzip, of files and folders only into `folder`, which is made.

    Nothing is written but below that folder, no link is made or followed, and no more than `max_bytes` are kept.
    Raises DataInvalid for an archive that is broken or has anything else in it, and LimitExceeded.
    """
    folder.mkdir(parents=True)
    budget = _Budget(max_bytes)
    with _opened(data, max_bytes + MAX_ENTRIES * ENTRY_OVERHEAD) as archive:
        for entry in archive:
            parts = _safe_parts(entry)
            if not parts:
                continue
            budget.entry(entry.name, entry.size if entry.isreg() else 0)
            target = folder.joinpath(*parts)
            try:
                if entry.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                _write(archive, entry, target)
            except (FileExistsError, NotADirectoryError) as error:
                raise DataInvalid("source", f"the archive has {entry.name!r} twice") from error


class _Budget:
    """How much there may be. Raises LimitExceeded."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = self._entries = 0

    def entry(self, name: str, size: int) -> None:
        self._entries += 1
        self._bytes += size
        if self._entries > MAX_ENTRIES:
            raise LimitExceeded(f"a driver may have at most {MAX_ENTRIES} files")
        if self._bytes > self._max_bytes:
            raise LimitExceeded(
                f"with {name} the driver has more than {self._max_bytes} bytes (ONECONTAINER_PLUGIN_MAX_BYTES): "
                "leave data such as models out, and fetch it where it is needed"
            )


class _Bounded(io.RawIOBase):
    """A stream of at most so many bytes: what is packed small may be anything unpacked."""

    def __init__(self, inner: IO[bytes] | gzip.GzipFile, limit: int) -> None:
        self._inner = inner
        self._left = limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise LimitExceeded("the archive is too large when it is unpacked (ONECONTAINER_PLUGIN_MAX_BYTES)")
        return data


@contextlib.contextmanager
def _opened(data: bytes, limit: int) -> Iterator[tarfile.TarFile]:
    """The archive, read from front to back; whatever is wrong with it is a typed error."""
    raw: IO[bytes] | gzip.GzipFile = io.BytesIO(data)
    if data.startswith(GZIP_MAGIC):
        raw = gzip.GzipFile(fileobj=raw)
    try:
        # Forward only, so that no more than one header is in memory.
        with tarfile.open(fileobj=_Bounded(raw, limit), mode="r|") as archive:
            yield archive
    except OneContainerError:
        raise
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, UnicodeError) as error:
        raise DataInvalid("source", f"is no tar archive, plain or gzip, that can be read: {error}") from error


def _safe_parts(entry: tarfile.TarInfo) -> tuple[str, ...]:
    """The path below the driver's folder. Raises DataInvalid for one that is elsewhere, and for what is no file or folder."""
    name = entry.name
    if not (entry.isreg() or entry.isdir()) or entry.issparse():
        kind = "a link" if entry.islnk() or entry.issym() else "neither a file nor a folder"
        raise DataInvalid("source", f"the archive's entry {name!r} is {kind}: only files and folders are allowed")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise DataInvalid("source", f"the archive's entry {name!r} is not a path below the driver's folder")
    if len(path.parts) > MAX_DEPTH or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise DataInvalid("source", f"the path of the archive's entry {name[:80]!r} is too long")
    return path.parts


def _write(archive: tarfile.TarFile, entry: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(entry)
    assert source is not None  # it is a regular file
    # Its owner may write, nobody else; set-user-id bits and the like do not come along.
    mode = 0o755 if entry.mode & 0o100 else 0o644
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(target, flags, mode), "wb") as out:
        left = entry.size
        while left and (chunk := source.read(min(CHUNK_BYTES, left))):
            out.write(chunk)
            left -= len(chunk)
    if left:
        raise DataInvalid("source", f"the archive ends within {entry.name!r}")
