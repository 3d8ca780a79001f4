"""A real MLServer for all tests of the driver, and the driver attached to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from onecontainer_driver_oip import OipDriver

from drivers.oip.tests.asking import SERVICE, Attached
from onecontainer.driver import Attachment
from onecontainer.rpc.manifest import load_manifest
from onecontainer.rpc.options import resolve_options
from tests.fixtures.open_inference.place import MLServer
from tests.fixtures.processes import running

FOLDER = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLServer]:
    server = MLServer(tmp_path_factory.mktemp("mlserver"))
    with running(server):
        yield server


@pytest.fixture
def attached(tmp_path: Path) -> Attached:
    """The driver, attached to an address with options. What it keeps is kept for the next one of the same test."""

    @asynccontextmanager
    async def attach(address: str, **options: Any) -> AsyncIterator[OipDriver]:
        driver = OipDriver()
        manifest = load_manifest(FOLDER)
        await driver.attach(
            Attachment(
                service=SERVICE,
                app="oip",
                app_version="",
                endpoints={"one": address},
                options=resolve_options(manifest.options, options),
                state_dir=tmp_path,
                manifest=manifest,
            )
        )
        try:
            yield driver
        finally:
            await driver.detach()

    return attach


@pytest.fixture
async def driver(upstream: MLServer, attached: Attached) -> AsyncIterator[OipDriver]:
    async with attached(upstream.address, default_model="double") as found:
        yield found
