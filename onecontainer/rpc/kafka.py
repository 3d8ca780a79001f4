"""What the gateway's producer and a sidecar's consumer share: names of headers, and settings of their clients."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import aiokafka  # its loggers are there from here on
from aiokafka.helpers import create_ssl_context

from onecontainer.api.event.v1 import event_pb2
from onecontainer.rpc.options import secret_name, secret_names

HEADER_ID, HEADER_TYPE, HEADER_SCHEMA = "ce_id", "ce_type", "ce_dataschema"
"""Headers of CloudEvents in Kafka's binary mode by which a consumer knows our records."""
DISPATCH_TYPE = "dev.onecontainer.job.dispatch.v1"
DISPATCH_SCHEMA = event_pb2.JobDispatch.DESCRIPTOR.full_name
SAY_AGAIN = 30.0


class Sparse(logging.Filter):
    """Lets each kind of message through once in ``SAY_AGAIN`` seconds: while a broker is away, aiokafka tells of each of its tries."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = (record.name, record.lineno), self._clock()
        if now - self._said.get(kind, float("-inf")) < SAY_AGAIN:
            return False
        self._said[kind] = now
        return True


def say_sparsely() -> None:
    """Filters what aiokafka logs in this process, once."""
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        if name.partition(".")[0] == aiokafka.__name__ and not any(isinstance(one, Sparse) for one in logger.filters):
            logger.addFilter(Sparse())


def client_options(settings: Mapping[str, str], secrets: Callable[[set[str]], Mapping[str, str]]) -> dict[str, Any]:
    """Keyword arguments of an aiokafka client from its settings: `secrets/NAME` replaced, CA and keys as a TLS context.

    `security_protocol`, `sasl_mechanism`, `sasl_plain_username` and `sasl_plain_password` go on as they are; `ssl_cafile`,
    `ssl_certfile` and `ssl_keyfile` are paths.
    """
    say_sparsely()
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
