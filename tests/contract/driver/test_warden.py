"""The warden alone: a program runs in its care, and nothing of it is left, by whatever way the end comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onecontainer.driver.processes.warded import WARDEN
from tests.fixtures.waiting import until

PATIENCE = 120.0
SHIELDED = "trap '' TERM; echo $$ > {0}/shielded.part; mv {0}/shielded.part {0}/shielded; while :; do sleep 600; done"
FAMILY = """
setsid sh -c "{shielded}" &
sh -c "sleep 600 & echo \\$! > {folder}/orphan.part; mv {folder}/orphan.part {folder}/orphan"
echo $$ > {folder}/child.part; mv {folder}/child.part {folder}/child
{then}
"""
STARTER = """
import os, subprocess, sys, time
read, write = os.pipe()
os.set_inheritable(write, True)
warden = subprocess.Popen(
    [sys.executable, "-I", "-S", sys.argv[1], str(os.getpid()), "0.2", str(write), "/bin/sh", "-c", sys.argv[2]],
    pass_fds=[write], start_new_session=True,
)
os.close(write)
print(warden.pid, flush=True)
if sys.argv[3] == "stay":
    time.sleep(600)
sys.exit(warden.wait() & 0xFF)
"""
NAMES = ("child", "orphan", "shielded")


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(folder: Path, then: str, starter: str = "stay") -> tuple[subprocess.Popen[str], int]:
    """A starter (what a sidecar is), and the number of its warden, which runs a shell that has started three more processes."""
    script = FAMILY.format(folder=folder, shielded=SHIELDED.format(folder).replace("$", "\\$"), then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(WARDEN), script, starter], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def family(folder: Path) -> list[int]:
    until(lambda: all((folder / name).exists() for name in NAMES), "all started")
    return [int((folder / name).read_text()) for name in NAMES]


@pytest.mark.parametrize("then", ["trap '' TERM; while :; do sleep 600; done", "sleep 600"], ids=["ignores", "heeds"])
@pytest.mark.parametrize("how", ["told", "orphaned"])
def test_nothing_is_left(tmp_path: Path, how: str, then: str) -> None:
    process, warden = start(tmp_path, then)
    with process:
        pids = family(tmp_path)
        assert all(map(is_there, pids))
        if how == "told":
            os.kill(warden, signal.SIGTERM)
        else:
            process.kill()
        until(lambda: not is_there(warden), "the warden gone")
        # Its end is the last: whoever waits for it need not look for the others.
        assert [pid for pid in pids if is_there(pid)] == []
        process.kill()


def test_a_program_that_ends_takes_what_it_started_with_it(tmp_path: Path) -> None:
    process, warden = start(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 5", "wait")
    with process:
        pids = family(tmp_path)
        (tmp_path / "go").touch()
        assert process.wait(PATIENCE) == 5
    assert [pid for pid in (*pids, warden) if is_there(pid)] == []


def test_a_program_that_a_signal_ended_is_told_as_such(tmp_path: Path) -> None:
    process, _ = start(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; kill -SEGV $$", "wait")
    with process:
        family(tmp_path)
        (tmp_path / "go").touch()
        assert process.wait(PATIENCE) == -signal.SIGSEGV & 0xFF


def test_a_killed_warden_takes_the_program_with_it(tmp_path: Path) -> None:
    process, warden = start(tmp_path, "exec sleep 600")
    with process:
        child, _, shielded = family(tmp_path)
        os.kill(warden, signal.SIGKILL)
        until(lambda: not is_there(child), "the program gone")
        process.kill()
    for group in (child, shielded):  # nobody is there any more who knows what they had started
        os.killpg(group, signal.SIGKILL)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    command = [sys.executable, "-I", "-S", str(WARDEN), str(os.getpid()), "1", str(handle), "/no/such/program"]
    result = subprocess.run(command, pass_fds=[handle], capture_output=True, text=True, timeout=PATIENCE, check=False)
    os.close(handle)
    assert result.returncode == 127
    assert "/no/such/program cannot be started" in result.stderr


def test_one_whose_parent_has_gone_already_starts_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(WARDEN), "1", "1", "0", "/bin/sh", "-c", f"touch {tmp_path}/started"]
    assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == 3
    assert not (tmp_path / "started").exists()
