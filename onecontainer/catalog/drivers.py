"""Finds drivers: folders with a metadata.json. One that is broken is a BROKEN record, and harms no other."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from onecontainer.catalog.contracts import CONTRACTS, own_descriptor_set
from onecontainer.catalog.methods import MethodTable
from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState
from onecontainer.catalog.packing import digest_of
from onecontainer.errors import DataInvalid, OneContainerError
from onecontainer.rpc.manifest import METADATA_FILE, Manifest, load_manifest

log = logging.getLogger(__name__)

MAX_DESCRIPTOR_BYTES = 16 * 1024 * 1024


def bundled_folder() -> Path | None:
    """The folder with the drivers that come with oneContainer: in an installed wheel, else in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_bundled" / "drivers", package.parent / "drivers"):
        if folder.is_dir():
            return folder
    return None


def scan(folders: Iterable[tuple[Path, DriverSource]], now: int) -> tuple[list[DriverRecord], dict[str, bytes]]:
    """All drivers below the folders, and their descriptor sets by digest.

    Of two with the same name and version the first found is used; the other is BROKEN under the name of its folder.
    """
    found: dict[str, DriverRecord] = {}
    descriptors: dict[str, bytes] = {}
    for root, source in folders:
        for folder in _driver_folders(root):
            record, data = read_driver(folder, source, now)
            if record.name in found:
                record = _broken(
                    folder,
                    source,
                    now,
                    DataInvalid(
                        "metadata.version", f"{record.name} is already there, from {found[record.name].folder}"
                    ),
                )
                data = b""
            suffix = 1
            name = record.name
            while record.name in found:
                suffix += 1
                record = _renamed(record, f"{name}-{suffix}")
            found[record.name] = record
            if data:
                descriptors[record.descriptor_digest] = data
            if record.error is not None:
                log.warning("the driver in %s is broken: %s", folder, record.error)
    return list(found.values()), descriptors


def _driver_folders(root: Path) -> list[Path]:
    try:
        return sorted(child for child in root.iterdir() if child.is_dir() and (child / METADATA_FILE).is_file())
    except OSError as error:
        log.warning("the driver folder %s cannot be read: %s", root, error)
        return []


def read_driver(folder: Path, source: DriverSource, now: int) -> tuple[DriverRecord, bytes]:
    """One driver, and its serialised FileDescriptorSet (empty if it is broken). Never raises."""
    try:
        manifest = load_manifest(folder)
    except OneContainerError as error:
        return _broken(folder, source, now, error), b""
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one folder harms no other
        return _broken(folder, source, now, DataInvalid("metadata", f"cannot be read: {error}")), b""
    try:
        data = _descriptors(folder, manifest)
        methods = MethodTable(data, manifest.services)
        digest = digest_of(folder)
    except OneContainerError as error:
        return _broken(folder, source, now, error, manifest), b""
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one folder harms no other
        return _broken(folder, source, now, DataInvalid("descriptor_set", f"cannot be read: {error}"), manifest), b""
    record = DriverRecord(
        name=f"drivers/{manifest.name}-{manifest.version}",
        source=source,
        state=DriverState.READY,
        manifest=manifest,
        methods=methods,
        folder=folder.resolve(),
        digest=digest,
        descriptor_digest=_sha256(data),
        origin="" if source is DriverSource.BUNDLED else str(folder),
        create_time=now,
    )
    return record, data


def _descriptors(folder: Path, manifest: Manifest) -> bytes:
    path = folder / manifest.descriptor_set
    try:
        if path.stat().st_size > MAX_DESCRIPTOR_BYTES:
            raise DataInvalid("descriptor_set", f"{path.name} is larger than {MAX_DESCRIPTOR_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError as error:
        named = "descriptor_set" in manifest.model_fields_set
        own = None if named else own_descriptor_set(manifest.services)
        if own is None:
            raise DataInvalid(
                "descriptor_set",
                f"{path.name} is not there; only a driver whose services are all {CONTRACTS}… can do without "
                "(`oca driver build FOLDER` makes it of the folder's protos)",
            ) from error
        return own
    except OSError as error:
        raise DataInvalid("descriptor_set", f"{path.name} cannot be read: {error.strerror}") from error


def _broken(
    folder: Path, source: DriverSource, now: int, error: OneContainerError, manifest: Manifest | None = None
) -> DriverRecord:
    name = f"{manifest.name}-{manifest.version}" if manifest is not None else folder.name
    return DriverRecord(
        name=f"drivers/{name}",
        source=source,
        state=DriverState.BROKEN,
        manifest=manifest,
        methods=None,
        folder=folder.resolve(),
        error=error,
        origin="" if source is DriverSource.BUNDLED else str(folder),
        create_time=now,
    )


def _renamed(record: DriverRecord, name: str) -> DriverRecord:
    return DriverRecord(
        name=name,
        source=record.source,
        state=record.state,
        manifest=record.manifest,
        methods=record.methods,
        folder=record.folder,
        error=record.error,
        origin=record.origin,
        create_time=record.create_time,
    )


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
