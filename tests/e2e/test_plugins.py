"""Plug-ins from nothing to their end, with a real gateway: a scaffold of each scope is made, tested, installed, called, run as a job,
upgraded and uninstalled, and nobody else notices."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.command_line import CommandLine
from tests.fixtures.processes import GatewayProcess, running
from tests.fixtures.waiting import until


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running(GatewayProcess(tmp_path_factory.mktemp("g") / "data")) as process:
        yield process


@pytest.fixture
def oca(gateway: GatewayProcess) -> CommandLine:
    return CommandLine(ONECONTAINER_ADDRESS=gateway.address)


@pytest.fixture
def scaffold(oca: CommandLine, tmp_path: Path):
    """Makes the scaffold of a scope, named after it."""

    def make(scope: str) -> Path:
        folder = tmp_path / scope
        said = oca("driver", "new", f"my-{scope}", "--scope", scope, "--dir", str(folder)).stdout
        assert f"oca driver install {folder}" in said
        return folder

    return make


def its_own_tests(folder: Path) -> str:
    """Runs the tests that a scaffold comes with, as its author would."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "CI": ""},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def predict(oca: CommandLine, tmp_path: Path) -> None:
    request = {"service": "services/s", "inputs": [{"text": "wo sind denn die anderen Leute geblieben"}]}
    answer = oca.json("call", "InferenceService/Predict", json.dumps(request))
    assert answer["predictions"][0]["classification"]["classes"][0]["label"] == "german"
    text = tmp_path / "text.txt"
    text.write_text("where are the other people of this town")
    names = [oca.json("artifact", "upload", str(text))["name"], "artifacts/0123456789abcdef0123456789abcdef"]
    request = {"service": "services/s", "source": {"artifacts": {"names": names}}}
    made = oca.json("call", "InferenceService/BatchPredict", json.dumps(request))
    result = oca.json("job", "wait", made["name"])["result"]
    assert (result["item_count"], result["failed_count"]) == ("2", "1")
    oca("artifact", "download", result["artifact"], "--to", str(tmp_path / "lines"))
    first, second = map(json.loads, (tmp_path / "lines").read_text().splitlines())
    assert first["response"]["predictions"][0]["classification"]["classes"][0]["label"] == "english"
    assert second["error"]["code"] == 5


