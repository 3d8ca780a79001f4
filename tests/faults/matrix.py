"""make faults: kill -9 and restart of {gateway, driver, broker} at five points of a job's life, under load, on both dispatches.

In each cell jobs of idempotent and of other methods come in, in batches and one by one; some are cancelled; a job that the
seed chose is watched until it has reached the point, and the victim is killed. At the end every job is audited: see audit.py.

    python -m tests.faults.matrix [--seed S] [--jobs N] [--dispatch kafka|embedded|both] [--short]

``--jobs`` is per cell. Prints the matrix and writes build/faults/matrix.json. Exit code 1 if a job was lost, doubled or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from tests.drivers.build import build_driver
from tests.faults.audit import DOUBLED, LOST, WRONG, Case, Finding, Marks, audit
from tests.faults.load import Wave, cancel, draw, submit, submit_each
from tests.faults.stage import Stage, answered, until
from tests.fixtures import kafka

OUT = Path("build/faults")
POINTS = ("before_claim", "after_claim", "mid_run", "before_report", "after_report")
VICTIMS = {"kafka": ("gateway", "driver", "broker"), "embedded": ("gateway", "driver")}
KILLS = 3
"""Kills in a cell, a wave of jobs around each."""
JOBS = 144
END_TIMEOUT = 300.0
"""Seconds after the last kill in which all jobs of a cell must end. The slowest way is a record's second publication after a minute."""
EVENTS_TIMEOUT = 180.0
LONGEST_AWAY = 1.5

SHORT_CELLS = {
    "kafka": (("gateway", "before_report"), ("driver", "after_claim"), ("broker", "before_claim")),
    "embedded": (("gateway", "mid_run"), ("driver", "before_report")),
}
SHORT_JOBS = 24


@dataclass(slots=True)
class Cell:
    """One victim at one point, and what came of it."""

    dispatch: str
    victim: str
    point: str
    jobs: int = 0
    kills: int = 0
    on_point: int = 0
    """Kills that the ledger's times show to have met the job at its point; the others met it a moment later."""
    succeeded: int = 0
    outcome_unknown: int = 0
    cancelled: int = 0
    retried: int = 0
    """Attempts beyond the first of their job."""
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    seconds: float = 0.0
    settled_seconds: float = 0.0
    """From the last restart until all jobs had ended."""
    cases: list[Case] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        return f"{self.victim}-{self.point.replace('_', '-')}"

    def figures(self) -> dict[str, Any]:
        """What goes into the record."""
        values = {name.name: getattr(self, name.name) for name in fields(self) if name.name != "cases"}
        return {name: round(value, 1) if isinstance(value, float) else value for name, value in values.items()}


async def play(stage: Stage, cell: Cell, seed: int, jobs: int, kills: int) -> None:
    """Runs a cell, and keeps what became of each job for the audit."""
    # By name, so that a cell draws the same whatever was run before it.
    rng = random.Random(f"{seed}/{cell.dispatch}/{cell.name}")
    begin = time.monotonic()
    service, marks = f"services/{cell.name}", stage.folder / f"{cell.name}.marks"
    marks.touch()
    uid = await stage.service(cell.name)
    waves = []
    kill_times = []
    for number in range(kills):
        share = jobs // kills + (number < jobs % kills)
        wave = draw(rng, cell.name, number, share, wait_in_queue=cell.point == "before_claim")
        waves.append(wave)
        kill_times.append(await _strike(stage, cell, wave, service, uid, marks, rng.uniform(0.0, LONGEST_AWAY)))
        cell.kills += 1
    settling = time.monotonic()
    await stage.ended(service, END_TIMEOUT)
    cell.settled_seconds = time.monotonic() - settling
    seen = Marks(marks.read_text())
    events: dict[str, list[event_pb2.JobEvent]] | None = None
    if stage.broker is not None:
        events = await stage.events({order.name for wave in waves for order in wave.orders}, EVENTS_TIMEOUT)
        if kills > 1 or cell.victim == "broker":
            # A member of the group that was killed is missed after its session only, which a short run does not wait for.
            await stage.caught_up(uid, END_TIMEOUT)
    for wave, kill_time in zip(waves, kill_times, strict=True):
        for order in wave.orders:
            record = await stage.job(order.name)
            begun, ended = seen.begun.get(order.name, []), seen.ended.get(order.name, [])
            cell.cases.append(Case(order, record, begun, ended, None if events is None else events[order.name]))
            if order is wave.trigger:
                cell.on_point += _met(cell.point, record, kill_time)
    await _count_accepted(stage, cell, service)
    await stage.remove(cell.name, uid)
    cell.seconds = time.monotonic() - begin


