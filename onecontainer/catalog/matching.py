"""Which driver fits a service, and why the others do not. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState
from onecontainer.rpc.manifest import Manifest, bare_app


@dataclass(frozen=True, slots=True)
class Rejection:
    """A driver that does not fit, and the cause for people."""

    driver: str
    cause: str


@dataclass(frozen=True, slots=True)
class Match:
    """Drivers that fit, best first, and the others."""

    candidates: tuple[DriverRecord, ...]
    rejections: tuple[Rejection, ...]

    def why_none(self, app: str) -> str:
        """For people: why nothing fits."""
        if not self.rejections:
            return f"no driver is installed that could drive {bare_app(app)!r}"
        causes = "; ".join(f"{rejection.driver}: {rejection.cause}" for rejection in self.rejections)
        return f"no driver fits {bare_app(app)!r}: {causes}"


def match_drivers(drivers: Iterable[DriverRecord], app: str, app_version: str = "", wanted: str = "") -> Match:
    """Matches by app (image tag and digest dropped) and PEP 440 range of the app's version; an unknown version fits every range.

    Best first: the one that is named (`drivers/{driver}`, or `drivers/{name}` for its highest version), then the highest
    version, then by name. A name does not make a driver fit.
    """
    candidates: list[tuple[DriverRecord, Manifest]] = []
    rejections: list[Rejection] = []
    for driver in drivers:
        cause = rejection_cause(driver, app, app_version)
        if cause or driver.manifest is None:
            rejections.append(Rejection(driver.name, cause))
        else:
            candidates.append((driver, driver.manifest))
    # Sorted from the least important key to the first one: sorts are stable.
    candidates.sort(key=lambda pair: pair[1].name)
    candidates.sort(key=lambda pair: Version(pair[1].version), reverse=True)
    candidates.sort(key=lambda pair: not is_named(pair[0], wanted))
    rejections.sort(key=lambda rejection: rejection.driver)
    return Match(tuple(driver for driver, _ in candidates), tuple(rejections))


def newest_first(drivers: Iterable[DriverRecord]) -> list[DriverRecord]:
    """Bundled drivers, then the others; of each the highest version first. Those without a manifest come last."""

    def key(driver: DriverRecord) -> tuple[bool, Version]:
        return driver.source is DriverSource.BUNDLED, Version(
            "0" if driver.manifest is None else driver.manifest.version
        )

    return sorted(sorted(drivers, key=lambda driver: driver.name), key=key, reverse=True)


def rejection_cause(driver: DriverRecord, app: str, app_version: str) -> str:
    """Why a driver does not fit, empty if it does."""
    manifest = driver.manifest
    if driver.state is not DriverState.READY or manifest is None:
        return f"it is {driver.state.value}: {driver.error}" if driver.error else f"it is {driver.state.value}"
    if manifest.app != bare_app(app):
        return f'app is "{manifest.app}", the service has "{bare_app(app)}"'
    # Pre-releases count as versions of their own: an operator who runs one wants its driver.
    if app_version and not SpecifierSet(manifest.app_version).contains(Version(app_version), prereleases=True):
        return f'app_version is "{manifest.app_version}", the service has "{app_version}"'
    return ""


def is_named(driver: DriverRecord, wanted: str) -> bool:
    """Whether `wanted` names this driver, with or without its version."""
    return bool(wanted) and (
        driver.name == wanted or (driver.manifest is not None and f"drivers/{driver.manifest.name}" == wanted)
    )
