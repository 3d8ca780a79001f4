"""Routes: from a service's name to its record, its driver's methods and its sidecar.

Everything is in memory; no call waits for the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from onecontainer.catalog.catalog import Catalog
from onecontainer.catalog.methods import Method, MethodRoute
from onecontainer.catalog.model import ServiceRecord
from onecontainer.errors import DriverNotAvailable, DriverUnreachable, OneContainerError
from onecontainer.gateway.relay import Shape
from onecontainer.jobs.directory import Entry
from onecontainer.jobs.model import Limits
from onecontainer.sidecars.model import Endpoint, ServiceState
from onecontainer.sidecars.registrations import Post, Registrations

RETRY_AFTER = 1.0
"""Seconds after which a call to a service that is starting may be sent again."""


class Serving(Protocol):
    """What serves the services now."""

    def endpoint(self, uid: str) -> Endpoint | None: ...

    def state(self, uid: str) -> tuple[ServiceState, OneContainerError | None]: ...


class Routes:
    """The relay's Router and the jobs' Directory, on the catalog and what serves it."""

    def __init__(self, catalog: Catalog, sidecars: Serving, registrations: Registrations) -> None:
        self._catalog = catalog
        self._sidecars = sidecars
        self._registrations = registrations
        self._entries: dict[str, tuple[ServiceRecord, Entry]] = {}
        self._shapes: Mapping[str, Shape] = {}
        self._rules: Mapping[str, MethodRoute] = {}
        self.update()

    def update(self) -> None:
        """The drivers have changed."""
        shapes: dict[str, Shape] = {}
        rules: dict[str, MethodRoute] = {}
        for driver in self._catalog.drivers.values():
            if driver.methods is not None:
                for name, method in driver.methods.methods.items():
                    if name not in shapes:
                        shapes[name] = (method.client_streaming, method.server_streaming)
                        if method.route is not None:
                            rules[name] = method.route
        self._shapes, self._rules = shapes, rules
        self._entries.clear()

    def shape(self, method: str) -> Shape | None:
        return self._shapes.get(method)

    def rule(self, method: str) -> MethodRoute | None:
        return self._rules.get(method)

    def entry(self, service: str) -> Entry:
        record = self._catalog.resolve(service)
        cached = self._entries.get(service)
        if cached is not None and cached[0] is record:
            return cached[1]
        entry = self._entry(record)
        self._entries[service] = (record, entry)
        return entry

    def _entry(self, record: ServiceRecord) -> Entry:
        methods: Mapping[str, Method] | None = None
        slots = 1
        driver = self._catalog.driver_of(record)
        if driver is not None and driver.methods is not None:
            methods = driver.methods.methods
            if driver.manifest is not None:
                slots = driver.manifest.job_slots
        limits = Limits(record.job_limits.max_running or slots, record.max_queued, record.default_max_attempts)
        return Entry(record.name, record.uid, methods, None, limits, record.assigned_driver)

    def job_limits(self, service: str) -> tuple[int, int]:
        """How many jobs of a service may run at once, and the same if it is its operator who limits that (0: not).

        Without such a limit each slot counts, of its sidecar and of the workers that registered.
        """
        entry, limit = self.entry(service), self._catalog.resolve(service).job_limits.max_running
        return entry.limits.max_running + (0 if limit else self._registrations.slots(entry.uid)), limit

    def post(self, service: str) -> Post:
        """What a service has for those who register. Raises ResourceNotFound, and DriverNotAvailable if it has no driver."""
        record = self._catalog.resolve(service)
        driver = self._catalog.driver_of(record)
        if driver is None or driver.manifest is None:
            raise DriverNotAvailable(f"{service} has no driver; call MatchDrivers, then AssignDriver")
        manifest = driver.manifest
        return Post(
            record.uid, driver.name, manifest.name, manifest.job_slots, manifest.version, record.runtime.registers
        )

    def endpoint(self, entry: Entry) -> Endpoint:
        endpoint = self._sidecars.endpoint(entry.uid)
        if endpoint is not None:
            return endpoint
        state, error = self._sidecars.state(entry.uid)
        if state is ServiceState.UNASSIGNED or entry.methods is None:
            raise DriverNotAvailable(
                f"{entry.name} has no driver; call MatchDrivers to see which fit, then AssignDriver",
                metadata={"service": entry.name},
            )
        raise _unreachable(entry, state, error)


class JobDirectory:
    """Services as jobs see them: with what the running sidecar says it implements."""

    def __init__(self, routes: Routes, sidecars: Serving) -> None:
        self._routes = routes
        self._sidecars = sidecars
        self._entries: dict[str, tuple[Entry, frozenset[str], Entry]] = {}

    def entry(self, service: str) -> Entry:
        entry = self._routes.entry(service)
        endpoint = self._sidecars.endpoint(entry.uid)
        if endpoint is None:
            return entry
        cached = self._entries.get(service)
        if cached is not None and cached[0] is entry and cached[1] is endpoint.methods:
            return cached[2]
        found = replace(entry, implemented=endpoint.methods)
        self._entries[service] = (entry, endpoint.methods, found)
        return found


def _unreachable(entry: Entry, state: ServiceState, error: OneContainerError | None) -> DriverUnreachable:
    cause = f": {error.message}" if error is not None else ""
    what = "is starting" if state is ServiceState.STARTING else f"is {state.value}"
    return DriverUnreachable(
        f"{entry.name} {what}{cause}",
        metadata={"service": entry.name, "driver": entry.driver, "service_state": state.value},
        # FAILED needs a change by an operator; asking again does not help.
        retry_after=None if state is ServiceState.FAILED else RETRY_AFTER,
    )