async def _strike(stage: Stage, cell: Cell, wave: Wave, service: str, uid: str, marks: Path, away: float) -> float:
    """One wave of jobs with its kill; the wall-clock time of the kill."""
    pid = await stage.sidecar(service)
    await submit(stage, service, marks, wave.before)
    async with asyncio.TaskGroup() as group:
        group.create_task(submit_each(stage, service, marks, wave.meanwhile))
        group.create_task(cancel(stage, wave.before))
        await _reach(stage, cell, wave, uid, marks)
        kill_time = time.time()
        if cell.victim == "gateway":
            await stage.restart_gateway(away)
        elif cell.victim == "driver":
            stage.kill_driver(pid)
            stage.thaw_gateway()
        else:
            await stage.kill_broker()
            stage.thaw_gateway()
            await stage.start_broker(away)
    return kill_time


async def _reach(stage: Stage, cell: Cell, wave: Wave, uid: str, marks: Path) -> None:
    """Returns when the wave's trigger is at the cell's point. Before its report the gateway stands still from here on."""
    job = wave.trigger.name

    async def state() -> int:
        return (await stage.job(job)).state

    async def claimed() -> bool:
        return await state() != job_pb2.JOB_STATE_QUEUED

    async def begun() -> bool:
        return f"begin {job} " in marks.read_text()

    async def ended() -> bool:
        return f"end {job} " in marks.read_text()

    async def on_its_way() -> bool:
        return (await stage.job(job)).progress.done >= 1

    async def reported() -> bool:
        return await state() == job_pb2.JOB_STATE_SUCCEEDED

    if cell.point == "before_claim":
        if cell.dispatch == "kafka":
            await stage.published(uid, job, claimed)
    elif cell.point == "after_claim":
        await until(claimed, f"{job} claimed")
    elif cell.point == "mid_run":
        await until(begun, f"{job} begun")
        await until(on_its_way, f"{job} on its way")
    elif cell.point == "before_report":
        await until(begun, f"{job} begun")
        stage.freeze_gateway()
        await until(ended, f"{job} ended")
    else:
        await until(reported, f"{job} reported")


def _met(point: str, record: job_pb2.Job, kill_time: float) -> bool:
    """Whether the job was at the point at that time, by what the ledger wrote of its attempts."""
    first = record.attempts[0] if record.attempts else None
    if point == "before_claim":
        return first is None or first.start_time.ToMicroseconds() / 1e6 > kill_time
    if first is None:
        return False
    claimed = first.start_time.ToMicroseconds() / 1e6 <= kill_time
    over = first.end_time.ToMicroseconds() / 1e6 <= kill_time
    return over if point == "after_report" else claimed and not over


async def _count_accepted(stage: Stage, cell: Cell, service: str) -> None:
    """Adds jobs that are there and that nobody asked for: a creation that was made twice."""
    known = {case.order.name for case in cell.cases}
    if len(known) < len(cell.cases):
        raise AssertionError(f"{cell.name}: two requests were answered with one job")
    there = await answered(lambda: stage.client.jobs.list(filter=f'service = "{service}"'))
    strangers = [job.name for job in there if job.name not in known]
    if strangers:
        raise AssertionError(f"{cell.name}: created twice: {strangers}")


def judge(cell: Cell) -> list[Finding]:
    """Audits the jobs of a cell, and counts."""
    findings: list[Finding] = []
    for case in cell.cases:
        found = audit(case)
        findings += found
        kinds = {finding.kind for finding in found}
        cell.lost += LOST in kinds
        cell.doubled += DOUBLED in kinds
        cell.wrong += WRONG in kinds
        cell.jobs += 1
        if case.record is not None:
            cell.succeeded += case.record.state == job_pb2.JOB_STATE_SUCCEEDED
            cell.cancelled += case.record.state == job_pb2.JOB_STATE_CANCELLED
            cell.outcome_unknown += case.record.state == job_pb2.JOB_STATE_FAILED
            cell.retried += max(0, len(case.record.attempts) - 1)
    return findings


