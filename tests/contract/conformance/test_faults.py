"""The kit itself: a driver that behaves passes all of it, and each broken one fails the check that is meant for it, and no other."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from onecontainer.driver.conformance import CHECKS, Outcome, Report, render
from tests.contract.conformance.examine import GOOD, all_reports, is_as_meant
from tests.contract.conformance.faults import FAULTS
from tests.drivers.build import build_driver

# What the reference cannot show; other tests of this folder do.
ELSEWHERE = {"reflection.contract"}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Report]:
    return all_reports(build_driver("echo", tmp_path_factory.mktemp("drivers")))


def test_a_driver_that_behaves_passes_everything(reports: Mapping[str, Report]) -> None:
    report = reports[GOOD]
    assert report.passed, render.text(report)
    skipped = {result.id for result in report.results if result.outcome is Outcome.SKIPPED}
    assert skipped == ELSEWHERE, render.text(report)


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_driver_fails_the_check_that_is_meant_for_it(reports: Mapping[str, Report], name: str) -> None:
    report = reports[name]
    assert is_as_meant(name, report), render.text(report)
    failure = report.failures[0]
    assert failure.sent
    assert failure.came
    assert failure.todo


def test_every_check_has_a_driver_that_fails_it() -> None:
    meant = {fault().check for fault in FAULTS.values()}
    assert {check.id for check in CHECKS} - ELSEWHERE <= meant
    assert len(FAULTS) >= 20
