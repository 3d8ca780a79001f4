"""What a child needs to become the driver that its sidecar is."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onecontainer.driver.artifacts import ArtifactLink
from onecontainer.driver.driver import Attachment, Driver
from onecontainer.errors import DriverMisimplemented
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.manifest import Manifest


def entry_of(driver: Driver, manifest: Manifest) -> str:
    """Where a child finds the driver's class, `module:Class`. Raises DriverMisimplemented if it cannot."""
    cls = type(driver)
    if "<locals>" in cls.__qualname__:
        raise DriverMisimplemented(
            f"{cls.__qualname__} has isolated handlers: its class must be at the top of a module, where a child process finds it"
        )
    # A driver that is run as a script is `__main__` here only.
    return manifest.entry_point if cls.__module__ == "__main__" else f"{cls.__module__}:{cls.__qualname__}"


@dataclass(frozen=True, slots=True)
class Gateway:
    """The internal listener, and what a caller shows there."""

    target: str
    ca_file: str | None
    metadata: tuple[tuple[str, str], ...] = dataclasses.field(repr=False)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Plain values only: it crosses as JSON. `options` may have secrets in it, which is why it goes by the socket, never by argument
    or environment.
    """

    entry: str
    import_path: tuple[str, ...]
    service: str
    app: str
    app_version: str
    endpoints: Mapping[str, str] = dataclasses.field(repr=False)
    options: Mapping[str, Any] = dataclasses.field(repr=False)
    state_dir: str
    manifest: str = dataclasses.field(repr=False)
    log_level: str
    max_message_bytes: int
    gateway: Gateway | None

    @classmethod
    def of(
        cls,
        driver: Driver,
        attachment: Attachment,
        *,
        log_level: str,
        max_message_bytes: int,
        gateway: Gateway | None,
    ) -> Recipe:
        """Raises DriverMisimplemented if no child could be made of it."""
        return cls(
            entry=entry_of(driver, attachment.manifest),
            import_path=tuple(sys.path),
            service=attachment.service,
            app=attachment.app,
            app_version=attachment.app_version,
            endpoints=dict(attachment.endpoints),
            options=dict(attachment.options),
            state_dir=str(attachment.state_dir),
            manifest=attachment.manifest.model_dump_json(),
            log_level=log_level,
            max_message_bytes=max_message_bytes,
            gateway=gateway,
        )

    def to_facts(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Recipe:
        gateway = facts["gateway"]
        if gateway is not None:
            pairs = tuple((name, value) for name, value in gateway["metadata"])
            gateway = Gateway(gateway["target"], gateway["ca_file"], pairs)
        return cls(**{**facts, "import_path": tuple(facts["import_path"]), "gateway": gateway})

    # --- in the child --------------------------------------------------------------------------------------------------

    def driver(self) -> Driver:
        """The driver, newly made; the import path becomes the sidecar's."""
        sys.path[:] = self.import_path
        module, _, name = self.entry.partition(":")
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        made: Driver = found()
        return made

    def attachment(self) -> Attachment:
        """What the sidecar's own driver was attached with."""
        return Attachment(
            service=self.service,
            app=self.app,
            app_version=self.app_version,
            endpoints=self.endpoints,
            options=self.options,
            state_dir=Path(self.state_dir),
            manifest=Manifest.model_validate_json(self.manifest),
        )

    def artifact_link(self) -> ArtifactLink | None:
        """The child's own way to the gateway's artifacts, opened when it is first used."""
        gateway = self.gateway
        if gateway is None:
            return None
        ca_file = None if gateway.ca_file is None else Path(gateway.ca_file)
        return ArtifactLink(
            lambda: open_channel(gateway.target, max_message_bytes=self.max_message_bytes, ca_file=ca_file),
            gateway.metadata,
        )