async def run_dispatch(
    folder: Path, drivers: Path, dispatch: str, cells: Iterable[Cell], seed: int, jobs: int, kills: int
) -> list[Finding]:
    """Runs the cells of one dispatch on one stage; what was found."""
    findings: list[Finding] = []
    cells = list(cells)
    async with Stage(folder / dispatch, drivers, kafka=dispatch == "kafka") as stage:
        for cell in cells:
            await play(stage, cell, seed, jobs, kills)
            findings += judge(cell)
            print(
                f"{dispatch} {cell.name}: {cell.jobs} jobs in {cell.seconds:.0f} s, "
                f"the last ended {cell.settled_seconds:.1f} s after the last restart; "
                f"{cell.lost} lost, {cell.doubled} doubled, {cell.wrong} wrong",
                flush=True,
            )
        for cell in cells:
            for case in cell.cases:
                # Looked at again after everything else has happened: what is terminal does not change.
                last = await stage.job(case.order.name)
                if case.record is not None and last.state != case.record.state:
                    cell.doubled += 1
                    findings.append(Finding(DOUBLED, f"its state became {last.state} later", case))
    return findings


def show(console: Console, cells: Sequence[Cell], seed: int) -> None:
    """Prints the matrix."""
    names = (
        "jobs",
        "kills",
        "on_point",
        "succeeded",
        "outcome_unknown",
        "cancelled",
        "retried",
        "lost",
        "doubled",
        "wrong",
    )
    table = Table(title=f"kill -9 and restart, seed {seed}")
    for column in ("dispatch", "victim", "point"):
        table.add_column(column)
    for column in (*names, "s"):
        table.add_column(column.replace("_", " "), justify="right")
    for cell in cells:
        counts = [str(getattr(cell, name)) for name in names]
        table.add_row(cell.dispatch, cell.victim, cell.point.replace("_", " "), *counts, f"{cell.seconds:.0f}")
    table.add_section()
    totals = [str(sum(getattr(cell, name) for cell in cells)) for name in names]
    table.add_row("all", "", "", *totals, f"{sum(cell.seconds for cell in cells):.0f}")
    console.print(table)


def versions() -> dict[str, str]:
    """What was run on what."""
    found = {name: metadata.version(name) for name in ("onecontainer", "grpcio", "aiokafka", "sqlalchemy")}
    return found | {"python": platform.python_version(), "kafka": kafka.VERSION}


def write(name: str, record: dict[str, Any]) -> Path:
    """Writes build/faults/NAME.json."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def run(
    folder: Path, drivers: Path, *, seed: int, jobs: int, kills: int, cells: Sequence[Cell]
) -> tuple[list[Finding], Path]:
    """Runs cells, prints the matrix, and keeps the record; what was found, and where the record is."""
    begin = time.monotonic()
    findings: list[Finding] = []
    for dispatch in dict.fromkeys(cell.dispatch for cell in cells):
        chosen = [cell for cell in cells if cell.dispatch == dispatch]
        findings += asyncio.run(run_dispatch(folder, drivers, dispatch, chosen, seed, jobs, kills))
    show(Console(width=150), cells, seed)
    record = {
        "seed": seed,
        "seconds": round(time.monotonic() - begin, 1),
        "versions": versions(),
        "cells": [cell.figures() for cell in cells],
        "findings": [{"job": one.case.order.name, "kind": one.kind, "what": one.what} for one in findings],
    }
    return findings, write("matrix", record)


def all_cells(dispatches: Iterable[str]) -> list[Cell]:
    return [
        Cell(dispatch, victim, point) for dispatch in dispatches for victim in VICTIMS[dispatch] for point in POINTS
    ]


def short_cells(dispatches: Iterable[str]) -> list[Cell]:
    return [Cell(dispatch, victim, point) for dispatch in dispatches for victim, point in SHORT_CELLS[dispatch]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills under load, and an audit of every job.")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--jobs", type=int, default=None, help=f"jobs in each cell (default {JOBS})")
    parser.add_argument("--dispatch", choices=("kafka", "embedded", "both"), default="both")
    parser.add_argument("--cell", action="append", help="VICTIM-POINT, for one of them alone; may be repeated")
    parser.add_argument("--short", action="store_true", help="a few cells, one kill in each")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    dispatches = ("kafka", "embedded") if arguments.dispatch == "both" else (arguments.dispatch,)
    cells = short_cells(dispatches) if arguments.short else all_cells(dispatches)
    if arguments.cell:
        cells = [cell for cell in cells if cell.name in arguments.cell]
    kills = 1 if arguments.short else KILLS
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="oc-faults-") as folder:
        drivers = Path(folder) / "drivers"
        sys.path.insert(0, str(build_driver("echo", drivers)))
        jobs = arguments.jobs or (SHORT_JOBS if arguments.short else JOBS)
        findings, path = run(Path(folder), drivers, seed=seed, jobs=jobs, kills=kills, cells=cells)
    for finding in findings:
        print(f"\n{finding.kind.upper()}: {finding.what}\n{finding.case.history()}")
    print(f"record in {path}")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
