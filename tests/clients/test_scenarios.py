"""The same scenario in each language, by the stubs that `make stubs` makes, and with grpcurl; against a real gateway (`make clients`)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from onecontainer_driver_ffmpeg.demo import make_demo_clip

from deploy.stubs import packages, tools
from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.artifact.v1.artifact_pb2_grpc import ArtifactServiceStub
from onecontainer.api.job.v1 import job_pb2, job_service_pb2
from onecontainer.api.job.v1.job_service_pb2_grpc import JobServiceStub
from tests.clients import programs
from tests.fixtures.processes import GatewayProcess, running

PICTURE = packages.ROOT / "drivers/onnx/onecontainer_driver_onnx/assets/chelsea.png"
PATIENCE = 400.0
"""Seconds for a scenario, which says itself what takes too long long before."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path_factory.mktemp("gateway") / "data")
    with running(process):
        yield process


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of film: at the pace of playing that is long enough for some progress."""
    return make_demo_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=2, width=320, height=180)


def scenario(language: str, stubs_of: Callable[[str], Path], folder: Path) -> list[str]:
    """The command that runs it; builds what it takes in an empty folder."""
    if language == "grpcurl":
        return [str(programs.HERE / "grpcurl/scenario.sh")]
    try:
        return programs.BUILDERS[language](stubs_of(language), folder)
    except tools.ToolMissing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "language",
    [
        "go",
        "node",
        "python",
        "grpcurl",
        # What these build takes minutes the first time.
        pytest.param("java", marks=pytest.mark.slow),
        pytest.param("rust", marks=pytest.mark.slow),
    ],
)
def test_the_scenario_runs(
    language: str, gateway: GatewayProcess, clip: Path, stubs_of: Callable[[str], Path], tmp_path: Path
) -> None:
    command = scenario(language, stubs_of, tmp_path)
    result = subprocess.run(
        [*command, gateway.address, str(PICTURE), str(clip)],
        # None of our packages is found by chance; grpcurl is where .ci/run puts it.
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tools.cache() / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert "cat" in report["label"]
    assert report["uploaded_sha256"] == hashlib.sha256(clip.read_bytes()).hexdigest()
    assert (report["reason"], report["domain"]) == ("RESOURCE_NOT_FOUND", "onecontainer.dev")
    assert report["progress_updates"] >= 1
    assert (report["job_state"], report["cancelled_state"]) == ("JOB_STATE_SUCCEEDED", "JOB_STATE_CANCELLED")
    # The gateway tells the same.
    with grpc.insecure_channel(gateway.address) as channel:
        jobs, artifacts = JobServiceStub(channel), ArtifactServiceStub(channel)
        job = jobs.GetJob(job_service_pb2.GetJobRequest(name=report["job"]), timeout=180)
        assert (job.service, job.state) == (f"services/{language}-films", job_pb2.JOB_STATE_SUCCEEDED)
        assert report["made"] in job.artifacts
        made = artifacts.GetArtifact(artifact_pb2.GetArtifactRequest(name=report["made"]), timeout=180)
        assert made.sha256.hex() == report["made_sha256"]
        job = jobs.GetJob(job_service_pb2.GetJobRequest(name=report["cancelled"]), timeout=180)
        assert (job.service, job.state) == (f"services/{language}-films", job_pb2.JOB_STATE_CANCELLED)
