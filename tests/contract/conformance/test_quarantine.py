"""The smoke test of plug-ins in a gateway: what fails it is in quarantine, with the report, and no service gets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.catalog.drivers import read_driver
from onecontainer.catalog.model import DriverRecord, DriverSource
from onecontainer.client import Client
from onecontainer.errors import DriverNotAvailable
from onecontainer.gateway.smoke import SmokeTest
from tests.drivers.build import build_driver
from tests.fixtures.processes import GatewayProcess, running

CARELESS = """
from onecontainer.driver.lifecycle import Sidecar
from onecontainer_driver_echo import EchoDriver

# As a driver with a server of its own might: whatever the options are, it takes them.
Sidecar._options = lambda self, request: {"greeting": "hello", "broken": False}


class CarelessDriver(EchoDriver):
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drivers: `echo`, which is one, and `careless`, which takes every option."""
    root = tmp_path_factory.mktemp("plugins")
    echo = build_driver("echo", root)
    careless = root / "careless"
    shutil.copytree(echo, careless)
    (careless / "careless.py").write_text(CARELESS)
    manifest = json.loads((echo / "metadata.json").read_text())
    manifest |= {"name": "careless", "app": "careless", "entry_point": "careless:CarelessDriver"}
    (careless / "metadata.json").write_text(json.dumps(manifest))
    return root


def driver(folder: Path, name: str) -> DriverRecord:
    return read_driver(folder / name, DriverSource.PLUGIN, 1)[0]


async def test_what_passes_is_remembered_by_its_content(folder: Path, tmp_path: Path) -> None:
    remembered = tmp_path / "passed"
    echo = driver(folder, "echo")
    assert await SmokeTest(remembered)(echo) is None
    assert len(list(remembered.iterdir())) == 1
    # Not run again: it would not end in no time.
    assert await SmokeTest(remembered, seconds=0.0)(echo) is None
    assert len(list(remembered.iterdir())) == 1


async def test_what_fails_gets_the_report_and_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    error = await SmokeTest(tmp_path / "passed")(driver(folder, "careless"))
    assert error is not None
    assert "attach.unknown-option" in error.metadata["failed_checks"].split()
    assert "conformance_no_such_option" in error.message
    assert not (tmp_path / "passed").exists()


def variant(folder: Path, tmp_path: Path, code: str) -> DriverRecord:
    """The driver `echo` with another class, whose module is this code."""
    shutil.copytree(folder / "echo", tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "metadata.json").read_text()) | {"entry_point": "other:OtherDriver"}
    (tmp_path / "other" / "metadata.json").write_text(json.dumps(manifest))
    (tmp_path / "other" / "other.py").write_text(code)
    return driver(tmp_path, "other")


async def test_what_needs_another_environment_is_not_judged(folder: Path, tmp_path: Path) -> None:
    other = variant(folder, tmp_path, "import package_of_another_image\n")
    assert await SmokeTest(tmp_path / "passed")(other) is None
    assert not (tmp_path / "passed").exists()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('no such place')\n", "ValueError: no such place"),
        ("def broken(:\n", "SyntaxError"),
        ("raise SystemExit(4)\n", "SystemExit: 4"),
        ("import os; os._exit(0)\n", "it has ended"),
        ("class AnotherDriver: pass\n", "is no subclass"),
        ("import other.part\n", "other.part"),
    ],
)
async def test_what_does_not_start_is_in_quarantine(folder: Path, tmp_path: Path, code: str, said: str) -> None:
    error = await SmokeTest(tmp_path / "passed")(variant(folder, tmp_path, code))
    assert error is not None
    assert said in error.message
    assert "importlib" not in error.message


async def test_what_hangs_is_in_quarantine_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    code = f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
with open({str(tmp_path / "pids")!r}, "w") as pids:
    pids.write(f"{{os.getpid()}} {{child.pid}}")
os.rename({str(tmp_path / "pids")!r}, {str(tmp_path / "started")!r})
time.sleep(600)
"""
    other = variant(folder, tmp_path, code)
    for seconds in (5.0, 20.0, 60.0):  # as long as it takes this machine to start it at all
        error = await SmokeTest(tmp_path / "passed", seconds=seconds)(other)
        if (tmp_path / "started").exists():
            break
    assert error is not None
    assert "did not end within" in error.message or "nothing for" in error.message
    pids = (tmp_path / "started").read_text().split()
    assert not [pid for pid in pids if Path("/proc", pid).exists()]


def test_a_gateway_keeps_it_from_services(folder: Path, tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path / "data", [folder])
    with running(gateway), Client(gateway.address) as client:
        drivers = {found.manifest.name: found for found in client.drivers.list()}
        assert drivers["echo"].state == resources_pb2.DRIVER_STATE_READY
        careless = drivers["careless"]
        assert careless.state == resources_pb2.DRIVER_STATE_QUARANTINED
        assert "attach.unknown-option" in careless.error.message
        assert careless.error.details
        service = client.services.create("careless-1", app="careless")
        assert service.state == resources_pb2.SERVICE_STATE_UNASSIGNED
        with pytest.raises(DriverNotAvailable, match="QUARANTINED"):
            client.services.assign_driver("careless-1", "careless-1.0.0")
        match = client.services.match_drivers("careless-1")
        assert not match.candidates
        assert any("QUARANTINED" in rejection.cause for rejection in match.rejections)
