"""Where the server is and how it is asked, from the service's options and endpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onecontainer.driver import errors

_KEY = re.compile(r"[a-z0-9_.-]{1,128}\Z")
_TEXT = re.compile(r"[\x20-\x7e]*\Z")
MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM; empty: the system's authorities, the endpoint's name, no certificate of our own."""

    ca: str = ""
    server_name: str = ""
    certificate: str = ""
    key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds. `tls` None: without."""

    target: str
    default_model: str = ""
    models: tuple[str, ...] = ()
    request_timeout: float = 60.0
    probe_timeout: float = 5.0
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    max_message_bytes: int = 64 * 1024 * 1024
    tls: Tls | None = None


def read_settings(options: Mapping[str, Any], endpoints: Mapping[str, str]) -> Settings:
    """Raises FieldInvalid or FieldRequired of what is wrong; no value that may be a secret is in the message."""
    if len(endpoints) != 1:
        raise errors.FieldRequired("endpoints", "name the one server's gRPC endpoint, HOST:PORT")
    for name in ("request_timeout", "probe_timeout", "max_message_bytes"):
        if options[name] <= 0:
            raise errors.FieldInvalid(f"options.{name}", "must be more than 0")
    models = options.get("models") or []
    for number, model in enumerate(models):
        if not isinstance(model, str) or not model or len(model) > MAX_NAME:
            raise errors.FieldInvalid(f"options.models[{number}]", "is no name of a model")
    return Settings(
        target=_target(next(iter(endpoints.values()))),
        default_model=options.get("default_model") or "",
        models=tuple(models),
        request_timeout=float(options["request_timeout"]),
        probe_timeout=float(options["probe_timeout"]),
        metadata=_metadata(options),
        max_message_bytes=options["max_message_bytes"],
        tls=_tls(options),
    )


def _target(endpoint: str) -> str:
    found = re.fullmatch(r"(?:grpcs?://)?((?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5}))/?", endpoint)
    if found is None or not 0 < int(found[2]) < 65_536:
        raise errors.FieldInvalid("endpoints", "must be HOST:PORT, the server's gRPC port")
    return found[1]


def _metadata(options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for key, value in (options.get("metadata") or {}).items():
        if not _KEY.match(key) or key.startswith("grpc-") or key.endswith("-bin"):
            raise errors.FieldInvalid("options.metadata", f"{key[:64]!r} is no key of text metadata in lower case")
        if not isinstance(value, str) or not _TEXT.match(value):
            raise errors.FieldInvalid(f"options.metadata.{key}", "must be text of printable ASCII characters")
        pairs.append((key, value))
    token = options.get("token") or ""
    if token:
        if not _TEXT.match(token):
            raise errors.FieldInvalid("options.token", "must be text of printable ASCII characters")
        if any(key == "authorization" for key, _ in pairs):
            raise errors.FieldInvalid("options.token", "and `authorization` in `metadata` exclude each other")
        pairs.append(("authorization", f"Bearer {token}"))
    return tuple(pairs)


def _tls(options: Mapping[str, Any]) -> Tls | None:
    parts = [name for name in ("tls_ca", "tls_server_name", "tls_certificate", "tls_key") if options.get(name)]
    if not options.get("tls"):
        if parts:
            raise errors.FieldInvalid(f"options.{parts[0]}", "is set, but `tls` is not")
        return None
    for name in ("tls_ca", "tls_certificate", "tls_key"):
        if options.get(name) and "-----BEGIN " not in options[name]:
            raise errors.FieldInvalid(f"options.{name}", "is not in PEM")
    if bool(options.get("tls_certificate")) != bool(options.get("tls_key")):
        raise errors.FieldRequired("options.tls_key", "and `tls_certificate` belong together")
    return Tls(*((options.get(name) or "") for name in ("tls_ca", "tls_server_name", "tls_certificate", "tls_key")))
