"""A scene per module: some tests take the broker away."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from onecontainer.client import Client
from tests.contract.kafka.scene import Scene
from tests.drivers.build import build_driver
from tests.fixtures import kafka
from tests.fixtures.processes import GatewayProcess, running


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    if not kafka.available():
        pytest.skip("a real broker needs java and mvn; .ci/run installs them")
    folder = tmp_path_factory.mktemp("kafka")
    sys.path.insert(0, str(build_driver("echo", folder / "drivers")))
    broker = kafka.KafkaBroker(folder / "broker")
    with running(broker):
        gateway = GatewayProcess(
            folder / "data",
            [folder / "drivers"],
            dispatch_url=f"kafka://{broker.address}",
            job_sweep_interval="0.2",
            lease_duration="10",
        )
        with running(gateway), Client(gateway.address) as client:
            client.services.create("echo", app="echo")
            client.services.wait_ready("echo", timeout=180)
            yield Scene(broker, gateway, client)
