"""What is compared: one port for ours, for the queues on Redis, and for the limit that Kafka sets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

Way = Callable[[int], Awaitable[None]]
"""Submits so many no-op jobs, and returns when the result of each is there and was found to be its own."""

CALLERS = 16
"""Callers at a time, where each job is submitted by a call of its own."""
TIMEOUT = 120
"""Seconds that any single result may take: a benchmark that hangs is to say so."""


class System(Protocol):
    """A job system with its workers. One turn at a time: none has to serve while another is measured."""

    @property
    def name(self) -> str: ...

    @property
    def ways(self) -> Mapping[str, Way]:
        """How jobs are submitted, each under the name of its figure."""
        ...

    async def start(self, workers: int) -> None:
        """Starts it with so many worker processes."""
        ...

    async def one_at_a_time(self, jobs: int) -> list[float]:
        """Seconds from the submission of a job to its result, one job after the other."""
        ...

    def processes(self) -> list[int]:
        """Its processes, or the roots of their trees; neither the broker nor the caller."""
        ...

    def broker(self) -> list[int]:
        """The broker's processes; none where there is no broker."""
        ...

    async def stop(self) -> None:
        """Ends what was started, even if not all of it was."""
        ...


def check(found: object, expected: object) -> None:
    """A result that is another job's, or none, ends the benchmark: it would have measured something else."""
    if found != expected:
        raise RuntimeError(f"the result is {found!r} instead of {expected!r}")
