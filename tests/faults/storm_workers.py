"""The rebalance storm with real workers: `oca worker` processes come into the group, claim, and go again by SIGTERM, each
finishing what it has claimed. Nobody else takes jobs.

    python -m tests.faults.storm --crowd workers
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from onecontainer.api.management.v1 import resources_pb2
from tests.faults.stage import Stage
from tests.faults.storm import SLOTS, Member, Seen
from tests.fixtures.processes import Process, free_port

WORKER_SLOTS = 8


class WorkerMember:
    """An `oca worker`. Leaving, it takes no more jobs, and ends when the last of its own has."""

    def __init__(self, data_dir: Path, driver: str, seen: Seen) -> None:
        command = [sys.executable, "-m", "onecontainer.cli", "worker", "storm", "--driver", driver]
        options = ["--data-dir", str(data_dir), "--slots", str(WORKER_SLOTS), "--drain-timeout", "10m"]
        self._process = Process([*command, *options], {}, "takes jobs of services/storm")
        self._seen = seen

    async def join(self) -> None:
        await asyncio.to_thread(self._process.start)
        self._seen.joined += 1

    async def leave(self) -> None:
        """Raises AssertionError if it does not end by itself, with exit code 0."""
        child = self._process.child
        assert child is not None
        child.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(child.wait, 300)
        assert code == 0, "\n".join(self._process.lines[-40:])
        self._seen.left += 1


async def workers(stage: Stage, seen: Seen, stack: AsyncExitStack) -> Callable[[], Member]:
    """The service's driver is a process of its own that takes no jobs; only the workers do."""
    endpoint = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(stage.drivers / "echo")]
    driver = Process(command, {"ONECONTAINER_LISTEN": endpoint}, "serves on")
    stack.callback(driver.kill)
    await asyncio.to_thread(driver.start)
    runtime = resources_pb2.Runtime(kind=resources_pb2.RUNTIME_KIND_ATTACHED, endpoint=endpoint)
    limits = resources_pb2.JobLimits(max_running=SLOTS)
    await stage.service("storm", app_version="1.0", runtime=runtime, job_limits=limits)
    return lambda: WorkerMember(stage.gateway.data_dir, endpoint, seen)
