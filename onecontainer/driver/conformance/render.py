"""The report for people."""

from __future__ import annotations

import json
from collections.abc import Iterator

from onecontainer.driver.conformance.model import Outcome, Report, Result


def line(result: Result, width: int = 36) -> str:
    """One check: its id, what became of it, what it is about or why it was skipped, and seconds."""
    told = result.reason if result.outcome is Outcome.SKIPPED else result.title
    return f"{result.id:<{width}} {result.outcome.value:<8} {told} ({result.seconds:.1f} s)"


def failure(result: Result) -> Iterator[str]:
    """What a failed check says."""
    yield f"{result.id}: {result.title}"
    yield f"  sent  {result.sent}"
    yield f"  came  {result.came}"
    yield f"  to do {result.todo}"


def summary(report: Report) -> str:
    counts = ", ".join(f"{report.count(outcome)} {told}" for outcome, told in _WORDS.items())
    verdict = "conforms" if report.passed else "does not conform"
    return f"{report.driver or 'the driver'} {verdict}: {counts}"


_WORDS = {Outcome.PASSED: "passed", Outcome.FAILED: "failed", Outcome.SKIPPED: "skipped"}


def conclusion(report: Report) -> str:
    """What there is to say after the lines of all checks."""
    lines: list[str] = []
    for result in report.failures:
        lines += ["", *failure(result)]
    return "\n".join([*lines, "", summary(report)])


def text(report: Report) -> str:
    """All of it."""
    return "\n".join([*(line(result) for result in report.results), conclusion(report)])


def as_json(report: Report) -> str:
    return json.dumps(report.as_json(), ensure_ascii=False, indent=2)
