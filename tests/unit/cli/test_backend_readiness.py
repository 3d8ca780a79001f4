"""Whether a port answers: docker's own listener takes each connection, and closes it again if nobody listens in the container."""

from __future__ import annotations

import http.server
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from onecontainer.cli.backends import readiness
from onecontainer.cli.backends.readiness import answers
from tests.fixtures.processes import free_port


class Silent(socketserver.BaseRequestHandler):
    """Waits for the other to speak."""

    def handle(self) -> None:
        self.request.recv(1)


class Greeting(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"+OK")


class Closing(socketserver.BaseRequestHandler):
    """As docker's listener without anybody behind it."""

    def handle(self) -> None:
        pass


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is a thread of ours: it may come to its turn later than docker's listener would."""
    monkeypatch.setattr(readiness, "CONNECT_TIMEOUT", 120.0)


@contextmanager
def served(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_connection_that_lives_is_enough_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Silent) as address:
        assert answers(address)
    monkeypatch.setattr(readiness, "LISTEN_TIME", 120.0)  # these do not let it be waited for
    with served(Greeting) as address:
        assert answers(address)
    with served(Closing) as address:
        assert not answers(address)
    assert not answers(f"127.0.0.1:{free_port()}")


def test_with_a_path_only_200_will_do() -> None:
    with served(Web) as address:
        assert answers(address, "/healthz")
        assert not answers(address, "/other")
    with served(Closing) as address:
        assert not answers(address, "/healthz")
    assert not answers(f"127.0.0.1:{free_port()}", "/healthz")
