"""Random lives of jobs against a small model: at most one outcome, terminal is terminal, fences only rise, everything ends.

Reports come late, twice, from workers that were given up; answers get lost; the gateway stops and comes back.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from onecontainer.database import Database
from onecontainer.errors import BackendUnreachable, Cancelled, FieldInvalid
from onecontainer.jobs.ledger import Granted, Worker
from onecontainer.jobs.model import LEASED, TERMINAL, CancelMode, State
from onecontainer.rpc.status import to_status
from tests.fixtures.ledger_desk import LEASE, OTHER, WORKER, Desk, create_tables

T = TypeVar("T")
MAX_RUNNING = 3
WORKERS = {worker.instance: worker for worker in (WORKER, OTHER)}


@dataclass
class Model:
    """What must be true of one job, whatever happened."""

    cancelled: bool = False
    started: bool = False
    terminal: Any = None
    """The row when it was first seen in a terminal state."""
    fence: int = 0
    sequence: int = 0
    outcomes: list[bytes] = field(default_factory=list)
    """Results that the ledger took for good."""
    claimed: set[int] = field(default_factory=set)


class LedgerMachine(RuleBasedStateMachine):
    grants = Bundle("grants")

    @initialize()
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.mkdtemp(prefix="ledger-")
        self.database = Database(f"sqlite:///{self.folder}/ledger.db")
        self.run(self.database.__aenter__())
        create_tables(self.database)
        self.desk = Desk(self.database)
        self.models: dict[str, Model] = {}

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.everything_ends()
        finally:
            self.run(self.database.__aexit__())
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    # --- callers ---------------------------------------------------------------------------------------------------------

    @rule(
        idempotent=st.booleans(),
        unsafe=st.booleans(),
        attempts=st.integers(1, 3),
        priority=st.integers(1, 3),
        limits=st.fixed_dictionaries(
            {},
            optional={
                "queue_timeout": st.sampled_from([20, 200]),
                "total_timeout": st.sampled_from([50, 500]),
                "attempt_timeout": st.sampled_from([15, 100]),
                "stall_timeout": st.sampled_from([15, 100]),
                "result_ttl": st.sampled_from([0, 30]),
            },
        ),
    )
    def create(self, idempotent: bool, unsafe: bool, attempts: int, priority: int, limits: dict[str, float]) -> None:
        job = self.run(
            self.desk.create(
                idempotent=idempotent, retry_unsafe=unsafe, max_attempts=attempts, priority=priority, **limits
            )
        )
        self.models[job] = Model()

    @precondition(lambda self: self.models)
    @rule(data=st.data(), mode=st.sampled_from([CancelMode.ABORT, CancelMode.FINISH]))
    def cancel(self, data: st.DataObject, mode: CancelMode) -> None:
        # In the order in which they were made: that of their ids is by chance where two were made in one millisecond, and what is
        # drawn must be the same job whenever the same is drawn again.
        job = data.draw(st.sampled_from(list(self.models)))
        row = self.run(self.desk.row(job))
        self.run(self.desk.ledger.cancel(job, mode))
        if State(row.state) not in TERMINAL:
            self.models[job].cancelled = True
        if State(row.state) in (State.QUEUED, State.RETRY_WAIT):
            assert self.run(self.desk.state(job)) == State.CANCELLED

    # --- workers ---------------------------------------------------------------------------------------------------------

    @rule(target=grants, worker=st.sampled_from(sorted(WORKERS)), most=st.integers(1, 4))
    def claim(self, worker: str, most: int) -> Any:
        granted = self.run(self.desk.claim(most, worker=WORKERS[worker], max_running=MAX_RUNNING))
        for grant in granted:
            model = self.models[grant.id]
            assert not model.cancelled, "a cancelled job never starts"
            assert grant.fence not in model.claimed, "a fence is granted once"
            model.claimed.add(grant.fence)
            model.started = True
        return multiple(*((worker, grant) for grant in granted))

    @rule(held=grants)
    def claim_again(self, held: tuple[str, Granted]) -> None:
        worker, grant = held
        again = self.run(self.desk.ledger.regrant(WORKERS[worker], [(grant.id, grant.fence)]))
        row = self.run(self.desk.row(grant.id))
        assert bool(again) is (State(row.state) in LEASED and row.fence == grant.fence)

    @rule(held=grants, kind=st.sampled_from(["heartbeat", "progress", "checkpoint", "started"]))
    def tell(self, held: tuple[str, Granted], kind: str) -> None:
        worker, grant = held
        value = {"progress": b"p", "checkpoint": b"c", "started": False}.get(kind)
        self.run(self.desk.report(grant, kind, value, worker=WORKERS[worker]))

    @rule(
        held=grants,
        kind=st.sampled_from(["succeeded", "failed", "invalid", "stopped", "released"]),
        twice=st.booleans(),
        other=st.booleans(),
    )
    def end(self, held: tuple[str, Granted], kind: str, twice: bool, other: bool) -> None:
        """The worker reports an outcome: perhaps late, perhaps twice, perhaps one that is not its to report."""
        worker, grant = held
        sender: Worker = WORKERS[worker]
        if other:
            sender = OTHER if sender is WORKER else WORKER
        before = self.run(self.desk.row(grant.id))
        current = State(before.state) in LEASED and before.fence == grant.fence and not other
        value: Any = None
        if kind == "failed":
            value = to_status(BackendUnreachable("away"))
        elif kind == "invalid":
            kind, value = "failed", to_status(FieldInvalid("x", "is wrong"))
        elif kind == "stopped":
            value = to_status(Cancelled())
        result = f"{grant.id}/{grant.fence}".encode()
        reports = [self.desk.reported(grant, kind, value, result=result) for _ in range(1 + twice)]
        self.run(self.desk.ledger.report(sender, reports))
        after = self.run(self.desk.row(grant.id))
        if not current:
            assert after == before, "a report that does not count changes nothing"
        elif kind == "succeeded":
            assert (after.state, after.result) == (State.SUCCEEDED, result)
            self.models[grant.id].outcomes.append(result)
        else:
            assert State(after.state) not in LEASED

    @rule(worker=st.sampled_from(sorted(WORKERS)))
    def worker_dies(self, worker: str) -> None:
        self.run(self.desk.ledger.lose(instance=worker))

    # --- time ------------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 9.0, LEASE / 2, LEASE, 300.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.desk.pass_time(seconds))

    @rule(seconds=st.sampled_from([20.0, 600.0]))
    def gateway_is_away(self, seconds: float) -> None:
        self.desk.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        self.run(self.desk.sweep())

    # --- what is always true -----------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "models") or not self.models:
            return
        rows = {row.id: row for row in self.run(self.desk.ledger.page([], 1000, 0)).rows}
        running = 0
        for job, model in self.models.items():
            row = rows[job]
            state = State(row.state)
            running += state in LEASED
            assert row.fence >= model.fence, "fences only rise"
            assert row.sequence >= model.sequence
            model.fence, model.sequence = row.fence, row.sequence
            assert len(model.outcomes) <= 1, "one effective outcome"
            assert bool(model.outcomes) is (state == State.SUCCEEDED)
            assert bool(row.end_time) is (state in TERMINAL)
            assert bool(row.lease_expiry) is (state in LEASED)
            if model.terminal is not None:
                kept = ("state", "attempt", "fence", "end_time", "error", "cancel_mode", "instance")
                assert [getattr(row, name) for name in kept] == [getattr(model.terminal, name) for name in kept]
            elif state in TERMINAL:
                model.terminal = row
                assert (row.error is None) is (state == State.SUCCEEDED), "a reason, if there is no result"
                if state == State.CANCELLED:
                    assert model.cancelled
        assert running <= MAX_RUNNING

    def everything_ends(self) -> None:
        """Workers have stopped; time alone brings every job to its end."""
        for _ in range(6):
            self.run(self.desk.pass_time(100))
            self.desk.clock.advance(86400)
            self.run(self.desk.sweep())
            self.run(self.desk.pass_time(100))
            self.holds_or_gone()

        rows = self.run(self.desk.ledger.page([], 1000, 0)).rows
        assert all(State(row.state) in TERMINAL for row in rows), [State(row.state).name for row in rows]

    def holds_or_gone(self) -> None:
        rows = {row.id for row in self.run(self.desk.ledger.page([], 1000, 0)).rows}
        assert rows == set(self.models), "records stay for seven days"


SETTINGS = settings(
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_random_lives() -> None:
    run_state_machine_as_test(LedgerMachine, settings=settings(SETTINGS, max_examples=10))


@pytest.mark.slow
def test_many_random_lives() -> None:
    run_state_machine_as_test(LedgerMachine, settings=settings(SETTINGS, max_examples=300, stateful_step_count=60))
