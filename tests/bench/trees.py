"""Trees of processes: what they hold in memory, and their end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.fixtures.processes import Process


def members(roots: Iterable[int]) -> set[int]:
    """These processes and all that descend from them now."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command, in parentheses, may hold anything; what follows it does not.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        children.setdefault(parent, []).append(int(status.parent.name))
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def memory_mib(roots: Iterable[int]) -> tuple[float, float]:
    """(RSS, PSS) of the trees, in MiB. RSS counts what forked processes share once for each of them, PSS once in all."""
    rss = pss = 0
    for pid in members(roots):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    rss += int(line.split()[1])
                elif line.startswith("Pss:"):
                    pss += int(line.split()[1])
    return rss / 1024, pss / 1024


@contextlib.contextmanager
def running_tree(command: list[str], environment: Mapping[str, str], ready: str) -> Iterator[Process]:
    """A process that has children of its own: asked to end at the end, and none of its children outlives it."""
    process = Process(command, environment, ready)
    process.start()
    try:
        yield process
    finally:
        with ExitStack() as stack:
            descendants = [fd for pid in members([process.pid]) - {process.pid} for fd in _handle(pid, stack)]
            try:
                process.stop(timeout=15)
            finally:
                for fd in descendants:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                    select.select([fd], [], [])  # readable once it has ended


def _handle(pid: int, stack: ExitStack) -> list[int]:
    """A descriptor that stays this process's even if its number is given to another; none if it has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return []
    stack.callback(os.close, fd)
    return [fd]
