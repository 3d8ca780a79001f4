"""Whether a backend's port answers."""

from __future__ import annotations

import http.client
import socket

CONNECT_TIMEOUT = 2.0
LISTEN_TIME = 0.3
"""Seconds that a connection must live: docker itself takes it first, and closes it again if nobody listens in the container."""


def answers(address: str, path: str | None = None) -> bool:
    """Whether HOST:PORT takes connections, or, with a path, answers a GET of it with 200."""
    host, _, port = address.rpartition(":")
    return _serves(host, int(port), path) if path is not None else _accepts(host, int(port))


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), CONNECT_TIMEOUT) as connection:
            connection.settimeout(LISTEN_TIME)
            try:
                return connection.recv(1) != b""
            except TimeoutError:
                return True  # it waits for us to speak
    except OSError:
        return False


def _serves(host: str, port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
