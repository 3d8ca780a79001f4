"""The kit itself: a driver that behaves passes all of it, and each broken one fails the check that is meant for it, and no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import pytest

from onecontainer.driver.conformance import CHECKS, Outcome, Report, render
from onecontainer.driver.driver import Driver
from onecontainer.driver.entry_point import load_driver_class
from onecontainer.rpc.manifest import load_manifest
from tests.contract.conformance.faults import FAULTS
from tests.contract.conformance.proxy import Faults
from tests.contract.conformance.reference import MODE, InProcess, examined
from tests.drivers.build import build_driver

AT_ONCE = 12
GOOD = "a driver that behaves"
# What the reference cannot show; other tests of this folder do.
ELSEWHERE = {"reflection.contract"}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Report]:
    """All drivers, several at a time: most of a run is waiting."""
    folder = build_driver("echo", tmp_path_factory.mktemp("drivers"))
    manifest = load_manifest(folder)
    manifest = manifest.model_copy(update={"options": [*manifest.options, MODE]})
    made: type[Driver] = load_driver_class(folder, manifest)
    descriptors = (folder / manifest.descriptor_set).read_bytes()

    async def examine() -> Mapping[str, Report]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> Report:
            async with places:
                fault = FAULTS[name]() if name in FAULTS else None
                inner = fault is not None and fault.inner
                outside = Faults() if fault is None or inner else fault
                inside = fault if fault is not None and inner else Faults()
                return await examined(InProcess(made, manifest, outside, inside, descriptors))

        names = [GOOD, *FAULTS]
        return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))

    logger = logging.getLogger("onecontainer")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # what they write is not what is tested
    try:
        return asyncio.run(examine())
    finally:
        logger.setLevel(before)


def test_a_driver_that_behaves_passes_everything(reports: Mapping[str, Report]) -> None:
    report = reports[GOOD]
    assert report.passed, render.text(report)
    skipped = {result.id for result in report.results if result.outcome is Outcome.SKIPPED}
    assert skipped == ELSEWHERE, render.text(report)


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_driver_fails_the_check_that_is_meant_for_it(reports: Mapping[str, Report], name: str) -> None:
    report = reports[name]
    assert [result.id for result in report.failures] == [FAULTS[name]().check], render.text(report)
    failure = report.failures[0]
    assert failure.sent
    assert failure.came
    assert failure.todo


def test_every_check_has_a_driver_that_fails_it() -> None:
    meant = {fault().check for fault in FAULTS.values()}
    assert {check.id for check in CHECKS} - ELSEWHERE <= meant
    assert len(FAULTS) >= 20
