"""The drivers that come along and fresh scaffolds pass the kit. `make conformance` has the slower ones too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from onecontainer.driver.conformance import Report, render
from tests.conformance.subjects import SUBJECTS, Subject


def _params() -> list[object]:
    return [
        pytest.param(
            subject,
            runtime,
            id=f"{subject.name}-{runtime}",
            marks=[] if runtime in subject.quick else [pytest.mark.slow],
        )
        for subject in SUBJECTS
        for runtime in subject.runtimes
    ]


@pytest.mark.parametrize(("subject", "runtime"), _params())
def test_it_conforms(subject: Subject, runtime: str, tmp_path: Path) -> None:
    with subject.kit(runtime, tmp_path, lambda _result: None) as kit:
        report: Report = asyncio.run(kit.run())
    assert report.passed, render.text(report)
