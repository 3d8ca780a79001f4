"""However many jobs there are, the ledger finds those it is about by an index."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from onecontainer.database import Database
from onecontainer.errors import BackendUnreachable
from onecontainer.jobs.model import CancelMode
from tests.fixtures.ledger_desk import LEASE, UID, WORKER, Desk, create_tables


class Plans:
    """Collects the plan of every statement that names `jobs`."""

    def __init__(self, database: Database) -> None:
        self.steps: dict[str, str] = {}
        self._explaining = False
        sa.event.listen(database.engine, "after_cursor_execute", self._executed)

    def _executed(
        self, connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if self._explaining or "jobs" not in statement or statement.startswith(("INSERT", "EXPLAIN")):
            return
        self._explaining = True
        try:
            values = parameters[0] if many else parameters
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values):
                self.steps.setdefault(row.detail, statement)
        finally:
            self._explaining = False


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with Database(f"sqlite:///{tmp_path}/gateway.db") as database:
        create_tables(database)
        yield Desk(database)


async def test_no_call_looks_at_all_jobs(desk: Desk) -> None:
    plans = Plans(desk.database)
    first = await desk.create(labels={"a": "b"}, request_id="r", inputs=["artifacts/" + "0" * 32])
    await desk.create(queue_timeout=1000)
    grant = await desk.claim_one()
    await desk.report(grant, "progress", b"1")
    await desk.ledger.regrant(WORKER, [(grant.id, grant.fence)])
    await desk.fail(grant, BackendUnreachable("away"))
    await desk.sweep()
    await desk.get(first)
    await desk.ledger.views([first])
    await desk.ledger.cancel(first, CancelMode.ABORT)
    await desk.claim_one()
    await desk.pass_time(LEASE)
    await desk.ledger.lose(instance=WORKER.instance)
    await desk.ledger.lose(other_gateways_than="gateways/other")
    await desk.ledger.ending(WORKER.instance)
    await desk.ledger.queued(UID)
    await desk.ledger.user_of("artifacts/" + "0" * 32)
    for name, value in (
        ("service", "services/s"),
        ("state", "QUEUED"),
        ("state", "RUNNING"),
        ("labels.a", "b"),
        ("retry_of", "x"),
    ):
        await desk.ledger.page([(name, "=", value)], 10, 0)
    desk.clock.advance(8 * 86400)
    await desk.sweep()
    scans = {step: statement for step, statement in plans.steps.items() if step.startswith("SCAN jobs")}
    # One that reads all entries of a partial index reads just those jobs that it is about.
    wrong = {step: text for step, text in scans.items() if "jobs_le" not in step}
    assert not wrong, wrong
    # What time does is found by the time, not by the state that most of the jobs have.
    for index in ("jobs_total_deadline", "jobs_queue_deadline", "jobs_due", "jobs_tidy"):
        assert any(f"INDEX {index} (" in step for step in plans.steps), index
