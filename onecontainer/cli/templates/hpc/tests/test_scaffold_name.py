"""Tests of the driver without a gateway: `pytest` in this folder, after `oca driver build .`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.protobuf.message import Message
from onecontainer_driver_scaffold_name import ScaffoldNameDriver
from onecontainer_driver_scaffold_name import scaffold_name_pb2 as pb

from onecontainer.driver import errors
from onecontainer.driver.testing import attachment_of

FOLDER = Path(__file__).parent.parent
SQUARE = pb.Integral(coefficients=[0, 0, 3], upper=1)  # 3x² from 0 to 1: 1


class FakeContext:
    """What `simulate` uses of a Context; it is told to stop after so many blocks."""

    def __init__(self, resume: any_pb2.Any | None = None, *, cancel_after: int = -1, finish_after: int = -1) -> None:
        self.job: Any = self
        self.resume_details = resume
        self.checkpoints: list[Message] = []
        self._cancel_after, self._finish_after = cancel_after, finish_after

    @property
    def cancelled(self) -> bool:
        return len(self.checkpoints) == self._cancel_after

    @property
    def finishing(self) -> bool:
        return len(self.checkpoints) == self._finish_after

    def progress(self, done: float, total: float, *, unit: str, details: Message) -> None:
        assert 0 < done <= total

    def checkpoint(self, details: Message) -> None:
        self.checkpoints.append(details)


@pytest.fixture
def driver(tmp_path: Path) -> ScaffoldNameDriver:
    found = ScaffoldNameDriver()
    found.attach(attachment_of(FOLDER, tmp_path, {"block_size": 1000}))
    return found


def simulate(driver: ScaffoldNameDriver, context: Any, **more: Any) -> pb.SimulateResult:
    return driver.simulate(pb.SimulateRequest(integral=SQUARE, points=10_000, **more), context)


def test_an_integral_is_exact_and_an_estimate_is_near(driver: ScaffoldNameDriver) -> None:
    context: Any = FakeContext()
    assert asyncio.run(driver.integrate(pb.IntegrateRequest(integral=SQUARE), context)).value == pytest.approx(1)
    result = simulate(driver, FakeContext())
    assert result.points == 10_000
    assert abs(result.value - 1) < 5 * result.standard_error


def test_an_attempt_goes_on_where_another_one_stopped(driver: ScaffoldNameDriver) -> None:
    whole = simulate(driver, FakeContext(), seed=7)
    first = FakeContext(cancel_after=4)
    with pytest.raises(errors.Cancelled):
        simulate(driver, first, seed=7)
    resume = any_pb2.Any()
    resume.Pack(first.checkpoints[-1])
    second = FakeContext(resume)
    assert simulate(driver, second, seed=7) == whole
    assert len(second.checkpoints) == 6


def test_an_early_end_gives_what_is_done(driver: ScaffoldNameDriver) -> None:
    assert simulate(driver, FakeContext(finish_after=3)).points == 3000


def test_what_is_wrong_is_typed(driver: ScaffoldNameDriver) -> None:
    context: Any = FakeContext()
    with pytest.raises(errors.FieldRequired, match="integral"):
        asyncio.run(driver.integrate(pb.IntegrateRequest(), context))
    with pytest.raises(errors.FieldInvalid, match=r"integral\.upper"):
        asyncio.run(driver.integrate(pb.IntegrateRequest(integral=pb.Integral(coefficients=[1])), context))
    with pytest.raises(errors.FieldInvalid, match="points"):
        driver.simulate(pb.SimulateRequest(integral=SQUARE), context)
