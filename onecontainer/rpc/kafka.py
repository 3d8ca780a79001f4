"""Settings of Kafka clients, the same for the gateway's producer and a sidecar's consumer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiokafka.helpers import create_ssl_context

from onecontainer.rpc.manifest import secret_name, secret_names


def client_options(settings: Mapping[str, str], secrets: Callable[[set[str]], Mapping[str, str]]) -> dict[str, Any]:
    """Keyword arguments of an aiokafka client from its settings: `secrets/NAME` replaced, CA and keys as a TLS context.

    `security_protocol`, `sasl_mechanism`, `sasl_plain_username` and `sasl_plain_password` go on as they are; `ssl_cafile`,
    `ssl_certfile` and `ssl_keyfile` are paths.
    """
    names = secret_names(dict(settings))
    texts = secrets(names)
    options: dict[str, Any] = {}
    for key, value in settings.items():
        name = secret_name(value)
        options[key] = value if name is None else texts[name]
    files = {key: options.pop(f"ssl_{key}", None) for key in ("cafile", "certfile", "keyfile")}
    if options.get("security_protocol", "").endswith("SSL"):
        options["ssl_context"] = create_ssl_context(**files)
    return options
