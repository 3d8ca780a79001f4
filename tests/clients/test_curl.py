"""What every client does, by curl alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.fixtures.processes import GatewayProcess, running
from tests.fixtures.rest import RestProcess

HERE = Path(__file__).parent
PHOTO = HERE.parents[1] / "drivers/onnx/onecontainer_driver_onnx/assets/chelsea.png"


def test_the_scenario_runs(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path / "data")
    with running(gateway), running(RestProcess(gateway.address)) as rest:
        assert isinstance(rest, RestProcess)
        command = ["bash", str(HERE / "curl" / "scenario.sh"), rest.url, str(PHOTO)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert "cat" in said.pop("predict")
    assert said == {
        "service": "SERVICE_STATE_READY",
        "artifact": "PNG",
        "job": "JOB_STATE_SUCCEEDED",
        "error": "RESOURCE_NOT_FOUND",
        "cancel": "JOB_STATE_CANCELLED",
        "deleted": "{}",
    }
