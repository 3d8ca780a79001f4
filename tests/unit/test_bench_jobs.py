"""The figures of bench-jobs and bench-growth are those of what was measured."""

from __future__ import annotations

import sys

import pytest

from tests.bench import growth, trees
from tests.bench.jobs import report
from tests.bench.jobs.report import Measured
from tests.fixtures.cancels import is_there


def measured(*rates: float, unary: tuple[float, ...] = ()) -> Measured:
    found = Measured(rates={report.BATCHED: list(rates)} | ({report.UNARY: list(unary)} if unary else {}))
    found.add_latencies([n / 1000 for n in range(1, 101)])
    return found


def test_ratios_are_taken_round_by_round() -> None:
    # In the second round the machine was half as fast for both: by round the ratio is 4 each time, of the medians it is not.
    out = report.summary(
        {
            "kafka": measured(400, 200, 800, unary=(100, 50, 200)),
            "celery": measured(100, 50, 200),
        }
    )
    assert out["kafka_over_celery"] == 4
    assert out["kafka_unary_over_celery"] == 1
    assert out["kafka.jobs_per_s"] == 400
    uneven = report.summary({"embedded": measured(10, 20, 90, unary=(1, 1, 1)), "celery": measured(10, 40, 30)})
    assert uneven["embedded_over_celery"] == 1


def test_rq_is_the_better_of_its_two_workers() -> None:
    out = report.summary(
        {"kafka": measured(1000, unary=(1,)), "rq_fork": measured(40), "rq_simple": measured(100)},
    )
    assert out["rq.jobs_per_s"] == 100
    assert out["kafka_over_rq"] == 10
    assert out["kafka_p50_over_rq"] == 1
    assert (out["rq_fork.jobs_per_s"], out["rq_simple.jobs_per_s"]) == (40, 100)


def test_the_best_queue_is_found_and_the_raw_limit_is_none() -> None:
    systems = {
        "embedded": measured(300, unary=(1,)),
        "celery": measured(100),
        "dramatiq": measured(600),
        "taskiq": measured(200),
        "raw": measured(90_000),
    }
    out = report.summary(systems)
    assert out["embedded_over_best_queue"] == 0.5
    assert "raw_over_celery" not in out


def test_what_was_left_out_has_no_ratio_and_no_goal() -> None:
    out = report.summary({"embedded": measured(300, unary=(200,))})
    assert not [key for key in out if "_over_" in key]
    assert set(report.goals(out)) == {"embedded.p50_ms"}


def test_latencies_are_in_milliseconds_and_the_median_of_rounds() -> None:
    found = measured(1)
    found.add_latencies([0.5] * 100)
    found.add_latencies([0.004] * 100)
    out = found.figures()
    assert out["p50_ms"] == pytest.approx(51)
    assert out["p99_ms"] == pytest.approx(100)


def test_the_table_has_a_row_for_each_system() -> None:
    out = report.summary({"kafka": measured(1234.5, unary=(200,)), "raw": measured(9)})
    rows = report.table(out, ["kafka", "raw"])
    assert [len(row) for row in rows] == [len(report.COLUMNS)] * 2
    assert rows[0][:4] == ["kafka", "1,234", "200", "51.00"]
    assert rows[1][2] == ""  # there is nothing to submit by a call each


def test_growth_compares_the_deepest_queue_with_the_shallowest() -> None:
    out = {
        "q10.get_ms": 2.0,
        "q100.get_ms": 50.0,
        "q1000.get_ms": 3.0,
        "q10.jobs_per_s": 400.0,
        "q1000.jobs_per_s": 100.0,
    }
    assert growth.ratios(out, [1000, 10, 100]) == {"get_1000_over_10": 1.5, "jobs_per_s_1000_over_10": 0.25}


def test_a_tree_is_measured_with_its_children_and_ends_with_them() -> None:
    code = "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); print('up', child.pid, flush=True); child.wait()"
    with trees.running_tree([sys.executable, "-c", code], {}, "up") as process:
        child = int(process.lines[0].split()[1])
        assert trees.members([process.pid]) == {process.pid, child}
        both, _ = trees.memory_mib([process.pid])
        one, shared_once = trees.memory_mib([child])
        assert both > one >= shared_once > 0
    assert not is_there(child)
