"""The short form of make faults: a few cells of the matrix and a short storm. The whole of it: `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import matrix, storm
from tests.faults.storm_workers import workers
from tests.fixtures import kafka

SEED = 20


@pytest.fixture(autouse=True)
def _records_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the last whole run stays."""
    monkeypatch.chdir(tmp_path)


def _need_kafka() -> None:
    if not kafka.available():
        pytest.skip("a real broker needs java and mvn; .ci/run installs them")


@pytest.mark.parametrize("dispatch", ["embedded", "kafka"])
def test_no_job_is_lost_or_doubled_whatever_is_killed(dispatch: str, tmp_path: Path, echo_drivers: Path) -> None:
    if dispatch == "kafka":
        _need_kafka()
    cells = matrix.short_cells([dispatch])
    findings, record = matrix.run(tmp_path, echo_drivers, seed=SEED, jobs=matrix.SHORT_JOBS, kills=1, cells=cells)
    assert not findings, "\n".join(f"{finding}\n{finding.case.history()}" for finding in findings)
    assert record.exists()
    assert {cell.victim for cell in cells} == set(matrix.VICTIMS[dispatch])
    assert all((cell.jobs, cell.kills) == (matrix.SHORT_JOBS, 1) for cell in cells)
    # The kills did something: somewhere an attempt was lost.
    assert sum(cell.retried + cell.outcome_unknown for cell in cells) > 0


def test_each_job_runs_once_while_workers_come_and_go(tmp_path: Path, echo_drivers: Path) -> None:
    _need_kafka()
    seen, findings, _ = storm.run(tmp_path, echo_drivers, storm.SHORT, SEED, workers)
    assert not findings, "\n".join(f"{finding}\n{finding.case.history()}" for finding in findings)
    assert seen.run_once == seen.jobs >= 20
    assert seen.left == seen.joined >= 4


def test_each_job_runs_once_in_a_rebalance_storm(tmp_path: Path, echo_drivers: Path) -> None:
    _need_kafka()
    seen, findings, _ = storm.run(tmp_path, echo_drivers, storm.SHORT, SEED)
    assert not findings, "\n".join(f"{finding}\n{finding.case.history()}" for finding in findings)
    assert seen.run_once == seen.jobs >= 20
    # It was a storm: they came and went, and took records that the worker had to get another way.
    assert seen.left >= 4
    assert seen.rebalances >= 4
    assert seen.swallowed >= 1
