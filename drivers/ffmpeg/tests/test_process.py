"""Children: bounded, and gone with their call and with their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from onecontainer_driver_ffmpeg.failures import process_failure
from onecontainer_driver_ffmpeg.process import LINE_CHARACTERS, Bounds, LastLines, run, running_child
from onecontainer_driver_ffmpeg.progress import OutputMeter, PipelineMeter, ProgressReader

from onecontainer.driver import errors
from tests.fixtures.stalls import stalls

SLEEP = "import time; time.sleep(600)"


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def wait_until_gone(pid: int) -> None:
    async with asyncio.timeout(120):
        while is_alive(pid):
            await asyncio.to_thread(os.sched_yield)


async def test_leaving_kills_the_group(tmp_path: Path) -> None:
    grandchild = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"
    )
    heard = asyncio.get_running_loop().create_future()
    async with running_child([sys.executable, "-c", grandchild], folder=tmp_path) as child:
        task = asyncio.create_task(child.wait(lambda data: heard.done() or heard.set_result(int(data))))
        pid = await asyncio.wait_for(heard, 120)
        assert is_alive(pid)
    assert await task == -signal.SIGKILL
    await wait_until_gone(pid)


async def test_child_dies_with_its_parent(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from onecontainer_driver_ffmpeg.process import running_child
async def main():
    async with running_child([sys.executable, "-c", {SLEEP!r}], folder=Path({str(tmp_path)!r})) as child:
        print(child.pid, flush=True)
        await child.wait(lambda data: None)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout
    pid = int(await parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    await parent.wait()
    await wait_until_gone(pid)


async def test_environment_is_only_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    command = [sys.executable, "-c", "import os; print(sorted(os.environ), os.getcwd(), os.getpgid(0) == os.getpid())"]
    finished = await run(command, folder=tmp_path, environment={"EXTRA": "1"})
    assert finished.output.decode() == f"['EXTRA', 'HOME', 'LC_ALL', 'TMPDIR'] {tmp_path} True\n"


async def test_bounds_hold(tmp_path: Path) -> None:
    memory = await run(
        [sys.executable, "-c", "x = bytearray(512 * 1024**2)"],
        folder=tmp_path,
        bounds=Bounds(memory_bytes=200 * 1024**2),
    )
    assert "MemoryError" in memory.last_lines[-1]
    size = await run(
        [sys.executable, "-c", "open('x', 'wb').write(bytes(10_000))"], folder=tmp_path, bounds=Bounds(file_bytes=5_000)
    )
    assert "File too large" in size.last_lines[-1]


async def test_timeout_and_output_bound(tmp_path: Path) -> None:
    with stalls() as still:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await run([sys.executable, "-c", SLEEP], folder=tmp_path, timeout=0.3)
        took = time.monotonic() - started - still.seconds
    assert took < 5
    finished = await run([sys.executable, "-c", "print('x' * 100_000)"], folder=tmp_path, most_output=1000)
    assert finished.output_truncated
    assert len(finished.output) == 1000


def test_last_lines_of_an_endless_line() -> None:
    log = LastLines()
    for _ in range(100):
        log.feed(b"x" * 10_000)
    log.feed(b"\nfirst\rsecond\n")
    assert [len(line) for line in log.lines()] == [LINE_CHARACTERS, 5, 6]


def test_progress_never_goes_back() -> None:
    now = 0.0
    meter = OutputMeter("a", 10.0, lambda: now)
    whole = PipelineMeter([meter, OutputMeter("b", None, lambda: now)], lambda: now)
    meter.start()
    seen = []
    reader = ProgressReader(lambda block: seen.append(meter.update(block)))
    reader.feed(b"frame=10\nout_time_us=2000000\nspeed=2.5x\ntotal_size=100\npro")
    assert not seen
    now = 1.0
    reader.feed(b"gress=continue\nframe=5\nout_time_us=N/A\nspeed=N/A\ntotal_size=50\nprogress=continue\n")
    assert seen == [True, False]  # the second block moved nothing
    assert (meter.progress.frame, meter.progress.size_bytes, meter.progress.speed) == (10, 100, 2.5)
    assert meter.progress.fraction == pytest.approx(0.2)
    assert meter.progress.eta.seconds == 4
    assert not whole.details().HasField("fraction")  # the other output's length is not known
    assert whole.total is None


@pytest.mark.parametrize(
    ("code", "line", "error", "grpc_code"),
    [
        (234, "[error] Option not found", errors.BackendExecutionFailed, errors.Code.INVALID_ARGUMENT),
        (
            1,
            "[error] Error opening filter: Invalid argument",
            errors.BackendExecutionFailed,
            errors.Code.INVALID_ARGUMENT,
        ),
        (1, "[error] what", errors.BackendExecutionFailed, errors.Code.INTERNAL),
        (-9, "", errors.BackendExecutionFailed, errors.Code.INTERNAL),
        (229, "", errors.LimitExceeded, errors.Code.RESOURCE_EXHAUSTED),
        (1, "[error] Cannot allocate memory", errors.LimitExceeded, errors.Code.RESOURCE_EXHAUSTED),
        (
            245,
            "[error] Error while opening decoder: Resource temporarily unavailable",
            errors.LimitExceeded,
            errors.Code.RESOURCE_EXHAUSTED,
        ),
        (
            245,
            "[error] pthread_create() failed: Resource temporarily unavailable.",
            errors.LimitExceeded,
            errors.Code.RESOURCE_EXHAUSTED,
        ),
        (
            245,
            "[error] udp://h: Resource temporarily unavailable",
            errors.BackendExecutionFailed,
            errors.Code.INTERNAL,
        ),
        (
            187,
            "[error] Error while opening encoder - maybe incorrect parameters",
            errors.BackendExecutionFailed,
            errors.Code.INVALID_ARGUMENT,
        ),
        (187, "[error] what", errors.BackendExecutionFailed, errors.Code.INTERNAL),
    ],
)
def test_failures(code: int, line: str, error: type[errors.OneContainerError], grpc_code: errors.Code) -> None:
    failure = process_failure(code, [line] if line else [], "outputs[0]")
    assert type(failure) is error
    assert failure.code == grpc_code
