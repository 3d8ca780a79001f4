"""The process that holds the libraries: its forks end with their calls, and it is there again after it was killed."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from onecontainer_driver_ffmpeg.probe_server import PROBE_CHILD, ProbeServer


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A file that nobody writes: who opens it hangs."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def asked(path: Path) -> dict[str, Any]:
    return {"address": f"file:{path}", "demuxer": "", "options": {}, "timeout": 60.0}


def processes() -> dict[int, int]:
    """Pids of the servers of this process and their forks, with those of their parents."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if str(PROBE_CHILD).encode() in command and command[0] and state != "Z":
            found[int(entry.name)] = int(parent)
    mine = {pid for pid, parent in found.items() if parent == os.getpid()}
    return {pid: parent for pid, parent in found.items() if pid in mine or parent in mine}


def forks() -> set[int]:
    return {pid for pid, parent in processes().items() if parent != os.getpid()}


async def until(number: int) -> set[int]:
    """Pids of the forks once there are so many."""
    async with asyncio.timeout(120):
        while len(found := forks()) != number:
            await asyncio.to_thread(time.sleep, 0.02)
    return found


async def test_a_cancelled_probe_leaves_no_process(pipe: Path, tmp_path: Path) -> None:
    server = ProbeServer()
    task = asyncio.create_task(server.ask(asked(pipe), folder=tmp_path, environment=None))
    await until(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(0)


async def test_a_probe_whose_process_dies_saw_nothing_and_spoils_no_other(
    pipe: Path, clip: Path, tmp_path: Path
) -> None:
    server = ProbeServer()
    hanging = asyncio.create_task(server.ask(asked(pipe), folder=tmp_path, environment=None))
    (fork,) = await until(1)
    # Before it has its request, in whose folder it works, its death would look like the server's, and the next one would be asked.
    async with asyncio.timeout(120):
        while not Path(f"/proc/{fork}/cwd").samefile(tmp_path):
            await asyncio.to_thread(time.sleep, 0.02)
    facts = await server.ask(asked(clip), folder=tmp_path, environment=None)
    assert len(facts["streams"]) == 2
    os.kill(fork, signal.SIGKILL)
    assert await asyncio.wait_for(hanging, 120) is None


async def test_a_killed_server_is_started_again(clip: Path, tmp_path: Path) -> None:
    server = ProbeServer()
    before = {pid for pid, parent in processes().items() if parent == os.getpid()}
    await server.ask(asked(clip), folder=tmp_path, environment=None)
    (pid,) = {pid for pid, parent in processes().items() if parent == os.getpid()} - before
    os.kill(pid, signal.SIGKILL)
    answers = await asyncio.gather(*(server.ask(asked(clip), folder=tmp_path, environment=None) for _ in range(20)))
    assert [len(facts["streams"]) for facts in answers] == [2] * 20


async def test_it_ends_with_its_owner(clip: Path, tmp_path: Path) -> None:
    server = ProbeServer()
    before = set(processes())
    await server.ask(asked(clip), folder=tmp_path, environment=None)
    (pid,) = {pid for pid, parent in processes().items() if parent == os.getpid()} - before
    del server
    gc.collect()
    async with asyncio.timeout(120):
        while pid in processes():
            await asyncio.to_thread(time.sleep, 0.02)


async def test_an_environment_is_of_one_probe_only(tmp_path: Path) -> None:
    server = ProbeServer()
    proxied = {"address": "http://127.0.0.1:9/a.mp4", "demuxer": "", "options": {}, "timeout": 60.0}
    direct = await server.ask(proxied, folder=tmp_path, environment=None)
    through = await server.ask(proxied, folder=tmp_path, environment={"http_proxy": "http://no.such.host.invalid:1"})
    again = await server.ask(proxied, folder=tmp_path, environment=None)
    assert "refused" in direct["error"]
    assert through["error"] != direct["error"]
    assert again == direct
