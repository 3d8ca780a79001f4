"""The supervisor over real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from onecontainer.errors import DriverNotAvailable, Reason, ResourceNotFound, StateInvalid
from onecontainer.sidecars.instance import DOUBT_PAUSE
from onecontainer.sidecars.model import (
    HeartbeatLayer,
    HeartbeatState,
    RuntimeKind,
    RuntimeSpec,
    ServiceState,
    SidecarState,
)
from onecontainer.sidecars.runtimes.process import ProcessRuntime
from tests.fixtures.cancels import is_there


async def test_a_service_is_started_attached_and_called(bench) -> None:
    await bench.supervisor.apply(bench.target())
    assert bench.supervisor.state("u1")[0] is ServiceState.STARTING
    instance = await bench.ready()
    assert await bench.call() == f"{instance} hello"
    [record] = bench.supervisor.sidecars("u1")
    assert (record.name, record.state, record.runtime) == (instance, SidecarState.READY, RuntimeKind.PROCESS)
    assert record.restart_count == 0
    assert record.ready_time >= record.create_time
    assert ("onecontainer-instance", instance) in bench.supervisor.endpoint("u1").metadata


async def test_what_a_start_waits_for_is_told(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    start, go_on = ProcessRuntime.start, asyncio.Event()

    async def slow(self, spec):
        spec.doing("building the image")
        await go_on.wait()
        spec.doing("")
        return await start(self, spec)

    monkeypatch.setattr(ProcessRuntime, "start", slow)
    await bench.supervisor.apply(bench.target())
    await bench.until(lambda: bench.supervisor.state("u1")[1] is not None)
    state, error = bench.supervisor.state("u1")
    assert (state, error.message) == (ServiceState.STARTING, "building the image")
    go_on.set()
    await bench.ready()
    assert bench.supervisor.state("u1")[1] is None


async def test_a_killed_sidecar_comes_back_as_another_instance(bench) -> None:
    await bench.supervisor.apply(bench.target())
    first = await bench.ready()
    os.kill(int(bench.supervisor.sidecar(first).runtime_id), signal.SIGKILL)
    # Not only UNAVAILABLE: a probe that breaks off says so, too, before the news of the process's end is there.
    await bench.until(lambda: bench.supervisor.endpoint("u1") is None)
    state, error = bench.supervisor.state("u1")
    assert (state, error.reason) == (ServiceState.UNAVAILABLE, Reason.DRIVER_UNREACHABLE)
    assert "was killed by SIGKILL" in error.message
    assert "ready to say what went wrong" in error.message
    second = await bench.ready()
    assert second != first
    assert bench.supervisor.state("u1") == (ServiceState.READY, None)
    assert bench.supervisor.sidecar(second).restart_count == 1
    assert bench.supervisor.sidecar(first).state is SidecarState.STOPPED


async def test_a_start_failure_has_the_last_lines_of_stderr(bench) -> None:
    bench.flags.append("--crash")
    await bench.supervisor.apply(bench.target())
    await bench.until(lambda: any(record.restart_count == 2 for record in bench.supervisor.sidecars("u1")))
    await bench.until(lambda: bench.supervisor.state("u1")[1] is not None)
    state, error = bench.supervisor.state("u1")
    assert state is ServiceState.UNAVAILABLE
    assert "exited with code 3" in error.message
    assert "first line\nthe model file is missing" in error.message
    bench.flags.clear()
    await bench.ready()


async def test_one_that_says_that_a_restart_would_not_help_is_not_started_again(bench) -> None:
    bench.flags.append("--unusable")
    await bench.supervisor.apply(bench.target())
    await bench.until(lambda: bench.supervisor.state("u1")[0] is ServiceState.FAILED)
    assert "exited with code 2" in bench.supervisor.state("u1")[1].message
    assert [record.restart_count for record in bench.supervisor.sidecars("u1")] == [0]
    bench.flags.clear()
    await bench.supervisor.apply(bench.target(), restart=True)
    await bench.ready()


@pytest.mark.parametrize("bench", [{"probe_timeout": 1.5, "health_failures": 3}], indirect=True)
async def test_a_hanging_sidecar_is_replaced_and_harms_no_other(bench) -> None:
    await bench.supervisor.apply(bench.target("u1"))
    await bench.supervisor.apply(bench.target("u2"))
    first = await bench.ready("u1")
    other = await bench.ready("u2")
    os.kill(int(bench.supervisor.sidecar(first).runtime_id), signal.SIGSTOP)
    await bench.until(lambda: bench.supervisor.endpoint("u1") is None, "the hanging one is given up")
    assert "does not answer" in bench.supervisor.state("u1")[1].message
    assert await bench.call("u2") == f"{other} hello"
    assert await bench.ready("u1") != first


async def test_refused_settings_are_not_tried_again_until_they_change(bench) -> None:
    await bench.supervisor.apply(bench.target(options={"refuse": "no such file"}))
    await bench.until(lambda: bench.supervisor.state("u1")[0] is ServiceState.FAILED)
    _, error = bench.supervisor.state("u1")
    assert [violation.field for violation in error.violations] == ["options.refuse"]
    assert [record.restart_count for record in bench.supervisor.sidecars("u1")] == [0]
    await bench.supervisor.apply(bench.target(generation=2))
    await bench.ready()


async def test_the_backend_may_come_later_and_go_again(bench, tmp_path: Path) -> None:
    ready, broken = tmp_path / "ready", tmp_path / "broken"
    await bench.supervisor.apply(bench.target(options={"ready_file": str(ready), "broken_file": str(broken)}))
    await bench.until(lambda: any(record.state is SidecarState.PROBING for record in bench.supervisor.sidecars("u1")))
    assert bench.supervisor.state("u1") == (ServiceState.STARTING, None)
    assert bench.supervisor.endpoint("u1") is None
    broken.touch()
    await bench.until(lambda: bench.supervisor.state("u1")[0] is ServiceState.UNAVAILABLE)
    assert bench.supervisor.state("u1")[1].reason is Reason.BACKEND_UNREACHABLE
    broken.unlink()
    ready.touch()
    instance = await bench.ready()
    broken.touch()
    await bench.until(lambda: bench.supervisor.state("u1")[0] is ServiceState.UNAVAILABLE)
    # The driver tells its callers itself what is wrong with its backend.
    assert await bench.call() == f"{instance} hello"
    broken.unlink()
    assert await bench.ready() == instance


@pytest.mark.parametrize("bench", [{"probe_interval": 3600}], indirect=True)
async def test_a_backend_that_is_doubted_is_probed_at_once(bench, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    await bench.supervisor.apply(bench.target(options={"broken_file": str(broken)}))
    await bench.ready()
    broken.touch()
    bench.supervisor.endpoint("u1").doubt.set()
    await bench.until(lambda: bench.supervisor.state("u1")[0] is ServiceState.UNAVAILABLE)
    assert bench.supervisor.state("u1")[1].reason is Reason.BACKEND_UNREACHABLE


@pytest.mark.parametrize("bench", [{"probe_interval": 3600}], indirect=True)
async def test_a_backend_that_is_well_is_not_probed_for_each_call_that_doubts_it(bench) -> None:
    await bench.supervisor.apply(bench.target())
    await bench.ready()
    probes = bench.root / "data" / "state" / "u1" / "probes"
    before = probes.stat().st_size
    async with asyncio.timeout(180):
        while probes.stat().st_size < before + 3:
            for _ in range(10):
                bench.supervisor.endpoint("u1").doubt.set()
                await asyncio.sleep(0.01)
    # A slow machine makes fewer; without a pause there would be some hundred in this time.
    begun, first = asyncio.get_running_loop().time(), probes.stat().st_size
    while (passed := asyncio.get_running_loop().time() - begun) < 1.5:
        bench.supervisor.endpoint("u1").doubt.set()
        await asyncio.sleep(0.01)
    assert probes.stat().st_size - first <= passed / DOUBT_PAUSE + 2  # one that was on its way before, too


async def test_the_new_one_is_ready_before_the_old_one_goes(bench) -> None:
    await bench.supervisor.apply(bench.target())
    first = await bench.ready()
    served: set[str] = set()
    done = asyncio.Event()

    async def caller() -> None:
        while not done.is_set():
            served.add((await bench.call()).split()[0])
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(caller())
        await bench.supervisor.apply(bench.target(generation=2))
        await bench.until(lambda: bench.supervisor.endpoint("u1").instance != first)
        second = bench.supervisor.endpoint("u1").instance
        await bench.until(lambda: bench.supervisor.sidecar(first).state is SidecarState.STOPPED)
        assert bench.supervisor.authenticate("x") is None
        done.set()
    assert served <= {first, second}
    assert first in served
    assert bench.events()[:2] == ["start", "attach"]
    assert bench.events()[-2:] == ["drain", "stop"]
    assert bench.events().index("drain") > 3


async def test_exclusive_state_is_given_up_before_it_is_taken(bench) -> None:
    manifest = bench.target().manifest
    manifest.exclusive_state = True
    await bench.supervisor.apply(bench.target(manifest=manifest))
    first = await bench.ready()
    await bench.supervisor.apply(bench.target(manifest=manifest, generation=2))
    await bench.until(lambda: (e := bench.supervisor.endpoint("u1")) is not None and e.instance != first)
    assert bench.events() == ["start", "attach", "drain", "stop", "start", "attach"]


async def test_a_replacement_that_does_not_come_up_leaves_the_old_one_serving(bench) -> None:
    await bench.supervisor.apply(bench.target())
    first = await bench.ready()
    await bench.supervisor.apply(bench.target(options={"refuse": "bad"}, generation=2))
    await bench.until(lambda: bench.supervisor.state("u1")[1] is not None)
    state, error = bench.supervisor.state("u1")
    assert state is ServiceState.READY
    assert error.violations[0].description == "bad"
    assert (await bench.call()).startswith(first)
    await bench.supervisor.apply(bench.target(generation=3))
    await bench.until(lambda: bench.supervisor.endpoint("u1").instance != first)


async def test_the_same_target_again_starts_nothing_unless_asked(bench) -> None:
    await bench.supervisor.apply(bench.target())
    first = await bench.ready()
    await bench.supervisor.apply(bench.target(drain_timeout=3.0))
    assert len(bench.supervisor.sidecars("u1")) == 1
    await bench.supervisor.apply(bench.target(drain_timeout=3.0), restart=True)
    await bench.until(lambda: bench.supervisor.endpoint("u1").instance != first)


async def test_removing_drains_for_a_bounded_time_and_removes_the_state(bench, tmp_path: Path) -> None:
    await bench.supervisor.apply(bench.target(options={"linger": "yes"}))
    instance = await bench.ready()
    pid = int(bench.supervisor.sidecar(instance).runtime_id)
    state = tmp_path / "data" / "state" / "u1"
    assert state.is_dir()
    async with asyncio.timeout(120):
        await bench.supervisor.remove("u1", drain=0.2)
    assert not state.exists()
    assert not Path(f"/proc/{pid}").exists()
    assert bench.supervisor.state("u1") == (ServiceState.UNASSIGNED, None)
    with pytest.raises(ResourceNotFound):
        bench.supervisor.sidecar(instance)
    await bench.supervisor.remove("u1", drain=0)


async def test_tokens_stand_for_one_instance_while_it_lives(bench) -> None:
    await bench.supervisor.apply(bench.target())
    instance = await bench.ready()
    authorization = dict(bench.supervisor.endpoint("u1").metadata)["authorization"].removeprefix("Bearer ")
    identity = bench.supervisor.authenticate(authorization)
    assert (identity.instance, identity.service, identity.service_uid, identity.slots) == (
        instance,
        "services/u1",
        "u1",
        2,
    )
    assert bench.supervisor.authenticate(authorization + "x") is None
    await bench.supervisor.remove("u1", drain=1)
    assert bench.supervisor.authenticate(authorization) is None


async def test_secrets_come_as_private_files_and_our_own_variables_do_not(bench, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "db-password").write_text("four\n")
    (secrets / "db-password").chmod(0o600)
    await bench.supervisor.apply(bench.target(options={"password": "secrets/db-password"}, secrets=("db-password",)))
    instance = await bench.ready()
    lines = [line.text async for batch in bench.supervisor.logs(instance, 100, False) for line in batch]
    assert "secret db-password 4 0o600" in lines
    environment = Path(f"/proc/{bench.supervisor.sidecar(instance).runtime_id}/environ").read_bytes()
    assert b"LEAKED" not in environment
    assert b"four" not in environment


async def test_secrets_of_the_dispatch_are_mounted_too(bench, tmp_path: Path) -> None:
    bench.client_settings["sasl_password"] = "secrets/kafka"
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "kafka").write_text("12345")
    (tmp_path / "secrets" / "kafka").chmod(0o600)
    await bench.supervisor.apply(bench.target())
    instance = await bench.ready()
    lines = [line.text async for batch in bench.supervisor.logs(instance, 100, False) for line in batch]
    assert "secret kafka 5 0o600" in lines


async def test_a_missing_secret_is_said_and_waited_for(bench, tmp_path: Path) -> None:
    await bench.supervisor.apply(bench.target(secrets=("later",)))
    await bench.until(lambda: bench.supervisor.state("u1")[1] is not None)
    assert "there is no secrets/later" in bench.supervisor.state("u1")[1].message
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "later").write_text("x")
    (tmp_path / "secrets" / "later").chmod(0o600)
    await bench.ready()


async def test_logs_are_followed_to_the_end(bench) -> None:
    await bench.supervisor.apply(bench.target())
    instance = await bench.ready()
    texts: list[str] = []

    async def follow() -> None:
        async for lines in bench.supervisor.logs(instance, 100, True):
            texts.extend(line.text for line in lines)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        await asyncio.sleep(0)
        os.kill(int(bench.supervisor.sidecar(instance).runtime_id), signal.SIGTERM)
    assert "listening" in texts
    assert "ready to say what went wrong" in texts
    with pytest.raises(ResourceNotFound):
        async for _ in bench.supervisor.logs("sidecars/none", 1, False):
            pass


async def test_what_a_sidecar_leaves_behind_is_killed(bench, tmp_path: Path) -> None:
    bench.flags += ["--orphan", str(tmp_path / "orphan")]
    await bench.supervisor.apply(bench.target())
    instance = await bench.ready()
    orphan = int((tmp_path / "orphan").read_text())
    os.kill(int(bench.supervisor.sidecar(instance).runtime_id), signal.SIGKILL)
    await bench.until(lambda: bench.supervisor.endpoint("u1") is None)
    await bench.until(lambda: not is_there(orphan))


async def test_heartbeat_asks_each_layer(bench, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with pytest.raises(DriverNotAvailable):
        await bench.supervisor.heartbeat("u1", 1)
    await bench.supervisor.apply(bench.target(options={"broken_file": str(broken)}))
    instance = await bench.ready()
    beat = await bench.supervisor.heartbeat("u1", 60)
    assert beat.sidecar == instance
    assert [(layer.layer, layer.state) for layer in beat.layers] == [
        (layer, HeartbeatState.OK) for layer in (HeartbeatLayer.SIDECAR, HeartbeatLayer.DRIVER, HeartbeatLayer.BACKEND)
    ]
    assert all(layer.latency is not None for layer in beat.layers)
    broken.touch()
    *_, backend = (await bench.supervisor.heartbeat("u1", 60)).layers
    assert (backend.state, backend.error.reason) == (HeartbeatState.UNAVAILABLE, Reason.BACKEND_UNREACHABLE)
    bench.flags.append("--crash")
    os.kill(int(bench.supervisor.sidecar(instance).runtime_id), signal.SIGKILL)
    await bench.until(lambda: bench.supervisor.endpoint("u1") is None)
    layers = (await bench.supervisor.heartbeat("u1", 2)).layers
    assert layers[1].state in (HeartbeatState.SKIPPED, HeartbeatState.UNAVAILABLE)
    assert layers[2].state is HeartbeatState.SKIPPED


async def test_an_attached_sidecar_is_neither_started_nor_stopped(bench, stranger: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("the-stranger")
    (tmp_path / "secrets" / "token").chmod(0o600)
    runtime = RuntimeSpec(RuntimeKind.ATTACHED, endpoint=f"unix:{stranger}", token_secret="secrets/token")
    target = bench.target(runtime=runtime)
    await bench.supervisor.apply(target)
    first = await bench.ready()
    assert bench.supervisor.authenticate("the-stranger").instance == first
    with pytest.raises(StateInvalid):
        async for _ in bench.supervisor.logs(first, 1, False):
            pass
    # The same settings have the same instance: after a restart of the gateway what runs in the sidecar goes on.
    await bench.supervisor.apply(replace(target, generation=2))
    await bench.until(lambda: (e := bench.supervisor.endpoint("u1")) is not None and e.instance != first)
    await bench.supervisor.remove("u1", drain=60)  # what Detach gets to be answered: it is at once
    events = [line.split()[0] for line in (tmp_path / "stranger-state" / "events").read_text().splitlines()]
    assert events == ["start", "attach", "detach", "attach", "detach"]
    async with grpc.aio.insecure_channel(f"unix:{stranger}") as channel:
        assert await channel.unary_unary("/test.v1.EchoService/Echo")(b"x", timeout=60) == b" x"


async def test_the_token_of_an_attached_sidecar_stands_for_it_as_long_as_it_is_the_services(
    bench, stranger: Path, tmp_path: Path
) -> None:
    """Its worker would give up what it runs if it were told that nobody knows it: not while it is gone, not when the gateway ends."""
    (tmp_path / "secrets").mkdir()
    for name, token in (("token", "the-stranger"), ("other", "another")):
        (tmp_path / "secrets" / name).write_text(token)
        (tmp_path / "secrets" / name).chmod(0o600)
    runtime = RuntimeSpec(RuntimeKind.ATTACHED, endpoint=f"unix:{stranger}", token_secret="secrets/token")
    gone = RuntimeSpec(RuntimeKind.ATTACHED, endpoint=f"unix:{tmp_path}/nobody", token_secret="secrets/token")
    # Nobody answers there, and yet it is known: what runs in it has been running since before.
    await bench.supervisor.apply(bench.target(runtime=gone))
    await bench.until(lambda: bench.supervisor.introduced)
    assert bench.supervisor.authenticate("the-stranger") is not None
    await bench.supervisor.apply(bench.target(runtime=runtime, generation=2))
    await bench.ready()
    assert bench.supervisor.authenticate("the-stranger") is not None
    # With another token the old one is worth nothing.
    await bench.supervisor.apply(bench.target(runtime=replace(runtime, token_secret="secrets/other"), generation=3))
    await bench.until(lambda: bench.supervisor.authenticate("the-stranger") is None)
    await bench.supervisor.remove("u1", drain=1)
    assert bench.supervisor.authenticate("another") is None


async def test_a_service_left_to_another_gateway_ends_here_but_an_attached_sidecar_goes_on(
    bench, stranger: Path, tmp_path: Path
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("the-stranger")
    (tmp_path / "secrets" / "token").chmod(0o600)
    runtime = RuntimeSpec(RuntimeKind.ATTACHED, endpoint=f"unix:{stranger}", token_secret="secrets/token")
    await bench.supervisor.apply(bench.target("u1", runtime=runtime))
    await bench.supervisor.apply(bench.target("u2"))
    await bench.ready("u1")
    own = int(bench.supervisor.sidecar(await bench.ready("u2")).runtime_id)
    for uid in ("u1", "u2", "never-there"):
        await bench.supervisor.release(uid)
        assert bench.supervisor.state(uid) == (ServiceState.UNASSIGNED, None)
    # The other gateway has attached it meanwhile: a Detach from here would take it away.
    events = [line.split()[0] for line in (tmp_path / "stranger-state" / "events").read_text().splitlines()]
    assert events == ["start", "attach"]
    assert not Path(f"/proc/{own}").exists()
    await bench.supervisor.apply(bench.target("u2"))
    await bench.ready("u2")


async def test_calls_in_flight_fail_as_unavailable_when_the_sidecar_dies(bench) -> None:
    await bench.supervisor.apply(bench.target())
    instance = await bench.ready()
    pid = int(bench.supervisor.sidecar(instance).runtime_id)
    os.kill(pid, signal.SIGSTOP)
    call = asyncio.ensure_future(bench.call())
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_runtime_that_is_not_there_is_told_and_not_tried_again(bench) -> None:
    await bench.supervisor.apply(bench.target(runtime=RuntimeSpec(RuntimeKind.DOCKER)))
    await bench.until(lambda: bench.supervisor.state("u1")[0] is ServiceState.FAILED)
    assert "no runtime docker" in bench.supervisor.state("u1")[1].message
    await bench.supervisor.apply(bench.target(generation=2))
    await bench.ready()


async def test_many_services_start_at_once_and_a_dead_one_is_no_hindrance(bench) -> None:
    dead = replace(bench.target("dead"), folder=Path("/nowhere"))
    await bench.supervisor.apply(dead)
    for number in range(4):
        await bench.supervisor.apply(bench.target(f"u{number}"))
    for number in range(4):
        await bench.ready(f"u{number}")
    assert bench.supervisor.state("dead")[0] in (ServiceState.STARTING, ServiceState.UNAVAILABLE)


async def test_leaving_the_supervisor_ends_its_children(bench) -> None:
    await bench.supervisor.apply(bench.target())
    pid = int(bench.supervisor.sidecar(await bench.ready()).runtime_id)
    await bench.supervisor.__aexit__(None, None, None)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        raise AssertionError("the child is still there")
    assert bench.events()[-1] == "stop"


async def test_a_driver_that_locks_its_state_without_saying_so_is_switched_all_the_same(bench) -> None:
    await bench.supervisor.apply(bench.target(options={"lock": "yes"}))
    first = await bench.ready()
    await bench.supervisor.apply(bench.target(options={"lock": "yes"}, generation=2))
    await bench.until(lambda: (e := bench.supervisor.endpoint("u1")) is not None and e.instance != first)
    assert bench.supervisor.sidecar(first).state is SidecarState.STOPPED


async def test_another_driver_at_the_other_end_is_not_used(bench) -> None:
    bench.flags.append("--impostor")
    await bench.supervisor.apply(bench.target())
    await bench.until(lambda: bench.supervisor.state("u1")[1] is not None)
    state, error = bench.supervisor.state("u1")
    assert (state, error.reason) == (ServiceState.UNAVAILABLE, Reason.DRIVER_MISIMPLEMENTED)
    assert "its name is 'impostor', not 'echo'" in error.message
    assert "attach" not in bench.events()


@pytest.mark.parametrize("bench", [{"start_timeout": 10.0, "start_slot": 0.1, "concurrent_starts": 1}], indirect=True)
async def test_one_that_never_answers_is_given_up_and_holds_up_no_other(bench) -> None:
    bench.flags.append("--mute")
    told = []
    # Noted as it comes: the next start is one that answers, and then all is well again.
    bench.supervisor.subscribe(lambda _uid: told.extend(filter(None, [bench.supervisor.state("mute")[1]])))
    await bench.supervisor.apply(bench.target("mute"))
    await bench.until(lambda: any(record.runtime_id for record in bench.supervisor.sidecars("mute")), "started")
    bench.flags.clear()
    await bench.supervisor.apply(bench.target("u1"))
    await bench.ready("u1")
    await bench.until(lambda: bool(told))
    assert "did not answer in 10 s" in told[0].message
    assert "a lock that nobody gives back" in told[0].message
