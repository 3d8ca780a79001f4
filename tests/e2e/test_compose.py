"""deploy/compose, as it is: the gateway on PostgreSQL and Kafka, drivers that register, all in containers made here."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
import requests

from onecontainer.api.media.v1.pipeline_pb2 import RunPipelineResult
from onecontainer.api.media.v1.stream_pb2 import AudioStream
from onecontainer.client import Client, Tls, transcode_request
from onecontainer.errors import DriverUnreachable, OneContainerError
from tests.fixtures.docker import base_image
from tests.fixtures.images import stand_in
from tests.fixtures.processes import free_port

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "compose"
IMAGES = ("gateway", "rest", "sql", "onnx", "ffmpeg")
SERVICES = ("records", "classifier", "transcoder")


def command() -> list[str]:
    """Compose as a plugin, or the program of its own that Debian has. Without both the test is skipped, in CI it fails."""
    for one in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(one[0]) and subprocess.run([*one, "version"], capture_output=True, check=False).returncode == 0:
            return one
    missing = "there is no docker compose: apt-get install docker-compose"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


class Compose:
    """A project of its own name, port and secrets."""

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(16)
        self.port = free_port()
        self.rest_port = free_port()
        self.project = f"octest{secrets.token_hex(4)}"
        self._command = command()
        self.docker = docker.from_env()
        environment = folder / "env"
        environment.write_text(
            f"COMPOSE_PROJECT_NAME={self.project}\n"
            f"ONECONTAINER_TOKEN={self.token}\n"
            f"POSTGRES_PASSWORD={secrets.token_hex(16)}\n"
            f"ONECONTAINER_PORT=127.0.0.1:{self.port}\n"
            f"ONECONTAINER_REST_PORT=127.0.0.1:{self.rest_port}\n"
            f"KAFKA_IMAGE={stand_in('kafka')}\n"
            f"POSTGRES_IMAGE={stand_in('postgres')}\n"
        )
        self._options = [
            "--env-file",
            str(environment),
            "--project-directory",
            str(FOLDER),
            "-f",
            str(FOLDER / "compose.yaml"),
        ]

    def run(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self._command, *self._options, *arguments], capture_output=True, text=True, check=False, timeout=300
        )
        if check and done.returncode:
            raise RuntimeError(f"{arguments}: {done.stdout}\n{done.stderr}\n{self.logs()}")
        return done.stdout

    def logs(self) -> str:
        return self.run("logs", "--no-color", "--tail=30", check=False)

    def client(self, folder: Path) -> Client:
        ca_file = folder / "ca.pem"
        ca_file.write_text(self.run("exec", "-T", "gateway", "cat", "/var/lib/onecontainer/tls/ca.pem"))
        return Client(f"localhost:{self.port}", token=self.token, tls=Tls(ca_file=ca_file))


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    build = [sys.executable, str(ROOT / "deploy/images/build.py"), "--base-image", base_image(), *IMAGES]
    made = subprocess.run(build, capture_output=True, text=True, check=False, timeout=900)
    assert made.returncode == 0, made.stdout + made.stderr
    compose = Compose(tmp_path_factory.mktemp("compose"))
    try:
        compose.run("up", "-d")
        yield compose
    finally:
        compose.run("down", "-v", "--remove-orphans", "--timeout", "5", check=False)
        compose.docker.close()


def wait_ready(client: Client, timeout: float = 240.0) -> None:
    """Until all services are there and READY: the one that registers them may be at it still."""
    end = time.monotonic() + timeout
    while True:
        try:
            return client.services.wait_ready(*SERVICES, timeout=max(1.0, end - time.monotonic()))
        except OneContainerError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def test_rows_and_jobs_from_the_host(compose: Compose, tmp_path: Path) -> None:
    clip = tmp_path / "tone.wav"
    tone = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "sine=duration=1", str(clip)]
    subprocess.run(tone, check=True, timeout=180)
    with compose.client(tmp_path) as client:
        wait_ready(client)
        client.db.create_table("records", "films", {"id": "int64", "title": "text"}, key=["id"])
        client.db.insert("records", "films", [{"id": 1, "title": "Metropolis"}])
        assert client.db.select("records", "films") == [{"id": 1, "title": "Metropolis"}]
        # Over Kafka to the driver, artifacts over the internal listener: all of it TLS.
        request = transcode_request(client.artifacts.upload(clip).name, "flac", audio=AudioStream(codec="flac"))
        job = client.media.run_pipeline("transcoder", request)
        result = job.result(RunPipelineResult, timeout=180)
        client.artifacts.download(result.outputs[0].files[0].artifact, tmp_path / "tone.flac")
    assert (tmp_path / "tone.flac").read_bytes().startswith(b"fLaC")


def test_rest_from_the_host(compose: Compose, tmp_path: Path) -> None:
    with compose.client(tmp_path) as client:
        wait_ready(client)
    url = f"https://localhost:{compose.rest_port}/v1/services"
    trust = str(tmp_path / "ca.pem")
    assert requests.get(url, verify=trust, timeout=180).json()["reason"] == "CREDENTIALS_MISSING"
    answer = requests.get(url, verify=trust, headers={"Authorization": f"Bearer {compose.token}"}, timeout=180)
    assert {one["name"] for one in answer.json()["services"]} == {f"services/{name}" for name in SERVICES}


@pytest.mark.slow  # compose starts what depends on what was restarted once more: more than a minute
def test_what_ends_comes_back(compose: Compose, tmp_path: Path) -> None:
    with compose.client(tmp_path) as client:
        wait_ready(client)
        client.db.create_table("records", "books", {"id": "int64"}, key=["id"])
        client.db.insert("records", "books", [{"id": 1}])
        compose.run("kill", "driver-sql")
        with pytest.raises(DriverUnreachable):
            client.db.select("records", "books")
        compose.run("up", "-d", "driver-sql")
        client.services.wait_ready("records", timeout=180)
        compose.run("restart", "gateway")
        wait_ready(client)
        assert client.db.select("records", "books") == [{"id": 1}]


def test_what_is_hardened(compose: Compose) -> None:
    docker = compose.docker
    for name in ("gateway", "rest", "driver-sql", "driver-onnx", "driver-ffmpeg"):
        (container,) = docker.containers.list(
            filters={"label": [f"com.docker.compose.project={compose.project}", f"com.docker.compose.service={name}"]}
        )
        host = container.attrs["HostConfig"]
        assert container.attrs["Config"]["User"] == "65532:65532"
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert host["Memory"] > 0
        assert host["PidsLimit"] > 0
