"""Gateways that are killed: each test has its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.drivers.build import build_driver


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What loses a job waits for it in vain: no missed deadline here is an accident, none is run once more (see the Makefile)."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=0))


@pytest.fixture(scope="session")
def echo_drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drivers with the built test driver; its messages can be imported."""
    drivers = tmp_path_factory.mktemp("drivers")
    sys.path.insert(0, str(build_driver("echo", drivers)))
    return drivers
