"""A real gateway per dispatch and module; one broker for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from onecontainer.client import Client
from tests.contract.dispatch.scene import LEASE, Scene, build_drivers
from tests.fixtures import kafka
from tests.fixtures.processes import GatewayProcess, running

DISPATCHES = ("embedded", "kafka")


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_drivers(tmp_path_factory.mktemp("dispatch-drivers"))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka.KafkaBroker]:
    if not kafka.available():
        pytest.skip("a real broker needs java and mvn; .ci/run installs them")
    broker = kafka.KafkaBroker(tmp_path_factory.mktemp("broker"))
    with running(broker):
        yield broker


@pytest.fixture(scope="module", params=DISPATCHES)
def dispatch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dispatch_url(dispatch: str, request: pytest.FixtureRequest) -> str:
    if dispatch == "embedded":
        return "embedded://"
    return f"kafka://{request.getfixturevalue('broker').address}"


@pytest.fixture(scope="module")
def scene(dispatch: str, dispatch_url: str, drivers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp(dispatch)
    gateway = GatewayProcess(
        folder / "data",
        [drivers],
        dispatch_url=dispatch_url,
        job_sweep_interval="0.1",
        lease_duration=str(LEASE),
    )
    with running(gateway), Client(gateway.address) as client:
        client.services.create("echo", app="echo")
        client.services.wait_ready("echo", timeout=180)
        scene = Scene(dispatch, gateway, client, folder)
        yield scene
        scene.channel.close()
