"""Where the cluster is and how it is asked, from the service's options and endpoints."""

from __future__ import annotations

import re
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecontainer.driver import errors
from onecontainer.driver.records.names import check_identifier

DEFAULT_PORT = 9042
MAX_NAME = 48
"""Characters of a keyspace's or table's name in Cassandra."""
_STRATEGIES = ("NetworkTopologyStrategy", "SimpleStrategy")
_DATACENTER = re.compile(r"[A-Za-z0-9_.:\-]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class Settings:
    contact_points: tuple[tuple[str, int], ...]
    keyspace: str
    replication: Mapping[str, str]
    local_datacenter: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    consistency: str = "LOCAL_QUORUM"
    serial_consistency: str = "SERIAL"
    request_timeout: float = 10.0
    connect_timeout: float = 10.0
    tls: ssl.SSLContext | None = None


def read_settings(options: Mapping[str, Any], endpoints: Mapping[str, str]) -> Settings:
    """Raises FieldInvalid or FieldRequired of what is wrong; no value that may be a secret is in the message."""
    if not endpoints:
        raise errors.FieldRequired("endpoints", "name the cluster's contact points, each HOST:PORT")
    keyspace = check_identifier(options.get("keyspace") or "", "options.keyspace", MAX_NAME)
    local = options.get("local_datacenter") or ""
    if local and not _DATACENTER.match(local):
        raise errors.FieldInvalid("options.local_datacenter", "is not a data centre's name")
    if options.get("password") and not options.get("user"):
        raise errors.FieldRequired("options.user", "is required with a password")
    return Settings(
        contact_points=tuple(_contact_point(endpoint) for endpoint in endpoints.values()),
        keyspace=keyspace,
        replication=_replication(options.get("replication") or {"replication_factor": 1}),
        local_datacenter=local,
        user=options.get("user") or "",
        password=options.get("password") or "",
        consistency=options.get("consistency") or "LOCAL_QUORUM",
        serial_consistency=options.get("serial_consistency") or "SERIAL",
        request_timeout=_seconds(options, "request_timeout"),
        connect_timeout=_seconds(options, "connect_timeout"),
        tls=_tls(options),
    )


def _contact_point(endpoint: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:cassandra://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+)(?::(\d{1,5}))?/?", endpoint)
    port = int(found[2] or DEFAULT_PORT) if found else 0
    if found is None or not 0 < port < 65_536:
        raise errors.FieldInvalid("endpoints", f"must be HOST:PORT or HOST, whose port is {DEFAULT_PORT}")
    return found[1].strip("[]"), port


def _seconds(options: Mapping[str, Any], name: str) -> float:
    given = options.get(name)
    if given is None:
        return 10.0
    if given <= 0:
        raise errors.FieldInvalid(f"options.{name}", "must be more than 0")
    return float(given)


def _replication(given: Mapping[str, Any]) -> dict[str, str]:
    """What CREATE KEYSPACE takes: names and numbers that are safe inside a literal, and nothing else."""
    strategy = given.get("class", _STRATEGIES[0])
    if strategy not in _STRATEGIES:
        raise errors.FieldInvalid("options.replication", f"class must be one of {', '.join(_STRATEGIES)}")
    replicas = {name: count for name, count in given.items() if name != "class"}
    if not replicas:
        raise errors.FieldInvalid("options.replication", 'names no data centre; such as {"dc1": 3}')
    for name, count in replicas.items():
        if not _DATACENTER.match(name):
            raise errors.FieldInvalid("options.replication", f"{name!r} is not a data centre's name")
        if isinstance(count, bool) or not re.fullmatch(r"[0-9]{1,3}(\.0)?", str(count)):
            raise errors.FieldInvalid("options.replication", f"replicas of {name!r} must be a whole number")
    return {"class": strategy} | {name: str(int(float(count))) for name, count in replicas.items()}


def _tls(options: Mapping[str, Any]) -> ssl.SSLContext | None:
    parts = [name for name in ("tls_ca", "tls_certificate", "tls_key") if options.get(name)]
    if not options.get("tls"):
        if parts:
            raise errors.FieldInvalid(f"options.{parts[0]}", "is set, but `tls` is not")
        return None
    try:
        context = ssl.create_default_context(cadata=options.get("tls_ca") or None)
    except (ssl.SSLError, ValueError):
        raise errors.FieldInvalid("options.tls_ca", "is no certificate in PEM") from None
    verify = options.get("tls_verify_hostname")
    context.check_hostname = verify is None or bool(verify)
    if options.get("tls_certificate") or options.get("tls_key"):
        _load_certificate(context, options.get("tls_certificate") or "", options.get("tls_key") or "")
    return context


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # OpenSSL reads files alone: this one is ours only, and gone at once.
    with tempfile.TemporaryDirectory(prefix="onecontainer-") as folder:
        file = Path(folder) / "client.pem"
        file.touch(mode=0o600)
        file.write_text(f"{certificate}\n{key}\n")
        try:
            context.load_cert_chain(file)
        except (ssl.SSLError, OSError):
            raise errors.FieldInvalid(
                "options.tls_certificate", "and `tls_key` are no certificate with its key, in PEM"
            ) from None
