"""What the kit is made of: checks, what becomes of each, and the report of a run. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onecontainer.driver.conformance.session import Session

MAX_TEXT = 600
"""Longest text of what was sent or came, in characters: a report is read by people."""


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "pass"
    FAILED = "FAIL"
    SKIPPED = "skipped"


class Failed(Exception):
    """The driver does not keep the contract.

    Attributes:
        sent: what the kit did.
        came: what the driver answered.
        todo: what its author does about it; empty: as the check says.
    """

    def __init__(self, sent: str, came: str, todo: str = "") -> None:
        super().__init__(f"{sent}: {came}")
        self.sent = shortened(sent)
        self.came = shortened(came)
        self.todo = todo


class Skipped(Exception):
    """The check says nothing of this driver. The message is why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a driver is tested for.

    Attributes:
        id: `area.what`, stable: `--only` and `--skip` take it.
        title: what must hold, for people.
        proves: why it matters.
        todo: what the driver's author does when it fails.
        run: raises Failed or Skipped; returns if it holds.
        needs: ids of checks that must have passed.
        after: ids of checks that come before and must not have failed.
        attached: whether the driver must be attached for it; None: it does not matter.
        smoke: part of the quick subset, which attaches to nothing.
    """

    id: str
    title: str
    proves: str
    todo: str
    run: Callable[[Session], Awaitable[None]]
    needs: tuple[str, ...] = ()
    attached: bool | None = None
    smoke: bool = False
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check. `reason` is why it was skipped; `blocked`: because of another one that failed."""

    id: str
    title: str
    outcome: Outcome
    seconds: float
    reason: str = ""
    sent: str = ""
    came: str = ""
    todo: str = ""
    blocked: bool = False

    def as_json(self) -> dict[str, Any]:
        """Only what is there."""
        values: dict[str, Any] = {"check": self.id, "title": self.title, "result": self.outcome.value}
        values["seconds"] = round(self.seconds, 3)
        told = {"reason": self.reason, "sent": self.sent, "came": self.came, "todo": self.todo}
        return values | {name: text for name, text in told.items() if text}


@dataclass(frozen=True, slots=True)
class Report:
    """A run of the kit."""

    driver: str
    endpoint: str
    results: Sequence[Result] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """No check failed, and at least one was made."""
        outcomes = [result.outcome for result in self.results]
        return Outcome.FAILED not in outcomes and Outcome.PASSED in outcomes

    @property
    def failures(self) -> list[Result]:
        return [result for result in self.results if result.outcome is Outcome.FAILED]

    def count(self, outcome: Outcome) -> int:
        return sum(result.outcome is outcome for result in self.results)

    def as_json(self) -> dict[str, Any]:
        return {
            "driver": self.driver,
            "endpoint": self.endpoint,
            "passed": self.passed,
            "counts": {outcome.value: self.count(outcome) for outcome in Outcome},
            "checks": [result.as_json() for result in self.results],
        }


def shortened(text: str) -> str:
    """The text in one line, cut where it gets too long for a person."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"


def check(
    id: str,  # noqa: A002 - what a check has
    title: str,
    *,
    proves: str,
    todo: str,
    needs: tuple[str, ...] = (),
    attached: bool | None = None,
    smoke: bool = False,
    after: tuple[str, ...] = (),
) -> Callable[[Callable[[Session], Awaitable[None]]], Check]:
    """Makes a check of a coroutine function."""

    def wrap(run: Callable[[Session], Awaitable[None]]) -> Check:
        return Check(id, title, proves, todo, run, needs, attached, smoke, after)

    return wrap
