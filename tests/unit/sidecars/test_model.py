"""The states of a sidecar, its log, its token, and how long the supervisor waits: pure, or on files only."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecontainer.clock import ManualClock
from onecontainer.errors import InternalError, StateInvalid
from onecontainer.sidecars.folders import Folders
from onecontainer.sidecars.logs import MAX_LINE_BYTES, LineSplitter, LogBuffer
from onecontainer.sidecars.model import (
    LIVE,
    TRANSITIONS,
    InstanceIdentity,
    RuntimeKind,
    Sidecar,
    SidecarEvent,
    SidecarState,
)
from onecontainer.sidecars.policy import Policy, restart_delay
from onecontainer.sidecars.secrets import SecretStore
from onecontainer.sidecars.tokens import InstanceTokens

NEW = Sidecar("sidecars/a-1", "services/a", "u", "drivers/d-1", RuntimeKind.PROCESS)


def test_every_state_can_be_stopped_and_a_stopped_one_stays_stopped() -> None:
    for state in SidecarState:
        assert TRANSITIONS[state, SidecarEvent.STOP] is SidecarState.STOPPED
        assert (state in LIVE) == (state not in (SidecarState.BACKOFF, SidecarState.STOPPED))
    for event in SidecarEvent:
        assert TRANSITIONS.get((SidecarState.STOPPED, event), SidecarState.STOPPED) is SidecarState.STOPPED


@pytest.mark.parametrize(("state", "event"), list(itertools.product(SidecarState, SidecarEvent)))
def test_the_table_is_all_there_is(state: SidecarState, event: SidecarEvent) -> None:
    record = Sidecar(NEW.name, NEW.service, "u", NEW.driver, NEW.runtime, state=state)
    if (state, event) in TRANSITIONS:
        assert record.after(event, restart_count=2) == Sidecar(
            NEW.name, NEW.service, "u", NEW.driver, NEW.runtime, state=TRANSITIONS[state, event], restart_count=2
        )
    else:
        with pytest.raises(ValueError, match=event.value):
            record.after(event)


def test_only_a_probe_makes_ready_and_a_draining_one_never_serves_again() -> None:
    sources = {state for (state, event), target in TRANSITIONS.items() if target is SidecarState.READY}
    assert sources == {SidecarState.PROBING, SidecarState.READY}
    assert {event for (_, event), target in TRANSITIONS.items() if target is SidecarState.READY} == {
        SidecarEvent.BACKEND_READY
    }
    reachable = {SidecarState.DRAINING}
    for _ in SidecarState:
        reachable |= {target for (state, _), target in TRANSITIONS.items() if state in reachable}
    assert reachable == {SidecarState.DRAINING, SidecarState.STOPPED}


@given(st.integers(1, 1000), st.floats(0, 1))
def test_restarts_wait_longer_and_longer_within_bounds(failures: int, chance: float) -> None:
    policy = Policy(backoff_initial=0.5, backoff_max=30)
    delay = restart_delay(policy, failures, lambda: chance)
    assert 0.25 <= delay <= 30
    assert delay <= 0.5 * 2.0 ** min(failures - 1, 30)
    assert restart_delay(policy, failures + 1, lambda: chance) >= delay


# --- logs ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=50)))
def test_lines_do_not_depend_on_how_the_bytes_come(chunks: list[bytes]) -> None:
    splitter, whole = LineSplitter(), LineSplitter()
    pieces = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()
    assert pieces == whole.feed(b"".join(chunks)) + whole.end()


def test_lines_are_bounded_and_always_text() -> None:
    splitter = LineSplitter()
    lines = splitter.feed(b"a" * (3 * MAX_LINE_BYTES)) + splitter.feed(b"b" * 10 + b"\nnext\r\n\xff\n")
    assert [len(line) for line in lines[:1]] == [MAX_LINE_BYTES]
    assert lines[1:] == ["next", "�"]
    assert all(len(line.encode()) <= MAX_LINE_BYTES for line in LineSplitter().feed(b"\xff" * MAX_LINE_BYTES + b"\n"))


def test_the_error_has_the_last_lines_of_stderr_within_bounds() -> None:
    logs = LogBuffer(ManualClock())
    logs.write("out", stderr=False)
    assert logs.last_errors() == "out"
    for number in range(100):
        logs.write(f"line {number}", stderr=True)
    assert logs.last_errors().splitlines() == [f"line {number}" for number in range(80, 100)]
    logs.write("x" * 1500, stderr=True)
    assert len(logs.last_errors().encode()) <= 2048
    assert logs.last_errors().endswith("x" * 1500)


async def test_followers_get_the_tail_then_each_line_then_the_end() -> None:
    logs = LogBuffer(ManualClock())
    for number in range(3):
        logs.write(str(number), stderr=False)
    seen: list[str] = []
    started = asyncio.Event()

    async def follow() -> None:
        async for lines in logs.follow(2):
            seen.extend(line.text for line in lines)
            started.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        await started.wait()
        logs.write("3", stderr=True)
        logs.end()
    assert seen == ["1", "2", "3"]
    assert [line.text async for lines in logs.follow(1) for line in lines] == ["3"]


def test_log_files_rotate_and_go(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "a.log"
    logs = LogBuffer(ManualClock(), path)
    for _ in range(1400):
        logs.write("y" * 8000, stderr=False)
    assert path.with_name("a.log.1").exists()
    assert path.stat().st_size < 6 * 1024 * 1024
    logs.end()
    logs.forget()
    assert list(path.parent.iterdir()) == []


# --- tokens, secrets, folders ----------------------------------------------------------------------------------------


def test_a_token_is_its_instances_only() -> None:
    tokens = InstanceTokens()
    first = InstanceIdentity("sidecars/a-1", "services/a", "u1", 1)
    second = InstanceIdentity("sidecars/a-2", "services/a", "u1", 1)
    tokens.register("t", first)
    assert tokens.authenticate("t") == first
    assert tokens.authenticate("T") is None
    tokens.register("t", second)
    tokens.revoke("t", first.instance)
    assert tokens.authenticate("t") == second
    with pytest.raises(StateInvalid, match="its own"):
        tokens.register("t", InstanceIdentity("sidecars/b-1", "services/b", "u2", 1))
    tokens.revoke("t", second.instance)
    assert tokens.authenticate("t") is None


def test_secrets_come_from_private_files_or_the_environment(tmp_path: Path) -> None:
    store = SecretStore(tmp_path, {"ONECONTAINER_SECRET_DB_URL": "from-env"})
    assert store.read("db-url") == "from-env"
    file = tmp_path / "db-url"
    file.write_text("from-file\n")
    file.chmod(0o644)
    assert "chmod 600" in store.problem("db-url")
    file.chmod(0o600)
    assert store.read_all(["db-url"]) == {"db-url": "from-file"}
    for name in ("none", "../db-url", "", ".hidden", "a/b"):
        assert store.problem(name)


def test_folders_are_private_and_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "data", tmp_path / "r")
    made = folders.make("sidecars/a-0123456789ab", "u1", "token", {"x": "secret"})
    assert made.token_file is not None
    assert made.secrets is not None
    for path in (made.run, made.scratch, made.state, made.secrets):
        assert path.stat().st_mode & 0o777 == 0o700
    for path in (made.token_file, made.secrets / "x"):
        assert path.stat().st_mode & 0o777 == 0o600
    folders.remove(made)
    assert not made.run.exists()
    assert made.state.exists()
    folders.remove_state("u1")
    assert not made.state.exists()
    for number in range(60):
        path = folders.log(f"sidecars/a-{number}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    folders.clean()
    assert len(list(path.parent.iterdir())) == 50
    with pytest.raises(InternalError, match="shorter"):
        Folders(tmp_path, tmp_path / ("x" * 100)).make("sidecars/a-1", "u", None, {})
