"""`oca up --rest`: REST comes with the gateway and goes with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from onecontainer.cli.process import is_alive, note_of
from tests.fixtures.processes import free_port
from tests.fixtures.rest import program


def oca(data: Path, *arguments: str, code: int = 0, **variables: str) -> str:
    environment = {
        **os.environ,
        "ONECONTAINER_DATA_DIR": str(data),
        "ONECONTAINER_LISTEN": "127.0.0.1:0",
        "ONECONTAINER_REST_PROGRAM": str(program()),
        **variables,
    }
    command = [sys.executable, "-m", "onecontainer.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def gone(url: str) -> bool:
    try:
        requests.get(f"{url}/healthz", timeout=5)
    except requests.ConnectionError:
        return True
    return False


@pytest.mark.parametrize("end", ["down", "kill"])
def test_rest_comes_and_goes_with_the_gateway(tmp_path: Path, end: str) -> None:
    told = json.loads(oca(tmp_path, "up", "--detach", "--rest", "127.0.0.1:0", "-o", "json"))
    url = told["rest"]
    try:
        assert requests.get(f"{url}/readyz", timeout=30).json() == {"status": "ready"}
        assert requests.get(f"{url}/v1/services", timeout=30).json() == {}
        again = oca(tmp_path, "up", "--detach")
        assert url in again
    finally:
        if end == "down":
            oca(tmp_path, "down")
        else:
            os.kill(told["pid"], signal.SIGKILL)
    if end == "kill":
        # It ends with whoever started it, however that ends.
        deadline = time.monotonic() + 60
        while (is_alive(told["pid"]) or not gone(url)) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert gone(url)


def test_an_address_that_is_taken_is_told_and_nothing_is_left_running(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    first = tmp_path / "first"
    oca(first, "up", "--detach", "--rest", address)
    try:
        told = oca(tmp_path / "second", "up", "--detach", "--rest", address, code=1)
        assert f"cannot listen on {address}: somebody else listens there" in told
        assert note_of(tmp_path / "second") is None
    finally:
        oca(first, "down")


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    told = oca(tmp_path, "up", "--rest", "127.0.0.1:0", code=1, ONECONTAINER_REST_PROGRAM="/nowhere/onecontainer-rest")
    assert "/nowhere/onecontainer-rest cannot be run" in told
