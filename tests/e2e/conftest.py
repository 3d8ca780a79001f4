"""One real gateway with the test driver, for all end-to-end tests of a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onecontainer.client import Client
from tests.drivers.build import build_driver
from tests.fixtures.processes import GatewayProcess, running
from tests.fixtures.rest import RestProcess, bundled_services


@pytest.fixture(scope="session")
def echo_drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drivers with the built test driver; its messages can be imported."""
    drivers = tmp_path_factory.mktemp("drivers")
    sys.path.insert(0, str(build_driver("echo", drivers)))
    return drivers


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, echo_drivers: Path) -> Iterator[GatewayProcess]:
    """A gateway on a data folder of its own, with the service `services/echo` READY."""
    process = GatewayProcess(tmp_path_factory.mktemp("gateway") / "data", [echo_drivers])
    with running(process):
        with Client(process.address) as client:
            client.services.create("echo", app="echo", app_version="1.0")
            client.services.wait_ready("echo", timeout=60)
        yield process


@pytest.fixture(scope="session")
def rest(gateway: GatewayProcess) -> Iterator[RestProcess]:
    """The REST front of that gateway; pages of https://console.example may call it."""
    process = RestProcess(gateway.address, "--cors-origins", "https://console.example")
    with running(process):
        yield process


@pytest.fixture(scope="session")
def rest_services(gateway: GatewayProcess) -> None:
    """Services of the bundled drivers, see there."""
    bundled_services(gateway.address)
