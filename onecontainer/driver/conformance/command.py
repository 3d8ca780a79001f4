"""What both commands take, `oca driver check` and `python -m onecontainer.driver.conformance`, and how a run of the kit is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecontainer.driver.conformance.examples import examples_of, read_examples, read_object
from onecontainer.driver.conformance.kit import Kit, Selection
from onecontainer.driver.conformance.model import Report, Result
from onecontainer.driver.conformance.place import Endpoint, Folder, Starter
from onecontainer.driver.conformance.session import ServiceSpec
from onecontainer.errors import DataInvalid, FieldInvalid, FieldViolation
from onecontainer.rpc.manifest import METADATA_FILE

SERVICE_KEYS = frozenset({"app", "app_version", "endpoints", "options", "broken"})
BROKEN_KEYS = frozenset({"endpoints", "options"})


@dataclass(frozen=True, slots=True)
class Order:
    """A run of the kit as the command line asks for it."""

    driver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    endpoints: Mapping[str, str] = field(default_factory=dict)
    broken_options: Mapping[str, Any] = field(default_factory=dict)
    broken_endpoints: Mapping[str, str] = field(default_factory=dict)
    service_file: Path | None = None
    examples: Path | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    secrets_dir: Path | None = None
    listen: str = ""
    app_version: str = ""
    timeout: float = 30.0
    selection: Selection = field(default_factory=Selection)

    def starter(self) -> Starter:
        """A folder is started, anything else is an address. Raises FieldInvalid."""
        folder = Path(self.driver)
        if (folder / METADATA_FILE).is_file():
            return Folder(folder, secrets_dir=self.secrets_dir)
        if folder.is_dir():
            raise FieldInvalid("driver", f"{folder} has no {METADATA_FILE}: it is no driver's folder")
        if ":" not in self.driver:
            raise FieldInvalid("driver", f"{self.driver!r} is neither a folder nor an address (HOST:PORT, unix:PATH)")
        token = None if self.token_file is None else self.token_file.read_text().strip()
        return Endpoint(self.driver, token=token, ca_file=self.ca_file, listen=self.listen)

    def spec(self) -> ServiceSpec:
        """The service file, and over it what the command line says. Raises DataInvalid or FieldInvalid."""
        values = {} if self.service_file is None else read_object(self.service_file)
        _known(values, SERVICE_KEYS, "service")
        broken = values.get("broken", {})
        _known(broken, BROKEN_KEYS, "broken")
        return ServiceSpec(
            app=values.get("app", ""),
            app_version=self.app_version or values.get("app_version", ""),
            endpoints={**values.get("endpoints", {}), **self.endpoints},
            options={**values.get("options", {}), **self.options},
            broken_endpoints={**broken.get("endpoints", {}), **self.broken_endpoints},
            broken_options={**broken.get("options", {}), **self.broken_options},
        )

    def kit(self, tell: Callable[[Result], None] = lambda _result: None) -> Kit:
        """Raises DataInvalid or FieldInvalid."""
        starter = self.starter()
        examples = examples_of(Path(self.driver)) if self.examples is None else read_examples(self.examples)
        return Kit(starter, self.spec(), examples, self.selection, self.timeout, tell)

    def run(self, tell: Callable[[Result], None] = lambda _result: None) -> Report:
        """Runs the kit. Raises DataInvalid, FieldInvalid and DriverAbsent."""
        return asyncio.run(self.kit(tell).run())


def _known(values: Any, keys: frozenset[str], where: str) -> None:
    if not isinstance(values, dict):
        raise DataInvalid(where, "must be an object")
    strange = sorted(values.keys() - keys)
    if strange:
        raise DataInvalid(
            violations=[FieldViolation(f"{where}.{key}", f"is none of {', '.join(sorted(keys))}") for key in strange]
        )
