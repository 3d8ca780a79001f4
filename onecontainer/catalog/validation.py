"""What is wrong with a service, all at once, each with the full path of its field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from urllib.parse import urlsplit

from packaging.version import InvalidVersion, Version

from onecontainer.catalog.mapping import HIDDEN
from onecontainer.catalog.model import DriverRecord, ServiceRecord
from onecontainer.catalog.ports import Secrets
from onecontainer.errors import FieldInvalid, FieldRequired, FieldViolation
from onecontainer.rpc.labels import label_violations
from onecontainer.rpc.options import option_violations, secret_name, secret_names
from onecontainer.rpc.texts import control_problem
from onecontainer.settings import is_loopback
from onecontainer.sidecars.model import RuntimeKind

MAX_DESCRIPTION = 4096
MAX_APP = 128
MAX_ENDPOINTS = 256
MAX_ENDPOINT = 2048
MAX_OPTION_BYTES = 64 * 1024
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
DRIVER_NAME = re.compile(r"drivers/[a-z][a-z0-9-]{0,62}[A-Za-z0-9.+!-]{0,64}")
REQUIRED = "is required"

Wrong = Callable[[str, str], None]


def service_violations(
    record: ServiceRecord, driver: DriverRecord | None, runtimes: Collection[str], secrets: Secrets
) -> list[FieldViolation]:
    """All violations of a service that is to be written; options are checked against the driver's manifest if there is one."""
    found: list[FieldViolation] = []

    def wrong(path: str, what: str) -> None:
        found.append(FieldViolation(f"service.{path}", what))

    if len(record.description) > MAX_DESCRIPTION:
        wrong("description", f"has {len(record.description)} characters; at most {MAX_DESCRIPTION} are allowed")
    elif problem := control_problem(record.description, layout=True):
        wrong("description", problem)
    if not record.app:
        wrong("app", REQUIRED)
    elif len(record.app) > MAX_APP or not record.app.isprintable() or record.app != record.app.strip():
        wrong("app", f"must be printable text of at most {MAX_APP} characters, without spaces around it")
    if problem := version_problem(record.app_version):
        wrong("app_version", problem)
    if record.driver and not DRIVER_NAME.fullmatch(record.driver):
        wrong("driver", "must be `drivers/{driver}`, or `drivers/{name}` for the highest version")
    _endpoints(record, wrong)
    found += label_violations(record.labels, "service.labels")
    _runtime(record, runtimes, secrets, wrong)
    _limits(record, wrong)
    try:
        if len(json.dumps(record.options, allow_nan=False)) > MAX_OPTION_BYTES:
            wrong("options", f"are larger than {MAX_OPTION_BYTES} bytes")
    except ValueError:
        wrong("options", "have a number that is not finite")
    if driver is not None and driver.manifest is not None:
        found += option_violations(driver.manifest.options, record.options, "service.options")
    for name, value in record.options.items():
        if value == HIDDEN:
            wrong(f"options.{name}", f"{HIDDEN} stands for the value that is stored, but there is none")
        for secret in sorted(secret_names(value)):
            problem = secrets.problem(secret)
            if problem:
                wrong(f"options.{name}", problem)
    return found


def version_problem(version: str) -> str:
    """What is wrong with an app's version, empty if nothing; an empty one is unknown."""
    try:
        Version(version or "0")
    except InvalidVersion:
        return f"{version[:64]!r} is not a PEP 440 version, such as 3.11.9"
    return ""


def raise_violations(violations: Iterable[FieldViolation]) -> None:
    """Raises FieldRequired if all are missing fields, FieldInvalid if any is another defect; nothing if there are none."""
    found = list(violations)
    if not found:
        return
    if all(violation.description == REQUIRED for violation in found):
        raise FieldRequired(violations=found)
    raise FieldInvalid(violations=found)


def _endpoints(record: ServiceRecord, wrong: Wrong) -> None:
    if len(record.endpoints) > MAX_ENDPOINTS:
        wrong("endpoints", f"has {len(record.endpoints)} nodes; at most {MAX_ENDPOINTS} are allowed")
    for node, address in record.endpoints.items():
        path = f"endpoints.{node[:64]}"
        if not NODE_NAME.fullmatch(node):
            wrong(path, f"the node's name does not match {NODE_NAME.pattern}")
        problem = _address_problem(address)
        if problem:
            wrong(path, problem)


def _address_problem(address: str) -> str:
    if not address or len(address) > MAX_ENDPOINT or not address.isprintable() or " " in address:
        return f"must be `host:port` or a URL, of at most {MAX_ENDPOINT} characters"
    if "://" in address:
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError as error:
            return f"is not a URL: {error}"
        if not parts.scheme or not (parts.netloc or parts.path) or port == 0:
            return "is not a URL with a host or a path"
        return ""
    host, colon, number = address.rpartition(":")
    if not colon or not host or not number.isdigit() or not 1 <= int(number) <= 65535:
        return "must be `host:port` with a port from 1 to 65535, or a URL"
    return ""


def _runtime(record: ServiceRecord, runtimes: Collection[str], secrets: Secrets, wrong: Wrong) -> None:
    runtime = record.runtime
    if runtime.kind is not None and runtime.kind.value not in runtimes:
        wrong(
            "runtime.kind",
            f"this installation has no runtime {runtime.kind.value}; it has: {', '.join(sorted(runtimes))}",
        )
    attached = runtime.kind is RuntimeKind.ATTACHED
    if attached and runtime.endpoint:
        problem = (
            control_problem(runtime.endpoint)
            if runtime.endpoint.startswith("unix:/")
            else _address_problem(runtime.endpoint)
        )
        if problem or "://" in runtime.endpoint:
            wrong("runtime.endpoint", "must be `host:port` or `unix:/path`")
        elif not is_loopback(runtime.endpoint) and not runtime.token_secret:
            wrong("runtime.token_secret", "is required for an endpoint that others than this host can reach")
    elif runtime.endpoint:
        wrong("runtime.endpoint", "is for RUNTIME_KIND_ATTACHED only")
    if runtime.token_secret:
        secret = secret_name(runtime.token_secret)
        if not attached:
            wrong("runtime.token_secret", "is for RUNTIME_KIND_ATTACHED only")
        elif not runtime.endpoint:
            wrong("runtime.token_secret", "is for an endpoint: a sidecar that registers itself is given its token")
        elif secret is None:
            wrong("runtime.token_secret", "must be `secrets/NAME`")
        elif problem := secrets.problem(secret):
            wrong("runtime.token_secret", problem)
    if runtime.kind is not RuntimeKind.DOCKER:
        for name, value in (
            ("devices", runtime.devices),
            ("resources", runtime.memory_bytes or runtime.cpus or runtime.pids),
            ("private_network", runtime.private_network),
        ):
            if value:
                wrong(f"runtime.{name}", "is for RUNTIME_KIND_DOCKER only")


def _limits(record: ServiceRecord, wrong: Wrong) -> None:
    limits = record.job_limits
    for name in ("max_running", "max_queued", "default_max_attempts"):
        if getattr(limits, name) < 0:
            wrong(f"job_limits.{name}", "must not be negative")
    if limits.max_running > 1024:
        wrong("job_limits.max_running", "must not be above 1024")
    if limits.default_max_attempts > 100:
        wrong("job_limits.default_max_attempts", "must not be above 100")
    if limits.drain_timeout is not None and not 0 <= limits.drain_timeout <= 86400:
        wrong("job_limits.drain_timeout", "must be from 0 to 86400 seconds")
