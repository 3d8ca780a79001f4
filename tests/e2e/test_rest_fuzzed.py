"""schemathesis against the OpenAPI document: whatever is sent, the answer is a typed one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onecontainer.client import Client
from tests.fixtures.processes import GatewayProcess, running
from tests.fixtures.rest import RestProcess, bundled_services

ROOT = Path(__file__).resolve().parents[2]
CHECKS = "typed_errors,content_type_conformance,response_schema_conformance"
# What lasts until somebody ends it is not for a test of many requests.
LASTING = ":watch$|:wait$|:streamLogs$"

CONFIG = """
[[operations]]
include-path-regex = "^/v1/services/\\\\{service\\\\}/ai"
parameters = { service = "rest-onnx" }

[[operations]]
include-path-regex = "^/v1/services/\\\\{service\\\\}/tables"
parameters = { service = "rest-sql" }

[[operations]]
include-path-regex = "^/v1/services/\\\\{service\\\\}/media"
parameters = { service = "rest-ffmpeg" }

[[operations]]
include-path = "/v1/services/{service}:call/{contract}/{method}"
parameters = { service = "echo", contract = "onecontainer.test.echo.v1.EchoService", method = "Echo" }
"""


@pytest.fixture
def rest(tmp_path: Path, echo_drivers: Path) -> Iterator[RestProcess]:
    """Before a gateway of its own: requests delete what they find."""
    gateway = GatewayProcess(tmp_path / "data", [echo_drivers])
    with running(gateway):
        with Client(gateway.address) as client:
            client.services.create("echo", app="echo")
        bundled_services(gateway.address)
        front = RestProcess(gateway.address)
        with running(front):
            yield front


# With a time it begins again, with other requests, until that is over.
FEW = ("--max-examples", "3", "--seed", "1")
MANY = ("--max-examples", "20", "--max-time", "180")


@pytest.mark.parametrize("much", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_no_request_gets_an_untyped_error(rest: RestProcess, tmp_path: Path, much: tuple[str, ...]) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{rest.url}/openapi.json"),
        *("--phases", "fuzzing", "--no-shrink", *much),
        *("--checks", CHECKS, "--exclude-path-regex", LASTING, "--request-timeout", "120", "--continue-on-failure"),
        *("--warnings", "off", "--no-color", "--suppress-health-check", "all"),
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.fixtures.rest_checks",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    # It tells the seed too, by which the same requests come again.
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    selected = int(done.stdout.partition("Selected: ")[2].partition("/")[0])
    assert selected > 50, done.stdout[-3000:]
    assert int(done.stdout.partition("Tested: ")[2].split()[0]) == selected, done.stdout[-3000:]
