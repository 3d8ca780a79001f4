"""`python -m onecontainer.rpc.health`: asks the sidecar of this container for its health, for HEALTHCHECK.

It reads the sidecar's own `ONECONTAINER_…` variables. Exit code 0: it serves; 1: it does not, or does not answer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

TIMEOUT = 5.0
"""Seconds that the answer may take."""


def problem(environment: Mapping[str, str]) -> str:
    """Why the sidecar does not serve, empty if it does."""
    with _channel(environment) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        except grpc.RpcError as error:
            return f"the sidecar does not answer: {error}"
    state = answer.status
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if state == serving else f"the sidecar is {health_pb2.HealthCheckResponse.ServingStatus.Name(state)}"


def _channel(environment: Mapping[str, str]) -> grpc.Channel:
    listen = environment.get("ONECONTAINER_LISTEN", "127.0.0.1:50061")
    if listen.startswith("unix:"):
        return grpc.insecure_channel(listen, options=[("grpc.default_authority", "localhost")])
    target = f"127.0.0.1:{listen.rpartition(':')[2]}"
    certificate = environment.get("ONECONTAINER_TLS_CA_FILE")
    if certificate is None:
        return grpc.insecure_channel(target)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(Path(certificate).read_bytes()))


if __name__ == "__main__":
    what = problem(os.environ)
    if what:
        sys.stderr.write(f"{what}\n")
    sys.exit(1 if what else 0)
