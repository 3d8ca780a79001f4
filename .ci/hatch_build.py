"""Build hook: puts the bundled drivers, the backends and the sources of the REST front into the wheel, below `onecontainer/_bundled`
(docs/adr/0002)."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = ("deploy/rest/*", "protos/**/*.proto", "protos/generate.py")
"""Of the REST front; onecontainer/cli/rest_program.py finds them at the same places below `_bundled`."""
LEFT_OUT = {"tests", "__pycache__", "build", "dist"}


class BundledDrivers(BuildHookInterface):  # type: ignore[type-arg]
    """Adds each driver's folder, without its tests. An editable install gets nothing: it reads `drivers/` itself."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        backends = Path(self.root) / "deploy" / "backends"
        build_data["force_include"][str(backends)] = "onecontainer/_bundled/backends"
        for pattern in SOURCES:
            for path in sorted(Path(self.root).glob(pattern)):
                if path.is_file():
                    place = path.relative_to(self.root).as_posix()
                    build_data["force_include"][str(path)] = f"onecontainer/_bundled/{place}"
        drivers = Path(self.root) / "drivers"
        for metadata in sorted(drivers.glob("*/metadata.json")):
            for path in sorted(metadata.parent.rglob("*")):
                inner = path.relative_to(drivers)
                if path.is_file() and not LEFT_OUT.intersection(inner.parts):
                    build_data["force_include"][str(path)] = f"onecontainer/_bundled/drivers/{inner.as_posix()}"
