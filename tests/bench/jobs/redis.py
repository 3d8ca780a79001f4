"""A redis-server on a free port of loopback, with nothing on disk: how queues on Redis are fastest."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.fixtures.processes import Process, free_port


def available() -> bool:
    """Whether this machine has redis-server."""
    return shutil.which("redis-server") is not None


class RedisServer(Process):
    """One server; every system has a database of its own on it."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.address = f"redis://127.0.0.1:{port}"
        folder.mkdir(parents=True, exist_ok=True)
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        super().__init__([*command, "--save", "", "--appendonly", "no"], {}, "Ready to accept connections")
