"""A driver in Go, without our SDK: attached for calls, and brought its jobs by `oca worker`, on both dispatches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.go.build import build_go_driver
from tests.drivers.build import build_driver
from tests.fixtures import kafka
from tests.fixtures.beside import Scene, scene_of
from tests.fixtures.beside_suite import BesideSuite
from tests.fixtures.processes import running


@pytest.fixture(scope="module")
def go_driver(tmp_path_factory: pytest.TempPathFactory, stubs_of: Callable[[str], Path]) -> str:
    return str(build_go_driver(stubs_of("go"), tmp_path_factory.mktemp("go")))


@pytest.fixture(scope="module", params=["embedded", "kafka"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, go_driver: str) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("beside")
    drivers = build_driver("echo", folder / "drivers")
    sys.path.insert(0, str(drivers))
    with ExitStack() as stack:
        dispatch_url = "embedded://"
        if request.param == "kafka":
            if not kafka.available():
                pytest.skip("a real broker needs java and mvn; .ci/run installs them")
            broker = kafka.KafkaBroker(folder / "broker")
            stack.enter_context(running(broker))
            dispatch_url = f"kafka://{broker.address}"
        command = [go_driver, str(drivers / "metadata.json")]
        yield stack.enter_context(scene_of(folder, folder / "drivers", command, token=True, dispatch_url=dispatch_url))


class TestGoDriver(BesideSuite):
    """All that is promised of `oca worker`, beside a program that shares no line with us."""
