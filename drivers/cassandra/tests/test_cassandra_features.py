"""What metadata.json says of Cassandra: the kit finds each declared feature to work, and each other one to be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers.cassandra.tests.conftest import ACCOUNT
from onecontainer.driver.conformance import Folder, Kit, Outcome, Selection, ServiceSpec, render
from tests.fixtures.cassandra import CassandraNode

pytestmark = pytest.mark.asyncio(loop_scope="session")
DRIVER = Path(__file__).parents[1]


async def test_features(node: CassandraNode) -> None:
    options = ACCOUNT | {"keyspace": "conformance", "request_timeout": "50s", "connect_timeout": "50s"}
    spec = ServiceSpec(app_version="5.0", endpoints={"one": node.address}, options=options)
    report = await Kit(Folder(DRIVER), spec, selection=Selection(only=["features.*"]), timeout=60).run()
    assert report.passed, render.text(report)
    checks = [one for one in report.results if one.id.startswith("features.")]
    assert len(checks) == 6
    assert all(one.outcome is Outcome.PASSED for one in checks), render.text(report)
