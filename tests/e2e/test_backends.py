"""`oca up --backend` and `oca backend` as a user has them: real docker, real gateway, a live stream that a player could play."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onecontainer.cli.process import note_of
from onecontainer.gateway.lock import DataFolder
from tests.fixtures.backends import BackendsOf, backends_of, tiny_entry, write_catalog
from tests.fixtures.cassandra_image import cassandra_image
from tests.fixtures.docker import base_image
from tests.fixtures.processes import Process, free_port
from tests.fixtures.waiting import until


class Installation:
    """A data folder, its gateway when one runs, and its backends; web-rtmp, cassandra and tiny (with the test driver) are on free ports."""

    def __init__(self, folder: Path, drivers: Path) -> None:
        self.data_dir = folder / "data"
        tiny = tiny_entry()
        tiny["service"] = {"id": "tiny", "app": "echo", "app_version": "1.0", "endpoints": {"node1": "{web}"}}
        port = tiny["container"]["ports"]["web"]["host"]
        self.tiny = f"127.0.0.1:{port}"
        lost = tiny_entry(image="localhost:1/nowhere:7")
        self.http, self.rtmp, self.cql = (f"127.0.0.1:{free_port()}" for _ in range(3))
        ports = {"web-rtmp.http": self.http, "web-rtmp.rtmp": self.rtmp, "cassandra.cql": self.cql}
        self.variables = {
            "ONECONTAINER_DATA_DIR": str(self.data_dir),
            "ONECONTAINER_LISTEN": f"127.0.0.1:{free_port()}",
            "ONECONTAINER_DRIVER_PATHS": str(drivers),
            "ONECONTAINER_BACKEND_CATALOG": str(write_catalog(folder / "catalog.json", tiny=tiny, lost=lost)),
            "ONECONTAINER_BACKEND_BASE_IMAGE": base_image(),
            "ONECONTAINER_BACKEND_PORTS": json.dumps({k: int(v.rpartition(":")[2]) for k, v in ports.items()}),
        }
        self.command = [sys.executable, "-m", "onecontainer.cli"]

    def oca(self, *arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [*self.command, *arguments],
            env={**os.environ, **self.variables, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert result.returncode == code, f"{arguments}: {result.stdout}\n{result.stderr}"
        return result

    def json(self, *arguments: str, **variables: str) -> Any:
        return json.loads(self.oca(*arguments, "-o", "json", **variables).stdout)

    @property
    def installation(self) -> str:
        return DataFolder(self.data_dir).node[:12]

    def stop(self) -> None:
        if note_of(self.data_dir) is not None:
            self.oca("down")


@pytest.fixture
def there(tmp_path: Path, echo_drivers: Path) -> Iterator[tuple[Installation, BackendsOf]]:
    made = Installation(tmp_path, echo_drivers)
    made.data_dir.mkdir(mode=0o700)
    try:
        with backends_of(made.installation) as docker:
            yield made, docker
    finally:
        made.stop()


def fetched(url: str) -> tuple[str, bytes]:
    """Content type and body; nothing of both if it is not there."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            return str(answer.headers["Content-Type"]), bytes(answer.read())
    except urllib.error.HTTPError:
        return "", b""


def test_up_starts_backends_and_a_second_start_changes_nothing(there: tuple[Installation, BackendsOf]) -> None:
    made, docker = there
    shown = made.oca("up", "--detach", "--backend", "web-rtmp", "--backend", "tiny").stdout
    assert f"web-rtmp: created, http on {made.http}, rtmp on {made.rtmp}" in shown
    assert f"tiny: created, web on {made.tiny}; services/tiny is READY" in shown
    first = [docker.container(name).attrs["State"]["StartedAt"] for name in ("web-rtmp", "tiny")]
    service = made.json("service", "get", "tiny")
    assert service["endpoints"] == {"node1": made.tiny}

    again = made.json("up", "--detach", ONECONTAINER_BACKENDS="web-rtmp,tiny")
    assert again["state"] == "already running"
    assert [backend["container"] for backend in again["backends"]] == ["running", "running"]
    assert [docker.container(name).attrs["State"]["StartedAt"] for name in ("web-rtmp", "tiny")] == first
    assert made.json("service", "get", "tiny") == service

    # They go on without the gateway, and are found again by the next one.
    made.oca("down")
    assert {one["name"]: one["container"] for one in made.json("backend", "list")}["tiny"] == "READY"
    after = made.json("up", "--detach", "--backend", "tiny")
    assert (after["state"], after["backends"][0]["container"]) == ("ready", "running")
    assert made.json("service", "get", "tiny")["etag"] == service["etag"]

    made.oca("backend", "stop", "tiny")
    listed = {one["name"]: one for one in made.json("backend", "list")}
    assert (listed["tiny"]["container"], listed["web-rtmp"]["container"]) == ("STOPPED", "READY")
    assert listed["tiny"]["service"].startswith("services/tiny ")
    assert "tiny: started" in made.oca("backend", "start", "tiny").stdout

    removed = made.oca("backend", "remove", "tiny", "web-rtmp").stdout
    assert "tiny: service removed, container removed, its data stays in" in removed
    made.oca("service", "get", "tiny", code=3)
    made.oca("backend", "remove", "tiny", "--data")
    assert docker.left() == []


