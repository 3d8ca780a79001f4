"""A stranger with grpcurl: everything from reflection alone, without a proto file or a line of our code."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onecontainer.client import Client
from tests.fixtures.processes import GatewayProcess

ROOT = Path(__file__).resolve().parents[2]
ECHO = "onecontainer.test.echo.v1.EchoService"


def _grpcurl() -> str:
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onecontainer-ci/bin/grpcurl"
    found = str(cached) if cached.exists() else shutil.which("grpcurl")
    if found is None:
        pytest.skip("grpcurl is not installed; .ci/run builds it")
    return found


@pytest.fixture(scope="module")
def grpcurl() -> str:
    return _grpcurl()


def run(program: str, gateway: GatewayProcess, *arguments: str, data: Any = None, fails: bool = False) -> str:
    command = [program, "-plaintext", "-max-time", "30"]
    if data is not None:
        command += ["-d", json.dumps(data)]
    result = subprocess.run([*command, gateway.address, *arguments], capture_output=True, text=True, check=False)
    assert bool(result.returncode) is fails, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_lists_all_services(grpcurl: str, gateway: GatewayProcess) -> None:
    listed = set(run(grpcurl, gateway, "list").split())
    assert {
        "onecontainer.api.management.v1.ManagementService",
        "onecontainer.api.job.v1.JobService",
        "onecontainer.api.artifact.v1.ArtifactService",
        "onecontainer.api.ai.v1.InferenceService",
        "onecontainer.api.db.v1.DatabaseService",
        "onecontainer.api.media.v1.MediaService",
        "grpc.health.v1.Health",
        ECHO,
    } <= listed
    # The internal listener's services are not shown on the public one.
    assert "onecontainer.api.job.v1.JobLeaseService" not in listed


@pytest.mark.parametrize(
    ("symbol", "text"),
    [
        ("onecontainer.api.management.v1.ManagementService", "rpc CreateService"),
        ("onecontainer.api.ai.v1.InferenceService", "rpc Predict"),
        ("onecontainer.api.db.v1.DatabaseService", "rpc SelectRecords"),
        ("onecontainer.api.media.v1.MediaService", "rpc RunPipeline"),
        ("onecontainer.api.job.v1.Job", "JobState state"),
        (ECHO, "rpc Work"),
    ],
)
def test_describes(grpcurl: str, gateway: GatewayProcess, symbol: str, text: str) -> None:
    assert text in run(grpcurl, gateway, "describe", symbol)


def test_calls_every_shape_of_a_plug_in_service(grpcurl: str, gateway: GatewayProcess) -> None:
    payload = base64.b64encode(b"hello").decode()
    request = {"service": "services/echo", "payload": payload}
    assert json.loads(run(grpcurl, gateway, f"{ECHO}/Echo", data=request)) == {"payload": payload}
    down = run(grpcurl, gateway, f"{ECHO}/Down", data={**request, "count": 3})
    assert down.count(payload) == 3
    up = run(grpcurl, gateway, f"{ECHO}/Up", data=request)
    assert json.loads(up) == {"payload": base64.b64encode(b"5").decode()}
    assert payload in run(grpcurl, gateway, f"{ECHO}/Both", data=request)


def test_a_long_running_call_answers_with_a_job_that_can_be_waited_for(grpcurl: str, gateway: GatewayProcess) -> None:
    started = json.loads(run(grpcurl, gateway, f"{ECHO}/Work", data={"service": "services/echo", "steps": 2}))
    assert started["state"] == "JOB_STATE_QUEUED"
    waited = json.loads(
        run(grpcurl, gateway, "onecontainer.api.job.v1.JobService/WaitJob", data={"name": started["name"]})
    )
    assert waited["state"] == "JOB_STATE_SUCCEEDED"
    # The result is an Any of the plug-in's own type, decoded by reflection.
    assert waited["result"]["@type"].endswith("echo.v1.WorkResult")
    assert waited["result"]["steps"] == 2


def test_management_and_heartbeat(grpcurl: str, gateway: GatewayProcess) -> None:
    management = "onecontainer.api.management.v1.ManagementService"
    service = json.loads(run(grpcurl, gateway, f"{management}/GetService", data={"name": "services/echo"}))
    assert service["state"] == "SERVICE_STATE_READY"
    beat = json.loads(run(grpcurl, gateway, f"{management}/CheckHeartbeat", data={"name": "services/echo"}))
    assert beat["state"] == "HEARTBEAT_STATE_OK"
    assert [layer["state"] for layer in beat["layers"]] == ["HEARTBEAT_STATE_OK"] * 3
    health = json.loads(run(grpcurl, gateway, "grpc.health.v1.Health/Check", data={}))
    assert health == {"status": "SERVING"}


def test_shows_errors_with_decoded_details(grpcurl: str, gateway: GatewayProcess) -> None:
    said = run(grpcurl, gateway, f"{ECHO}/Echo", data={"service": "services/nobody"}, fails=True)
    assert "NotFound" in said
    assert "type.googleapis.com/google.rpc.ErrorInfo" in said
    assert '"reason": "RESOURCE_NOT_FOUND"' in said
    assert '"legacy_code": "101"' in said
    said = run(grpcurl, gateway, f"{ECHO}/Echo", data={"service": "services/echo", "behaviour": "typed"}, fails=True)
    assert '"reason": "DATA_INVALID"' in said
    assert '"field": "payload"' in said
    said = run(grpcurl, gateway, f"{ECHO}/Missing", data={"service": "services/echo"}, fails=True)
    assert '"reason": "CAPABILITY_MISSING"' in said


@pytest.fixture(scope="module")
def three_services(gateway: GatewayProcess) -> None:
    """The bundled drivers' services, READY: sql, onnx, ffmpeg."""
    with Client(gateway.address) as client:
        for app in ("sql", "onnx", "ffmpeg"):
            client.services.create(app, app=app)
        client.services.wait_ready("sql", "onnx", "ffmpeg", timeout=120)


