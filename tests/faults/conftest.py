"""Gateways that are killed: each test has its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.drivers.build import build_driver


@pytest.fixture(scope="session")
def echo_drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drivers with the built test driver; its messages can be imported."""
    drivers = tmp_path_factory.mktemp("drivers")
    sys.path.insert(0, str(build_driver("echo", drivers)))
    return drivers
