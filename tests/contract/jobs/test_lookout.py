"""The look behind the notices: whoever waits here is told what another gateway has done, if only this finds it."""

from __future__ import annotations

import pytest

from onecontainer.database import Database
from onecontainer.jobs import lookout
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.ledger import Changed
from onecontainer.jobs.lookout import Lookout
from onecontainer.jobs.model import CancelMode, State
from onecontainer.jobs.sql_look import SqlView
from tests.fixtures.ledger_desk import UID, WORKER, Desk


class Scene:
    """A lookout, and what it has told."""

    def __init__(self, database: Database) -> None:
        self.changes = Changes()
        self.instances: list[str] = []
        self.lookout = Lookout(SqlView(database), self.changes, lambda: self.instances)
        self.told: list[Changed] = []
        self.changes.listen(self.told.append)


@pytest.fixture
def scene(database: Database) -> Scene:
    return Scene(database)


async def test_watchers_hear_of_changes_and_of_nothing_else(desk: Desk, scene: Scene) -> None:
    job, other = await desk.create(), await desk.create()
    with scene.changes.of_job(job) as bell, scene.changes.of_job(other) as other_bell:
        await scene.lookout.look()
        # What has happened between the watcher's own look and the first one here is not known.
        assert await bell.wait(0)
        assert await other_bell.wait(0)
        await scene.lookout.look()
        assert not await bell.wait(0)
        await desk.claim(1)
        await scene.lookout.look()
        assert await bell.wait(0)
        assert not await other_bell.wait(0)


async def test_watchers_hear_that_a_job_has_gone(desk: Desk, scene: Scene) -> None:
    job = await desk.create()
    await desk.ledger.cancel(job, CancelMode.ABORT)
    with scene.changes.of_job(job) as bell:
        await scene.lookout.look()
        await bell.wait(0)
        await desk.ledger.delete(job)
        await scene.lookout.look()
        assert await bell.wait(0)


async def test_who_waits_for_many_hears_of_the_ends_only(
    desk: Desk, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "MOST_AWAITED", 2)
    jobs = [await desk.create() for _ in range(5)]
    with scene.changes.of_jobs(jobs) as roll:
        await desk.claim(1)
        for _ in range(3):
            await scene.lookout.look()
        assert roll.touched() == []
        for job in jobs[1:]:
            await desk.ledger.cancel(job, CancelMode.ABORT)
        for _ in range(3):
            await scene.lookout.look()
        assert sorted(roll.touched()) == sorted(jobs[1:])
        roll.left -= set(jobs[1:])
        await scene.lookout.look()
        assert roll.touched() == []


async def test_waiting_workers_hear_of_jobs_of_their_service(desk: Desk, scene: Scene) -> None:
    with scene.changes.of_queue(UID) as bell, scene.changes.of_queue("uid-of-another") as other:
        await scene.lookout.look()
        assert not await bell.wait(0)
        await desk.create()
        await scene.lookout.look()
        assert await bell.wait(0)
        assert not await other.wait(0)


async def test_connected_workers_are_told_to_end_an_attempt_once(desk: Desk, scene: Scene) -> None:
    job = await desk.create()
    grant = await desk.claim_one()
    await desk.ledger.cancel(job, CancelMode.FINISH)
    await scene.lookout.look()
    assert not scene.told  # its worker is not connected here
    scene.instances = [WORKER.instance]
    for _ in range(2):
        await scene.lookout.look()
    (told,) = scene.told
    assert (told.id, told.fence, told.state, told.orders) == (job, grant.fence, State.CANCELLING, True)
    assert told.cancel_mode == CancelMode.FINISH
    await desk.ledger.cancel(job, CancelMode.ABORT)
    await scene.lookout.look()
    assert scene.told[-1].cancel_mode == CancelMode.ABORT
    await desk.report(grant, "cancelled")
    scene.told.clear()
    await scene.lookout.look()
    assert not scene.told
