"""`oca worker` beside a driver that serves DriverService by our own SDK, and takes no jobs by itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.drivers.build import build_driver
from tests.fixtures.beside import Scene, scene_of
from tests.fixtures.beside_suite import BesideSuite


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("beside")
    driver = build_driver("echo", folder / "drivers")
    sys.path.insert(0, str(driver))
    command = [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(driver)]
    # Without a token it is told of no source of jobs.
    with scene_of(folder, folder / "drivers", command, token=False) as found:
        yield found


class TestBesideOurSdk(BesideSuite):
    """On the embedded dispatch; beside the Go driver the same runs on both."""
