"""What metadata.json says of each backend: the kit finds each declared feature to work, and each other one to be refused."""

from __future__ import annotations

from pathlib import Path

from onecontainer.driver.conformance import Folder, Kit, Outcome, Selection, ServiceSpec, render

DRIVER = Path(__file__).parents[1]


async def test_features(options: dict[str, str]) -> None:
    chosen = Selection(only=["features.*"])
    report = await Kit(Folder(DRIVER), ServiceSpec(options=options), selection=chosen, timeout=60).run()
    assert report.passed, render.text(report)
    checks = [one for one in report.results if one.id.startswith("features.")]
    assert len(checks) == 6
    assert all(one.outcome is Outcome.PASSED for one in checks), render.text(report)
