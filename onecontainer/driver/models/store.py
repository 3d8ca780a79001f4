"""What is served, on disk, so that it comes back after a restart: one JSON file, and the model files by their digest."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors

FORMAT = 1


@dataclass(slots=True)
class Record:
    """One version that somebody served, or a built-in one that was unloaded."""

    model: str
    version: str
    config: model_pb2.ModelConfig
    loaded: bool
    """False: UnloadModel took it out of memory; it stays out."""
    default_version: bool
    sha256: str = ""
    labels: tuple[str, ...] = ()
    """Names that came from an artifact, which may be gone by now."""
    weights_sha256: str = ""

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the files that it refers to."""
        return tuple(one for one in (self.sha256, self.weights_sha256) if one)


@dataclass(slots=True)
class Catalog:
    """Everything that is recorded."""

    records: list[Record] = field(default_factory=list)
    default_model: str = ""


class Store:
    """The driver's part of the sidecar's state folder. All methods block."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        """`suffix`: what names of model files end in."""
        self._folder = folder
        self._index = folder / "models.json"
        self.files = folder / "files"
        self._suffix = suffix
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._recorded: set[str] = set()

    def open(self) -> Catalog:
        """Makes the folder, drops what a crash left half done, and returns what was recorded.

        Raises:
            DataCorrupt: the record cannot be read. It is never thrown away silently.
        """
        self.files.mkdir(parents=True, exist_ok=True)
        for part in (*self.files.glob("*.part"), *self._folder.glob("*.part")):
            part.unlink(missing_ok=True)
        catalog = self._read() if self._index.exists() else Catalog()
        self._collect(catalog)
        return catalog

    def _read(self) -> Catalog:
        try:
            data = json.loads(self._index.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}")
            return Catalog([_record_from_json(item) for item in data["models"]], data["default_model"])
        except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
            raise errors.DataCorrupt(
                f"the record of served models, {self._index.name}, cannot be read: {error}"
            ) from error

    def save(self, catalog: Catalog) -> None:
        """Replaces the record, whole or not at all, and drops model files that nothing refers to."""
        data = {
            "format": FORMAT,
            "default_model": catalog.default_model,
            "models": [_record_to_json(record) for record in catalog.records],
        }
        write_atomically(self._index, json.dumps(data, indent=1).encode())
        self._collect(catalog)

    def part(self, name: str) -> Path:
        """Where a file may be written before `adopt`."""
        return self.files / f"{name}.part"

    def adopt(self, part: Path) -> str:
        """Takes a finished file in, and returns its SHA-256 as hexadecimal digits.

        The file stays, recorded or not, until `let_go`: loads go on while others are recorded.
        """
        digest = file_digest(part)
        with self._lock:
            self._held[digest] += 1
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self.path(digest))
        return digest

    def hold(self, sha256: str) -> bool:
        """Keeps a file that is there as `adopt` does. False: it is not there."""
        with self._lock:
            if not self.path(sha256).is_file():
                return False
            self._held[sha256] += 1
            return True

    def let_go(self, sha256: str) -> None:
        """From now on the file stays only if the record refers to it, or another load holds it. Empty: nothing happens."""
        with self._lock:
            if self._held[sha256] > 1:
                self._held[sha256] -= 1
                return
            del self._held[sha256]
            if sha256 and sha256 not in self._recorded:
                self.path(sha256).unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        return self.files / f"{sha256}{self._suffix}"

    def _collect(self, catalog: Catalog) -> None:
        with self._lock:
            self._recorded = {digest for record in catalog.records for digest in record.digests}
            keep = {self.path(digest) for digest in (*self._recorded, *self._held)}
            for path in self.files.glob(f"*{self._suffix}"):
                if path not in keep and path.suffix != ".part":
                    path.unlink(missing_ok=True)


def _record_to_json(record: Record) -> dict[str, Any]:
    return {
        "model": record.model,
        "version": record.version,
        "config": json_format.MessageToDict(record.config),
        "loaded": record.loaded,
        "default_version": record.default_version,
        "sha256": record.sha256,
        "labels": list(record.labels),
        "weights_sha256": record.weights_sha256,
    }


def _record_from_json(data: dict[str, Any]) -> Record:
    return Record(
        model=data["model"],
        version=data["version"],
        # A field that a newer version of this driver wrote is no reason to lose the others.
        config=json_format.ParseDict(data["config"], model_pb2.ModelConfig(), ignore_unknown_fields=True),
        loaded=data["loaded"],
        default_version=data["default_version"],
        sha256=data["sha256"],
        labels=tuple(data["labels"]),
        weights_sha256=data.get("weights_sha256", ""),
    )


def file_digest(path: Path) -> str:
    """SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """After a crash the file has the old content or the new one."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