def rows(oca: CommandLine, _tmp_path: Path) -> None:
    oca("db", "create-table", "s", "items", "-c", "id=int64", "-c", "name=text", "--key", "id")
    oca("db", "insert", "s", "items", "-", stdin='{"id": 2, "name": "two"}\n{"id": 1, "name": "one"}')
    assert oca.json("db", "select", "s", "items") == [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    assert "CAPABILITY_MISSING" in oca("db", "update", "s", "items", "--set", "name=x", "--all", code=1).stderr
    job = oca.json("job", "create", "s", "DatabaseService/ListTables", "{}", "--wait")
    assert job["result"]["tables"][0]["name"] == "services/s/tables/items"


def probed(oca: CommandLine, tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    with wave.open(str(clip), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    name = oca.json("artifact", "upload", str(clip))["name"]
    request = {"service": "services/s", "source": {"artifact": name}}
    answer = oca.json("call", "MediaService/Probe", json.dumps(request))
    assert answer["media_info"]["format"]["duration"] == "1s"
    job = oca.json("job", "create", "s", "MediaService/Probe", json.dumps({"source": {"artifact": name}}), "--wait")
    assert job["result"]["media_info"] == answer["media_info"]


def computed(oca: CommandLine, _tmp_path: Path) -> None:
    service = "my_hpc.v1.MyHpcService"
    assert service in oca("call").stdout
    assert f"{service}/Simulate" in oca("call", service).stdout
    integral = {"coefficients": [0, 0, 3], "upper": 1}
    request = {"service": "services/s", "integral": integral}
    assert oca.json("call", f"{service}/Integrate", json.dumps(request)) == {"value": 1.0}
    error = oca("call", f"{service}/Integrate", '{"service": "services/s"}', code=2).stderr
    assert "FIELD_REQUIRED: integral" in error
    job = oca.json("job", "create", "s", f"{service}/Integrate", json.dumps({"integral": integral}), "--wait")
    assert job["result"]["value"] == 1.0
    made = oca.json("call", f"{service}/Simulate", json.dumps(request | {"points": "50000"}))
    done = oca.json("job", "wait", made["name"])
    assert done["state"] == "JOB_STATE_SUCCEEDED"
    assert abs(done["result"]["value"] - 1) < 5 * done["result"]["standard_error"]
    assert done["progress"]["details"]["points"] == "50000"
    # One that would run for hours: it is ended early and gives what it has; another one is aborted.
    endless = json.dumps(request | {"points": "1000000000000"})
    early = oca.json("call", f"{service}/Simulate", endless)["name"]
    aborted = oca.json("call", f"{service}/Simulate", endless)["name"]
    # One that still waits in the queue has nothing to keep: it is just cancelled.
    until(lambda: oca.json("job", "get", early).get("progress", {}).get("done"), "on its way")
    oca("job", "cancel", early, "--finish")
    oca("job", "cancel", aborted)
    ended = oca.json("job", "wait", early)
    assert (ended["state"], ended["ended_early"]) == ("JOB_STATE_SUCCEEDED", True)
    assert oca.json("job", "get", aborted)["state"] in {"JOB_STATE_CANCELLED", "JOB_STATE_CANCELLING"}


USES = {"ai": predict, "db": rows, "media": probed, "hpc": computed}


@pytest.mark.parametrize("scope", USES)
def test_a_scaffold_works_as_generated(oca: CommandLine, scaffold, tmp_path: Path, scope: str) -> None:
    folder = scaffold(scope)
    assert " passed" in its_own_tests(folder)
    installed = oca.json("driver", "install", str(folder))
    name = f"my-{scope}-0.1.0"
    assert (installed["name"], installed["source"]) == (f"drivers/{name}", "DRIVER_SOURCE_PLUGIN")
    listed = oca("driver", "list", "--scope", scope).stdout
    assert name in listed
    assert installed["digest"].removeprefix("sha256:")[:12] in listed
    oca("service", "create", "s", "--app", f"my-{scope}", "--wait")
    try:
        USES[scope](oca, tmp_path)
        refused = oca("driver", "uninstall", name, code=1)
        assert "RESOURCE_IN_USE" in refused.stderr
        assert "services/s" in refused.stderr
    finally:
        oca("service", "delete", "s", "--force")
    assert f"uninstalled drivers/{name}" in oca("driver", "uninstall", name).stdout
    assert name not in oca("driver", "list").stdout
    assert oca.json("artifact", "list") == [] or all(
        "tar.gz" not in artifact["filename"] for artifact in oca.json("artifact", "list")
    )


def change(folder: Path, version: str, constant: float) -> None:
    """Another version of the hpc scaffold, whose integrals are off by a constant."""
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | {"version": version}))
    code = folder / "onecontainer_driver_my_hpc" / "driver.py"
    code.write_text(
        re.sub(r"IntegrateResponse\(value=.*value\)", f"IntegrateResponse(value={constant} + value)", code.read_text())
    )


def test_versions_a_restart_and_a_broken_one(
    gateway: GatewayProcess, oca: CommandLine, scaffold, tmp_path: Path
) -> None:
    folder = scaffold("hpc")
    request = json.dumps({"service": "services/v", "integral": {"coefficients": [2], "upper": 1}})

    def value() -> float:
        return oca.json("call", "MyHpcService/Integrate", request)["value"]

    archive = tmp_path / "one.tar.gz"
    assert "my-hpc 0.1.0" in oca("driver", "pack", str(folder), "--to", str(archive)).stdout
    assert "nothing was installed" in oca("driver", "install", str(archive), "--validate-only").stdout
    oca("driver", "install", str(archive))
    oca("service", "create", "v", "--app", "my-hpc", "--wait")
    assert value() == 2
    # The next version is there at once, and used when it is assigned.
    change(folder, "0.2.0", 100)
    oca("driver", "install", str(folder))
    assert value() == 2
    assert oca.json("driver", "match", "v")["candidates"][0]["name"] == "drivers/my-hpc-0.2.0"
    oca("service", "assign", "v", "--wait")
    assert value() == 102
    # The same version with other content is none; a broken one is refused with all that is wrong, and harms nobody.
    change(folder, "0.2.0", 1)
    assert "raise `version`" in oca("driver", "install", str(folder), code=1).stderr
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["options"][0]["type"] = "number"
    (folder / "metadata.json").write_text(json.dumps(metadata | {"version": "0.3.0", "scope": "games"}))
    refused = oca("driver", "install", str(folder), code=2).stderr
    assert "metadata.options[0].type" in refused
    assert "metadata.scope" in refused
    assert value() == 102
    before = oca.json("driver", "get", "my-hpc-0.2.0")
    gateway.stop()
    gateway.start()
    oca("service", "wait", "v")
    assert value() == 102
    assert oca.json("driver", "get", "my-hpc-0.2.0") == before
    oca("driver", "uninstall", "my-hpc-0.1.0")
    assert "STATE_INVALID" in oca("driver", "uninstall", "sql-0.1.0", code=1).stderr
    oca("service", "delete", "v", "--force")
    oca("driver", "uninstall", "my-hpc-0.2.0")
    assert "my_hpc" not in oca("call").stdout


def test_a_package_that_is_missing_is_named(oca: CommandLine, scaffold) -> None:
    folder = scaffold("ai")
    (folder / "onecontainer_driver_my_ai" / "classifier.py").write_text("import surely_not_there\n")
    project = folder / "pyproject.toml"
    project.write_text(
        project.read_text().replace('["onecontainer>=0.1.0"]', '["onecontainer>=0.1.0", "surely-not-there>=2"]')
    )
    oca("driver", "install", str(folder))
    oca("service", "create", "m", "--app", "my-ai")
    end = time.monotonic() + 180
    while "pip install 'surely-not-there>=2'" not in oca("service", "get", "m").stdout:
        assert time.monotonic() < end, oca("service", "get", "m").stdout
        time.sleep(0.1)
    oca("service", "delete", "m", "--force")
    oca("driver", "uninstall", "my-ai-0.1.0")


def test_names_and_folders_that_will_not_do(oca: CommandLine, tmp_path: Path) -> None:
    for name in ("My", "a_b", "1a", "a-", "a--b", "google", "x" * 64):
        assert (
            "FIELD_INVALID" in oca("driver", "new", name, "--scope", "ai", "--dir", str(tmp_path / "x"), code=2).stderr
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert "not empty" in oca("driver", "new", "a", "--scope", "ai", "--dir", str(tmp_path / "full"), code=1).stderr
    assert not (tmp_path / "x").exists()


def test_a_proto_that_is_wrong_is_told_by_its_line(oca: CommandLine, scaffold) -> None:
    folder = scaffold("hpc")
    proto = folder / "onecontainer_driver_my_hpc" / "my_hpc.proto"
    proto.write_text(proto.read_text().replace("double value = 1;", "double value = one;", 1))
    assert "my_hpc.proto:" in oca("driver", "build", str(folder), code=2).stderr


@pytest.mark.slow
def test_scaffolds_are_typed(oca: CommandLine, scaffold, tmp_path: Path) -> None:
    packages = []
    for scope in USES:
        folder = scaffold(scope)
        package = f"onecontainer_driver_my_{scope}"
        shutil.move(folder / package, tmp_path / package)
        packages += ["-p", package]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), *packages],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    # What protoc itself writes is not strict.
    wrong = [line for line in result.stdout.splitlines() if " error: " in line and "_pb2.pyi" not in line]
    assert wrong == []
    assert "checked" in result.stdout
