"""What a load reads: the repository, weights of their own, and names of classes."""

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
from onecontainer_driver_torchhub.archive import hub_folder
from onecontainer_driver_torchhub.config import HUB, Allowed, is_local

if TYPE_CHECKING:
    from onecontainer.driver import Artifacts


@dataclass(frozen=True, slots=True)
class Sources:
    """What the service's settings allow. `max_bytes`: length of an artifact."""

    store: Store
    allowed: Allowed
    max_bytes: int

    def fetch(self, artifacts: Artifacts | None) -> Fetch:
        """How a load gets its material. `artifacts` None: it is loaded again, from what was kept."""

        async def get(config: model_pb2.ModelConfig, previous: Material | None, report: Report) -> Material:
            # Also what was served before the settings were changed must be allowed now.
            self.allowed.check(config)
            hub = config.source.torch_hub
            names, from_artifact = await label_names(config, previous, artifacts)
            held: list[str] = []
            try:
                for field, kept in (
                    ("repo_artifact", previous.sha256 if previous is not None else ""),
                    ("weights_artifact", previous.weights_sha256 if previous is not None else ""),
                ):
                    name = getattr(hub, field)
                    held.append(
                        await kept_artifact(self.store, name, f"{HUB}.{field}", kept, artifacts, report, self.max_bytes)
                        if name
                        else ""
                    )
                path = await asyncio.to_thread(self._local, hub.repo) if is_local(hub) else None
            except BaseException:
                for digest in held:
                    self.store.let_go(digest)
                raise
            repo, weights = held
            return Material(self.store.path(repo) if repo else path, names, repo, weights, from_artifact)

        return get

    def _local(self, name: str) -> Path:
        field = f"{HUB}.repo"
        path = inside(name, self.allowed.folder, field, "hub_dir")
        if not path.is_dir():
            raise errors.ResourceNotFound(f"there is no folder {name}", resource=("folder", name))
        found = hub_folder(path, field)
        # The one folder in it may be a link.
        return inside(str(found), self.allowed.folder, field, "hub_dir")
