"""Progress: never backwards, throttled, never lost, from any thread. Time is a loop that stands until it is told to go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from onecontainer.api.type.v1.progress_pb2 import Progress
from onecontainer.driver.progress import INTERVAL_SECONDS, ProgressGate
from onecontainer.errors import FieldInvalid


class ManualLoop:
    """The part of an event loop that the gate uses, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self._timers.append((self.now, callback))

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        self._timers.append((self.now + delay, callback))
        return self

    def cancel(self) -> None:
        self._timers.clear()

    def advance(self, seconds: float = 0.0) -> None:
        self.now += seconds
        while due := [timer for timer in self._timers if timer[0] <= self.now]:
            self._timers.remove(due[0])
            due[0][1]()


class Gate:
    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.sent: list[Progress] = []
        self.gate = ProgressGate(self.loop, self.sent.append)  # type: ignore[arg-type]

    def report(self, done: float, total: float | None = None, message: str = "") -> None:
        self.gate.report(done, total, "steps", message, None)


@pytest.fixture
def gate() -> Gate:
    return Gate()


def test_a_burst_is_one_report_and_its_last_state_follows(gate: Gate) -> None:
    gate.report(1)
    gate.loop.advance()
    for done in range(2, 1000):
        gate.report(done)
    gate.loop.advance()
    assert [p.done for p in gate.sent] == [1]
    gate.loop.advance(INTERVAL_SECONDS)
    assert [p.done for p in gate.sent] == [1, 999]


def test_at_most_four_a_second(gate: Gate) -> None:
    for step in range(1000):
        gate.report(step)
        gate.loop.advance(0.01)
    assert len(gate.sent) <= 10 * 4 + 1


def test_done_does_not_go_down(gate: Gate) -> None:
    gate.report(5)
    gate.loop.advance(1)
    gate.report(3, message="a step back")
    gate.loop.advance(1)
    assert [(p.done, p.message) for p in gate.sent] == [(5, ""), (5, "a step back")]


def test_what_changes_nothing_is_no_progress(gate: Gate) -> None:
    gate.report(5, 10)
    gate.loop.advance(1)
    before = gate.gate.last_change
    gate.report(5, 10)
    gate.loop.advance(1)
    assert len(gate.sent) == 1
    assert gate.gate.last_change == before
    gate.report(6, 10)
    assert gate.gate.last_change > before


def test_the_last_word_is_said_before_the_end_and_nothing_after_it(gate: Gate) -> None:
    gate.report(1)
    gate.loop.advance()
    gate.report(2)
    gate.gate.close()
    assert [p.done for p in gate.sent] == [1, 2]
    gate.report(3)
    gate.loop.advance(1)
    assert [p.done for p in gate.sent] == [1, 2]


def test_the_end_is_estimated_from_the_pace(gate: Gate) -> None:
    gate.report(0, 100)
    gate.loop.advance(10)
    gate.report(25, 100)
    gate.loop.advance(10)
    assert not gate.sent[0].HasField("eta")
    assert gate.sent[1].eta.seconds == 30


@pytest.mark.parametrize(("done", "total"), [(-1, None), (float("nan"), None), (1, -1)])
def test_numbers_that_are_none(gate: Gate, done: float, total: float | None) -> None:
    with pytest.raises(FieldInvalid):
        gate.report(done, total)


def test_a_long_message_is_cut(gate: Gate) -> None:
    gate.report(1, message="x" * 1000)
    gate.loop.advance()
    assert len(gate.sent[0].message) == 256


def test_a_text_that_protobuf_cannot_hold_is_written_as_its_escape(gate: Gate) -> None:
    gate.report(1, message="x\udc80y")
    gate.loop.advance(1)
    gate.gate.report(2, None, "\udc80", "\udc80" * 256, None)
    gate.loop.advance(1)
    assert (gate.sent[0].done, gate.sent[0].message) == (1, "x\\udc80y")
    assert gate.sent[1].unit == "\\udc80"
    assert len(gate.sent[1].message) == 256


@pytest.mark.parametrize("total", [float("inf"), 1e300])
def test_an_end_that_is_too_far_away_is_not_estimated(gate: Gate, total: float) -> None:
    gate.report(0, total)
    gate.loop.advance(10)
    gate.report(1, total)
    gate.loop.advance(10)
    assert [progress.done for progress in gate.sent] == [0, 1]
    assert not gate.sent[1].HasField("eta")


async def test_from_many_threads_nothing_is_lost_and_nothing_goes_down() -> None:
    sent: list[Progress] = []
    gate = ProgressGate(asyncio.get_running_loop(), sent.append)
    threads = [
        threading.Thread(target=lambda: [gate.report(done, None, "", "", None) for done in range(200)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    gate.close()
    dones = [progress.done for progress in sent]
    assert dones == sorted(dones)
    assert dones[-1] == 199
