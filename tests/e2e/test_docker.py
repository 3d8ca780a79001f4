"""Sidecars as containers, at a real dockerd: how they are made, and that they live on through whatever happens to the gateway."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest
from docker.models.containers import Container

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import Client
from onecontainer.client.management import service_error
from onecontainer.errors import DeadlineExceeded, OneContainerError, Reason
from tests.fixtures.docker import INSTALLATION, DockerGateway, base_image, docker_gateway
from tests.fixtures.processes import free_port
from tests.fixtures.stalls import stalls
from tests.fixtures.waiting import until

ECHO = "onecontainer.test.echo.v1.EchoService"
PROCESS = resources_pb2.Runtime(kind=resources_pb2.RUNTIME_KIND_PROCESS)


class Scene:
    """A gateway with the test driver in a container (`services/boxed`) and as a process (`services/plain`)."""

    def __init__(self, gateway: DockerGateway, drivers: Path) -> None:
        from onecontainer_driver_echo import echo_pb2  # built for this session

        self.pb = echo_pb2
        self.gateway = gateway
        self.drivers = drivers
        self.client = Client(gateway.address)

    def echo(self, service: str) -> bytes:
        """One call, tried again while the gateway is away: the method is idempotent.

        An attempt has time enough for a machine that stands still for a while: only one that never gets an answer fails.
        """
        request = self.pb.EchoRequest(service=f"services/{service}", payload=b"x")
        end = time.monotonic() + 120
        while True:
            try:
                with grpc.insecure_channel(self.gateway.address) as channel:
                    stub = channel.unary_unary(
                        f"/{ECHO}/Echo",
                        request_serializer=lambda message: message.SerializeToString(),
                        response_deserializer=self.pb.EchoResponse.FromString,
                    )
                    return bytes(stub(request, timeout=60).payload)
            except grpc.RpcError as error:
                # A call that meets the very end of a gateway's server is CANCELLED by it.
                away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                if not away or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def work(self, service: str, **fields: Any) -> Any:
        return self.client.jobs.create(
            service, f"{ECHO}/Work", self.pb.WorkRequest(service=f"services/{service}", **fields)
        )

    def sidecar(self, service: str) -> resources_pb2.Sidecar:
        """The one that is ready, else the newest."""
        found = self.client.sidecars.list(service=service)
        ready = [one for one in found if one.state == resources_pb2.SIDECAR_STATE_READY]
        return (ready or found)[0]

    def log_of(self, service: str) -> list[str]:
        return [line.text for line in self.client.sidecars.logs(self.sidecar(service).name, tail=1000)]

    def ready(self, service: str, **fields: Any) -> resources_pb2.Sidecar:
        self.client.services.create(service, app="echo", app_version="1.0", **fields)
        self.client.services.wait_ready(service, timeout=180)
        return self.sidecar(service)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, echo_drivers: Path) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("docker")
    drivers = folder / "drivers"
    shutil.copytree(echo_drivers / "echo", drivers / "echo")
    with docker_gateway(folder / "data", [drivers], restart_backoff_initial="1.5") as gateway:
        scene = Scene(gateway, drivers)
        with scene.client:
            scene.ready("boxed")
            scene.ready("plain", runtime=PROCESS)
            yield scene


class Load:
    """Calls a service again and again from threads, while the `with` block runs; `failures` are what was not answered."""

    def __init__(self, call: Callable[[], object], threads: int = 4) -> None:
        self.calls = 0
        self.failures: list[str] = []
        self._call = call
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._call()
                self.calls += 1
            except (grpc.RpcError, OneContainerError) as error:
                self.failures.append(repr(error))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_what_a_container_may_not(scene: Scene) -> None:
    facts = scene.gateway.container("boxed")
    host, config = facts["HostConfig"], facts["Config"]
    uid = config["User"].partition(":")[0]
    assert int(uid) != 0
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["ReadonlyRootfs"]
    assert set(host["Tmpfs"]) == {"/tmp"}
    assert (host["Memory"], host["MemorySwap"]) == (1 << 30, 1 << 30)
    assert 0 < host["NanoCpus"] <= 2e9
    assert host["PidsLimit"] == 512
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    assert host["PidMode"] == ""
    assert host["IpcMode"] == "private"
    assert not host["PortBindings"]
    assert not host["Devices"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python3", "-m", "onecontainer.rpc.health"]
    labels = config["Labels"]
    assert labels["dev.onecontainer.service"] == "services/boxed"
    assert labels["dev.onecontainer.instance"] == scene.sidecar("boxed").name
    assert labels["dev.onecontainer.driver"] == "drivers/echo-1.0.0"
    assert labels["dev.onecontainer.image"] == config["Image"]
    writable = {mount["Destination"] for mount in facts["Mounts"] if mount["RW"]}
    assert writable == {"/run/onecontainer/sidecar", "/var/lib/onecontainer", "/var/tmp/onecontainer"}
    # Nothing of the gateway's settings, and no secret of others, is in its environment.
    assert not [line for line in config["Env"] if "docker_base_image" in line.lower()]
    (network,) = facts["NetworkSettings"]["Networks"]
    options = scene.gateway.docker.networks.get(network).attrs["Options"]
    assert options["com.docker.network.bridge.enable_icc"] == "false"


def test_inside_it_holds(scene: Scene) -> None:
    (container,) = scene.gateway.containers("boxed")

    def run(command: str) -> tuple[int, str]:
        code, output = container.exec_run(["sh", "-c", command])
        return code, output.decode()

    assert run("id -u")[1].strip() != "0"
    assert "CapEff:\t0000000000000000" in run("cat /proc/1/status")[1]
    assert run("touch /opt/driver/x")[0] != 0
    assert run("touch /tmp/x && touch /var/lib/onecontainer/x && touch $ONECONTAINER_SCRATCH_DIR/x")[0] == 0
    assert run("echo other > /run/onecontainer/token")[0] != 0
    assert run("touch /run/onecontainer/gateway/x")[0] != 0
    code, output = run("python3 -m onecontainer.rpc.health")
    assert (code, output) == (0, "")
    assert run("ONECONTAINER_LISTEN=unix:/nowhere python3 -m onecontainer.rpc.health")[0] == 1


def test_containers_do_not_reach_each_other(scene: Scene) -> None:
    scene.ready("other")
    (one,), (other,) = scene.gateway.containers("boxed"), scene.gateway.containers("other")
    other.reload()
    (address,) = [network["IPAddress"] for network in other.attrs["NetworkSettings"]["Networks"].values()]
    serve = ["python3", "-m", "http.server", "8123", "--bind", "0.0.0.0", "--directory", "/opt/driver"]
    other.exec_run(serve, detach=True)
    fetch = "import urllib.request; print(urllib.request.urlopen('http://{}:8123/metadata.json', timeout=2).status)"

    def got(container: Container, host: str) -> bool:
        return container.exec_run(["python3", "-c", fetch.format(host)])[0] == 0

    until(lambda: got(other, address), "served")
    assert not got(one, address)
    scene.client.services.delete("other")


def test_calls_and_jobs_and_logs(scene: Scene) -> None:
    assert scene.echo("boxed") == b"x"
    job = scene.work("boxed", steps=2, step_seconds=0.01, artifact_bytes=1000)
    result = scene.pb.WorkResult()
    assert job.wait(timeout=60).state == job_pb2.JOB_STATE_SUCCEEDED
    job.packed_result().Unpack(result)
    assert len(scene.client.artifacts.get(result.artifact).name) > 0
    until(lambda: any("attached to services/boxed" in line for line in scene.log_of("boxed")), "its log")


def test_an_unchanged_driver_is_built_once(scene: Scene) -> None:
    image = scene.gateway.container("boxed")["Config"]["Image"]
    own = resources_pb2.Runtime(
        kind=resources_pb2.RUNTIME_KIND_DOCKER,
        devices=["/dev/full"],
        private_network=True,
        resources={"memory_bytes": 200 << 20, "cpus": 0.5, "pids": 99},
    )
    scene.ready("second", runtime=own)
    facts = scene.gateway.container("second")
    assert facts["Config"]["Image"] == image
    assert not [line for line in scene.log_of("second") if line.startswith("Step ")]
    # What a service asks for it gets.
    host = facts["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (200 << 20, 5e8, 99)
    assert [device["PathOnHost"] for device in host["Devices"]] == ["/dev/full"]
    (network,) = facts["NetworkSettings"]["Networks"]
    assert network not in scene.gateway.container("boxed")["NetworkSettings"]["Networks"]
    scene.client.services.delete("second")
    until(lambda: not scene.gateway.containers("second"), "removed")
    until(lambda: not scene.gateway.docker.networks.list(names=[network]), "its network removed")


def test_a_killed_container_comes_back(scene: Scene) -> None:
    old = scene.sidecar("boxed")
    (container,) = scene.gateway.containers("boxed")

    def killed() -> Any:
        """What is UNAVAILABLE, and says why. Until docker tells how it ended it is only known not to answer."""
        layers = scene.client.services.check_heartbeat("boxed").layers
        bad = [one for one in layers if one.state == resources_pb2.HEARTBEAT_STATE_UNAVAILABLE]
        return next((one for one in bad if "killed by SIGKILL" in one.error.message), None)

    with stalls() as still:
        begin = time.monotonic()
        container.kill()
        layer = until(killed, "UNAVAILABLE, for it was killed")
        assert layer.layer == resources_pb2.HEARTBEAT_LAYER_SIDECAR
        until(lambda: scene.sidecar("boxed").name != old.name, "another instance")
        scene.client.services.wait_ready("boxed", timeout=180)
        took = time.monotonic() - begin - still.seconds
    assert took < 20
    assert scene.echo("boxed") == b"x"
    assert len(scene.gateway.containers("boxed")) == 1


@pytest.mark.parametrize("clean", [False, True])
def test_a_gateway_that_starts_anew_goes_on_with_the_same_container(scene: Scene, clean: bool) -> None:
    gateway = scene.gateway
    before, sidecar = gateway.container("boxed"), scene.sidecar("boxed")
    job = scene.work("boxed", steps=60, step_seconds=0.1)
    until(lambda: job.refresh().state == job_pb2.JOB_STATE_RUNNING, "running")
    until(lambda: job.refresh().progress.done > 0, "at work")
    with Load(lambda: scene.echo("plain"), 2) as load:
        gateway.stop() if clean else gateway.kill()
        gateway.start()
        # Again, when it may just be going on with what was there.
        gateway.stop() if clean else gateway.kill()
        gateway.start()
        scene.client.services.wait_ready("boxed", "plain", timeout=120)
    assert load.failures == []
    assert load.calls > 0
    after = gateway.container("boxed")
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
    assert scene.sidecar("boxed").name == sidecar.name
    assert scene.echo("boxed") == b"x"
    ended = job.wait(timeout=60)
    assert (ended.state, ended.attempt_count) == (job_pb2.JOB_STATE_SUCCEEDED, 1)
    # Its log of before is there, and goes on.
    until(lambda: any("attached to services/boxed" in line for line in scene.log_of("boxed")), "its log")


def test_a_new_one_takes_over_under_load(scene: Scene) -> None:
    old = scene.sidecar("boxed")
    job = scene.work("boxed", steps=40, step_seconds=0.1)
    until(lambda: job.refresh().progress.done > 0, "at work")
    with Load(lambda: scene.echo("boxed")) as load:
        scene.client.services.assign_driver("boxed")
        until(lambda: scene.sidecar("boxed").name != old.name, "switched")
        until(lambda: load.calls > 200, "calls")
    assert load.failures == []
    # What ran in the old one ran to its end there.
    ended = job.wait(timeout=60)
    assert (ended.state, ended.attempt_count) == (job_pb2.JOB_STATE_SUCCEEDED, 1)
    until(lambda: len(scene.gateway.containers("boxed")) == 1, "the old one gone")


def test_one_that_does_not_get_ready_leaves_the_old_one_serving(scene: Scene) -> None:
    old = scene.sidecar("boxed")
    name = "boxed"
    scene.client.services.update(name, _options(broken=True), paths=["options.broken"])
    until(lambda: len(scene.gateway.containers(name)) == 2, "a second container")
    until(lambda: any(one.error.code for one in scene.client.sidecars.list(service=name)), "an error of the new one")
    assert scene.sidecar(name).name == old.name
    assert scene.echo(name) == b"x"
    # So it stays when the gateway starts anew.
    id_of_old = scene.sidecar(name).runtime_id
    scene.gateway.kill()
    scene.gateway.start()
    assert scene.echo(name) == b"x"
    assert (scene.sidecar(name).name, scene.sidecar(name).runtime_id) == (old.name, id_of_old)
    scene.client.services.update(name, _options(broken=False), paths=["options.broken"])
    until(lambda: scene.sidecar(name).name != old.name, "switched")
    until(lambda: len(scene.gateway.containers(name)) == 1, "one container")


def test_a_dockerfile_that_does_not_build(scene: Scene) -> None:
    old = scene.sidecar("boxed")
    dockerfile = scene.drivers / "echo" / "Dockerfile"
    dockerfile.write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo the-cause-of-it && exit 7\n")
    try:
        scene.client.services.create("unbuilt", app="echo", app_version="1.0")
        until(lambda: "the-cause-of-it" in str(_error(scene, "unbuilt")), "an error")
        found = _error(scene, "unbuilt")
        assert found.reason is Reason.DRIVER_NOT_AVAILABLE
        assert "the-cause-of-it" in str(found)
        assert "returned a non-zero code: 7" in str(found)
        # A redeployment of another service with it fails too, and leaves the old one where it is.
        scene.client.services.assign_driver("boxed")
        until(lambda: "the-cause-of-it" in str(_error(scene, "boxed")), "failed")
        assert scene.sidecar("boxed").name == old.name
        assert scene.echo("boxed") == b"x"
    finally:
        dockerfile.unlink()
    scene.client.services.wait_ready("unbuilt", timeout=60)
    scene.client.services.delete("unbuilt")
    # It is tried again, and now that it builds it takes over.
    until(lambda: scene.sidecar("boxed").name != old.name, "switched")
    until(lambda: len(scene.gateway.containers("boxed")) == 1, "the old one gone")


def test_orphans_are_reaped_and_others_are_left_alone(scene: Scene) -> None:
    gateway = scene.gateway
    image = gateway.container("boxed")["Config"]["Image"]
    installation = (gateway.data_dir / "node").read_text()

    def start(installation: str, uid: str) -> Any:
        labels = {
            INSTALLATION: installation,
            "dev.onecontainer.service-uid": uid,
            "dev.onecontainer.instance": "sidecars/lost",
        }
        return gateway.docker.containers.run(
            image, ["60"], entrypoint=["sleep"], detach=True, labels=labels, init=True
        )  # fmt: skip

    uid = scene.client.services.get("boxed").uid
    start(installation, "nobody")
    start(installation, uid)
    foreign = start("another", "nobody")
    before = gateway.containers("boxed")[0].id
    try:
        gateway.kill()
        gateway.start()
        until(lambda: {one.id for one in gateway.containers()} == {before}, "reaped")
        foreign.reload()
        assert foreign.status == "running"
        scene.client.services.wait_ready("boxed", timeout=30)
    finally:
        foreign.remove(force=True)


def test_what_a_container_cannot_reach_is_said(scene: Scene) -> None:
    scene.client.services.create(
        "far", app="echo", app_version="1.0", endpoints={"db": "postgresql://localhost:5432/x"}
    )
    error = until(lambda: _error(scene, "far"), "an error")
    assert error.reason is Reason.FIELD_INVALID
    assert "host.docker.internal" in str(error)
    scene.client.services.delete("far")


def test_a_bundled_driver_needs_no_more_than_its_folder(scene: Scene) -> None:
    scene.client.services.create("books", app="sql")
    scene.client.services.wait_ready("books", timeout=180)
    scene.client.db.create_table("books", "cups", {"id": "int64", "name": "text"}, key=["id"])
    scene.client.db.insert("books", "cups", [{"id": 1, "name": "茶"}])
    # What it keeps is in its state folder, which the next container has too.
    old = scene.sidecar("books")
    scene.client.services.assign_driver("books")
    until(lambda: scene.sidecar("books").name != old.name, "switched")
    assert list(scene.client.db.select("books", "cups")) == [{"id": 1, "name": "茶"}]
    scene.client.services.delete("books")


@pytest.mark.slow
def test_the_demo_in_containers(tmp_path: Path) -> None:
    settings = {"ONECONTAINER_RUNTIME": "docker", "ONECONTAINER_DOCKER_BASE_IMAGE": base_image()}
    demo = [sys.executable, "-m", "onecontainer.cli", "demo", "--data-dir", str(tmp_path / "data")]
    shown = subprocess.run(demo, env=os.environ | settings, capture_output=True, text=True, check=False, timeout=600)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "All three checked" in shown.stdout
    label = {"label": f"{INSTALLATION}={(tmp_path / 'data' / 'node').read_text()}"}
    with contextlib.closing(docker.from_env()) as client:
        assert client.containers.list(all=True, filters=label) == []
        assert client.networks.list(filters=label) == []


def test_deletion_removes_the_container_and_its_state(scene: Scene) -> None:
    scene.ready("short")
    uid = scene.client.services.get("short").uid
    assert (scene.gateway.data_dir / "state" / uid).exists()
    scene.client.services.delete("short")
    until(lambda: not scene.gateway.containers("short"), "removed")
    until(lambda: not (scene.gateway.data_dir / "state" / uid).exists(), "its state removed")
    # Those of earlier tests may be at their end still.
    until(lambda: len(list((scene.gateway.data_dir / "run" / "sidecars").iterdir())) == 2, "no folder left but of two")


def test_over_tcp_with_tls(tmp_path: Path, echo_drivers: Path) -> None:
    drivers = tmp_path / "drivers"
    shutil.copytree(echo_drivers / "echo", drivers / "echo")
    with docker_gateway(tmp_path / "data", [drivers], docker_listen=f"0.0.0.0:{free_port()}") as gateway:
        scene = Scene(gateway, drivers)
        with scene.client:
            sidecar = scene.ready("boxed")
            assert sidecar.target.startswith("127.0.0.1:")
            facts = gateway.container("boxed")
            assert [one["HostIp"] for one in facts["HostConfig"]["PortBindings"]["50061/tcp"]] == ["127.0.0.1"]
            assert "/run/onecontainer/gateway" not in {mount["Destination"] for mount in facts["Mounts"]}
            assert scene.echo("boxed") == b"x"
            # Whoever does not check, or checks by another authority, has no business there.
            with pytest.raises(grpc.FutureTimeoutError), grpc.insecure_channel(sidecar.target) as plain:
                grpc.channel_ready_future(plain).result(timeout=1)
            (container,) = gateway.containers("boxed")
            assert container.exec_run(["python3", "-m", "onecontainer.rpc.health"])[0] == 0
            # Jobs, reports and artifacts go the other way, and on when the gateway has been away.
            job = scene.work("boxed", steps=40, step_seconds=0.1, artifact_bytes=1000)
            until(lambda: job.refresh().progress.done > 0, "at work")
            gateway.kill()
            gateway.start()
            scene.client.services.wait_ready("boxed", timeout=120)
            assert gateway.container("boxed")["Id"] == facts["Id"]
            ended = job.wait(timeout=60)
            assert (ended.state, ended.attempt_count) == (job_pb2.JOB_STATE_SUCCEEDED, 1)


def test_without_docker_the_gateway_starts_and_says_how_to_get_it(tmp_path: Path, echo_drivers: Path) -> None:
    gateway = DockerGateway(tmp_path / "data", [echo_drivers])
    gateway._environment["DOCKER_HOST"] = f"unix://{tmp_path}/no.sock"
    try:
        gateway.start()
        with Client(gateway.address) as client:
            client.services.create("boxed", app="echo", app_version="1.0")
            until(lambda: client.services.get("boxed").error.code, "an error")
            with pytest.raises((OneContainerError, DeadlineExceeded)) as caught:
                client.services.wait_ready("boxed", timeout=3)
            assert "install Docker" in str(caught.value)
            client.services.create("plain", app="echo", app_version="1.0", runtime=PROCESS)
            client.services.wait_ready("plain", timeout=60)
    finally:
        gateway.kill()


def _options(**options: Any) -> resources_pb2.Service:
    record = resources_pb2.Service()
    record.options.update(options)
    return record


def _error(scene: Scene, service: str) -> OneContainerError | None:
    record = scene.client.services.get(service)
    return service_error(record) if record.error.code else None