def test_a_live_stream_goes_in_over_rtmp_and_out_over_hls(there: tuple[Installation, BackendsOf]) -> None:
    made, docker = there
    made.oca("backend", "start", "web-rtmp")  # without a gateway: it has no service
    ffmpeg = shutil.which("ffmpeg")
    assert ffmpeg is not None
    picture = ["-re", "-f", "lavfi", "-i", "testsrc2=size=160x90:rate=25", "-t", "600"]
    coded = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-pix_fmt", "yuv420p", "-f", "flv"]
    publisher = subprocess.Popen(
        [ffmpeg, "-loglevel", "error", *picture, *coded, f"rtmp://{made.rtmp}/live/x"], stdin=subprocess.DEVNULL
    )
    try:
        playlist = f"http://{made.http}/hls/x.m3u8"
        until(lambda: fetched(playlist)[1], "a playlist")
        kind, text = fetched(playlist)
        assert kind == "application/vnd.apple.mpegurl"
        # The newest: the oldest one may be removed before it is fetched.
        fragment = [line for line in text.decode().splitlines() if line.endswith(".ts")][-1]
        kind, body = fetched(f"http://{made.http}/hls/{fragment}")
        assert (kind, body[:1], len(body) % 188) == ("video/mp2t", b"\x47", 0)
        assert b"<name>x</name>" in fetched(f"http://{made.http}/stat")[1]
        assert b"<video" in fetched(f"http://{made.http}/")[1]
    finally:
        publisher.kill()
        publisher.wait()
    facts = docker.container("web-rtmp").attrs
    assert facts["Config"]["User"] == "www-data"
    assert facts["HostConfig"]["ReadonlyRootfs"]
    made.oca("backend", "remove", "web-rtmp")
    assert docker.left() == []


def test_a_backend_that_fails_or_has_no_driver_keeps_nobody_from_their_work(
    there: tuple[Installation, BackendsOf],
) -> None:
    made, _docker = there
    without = made.variables | {"ONECONTAINER_DRIVER_PATHS": ""}
    gateway = Process([*made.command, "up", "--backend", "lost", "--backend", "tiny"], without, "services/tiny is")
    gateway.start()
    try:
        until(lambda: any("no driver fits 'echo'" in line for line in gateway.lines), "told")
        said = "\n".join(gateway.lines)
        assert "oneContainer listens on" in said
        assert "lost: Error: STATE_INVALID" in said
        assert "ONECONTAINER_BACKEND_IMAGES" in said
        assert "services/tiny is UNASSIGNED" in said
        (service,) = made.json("service", "list")
        assert service["state"] == "SERVICE_STATE_UNASSIGNED"
        assert made.oca("backend", "start", "lost", code=1).stdout == "lost: pulling localhost:1/nowhere:7\n"
    finally:
        assert gateway.child is not None
        gateway.child.send_signal(signal.SIGTERM)
        assert gateway.child.wait(180) == 0
    # Once there is a driver, the next start gives it to the service.
    (backend,) = made.json("up", "--detach", "--backend", "tiny")["backends"]
    assert (backend["container"], backend["state"]) == ("running", "READY")


def test_a_service_of_that_name_that_is_somebody_elses_is_left_alone(there: tuple[Installation, BackendsOf]) -> None:
    made, docker = there
    made.oca("up", "--detach")
    made.oca("service", "create", "tiny", "--app", "echo", "--app-version", "1.0")
    before = made.json("service", "get", "tiny")["etag"]
    refused = made.oca("backend", "start", "tiny", code=1)
    assert "RESOURCE_CONFLICT" in refused.stderr
    assert "oca service update tiny --label onecontainer.backend=tiny" in refused.stderr
    made.oca("backend", "remove", "tiny", "--data", code=1)
    assert (made.json("service", "get", "tiny")["etag"], docker.left()) == (before, [])
    made.oca("service", "update", "tiny", "--label", "onecontainer.backend=tiny")
    assert made.json("backend", "start", "tiny")[0]["state"] == "READY"
    assert made.json("service", "get", "tiny")["endpoints"] == {"node1": made.tiny}


def test_what_cannot_be_is_said_before_a_gateway_starts(there: tuple[Installation, BackendsOf]) -> None:
    made, _docker = there
    assert "there is no backend 'casandra'" in made.oca("up", "--detach", "--backend", "casandra", code=3).stderr
    wrong = made.oca("up", "--backend", "tiny", code=2, ONECONTAINER_BACKEND_PORTS='{"tiny.wbe": 1}')
    assert "tiny.wbe: is not known" in wrong.stderr
    assert note_of(made.data_dir) is None
    assert "no gateway answers" in made.oca("backend", "start", "tiny", code=4).stderr


@pytest.mark.slow
def test_cassandra_comes_up_and_is_registered(there: tuple[Installation, BackendsOf]) -> None:
    made, docker = there
    images = json.dumps({"cassandra": cassandra_image()})
    shown = made.json("up", "--detach", "--backend", "cassandra", ONECONTAINER_BACKEND_IMAGES=images)
    (backend,) = shown["backends"]
    assert (backend["container"], backend["service"]) == ("created", "services/cassandra")
    assert made.json("service", "get", "cassandra")["endpoints"] == {"node1": made.cql}
    assert docker.container("cassandra").attrs["Config"]["User"] == "cassandra"
    host, _, port = made.cql.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(b"\x04\x00\x00\x00\x05\x00\x00\x00\x00")  # OPTIONS of the native protocol
        assert connection.recv(9)[4] == 0x06  # SUPPORTED
    made.oca("backend", "stop", "cassandra")
    assert made.json("backend", "start", "cassandra", ONECONTAINER_BACKEND_IMAGES=images)[0]["container"] == "started"
    made.oca("backend", "remove", "cassandra", "--data", ONECONTAINER_BACKEND_IMAGES=images)
    assert docker.left() == []
