"""What a sidecar is and how its state changes: pure, one table. The supervisor acts it out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Any

import grpc

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.errors import OneContainerError


class RuntimeKind(StrEnum):
    """Where sidecars run."""

    PROCESS = "process"
    DOCKER = "docker"
    ATTACHED = "attached"


class Adopted(Enum):
    """Whether an instance runs since an earlier gateway."""

    NO = auto()
    CURRENT = auto()  # with the target's settings
    AS_IT_IS = auto()  # with others: it serves as it is attached until it is replaced


@dataclass(frozen=True, slots=True)
class RuntimeSpec:
    """How a service wants its sidecar to run; kind None is the installation's default."""

    kind: RuntimeKind | None = None
    endpoint: str = ""
    token_secret: str = ""
    devices: tuple[str, ...] = ()
    memory_bytes: int = 0
    cpus: float = 0.0
    pids: int = 0
    private_network: bool = False

    @property
    def registers(self) -> bool:
        """Whether its sidecar is one that somebody else starts, and that registers itself."""
        return self.kind is RuntimeKind.ATTACHED and not self.endpoint


class ServiceState(StrEnum):
    """Where a service stands, names as in management.v1."""

    UNASSIGNED = "UNASSIGNED"
    STARTING = "STARTING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    FAILED = "FAILED"
    DELETING = "DELETING"


class SidecarState(StrEnum):
    """Where a sidecar stands, names as in management.v1."""

    STARTING = "STARTING"
    PROBING = "PROBING"
    READY = "READY"
    BACKOFF = "BACKOFF"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"


class SidecarEvent(StrEnum):
    """What can happen to a sidecar."""

    ATTACHED = "ATTACHED"  # it answered, is the right driver, and took Attach
    BACKEND_READY = "BACKEND_READY"  # Probe said ready
    BACKEND_BROKEN = "BACKEND_BROKEN"  # Probe failed, or said "still starting"
    FAILED = "FAILED"  # the process ended, or it does not answer
    REFUSED = "REFUSED"  # Attach said that the settings are wrong: starting again would not help
    DRAIN = "DRAIN"  # another one takes over, or the service goes
    STOP = "STOP"  # it was stopped


_S, _E = SidecarState, SidecarEvent

TRANSITIONS: Mapping[tuple[SidecarState, SidecarEvent], SidecarState] = {
    (_S.STARTING, _E.ATTACHED): _S.PROBING,
    (_S.STARTING, _E.FAILED): _S.BACKOFF,
    (_S.STARTING, _E.REFUSED): _S.STOPPED,
    (_S.STARTING, _E.DRAIN): _S.DRAINING,
    (_S.STARTING, _E.STOP): _S.STOPPED,
    (_S.PROBING, _E.BACKEND_READY): _S.READY,
    (_S.PROBING, _E.BACKEND_BROKEN): _S.PROBING,
    (_S.PROBING, _E.FAILED): _S.BACKOFF,
    (_S.PROBING, _E.DRAIN): _S.DRAINING,
    (_S.PROBING, _E.STOP): _S.STOPPED,
    (_S.READY, _E.BACKEND_READY): _S.READY,
    (_S.READY, _E.BACKEND_BROKEN): _S.PROBING,
    (_S.READY, _E.FAILED): _S.BACKOFF,
    (_S.READY, _E.DRAIN): _S.DRAINING,
    (_S.READY, _E.STOP): _S.STOPPED,
    (_S.BACKOFF, _E.DRAIN): _S.STOPPED,
    (_S.BACKOFF, _E.STOP): _S.STOPPED,
    (_S.DRAINING, _E.BACKEND_READY): _S.DRAINING,
    (_S.DRAINING, _E.BACKEND_BROKEN): _S.DRAINING,
    (_S.DRAINING, _E.DRAIN): _S.DRAINING,
    (_S.DRAINING, _E.FAILED): _S.STOPPED,
    (_S.DRAINING, _E.STOP): _S.STOPPED,
    (_S.STOPPED, _E.DRAIN): _S.STOPPED,
    (_S.STOPPED, _E.STOP): _S.STOPPED,
    (_S.STOPPED, _E.FAILED): _S.STOPPED,
}
"""All there is; a pair that is not here is a defect of the supervisor."""

LIVE = frozenset({SidecarState.STARTING, SidecarState.PROBING, SidecarState.READY, SidecarState.DRAINING})


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A running driver, or one that has run, as a record. Times are microseconds since the epoch, 0 is "not yet"."""

    name: str
    service: str
    service_uid: str
    driver: str
    runtime: RuntimeKind
    state: SidecarState = SidecarState.STARTING
    target: str = ""
    runtime_id: str = ""
    restart_count: int = 0
    error: OneContainerError | None = None
    next_start_time: int = 0
    create_time: int = 0
    ready_time: int = 0
    worker_only: bool = False
    """True: it takes jobs and serves no calls; somebody started it beside a driver, and it registered."""

    def after(self, event: SidecarEvent, **changes: Any) -> Sidecar:
        """The record after an event. Raises ValueError if the table does not have it."""
        try:
            state = TRANSITIONS[self.state, event]
        except KeyError:
            raise ValueError(f"{self.name}: {event.value} in state {self.state.value}") from None
        return replace(self, state=state, **changes)


@dataclass(frozen=True, slots=True)
class Target:
    """What a service should run on: all that a sidecar is started and attached with.

    `generation` counts the changes of settings; a higher one, or the same applied with `restart`, replaces the sidecar.
    `options` are as the service sets them, with `secrets/NAME` unresolved. `secrets` are the names to mount.
    """

    uid: str
    service: str
    app: str
    app_version: str
    endpoints: Mapping[str, str]
    options: Mapping[str, Any]
    secrets: tuple[str, ...]
    driver: str
    manifest: driver_pb2.DriverManifest
    folder: Path | None
    runtime: RuntimeSpec
    slots: int
    drain_timeout: float
    generation: int

    @property
    def exclusive(self) -> bool:
        """True: the old sidecar is stopped before the new one starts."""
        return self.manifest.exclusive_state


@dataclass(slots=True)
class Endpoint:
    """A sidecar that takes calls, or with `forwards` the gateway that has it. `calls` is the relay's own cache of multicallables,
    gone with the channel. Who learns from a call that the backend is away sets `doubt`: then it is probed at once."""

    instance: str
    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...]
    methods: frozenset[str]
    max_message_bytes: int
    calls: dict[Any, Any] = field(default_factory=dict)
    forwards: bool = False
    doubt: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


@dataclass(frozen=True, slots=True)
class InstanceIdentity:
    """Whom an instance token stands for on the internal listener: it acts for its service only."""

    instance: str
    service: str
    service_uid: str
    slots: int


class HeartbeatLayer(StrEnum):
    SIDECAR = "SIDECAR"
    DRIVER = "DRIVER"
    BACKEND = "BACKEND"


class HeartbeatState(StrEnum):
    OK = "OK"
    STARTING = "STARTING"
    UNAVAILABLE = "UNAVAILABLE"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True, slots=True)
class LayerHeartbeat:
    """One layer's answer; latency in seconds, None if it was not asked."""

    layer: HeartbeatLayer
    state: HeartbeatState
    latency: float | None = None
    error: OneContainerError | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """All layers of a service, asked now; `sidecar` is empty if none runs."""

    sidecar: str
    layers: tuple[LayerHeartbeat, ...]


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a sidecar wrote, without its end; `time` is when it was read."""

    time: int
    stderr: bool
    text: str
