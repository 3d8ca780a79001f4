"""What a driver is: the root class, what it is attached to, what its probe answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

from google.protobuf.descriptor import ServiceDescriptor

from onecontainer.rpc.manifest import Manifest

T = TypeVar("T")
Answer: TypeAlias = T | Awaitable[T]
"""What a handler with one response returns: `async def`, or plain `def`, which runs in a thread of its own."""
Answers: TypeAlias = AsyncIterator[T] | Iterator[T]
"""What a handler with a stream of responses is: an async generator, or a plain one, which runs in a thread of its own."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """The service that the sidecar is attached to.

    Attributes:
        service: `services/{service}`.
        app, app_version: as registered.
        endpoints: where the backend is, node → `host:port` or URL. Empty: the driver is its own backend.
        options: every option that metadata.json declares, checked and of its type (durations are seconds), defaults filled
            in, `secrets/NAME` replaced by the secret's text. None: not set and without default.
        state_dir: a folder of the service that survives restarts; no other instance uses it.
        manifest: the driver's own metadata.json.
    """

    service: str
    app: str
    app_version: str
    # The values may be secrets or have passwords in them: they stay out of the repr, and so out of logs.
    endpoints: Mapping[str, str] = field(repr=False)
    options: Mapping[str, Any] = field(repr=False)
    state_dir: Path
    manifest: Manifest = field(repr=False)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The backend works (`ready`), or is still starting. A broken one is told by raising an error instead."""

    ready: bool
    message: str = ""
    backend_version: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    backend: str = ""
    """Which of the manifest's backends it is; empty: the only one."""


class Driver:
    """Root of all drivers: the life cycle. A vertical's base class adds its methods.

    Each method is `async def`, or plain `def` if it blocks. A driver for a service of its own sets `services`:

        class SimDriver(Driver):
            services = (sim_pb2.DESCRIPTOR.services_by_name["SimService"],)

            async def run_simulation(self, request: RunSimulationRequest, context: Context) -> RunSimulationResult: ...
    """

    services: ClassVar[tuple[ServiceDescriptor, ...]] = ()
    facades: ClassVar[Mapping[str, str]] = {}
    """Contracts that the SDK can serve over the driver's methods: full name of the service → its Facade, `package.module:Class`. Those
    that metadata.json lists are imported and served."""

    def attach(self, attachment: Attachment) -> Answer[None]:
        """Takes the settings and connects. It MUST NOT wait for the backend: whether that works is `probe`'s to tell.

        Raise FieldInvalid("options.url", "…") for a wrong setting.
        """

    def detach(self) -> Answer[None]:
        """Lets go of the backend. No call runs any more. Also called after an `attach` that failed."""

    def probe(self) -> Answer[ProbeResult]:
        """Asks the backend, each time, whether it works. Raise BackendUnreachable or BackendExecutionFailed if it is broken."""
        return ProbeResult(ready=True)
