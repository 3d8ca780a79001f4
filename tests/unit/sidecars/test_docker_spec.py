"""What docker is told, without docker: contexts, digests, limits, words for an end, ownership of files."""

from __future__ import annotations

import importlib.metadata
import os
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.errors import DriverUnreachable, FieldInvalid
from onecontainer.sidecars.folders import Folders
from onecontainer.sidecars.model import RuntimeSpec, Target
from onecontainer.sidecars.runtimes import docker_context
from onecontainer.sidecars.runtimes.docker_container import describe_end
from onecontainer.sidecars.runtimes.docker_ownership import give
from onecontainer.sidecars.runtimes.docker_spec import Defaults, check, container_user, limits_of, settings_digest

DEFAULTS = Defaults(memory_bytes=1000, cpus=2.0, pids=100)


def target(**changes: object) -> Target:
    base = Target(
        uid="u1",
        service="services/one",
        app="echo",
        app_version="1.0",
        endpoints={"db": "db.example:5432"},
        options={"threads": 4},
        secrets=(),
        driver="drivers/echo-1.0.0",
        manifest=driver_pb2.DriverManifest(name="echo", version="1.0.0"),
        folder=None,
        runtime=RuntimeSpec(),
        slots=1,
        drain_timeout=10,
        generation=1,
    )
    return replace(base, **changes)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_context_is_the_drivers_files_and_a_dockerfile(tmp_path: Path) -> None:
    write(tmp_path, "metadata.json", "{}")
    write(tmp_path, "run.sh", "").chmod(0o755)
    for left_out in ("tests/test_it.py", "__pycache__/x.pyc", ".hidden"):
        write(tmp_path, left_out, "x")
    context = docker_context.driver_context(tmp_path)
    assert set(context) == {"metadata.json", "run.sh", "Dockerfile", "constraints.txt"}
    assert context["constraints.txt"].data == b""
    assert context["run.sh"].executable
    assert b"ARG BASE_IMAGE" in context["Dockerfile"].data
    own = write(tmp_path, "Dockerfile", "FROM scratch\n")
    assert docker_context.driver_context(tmp_path)["Dockerfile"].data == own.read_bytes()


def test_what_a_driver_requires_is_installed_as_it_is_here(tmp_path: Path) -> None:
    write(tmp_path, "metadata.json", "{}")
    write(tmp_path, "pyproject.toml", '[project]\ndependencies = ["pydantic>=2", "onecontainer", "not-there-at-all"]\n')
    lines = docker_context.driver_context(tmp_path)["constraints.txt"].data.decode().split()
    assert f"pydantic=={importlib.metadata.version('pydantic')}" in lines
    # What that requires in its turn, too; neither ourselves nor what is not there.
    assert f"pydantic-core=={importlib.metadata.version('pydantic-core')}" in lines
    assert not [line for line in lines if line.startswith(("onecontainer", "not-there"))]
    write(tmp_path, "constraints.txt", "pydantic==2.0\n")
    assert docker_context.driver_context(tmp_path)["constraints.txt"].data == b"pydantic==2.0\n"


def test_the_digest_is_of_what_goes_in(tmp_path: Path) -> None:
    write(tmp_path, "metadata.json", "{}")
    digest = docker_context.digest_of(docker_context.driver_context(tmp_path), "base")
    os.utime(tmp_path / "metadata.json", (1, 1))
    write(tmp_path, "tests/test_it.py", "x")
    same = docker_context.driver_context(tmp_path)
    assert docker_context.digest_of(same, "base") == digest
    assert docker_context.tar_of(same).read() == docker_context.tar_of(docker_context.driver_context(tmp_path)).read()
    assert docker_context.digest_of(same, "another base") != digest
    write(tmp_path, "metadata.json", "{ }")
    assert docker_context.digest_of(docker_context.driver_context(tmp_path), "base") != digest


def test_the_sdk_is_a_wheel_of_the_base_install() -> None:
    context = docker_context.sdk_context()
    (wheel,) = [file for name, file in context.items() if name.endswith(".whl")]
    names = zipfile.ZipFile(BytesIO(wheel.data)).namelist()
    assert "onecontainer/driver/__main__.py" in names
    assert "onecontainer/api/driver/v1/driver_pb2.py" in names
    assert not [name for name in names if name.startswith(("onecontainer/gateway", "onecontainer/sidecars"))]
    required = context["requirements.txt"].data.decode()
    assert "grpcio>=" in required
    assert "aiokafka" in required
    assert "sqlalchemy" not in required
    assert "grpcio==" in context["constraints.txt"].data.decode()


