"""The other half of make faults: a rebalance storm. Members join a service's consumer group and leave it every two seconds while
long jobs run; each job must be run exactly once.

Consumers inside which handlers run double their work then: a partition that is taken away has its records read by the next
member, long before their handlers are through. Ours claims in the ledger, and what runs is not touched by a rebalance.

    python -m tests.faults.storm [--seed S] [--crowd consumers|workers] [--short]

Prints what was seen and writes build/faults/storm-CROWD.json. Exit code 1 if a job was not run exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from rich.console import Console

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.jobs.dispatch.kafka import topic_of
from tests.drivers.build import build_driver
from tests.faults.audit import DOUBLED, Case, Finding, Marks, audit
from tests.faults.load import Order, submit
from tests.faults.matrix import versions, write
from tests.faults.stage import Stage

SERVICE = "services/storm"
SLOTS = 24
LEAST = 4
"""So many members join, and so many assignments are made, before a storm is one."""
CALM_SECONDS = 180.0
"""So long it is waited for."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How long the jobs are, and how wild the storm: durations in seconds."""

    jobs: int = 20
    job_seconds: float = 60.0
    join_every: float = 2.0
    members: int = 3
    """About so many are there at the same time: each stays for ``members * join_every``."""


FULL = Weather()
SHORT = Weather(job_seconds=6.0, join_every=1.0)


@dataclass(slots=True)
class Seen:
    """What the storm did."""

    joined: int = 0
    left: int = 0
    rebalances: int = 0
    """Assignments that the members were given."""
    swallowed: int = 0
    """Records that a member read, did nothing with, and did not commit."""
    jobs: int = 0
    run_once: int = 0
    longest_wait: float = 0.0
    """Seconds from the creation of a job to its claim, at the most."""

    def is_stormy(self, *, plain: bool) -> bool:
        """Whether enough has happened. Of `oca worker` processes nobody sees what they are assigned."""
        return self.joined >= LEAST and (not plain or (self.rebalances >= LEAST and self.swallowed >= 1))


class Member(Protocol):
    """One that comes into the group and goes."""

    async def join(self) -> None: ...

    async def leave(self) -> None: ...


