"""The port of runtimes: where a sidecar runs, and how it is started, watched and stopped there."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from onecontainer.sidecars.folders import InstanceFolders
from onecontainer.sidecars.logs import LogBuffer
from onecontainer.sidecars.model import RuntimeKind, Target


@dataclass(frozen=True, slots=True)
class StartSpec:
    """All that a runtime needs to start one instance."""

    instance: str
    target: Target
    folders: InstanceFolders | None  # None where the runtime does not own the sidecar
    logs: LogBuffer
    max_message_bytes: int
    log_level: str
    doing: Callable[[str], None] = lambda _what: None
    """Told what the start waits for, for people (`building the image …`); empty: for nothing any more."""
    adopted: bool = False
    """True: it runs since an earlier gateway, and `take_over` named it."""


def exited(code: int) -> str:
    """How a program ended that ended by itself."""
    return f"exited with code {code}"


FOR_GOOD = frozenset({exited(2), exited(4)})
"""Ends after which starting it again would not help: the SDK's exit codes for settings, class or packages that are wrong."""


class RunningSidecar(Protocol):
    """A sidecar that was started, or found."""

    @property
    def target(self) -> str:
        """gRPC target at which it is reached."""
        ...

    @property
    def runtime_id(self) -> str:
        """Process id, container id, or empty."""
        ...

    async def wait(self) -> str:
        """Waits until it has ended and says how: `exited with code 1`, `was killed by SIGKILL`."""
        ...

    async def stop(self, grace: float) -> None:
        """Asks it to end, and after so many seconds makes it; answers when it has ended. Idempotent."""
        ...


class Runtime(Protocol):
    """A place for sidecars."""

    @property
    def kind(self) -> RuntimeKind: ...

    @property
    def owns(self) -> bool:
        """True: what it started is drained and stopped on a switch. False: somebody else's sidecar, which is detached."""
        ...

    async def start(self, spec: StartSpec) -> RunningSidecar:
        """Starts an instance; answers when it was started, not when it is up. Raises a typed error if that fails."""
        ...


@dataclass(frozen=True, slots=True)
class TlsServer:
    """How the certificate of a sidecar on TCP is checked: who signed it, and for which name."""

    ca_file: Path
    name: str


@runtime_checkable
class OutlivingSidecar(RunningSidecar, Protocol):
    """One that can go on without the gateway."""

    @property
    def tls(self) -> TlsServer | None:
        """None: it is on a UNIX socket."""
        ...

    async def leave(self) -> None:
        """Lets go of it as it is; `wait` answers. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """Instances of an earlier gateway to go on with, to be started as adopted. `current` was made for just the target that is wanted;
    `older`, for another one, serves as it is until that is ready. None: there is none."""

    current: str | None = None
    older: str | None = None


@runtime_checkable
class OutlivingRuntime(Runtime, Protocol):
    """A place whose sidecars go on when the gateway ends, however it ends; the next one takes them over. All it starts are
    `OutlivingSidecar`s."""

    @property
    def internal_target(self) -> str:
        """gRPC target at which its sidecars reach the gateway's internal listener."""
        ...

    async def take_over(self, target: Target, candidates: Collection[str]) -> LeftBehind:
        """What earlier gateways left running of a service, of these instances: of others the token is gone. No older one if the service's
        state is exclusive. What else there is of the service ends. Raises a typed error if that cannot be told yet.
        """
        ...

    async def discard(self, instance: str) -> None:
        """Ends an instance that was taken over, and is not wanted after all. Idempotent."""
        ...

    async def reap(self, is_orphan: Callable[[str], bool]) -> None:
        """Ends what earlier gateways left behind of the services, by uid, that are orphans. Raises a typed error if it cannot."""
        ...