@pytest.mark.usefixtures("three_services")
def test_calls_the_database_service(grpcurl: str, gateway: GatewayProcess) -> None:
    database = "onecontainer.api.db.v1.DatabaseService"
    columns = [
        {"name": "id", "type": {"kind": "TYPE_KIND_INT64"}},
        {"name": "name", "type": {"kind": "TYPE_KIND_TEXT"}},
    ]
    table = {"service": "services/sql", "table_id": "pets", "table": {"columns": columns, "partition_key": ["id"]}}
    run(grpcurl, gateway, f"{database}/CreateTable", data=table)
    record = {"fields": {"id": {"int64_value": "1"}, "name": {"text_value": "O'Brien"}}}
    written = {"service": "services/sql", "table": "pets", "records": [record]}
    run(grpcurl, gateway, f"{database}/InsertRecords", data=written)
    read = json.loads(
        run(grpcurl, gateway, f"{database}/SelectRecords", data={"service": "services/sql", "table": "pets"})
    )
    assert read["records"] == [{"fields": {"id": {"int64Value": "1"}, "name": {"textValue": "O'Brien"}}}]


@pytest.mark.usefixtures("three_services")
def test_calls_the_inference_service(grpcurl: str, gateway: GatewayProcess) -> None:
    photo = ROOT / "drivers/onnx/onecontainer_driver_onnx/assets/chelsea.png"
    # On stdin: as an argument the picture would be too long for the system.
    data = {"service": "services/onnx", "inputs": [{"image": base64.b64encode(photo.read_bytes()).decode()}]}
    result = subprocess.run(
        [grpcurl, "-plaintext", "-d", "@", gateway.address, "onecontainer.api.ai.v1.InferenceService/Predict"],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        check=True,
    )
    best = json.loads(result.stdout)["predictions"][0]["classification"]["classes"][0]
    assert "cat" in best["label"]
    said = run(
        grpcurl,
        gateway,
        "onecontainer.api.ai.v1.InferenceService/Predict",
        data={"service": "services/onnx", "inputs": [{"image": base64.b64encode(b"no image").decode()}]},
        fails=True,
    )
    assert '"reason": "DATA_INVALID"' in said
    assert '"field": "inputs[0].image"' in said


@pytest.mark.usefixtures("three_services")
def test_calls_the_media_service(grpcurl: str, gateway: GatewayProcess, tmp_path: Path) -> None:
    from onecontainer_driver_ffmpeg.demo import make_demo_clip

    media = "onecontainer.api.media.v1.MediaService"
    with Client(gateway.address) as client:
        clip = client.artifacts.upload(make_demo_clip(tmp_path / "clip.mp4", seconds=2, width=320, height=180)).name
    source = {"artifact": clip}
    probed = json.loads(run(grpcurl, gateway, f"{media}/Probe", data={"service": "services/ffmpeg", "source": source}))
    assert {"h264", "aac"} == {stream["codec"] for stream in probed["mediaInfo"]["streams"]}
    pipeline = {
        "service": "services/ffmpeg",
        "inputs": [{"source": source}],
        "outputs": [{"key": "main", "file": {"container": "mkv"}}],
    }
    job = json.loads(run(grpcurl, gateway, f"{media}/RunPipeline", data=pipeline))["name"]
    ended = json.loads(run(grpcurl, gateway, "onecontainer.api.job.v1.JobService/WaitJob", data={"name": job}))
    assert ended["state"] == "JOB_STATE_SUCCEEDED"
    assert ended["result"]["outputs"][0]["state"] == "OUTPUT_STATE_SUCCEEDED"
