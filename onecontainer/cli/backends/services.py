"""The services that are registered for backends."""

from __future__ import annotations

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.cli.backends.catalog import Backend, Runtime
from onecontainer.client import Client
from onecontainer.errors import DriverNotAvailable, ResourceConflict, ResourceNotFound

LABEL = "onecontainer.backend"
"""Label of a service: the backend that it was registered for."""
KINDS: dict[Runtime, resources_pb2.RuntimeKind.ValueType] = {
    "process": resources_pb2.RUNTIME_KIND_PROCESS,
    "docker": resources_pb2.RUNTIME_KIND_DOCKER,
}


def registered(client: Client, backend: Backend, timeout: float | None) -> resources_pb2.Service | None:
    """The backend's service; None: it is not registered. Raises ResourceConflict if another one has its name."""
    assert backend.service is not None
    name = backend.service.id
    try:
        found = client.services.get(name, timeout=timeout)
    except ResourceNotFound:
        return None
    if found.labels.get(LABEL) != backend.name:
        error = ResourceConflict(
            f"services/{name} is there already, and was not registered for the backend {backend.name}",
            resource=("onecontainer.dev/Service", f"services/{name}"),
        )
        error.add_note(
            f"Delete it, or make it the backend's: `oca service update {name} --label {LABEL}={backend.name}`."
        )
        raise error
    return found


def runtime_of(backend: Backend, found: resources_pb2.Service | None) -> Runtime:
    """Where its sidecar runs: what the registered service says, else the catalog."""
    if found is None:
        return (backend.service.runtime if backend.service else None) or "process"
    return "docker" if found.runtime.kind == resources_pb2.RUNTIME_KIND_DOCKER else "process"


def register(
    client: Client, backend: Backend, found: resources_pb2.Service | None, timeout: float | None
) -> resources_pb2.Service:
    """Registers the service, or brings it up to date: its endpoints follow its container, and it gets a driver that has come since.

    All else that was changed in it stays. A driver that is not installed is no error: the service is UNASSIGNED then.
    """
    entry = backend.service
    assert entry is not None
    runtime = runtime_of(backend, found)
    endpoints = backend.endpoints(runtime)
    if found is None:
        return client.services.create(
            entry.id,
            entry.app,
            app_version=entry.app_version,
            endpoints=endpoints,
            options=entry.options or None,
            labels={LABEL: backend.name},
            description=entry.description,
            # Its endpoints are those of one runtime: it is not left to the gateway's settings.
            runtime=resources_pb2.Runtime(kind=KINDS[runtime]) if entry.runtime or backend.container else None,
            timeout=timeout,
        )
    wanted = {**found.endpoints, **endpoints}
    if wanted != dict(found.endpoints):
        changes = resources_pb2.Service(endpoints=wanted, etag=found.etag)
        found = client.services.update(entry.id, changes, paths=["endpoints"], timeout=timeout)
    if found.state == resources_pb2.SERVICE_STATE_UNASSIGNED:
        try:
            found = client.services.assign_driver(entry.id, timeout=timeout)
        except DriverNotAvailable:
            return client.services.get(entry.id, timeout=timeout)
    return found


def settled(client: Client, backend: Backend, timeout: float) -> resources_pb2.Service:
    """The service once it is READY, or UNASSIGNED. Raises what keeps it from that."""
    assert backend.service is not None
    try:
        return client.services.wait_ready(backend.service.id, timeout=timeout)[0]
    except DriverNotAvailable:
        found = client.services.get(backend.service.id)
        if found.state == resources_pb2.SERVICE_STATE_UNASSIGNED:
            return found
        raise
