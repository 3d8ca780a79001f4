"""Which driver a service gets, whether the two go together, and what its sidecar is to be then."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from onecontainer.catalog.matching import is_named, match_drivers, rejection_cause
from onecontainer.catalog.model import DriverRecord, ServiceRecord
from onecontainer.catalog.plugins import DRIVER_TYPE
from onecontainer.catalog.ports import Secrets
from onecontainer.catalog.validation import raise_violations, service_violations
from onecontainer.errors import DriverNotAvailable, FieldViolation, OneContainerError, ResourceNotFound
from onecontainer.rpc.manifest import Manifest, manifest_to_proto
from onecontainer.rpc.options import secret_names
from onecontainer.sidecars.model import Target


def choose(record: ServiceRecord, drivers: Collection[DriverRecord]) -> DriverRecord | None:
    """The driver that is named, else the best. Raises ResourceNotFound and DriverNotAvailable for one that is named."""
    match = match_drivers(drivers, record.app, record.app_version, record.driver)
    if not record.driver:
        return match.candidates[0] if match.candidates else None
    fitting = [driver for driver in match.candidates if is_named(driver, record.driver)]
    if fitting:
        return fitting[0]
    named = [driver for driver in drivers if is_named(driver, record.driver)]
    if not named:
        raise ResourceNotFound(
            f"{record.driver} is not installed; ListDrivers tells which drivers are",
            resource=(DRIVER_TYPE, record.driver),
        )
    causes = "; ".join(f"{driver.name}: {rejection_cause(driver, record.app, record.app_version)}" for driver in named)
    raise DriverNotAvailable(f"{record.driver} does not fit {record.name}: {causes}")


def why_unassigned(record: ServiceRecord, drivers: Collection[DriverRecord]) -> OneContainerError:
    """Why a service has no driver, or what would give it one."""
    try:
        choose(record, drivers)
    except OneContainerError as error:
        return error
    match = match_drivers(drivers, record.app, record.app_version, "")
    if match.candidates:
        return DriverNotAvailable(f"{match.candidates[0].name} would fit: call AssignDriver")
    return DriverNotAvailable(match.why_none(record.app))


def checked(
    record: ServiceRecord,
    drivers: Collection[DriverRecord],
    runtimes: Collection[str],
    secrets: Secrets,
    more: Iterable[FieldViolation] = (),
) -> DriverRecord | None:
    """The driver of a service that is to be written; raises all that is wrong with it at once, and `more`."""
    found = service_violations(record, None, runtimes, secrets)
    matchable = {"service.app", "service.app_version", "service.driver"}.isdisjoint(one.field for one in found)
    driver = choose(record, drivers) if matchable else None
    if driver is not None:
        found = service_violations(record, driver, runtimes, secrets)
    raise_violations([*more, *found])
    return driver


def target_of(record: ServiceRecord, driver: DriverRecord, manifest: Manifest, drain_timeout: float) -> Target:
    """What the service's sidecar is to be; `drain_timeout` (seconds) is for services that do not set their own."""
    limits = record.job_limits
    return Target(
        uid=record.uid,
        service=record.name,
        app=record.app,
        app_version=record.app_version,
        endpoints=record.endpoints,
        options=record.options,
        secrets=tuple(sorted(secret_names(record.options))),
        driver=driver.name,
        manifest=manifest_to_proto(manifest),
        folder=driver.folder,
        runtime=record.runtime,
        slots=limits.max_running or manifest.job_slots,
        drain_timeout=drain_timeout if limits.drain_timeout is None else limits.drain_timeout,
        generation=record.generation,
    )