class ConsumerMember:
    """A plain consumer in the service's group: it takes partitions from the worker, reads, commits nothing, and goes."""

    def __init__(self, bootstrap: str, group: str, seen: Seen) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            heartbeat_interval_ms=500,
            metadata_max_age_ms=2000,
        )
        self._group = group
        self._seen = seen
        self._reading: asyncio.Task[None] | None = None

    async def join(self) -> None:
        self._consumer.subscribe([self._group], listener=_Count(self._seen))  # the topic has the group's name
        await self._consumer.start()
        self._seen.joined += 1
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            found = await self._consumer.getmany(timeout_ms=200)
            self._seen.swallowed += sum(len(records) for records in found.values())

    async def leave(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
        await self._consumer.stop()
        self._seen.left += 1


class _Count(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no type for it
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None: ...

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._seen.rebalances += 1


async def blow(make: Callable[[], Member], weather: Weather, over: asyncio.Event) -> None:
    """Again and again one joins, whether the group has come to rest or not, and goes when its time is over."""

    async def live(member: Member) -> None:
        await member.join()
        await _pause(over, weather.members * weather.join_every)
        await member.leave()

    async with asyncio.TaskGroup() as there:
        while not over.is_set():
            there.create_task(live(make()))
            await _pause(over, weather.join_every)


async def _pause(over: asyncio.Event, seconds: float) -> None:
    """Waits so long, or until it is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await over.wait()


Crowd = Callable[[Stage, Seen, AsyncExitStack], Awaitable[Callable[[], Member]]]
"""Makes the service, with all that is to end with the stage, and gives what makes its next member."""


async def consumers(stage: Stage, seen: Seen, _stack: AsyncExitStack) -> Callable[[], Member]:
    """Plain consumers disturb the worker of the service's own sidecar."""
    assert stage.broker is not None
    bootstrap = stage.broker.address
    group = topic_of(await stage.service("storm", job_limits=resources_pb2.JobLimits(max_running=SLOTS)))
    return lambda: ConsumerMember(bootstrap, group, seen)


async def play(
    folder: Path, drivers: Path, weather: Weather, seed: int, crowd: Crowd = consumers
) -> tuple[Seen, list[Finding]]:
    """Runs the storm; what was seen, and what was wrong."""
    rng = random.Random(seed)
    seen = Seen()
    marks = folder / "storm.marks"
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(Stage(folder / "stage", drivers, kafka=True))
        make = await crowd(stage, seen, stack)
        marks.touch()
        over = asyncio.Event()
        orders: list[Order] = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(blow(make, weather, over))
            long = [_order(rng, f"long-{index}", weather.job_seconds) for index in range(weather.jobs)]
            # In two halves: some are claimed while nothing runs yet, the others while the first ones do.
            for half in (long[::2], long[1::2]):
                await submit(stage, SERVICE, marks, half)
                orders += half
                orders += await _trickle(stage, marks, rng, weather, len(orders))
            # Members come more slowly on a slow machine; a storm it is to be all the same.
            latest = time.monotonic() + CALM_SECONDS
            while not seen.is_stormy(plain=crowd is consumers) and time.monotonic() < latest:
                orders += await _trickle(stage, marks, rng, weather, len(orders))
            await stage.ended(SERVICE, weather.job_seconds + 240)
            over.set()
        findings = []
        witnessed = Marks(marks.read_text())
        events = await stage.events({order.name for order in orders}, 180)
        for order in orders:
            record = await stage.job(order.name)
            case = Case(
                order,
                record,
                witnessed.begun.get(order.name, []),
                witnessed.ended.get(order.name, []),
                events[order.name],
            )
            found = audit(case) + _once(case, record)
            findings += found
            seen.jobs += 1
            seen.run_once += not found
            seen.longest_wait = max(seen.longest_wait, _wait(record))
    return seen, findings


def _order(rng: random.Random, name: str, seconds: float) -> Order:
    steps = max(1, round(seconds / 0.5))
    return Order(
        request_id=f"{name}-{rng.getrandbits(32):08x}",
        idempotent=rng.random() < 0.5,
        steps=steps,
        step_seconds=seconds / steps,
        result_bytes=rng.randrange(1 << 16),
    )


async def _trickle(stage: Stage, marks: Path, rng: random.Random, weather: Weather, number: int) -> list[Order]:
    """Short jobs one after the other for half of the storm: there is always a record on its way."""
    orders = []
    end = time.monotonic() + weather.job_seconds / 2
    while time.monotonic() < end:
        order = _order(rng, f"short-{number}-{len(orders)}", rng.uniform(0.1, 0.5))
        await submit(stage, SERVICE, marks, [order])
        orders.append(order)
        await asyncio.sleep(weather.join_every / 4)
    return orders


def _once(case: Case, record: job_pb2.Job) -> list[Finding]:
    """Nothing died: every job has one attempt, begun once and ended once; what a leaving worker gave back unbegun is none."""
    attempts = [one for one in record.attempts if one.state != job_pb2.ATTEMPT_STATE_RELEASED]
    if case.begun == case.ended == [1] and len(attempts) == 1:
        return []
    what = f"it was to run once: begun {case.begun}, ended {case.ended}, {len(attempts)} attempts"
    return [Finding(DOUBLED, what, case)]


def _wait(record: job_pb2.Job) -> float:
    if not record.attempts:
        return 0.0
    return (record.attempts[0].start_time.ToMicroseconds() - record.create_time.ToMicroseconds()) / 1e6


def run(
    folder: Path, drivers: Path, weather: Weather, seed: int, crowd: Crowd = consumers
) -> tuple[Seen, list[Finding], Path]:
    """Runs the storm, prints what was seen, and keeps the record."""
    begin = time.monotonic()
    seen, findings = asyncio.run(play(folder, drivers, weather, seed, crowd))
    record: dict[str, Any] = {"seed": seed, "seconds": round(time.monotonic() - begin, 1), "versions": versions()}
    record |= {
        "crowd": crowd.__name__,
        "weather": asdict(weather),
        "seen": asdict(seen),
        "findings": [one.what for one in findings],
    }
    Console().print(
        f"storm of {crowd.__name__}, seed {seed}: {seen.joined} joined, {seen.left} left, {seen.rebalances} assignments, "
        f"{seen.swallowed} records swallowed; {seen.run_once} of {seen.jobs} jobs ran exactly once, "
        f"the longest wait for a claim was {seen.longest_wait:.1f} s"
    )
    return seen, findings, write(f"storm-{crowd.__name__}", record)


def _crowds() -> dict[str, Crowd]:
    from tests.faults.storm_workers import workers

    return {"consumers": consumers, "workers": workers}


def report(findings: Sequence[Finding]) -> None:
    """Prints the history of each job that something is wrong with."""
    for finding in findings:
        print(f"\n{finding.kind.upper()}: {finding.what}\n{finding.case.history()}")


def main() -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it tells of every rebalance
    parser = argparse.ArgumentParser(description="A rebalance storm over running jobs.")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--crowd", choices=("consumers", "workers"), default="consumers")
    parser.add_argument("--short", action="store_true", help="jobs of 6 seconds, one joins every second")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory(prefix="oc-storm-") as folder:
        drivers = Path(folder) / "drivers"
        sys.path.insert(0, str(build_driver("echo", drivers)))
        weather = SHORT if arguments.short else FULL
        _, findings, path = run(Path(folder), drivers, weather, seed, _crowds()[arguments.crowd])
    report(findings)
    print(f"record in {path}")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
