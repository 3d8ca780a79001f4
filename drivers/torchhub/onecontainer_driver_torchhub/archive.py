"""Unpacks a repository that came as a zip or tar file, or as a hubconf.py alone. Blocks."""

from __future__ import annotations

import ast
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from onecontainer.driver import errors

HUBCONF = "hubconf.py"
MAX_FILES = 100_000
MAX_SCRIPT_BYTES = 1024 * 1024


def unpack(archive: Path, target: Path, max_bytes: int, field: str) -> Path:
    """Unpacks into `target`, an empty folder, and returns the folder with the hubconf.py: that one, or the only one in it.

    Raises DataInvalid: it is no such file, too large, or leads out of the folder.
    """
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, target, max_bytes, field)
        elif tarfile.is_tarfile(archive):
            _untar(archive, target, max_bytes, field)
        else:
            _take_alone(archive, target, field)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise errors.DataInvalid(field, f"cannot be unpacked: {error}") from error
    return hub_folder(target, field)


def hub_folder(folder: Path, field: str) -> Path:
    """Raises DataInvalid if there is no hubconf.py."""
    if (folder / HUBCONF).is_file():
        return folder
    inner = list(folder.iterdir())
    if len(inner) == 1 and (inner[0] / HUBCONF).is_file():
        return inner[0]
    raise errors.DataInvalid(field, f"has no {HUBCONF} in it")


def _take_alone(script: Path, target: Path, field: str) -> None:
    try:
        if script.stat().st_size > MAX_SCRIPT_BYTES:
            raise ValueError("too long")
        data = script.read_bytes()
        if not ast.parse(data).body:
            raise ValueError("nothing in it")
    except (SyntaxError, ValueError) as error:
        raise errors.DataInvalid(field, f"is neither a zip nor a tar file, nor a {HUBCONF}: {error}") from error
    (target / HUBCONF).write_bytes(data)


def _untar(archive: Path, target: Path, max_bytes: int, field: str) -> None:
    with tarfile.open(archive) as files:
        total = 0
        for count, info in enumerate(files):
            total += info.size
            _check_size(total, count, max_bytes, field)
            # Refuses paths and links that lead out, devices and the like.
            files.extract(info, target, filter="data")


def _unzip(archive: Path, target: Path, max_bytes: int, field: str) -> None:
    with zipfile.ZipFile(archive) as files:
        total = 0
        for count, info in enumerate(files.infolist()):
            path = PurePosixPath(info.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise errors.DataInvalid(field, f"has {info.filename!r} in it, which leads out of its folder")
            place = target / path
            if info.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            total += info.file_size
            _check_size(total, count, max_bytes, field)
            place.parent.mkdir(parents=True, exist_ok=True)
            # zipfile gives no more bytes than are announced.
            with files.open(info) as source, place.open("wb") as out:
                shutil.copyfileobj(source, out)


def _check_size(total: int, count: int, max_bytes: int, field: str) -> None:
    if total > max_bytes or count >= MAX_FILES:
        raise errors.DataInvalid(field, f"has more than {max_bytes} bytes or {MAX_FILES} files, unpacked")
