"""Services and their methods as jobs and calls see them: the port to the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from onecontainer.errors import CapabilityMissing, DriverNotAvailable, MethodUnknown
from onecontainer.jobs.model import Limits


class LongRunningMethod(Protocol):
    @property
    def finishable(self) -> bool: ...


class CatalogMethod(Protocol):
    """What is needed of a method in the catalog."""

    @property
    def full_name(self) -> str: ...
    @property
    def request_type(self) -> str: ...
    @property
    def client_streaming(self) -> bool: ...
    @property
    def server_streaming(self) -> bool: ...
    @property
    def idempotent(self) -> bool: ...
    @property
    def result_type(self) -> str: ...
    @property
    def long_running(self) -> LongRunningMethod | None: ...
    @property
    def route(self) -> object | None:
        """None: the request has `string service = 1`."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A service as jobs see it. ``methods`` is None without a driver; ``implemented`` is None until its sidecar has said so."""

    name: str
    uid: str
    methods: Mapping[str, CatalogMethod] | None
    implemented: frozenset[str] | None
    limits: Limits
    driver: str = ""


class Directory(Protocol):
    """Finds services."""

    def entry(self, service: str) -> Entry:
        """The service ``services/{service}``. Raises ResourceNotFound."""
        ...


def method_of(entry: Entry, full_name: str) -> CatalogMethod:
    """The method of a service's driver.

    Raises:
        DriverNotAvailable: the service has no driver.
        MethodUnknown: its driver's services have no such method.
        CapabilityMissing: the driver does not implement it.
    """
    if entry.methods is None:
        raise DriverNotAvailable(
            f"{entry.name} has no driver; call MatchDrivers to see which fit, then AssignDriver",
            metadata={"service": entry.name},
        )
    method = entry.methods.get(full_name)
    if method is None:
        raise MethodUnknown(
            f"{entry.driver} has no method {full_name!r}; GetDriver lists its methods", metadata={"service": entry.name}
        )
    if entry.implemented is not None and full_name not in entry.implemented:
        raise CapabilityMissing(
            f"{entry.driver}, the driver of {entry.name}, does not implement {full_name}",
            metadata={"service": entry.name, "driver": entry.driver},
        )
    return method
