"""What all tests share: no skip that nobody sees."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

# How long an example took says nothing about right and wrong. With CI=true Hypothesis's own profile has no deadline either.
hypothesis.settings.register_profile("patient", deadline=None)
if hypothesis.settings().deadline is not None:
    hypothesis.settings.load_profile("patient")

# A suite that several modules run: its assertions tell as much as theirs.
pytest.register_assert_rewrite("tests.fixtures.beside_suite")

# A shell starts what runs in its background with SIGINT ignored, and all that is started from there inherits it: the tests of
# Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")

PROOFS = (
    *(
        "tests/faults/",
        "tests/contract/dispatch/",
        "tests/contract/kafka/",
        "tests/contract/jobs/",
        "tests/contract/worker/",
    ),
    *("tests/e2e/test_two_gateways.py", "tests/e2e/test_registered", "tests/e2e/test_batch_killed.py"),
)
"""Where it is shown that no job is lost or done twice: a single failure is one too many there."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Proofs are not run once more, as the Makefile has it for others."""
    for item in items:
        if item.nodeid.startswith(PROOFS):
            item.add_marker(pytest.mark.flaky(reruns=0))


def allowed_skips() -> dict[str, str]:
    """Node id (or a prefix of it, ending in `*`) → why it may be skipped with CI=true."""
    allowed = {}
    for line in ALLOWED_SKIPS.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            node, separator, reason = line.partition("  ")
            if not separator or not reason.strip():
                raise pytest.UsageError(f"{ALLOWED_SKIPS.name}: no reason given for {node!r}")
            allowed[node] = reason.strip()
    return allowed


def is_allowed(node: str, allowed: dict[str, str]) -> bool:
    return any(node.startswith(entry[:-1]) if entry.endswith("*") else node == entry for entry in allowed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"RERUN {report.nodeid}: how it failed the first time", yellow=True)
        terminalreporter.line(report.longreprtext)
    for node in hidden_skips(terminalreporter):
        terminalreporter.write_line(f"SKIPPED but not listed in tests/{ALLOWED_SKIPS.name}: {node}", red=True)


def hidden_skips(reporter: pytest.TerminalReporter) -> list[str]:
    """Skipped tests that are not listed, with CI=true; elsewhere none."""
    if os.environ.get("CI", "").lower() not in {"1", "true"}:
        return []
    allowed = allowed_skips()
    return sorted(
        {report.nodeid for report in reporter.stats.get("skipped", []) if not is_allowed(report.nodeid, allowed)}
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        isinstance(reporter, pytest.TerminalReporter)
        and hidden_skips(reporter)
        and session.exitstatus == pytest.ExitCode.OK
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