def test_limits_are_the_services_else_the_drivers_else_the_defaults() -> None:
    plain = limits_of(target(), DEFAULTS, host_cpus=8)
    assert (plain.memory_bytes, plain.cpus, plain.pids) == (1000, 2.0, 100)
    manifest = driver_pb2.DriverManifest(resources=driver_pb2.DriverResources(memory_bytes=5, cpus=3, pids=7))
    driver = limits_of(target(manifest=manifest), DEFAULTS, host_cpus=8)
    assert (driver.memory_bytes, driver.cpus, driver.pids) == (5, 3.0, 7)
    own = limits_of(target(manifest=manifest, runtime=RuntimeSpec(memory_bytes=9, cpus=16)), DEFAULTS, host_cpus=8)
    assert (own.memory_bytes, own.cpus, own.pids) == (9, 8.0, 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"threads": 5}},
        {"endpoints": {}},
        {"generation": 2},
        {"runtime": RuntimeSpec(memory_bytes=1)},
        {"slots": 2},
        {"driver": "drivers/echo-2.0.0"},
    ],
)
def test_other_settings_are_another_container(changes: dict[str, object]) -> None:
    digest = settings_digest(target(), "image:1", {})
    assert settings_digest(target(drain_timeout=99), "image:1", {}) == digest
    assert settings_digest(target(**changes), "image:1", {}) != digest
    assert settings_digest(target(), "image:2", {}) != digest


@pytest.mark.parametrize(
    "address", ["localhost:1", "127.0.0.1:5432", "postgresql://user@127.0.0.1/x", "http://[::1]:80/"]
)
def test_loopback_is_the_container_itself(address: str) -> None:
    with pytest.raises(FieldInvalid, match=r"host\.docker\.internal") as caught:
        check(target(endpoints={"db": address}))
    assert caught.value.violations[0].field == "endpoints.db"
    check(target(endpoints={"db": "host.docker.internal:5432", "web": "http://db.example/"}))


def test_devices_are_below_dev_or_gpus() -> None:
    check(target(runtime=RuntimeSpec(devices=("/dev/dri", "gpu"))))
    for device in ("/etc/shadow", "/dev/../etc/shadow", "dri"):
        with pytest.raises(FieldInvalid):
            check(target(runtime=RuntimeSpec(devices=(device,))))


def test_never_root() -> None:
    assert container_user(0, 0) == (65532, 65532)
    assert container_user(1000, 100) == (1000, 100)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"ExitCode": 3}, "exited with code 3"),
        ({"ExitCode": 137}, "was killed by SIGKILL"),
        ({"ExitCode": 137, "OOMKilled": True}, "needed more than its 64 MiB of memory"),
        ({"ExitCode": 127, "Error": "no such file"}, "could not run: no such file"),
        ({"ExitCode": 255}, "exited with code 255"),
    ],
)
def test_how_it_ended_in_words(state: dict[str, object], words: str) -> None:
    assert words in describe_end(state, 64 << 20)


def test_files_are_given_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = write(tmp_path, "outside", "x")
    write(tmp_path, "state/deep/file", "x")
    (tmp_path / "state" / "link").symlink_to(outside)
    # Only root gives files away; others keep them, and their containers have their own user.
    uid, gid = (65532, 65532) if os.getuid() == 0 else (os.getuid(), os.getgid())
    give(tmp_path / "state", 65532, 65532)
    for path in (tmp_path / "state", tmp_path / "state/deep", tmp_path / "state/deep/file"):
        assert (path.stat().st_uid, path.stat().st_gid) == (uid, gid)
    assert outside.stat().st_uid == os.getuid()


def test_folders_of_what_outlives_the_gateway_stay(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "data", tmp_path / "run")
    gone = folders.make("sidecars/one-aaaaaaaaaaaa", "u1", "t1", {})
    kept = folders.make("sidecars/two-bbbbbbbbbbbb", "u2", "t2", {"password": "p"}, outlives=True)
    ended = folders.make("sidecars/two-cccccccccccc", "u2", "t3", {}, outlives=True)
    later = Folders(tmp_path / "data", tmp_path / "run")
    later.clean()
    assert not gone.run.exists()
    assert not gone.scratch.exists()
    assert kept.scratch.exists()
    assert later.left("u2") == {"sidecars/two-bbbbbbbbbbbb", "sidecars/two-cccccccccccc"}
    assert not later.left("u1")
    later.forget_left(lambda uid: uid == "u2", keep=("sidecars/two-bbbbbbbbbbbb",))
    assert not ended.run.exists()
    assert later.open("sidecars/two-bbbbbbbbbbbb", "u2") == (kept, "t2")
    # What the container may write to is not where its token is.
    assert kept.socket.parent != kept.run
    with pytest.raises(DriverUnreachable):
        later.open("sidecars/two-cccccccccccc", "u2")
