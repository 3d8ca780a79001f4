"""Services and drivers as records. Pure: states that come from running sidecars are laid over them by the servicer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from onecontainer.catalog.methods import MethodTable
from onecontainer.errors import OneContainerError
from onecontainer.rpc.manifest import Manifest
from onecontainer.sidecars.model import RuntimeSpec

SERVICE_ID = re.compile(r"^[a-z][a-z0-9-]{0,62}$")
DEFAULT_MAX_QUEUED = 1_000_000
DEFAULT_MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class JobLimits:
    """How a service's jobs run; zeros and None stand for the defaults. drain_timeout in seconds."""

    max_running: int = 0
    max_queued: int = 0
    default_max_attempts: int = 0
    drain_timeout: float | None = None


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A registered backend. Times are microseconds since the epoch.

    `driver` is what the operator asked for, `assigned_driver` what was found (`drivers/{name}-{version}`, empty: none).
    `generation` goes up with each change that replaces the sidecar, `revision` with every write.
    """

    name: str
    uid: str
    app: str
    app_version: str = ""
    description: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    runtime: RuntimeSpec = field(default_factory=RuntimeSpec)
    job_limits: JobLimits = field(default_factory=JobLimits)
    assigned_driver: str = ""
    generation: int = 1
    revision: int = 1
    create_time: int = 0
    update_time: int = 0

    @property
    def id(self) -> str:
        return self.name.removeprefix("services/")

    @property
    def etag(self) -> str:
        # The uid is in it: a service deleted and made again must not match an old etag.
        return f"{self.uid[:8]}-{self.revision}"

    @property
    def max_queued(self) -> int:
        return self.job_limits.max_queued or DEFAULT_MAX_QUEUED

    @property
    def default_max_attempts(self) -> int:
        return self.job_limits.default_max_attempts or DEFAULT_MAX_ATTEMPTS


class DriverSource(StrEnum):
    BUNDLED = "BUNDLED"
    PLUGIN = "PLUGIN"
    REGISTERED = "REGISTERED"


class DriverState(StrEnum):
    READY = "READY"
    BROKEN = "BROKEN"
    QUARANTINED = "QUARANTINED"


@dataclass(frozen=True, slots=True)
class DriverRecord:
    """A driver that is installed. A BROKEN one may lack manifest and methods; `error` tells why."""

    name: str
    source: DriverSource
    state: DriverState
    manifest: Manifest | None
    methods: MethodTable | None
    folder: Path | None = None
    digest: str = ""
    descriptor_digest: str = ""
    origin: str = ""
    error: OneContainerError | None = None
    create_time: int = 0

    @property
    def id(self) -> str:
        return self.name.removeprefix("drivers/")
