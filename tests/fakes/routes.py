"""A Router with one service, for tests and benchmarks of the relay alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from onecontainer.catalog.methods import MethodRoute
from onecontainer.errors import DriverUnreachable, ResourceNotFound
from onecontainer.gateway.relay import Shape
from onecontainer.jobs.directory import CatalogMethod, Entry
from onecontainer.jobs.model import Limits
from onecontainer.sidecars.model import Endpoint


@dataclass(frozen=True)
class FakeLongRunning:
    finishable: bool = False


@dataclass(frozen=True)
class FakeMethod:
    full_name: str
    request_type: str = "test.Request"
    result_type: str = "test.Result"
    client_streaming: bool = False
    server_streaming: bool = False
    idempotent: bool = False
    long_running: FakeLongRunning | None = None
    route: MethodRoute | None = None


@dataclass
class FakeRouter:
    """Services by name, each with the endpoint it is served by (None: it is starting)."""

    methods: dict[str, CatalogMethod]
    endpoints: dict[str, Endpoint | None] = field(default_factory=dict)

    def shape(self, method: str) -> Shape | None:
        found = self.methods.get(method)
        return (found.client_streaming, found.server_streaming) if found is not None else None

    def rule(self, method: str) -> MethodRoute | None:
        found = self.methods.get(method)
        return found.route if isinstance(found, FakeMethod) else None

    def entry(self, service: str) -> Entry:
        if service not in self.endpoints:
            raise ResourceNotFound(f"there is no {service}", resource=("onecontainer.dev/Service", service))
        return Entry(service, f"uid-of-{service}", self.methods, None, Limits(), "drivers/test-1.0")

    def endpoint(self, entry: Entry) -> Endpoint:
        endpoint = self.endpoints[entry.name]
        if endpoint is None:
            raise DriverUnreachable(f"{entry.name} is starting", retry_after=1.0)
        return endpoint
