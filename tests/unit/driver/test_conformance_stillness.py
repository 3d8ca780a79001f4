"""A check that fails while the machine stands still is made again; one that fails by itself is not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from onecontainer.driver.conformance.kit import MOST_TRIES, Kit
from onecontainer.driver.conformance.model import Check, Failed, Outcome
from onecontainer.driver.conformance.stillness import MOST_SECONDS


class Script:
    """A check whose tries stand still or not, and fail or not: `(stands still, fails)` of each."""

    def __init__(self, tries: Sequence[tuple[bool, bool]]) -> None:
        self._tries = tries
        self.count = 0

    async def run(self, _session: object) -> None:
        stands, fails = self._tries[self.count]
        self.count += 1
        if stands:
            time.sleep(MOST_SECONDS + 0.3)  # noqa: ASYNC251 - the loop, too, is to stand still
        if fails:
            raise Failed("a call", f"nothing at try {self.count}")


@pytest.mark.parametrize(
    ("tries", "outcome", "count"),
    [
        ([(False, False)], Outcome.PASSED, 1),
        ([(False, True)], Outcome.FAILED, 1),
        ([(True, False)], Outcome.PASSED, 1),
        ([(True, True), (False, False)], Outcome.PASSED, 2),
        ([(True, True), (False, True)], Outcome.FAILED, 2),
        ([(True, True)] * MOST_TRIES, Outcome.FAILED, MOST_TRIES),
    ],
)
async def test_only_what_the_machine_may_have_spoilt_is_made_again(
    tries: Sequence[tuple[bool, bool]], outcome: Outcome, count: int
) -> None:
    script = Script(tries)
    check = Check("times.kept", "It is in time", "x", "y", script.run, (), None, False, ())
    session: Any = SimpleNamespace(run_ends={"x": object()})
    found = await Kit(starter=SimpleNamespace())._one(session, check, {})  # type: ignore[arg-type]
    assert (found.outcome, script.count) == (outcome, count)
    if outcome is Outcome.FAILED:
        assert found.came == "nothing at try 1"
