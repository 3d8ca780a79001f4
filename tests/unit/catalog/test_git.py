"""How git is run: bounded in time and size, and with nothing of the gateway's own. (Real repositories are in tests/contract/management.)"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from onecontainer.catalog import git
from onecontainer.cli.process import is_alive
from onecontainer.errors import BackendUnreachable, DeadlineExceeded
from tests.fixtures.stalls import stalls
from tests.fixtures.waiting import until

URL = "https://example.org/driver"


@pytest.fixture
def fake_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a script in git's place."""

    def put(script: str) -> None:
        program = tmp_path / "bin" / "git"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return put


async def fetch(tmp_path: Path, timeout: float = 30.0, folder: str = "clone") -> str:
    return await git.fetch(URL, "v1", tmp_path / folder, timeout=timeout, max_bytes=1_000_000)


async def test_one_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path, fake_git) -> None:
    child = tmp_path / "child"
    fake_git(f"sleep 600 & echo $! > {child}; wait")
    for timeout in (1.5, 10.0, 60.0):  # as long as it takes this machine to start it at all
        with stalls() as still:
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded, match="ONECONTAINER_PLUGIN_GIT_TIMEOUT"):
                await fetch(tmp_path, timeout=timeout, folder=f"clone-{timeout:g}")
            took = time.monotonic() - started - still.seconds
        assert took < timeout + 18.5
        if child.exists() and child.read_text().strip():
            break
    # It was killed, but nobody waits for what is not our own child: it may need a moment to be gone.
    pid = int(child.read_text())
    until(lambda: not is_alive(pid), "ended what it had started")


async def test_one_that_grows_too_large_is_ended(tmp_path: Path, fake_git) -> None:
    fake_git("dd if=/dev/zero of=pack bs=1000000 count=50 && exit 0; exit 1")
    with pytest.raises((BackendUnreachable, git.DataInvalid)):
        await fetch(tmp_path)
    assert (tmp_path / "clone" / "pack").stat().st_size <= git.FILE_BYTES * 1_000_000


async def test_it_gets_nothing_of_the_gateways_environment(tmp_path: Path, fake_git, monkeypatch) -> None:
    monkeypatch.setenv("ONECONTAINER_SECRET_KEY", "hush")
    monkeypatch.setenv("GIT_SSH_COMMAND", "touch /tmp/evil")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    fake_git(f'env >> {tmp_path}/environment; echo "$@" >> {tmp_path}/arguments')
    await fetch(tmp_path)
    environment = (tmp_path / "environment").read_text()
    assert "hush" not in environment
    assert "GIT_SSH_COMMAND" not in environment
    assert "GIT_CONFIG_COUNT" not in environment
    for setting in ("GIT_TERMINAL_PROMPT=0", "GIT_ALLOW_PROTOCOL=https", "GIT_CONFIG_GLOBAL=/dev/null"):
        assert setting in environment
    arguments = (tmp_path / "arguments").read_text()
    assert f"--depth=1 --no-tags -- {URL} v1" in arguments
    assert "core.hooksPath=/dev/null" in arguments


async def test_without_git_it_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises((BackendUnreachable, git.DataInvalid), match="git"):
        await fetch(tmp_path)
