"""The supervisor and sidecars that register: real processes, and their registrations as the servicer would tell of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from onecontainer.errors import DriverUnreachable
from onecontainer.sidecars.model import RuntimeKind, RuntimeSpec, ServiceState, SidecarState
from onecontainer.sidecars.registrations import Registration
from tests.contract.sidecars.conftest import Bench, strange_sidecar

WAITS = RuntimeSpec(kind=RuntimeKind.ATTACHED)


def register(bench: Bench, folder: Path, name: str) -> Registration:
    return bench.registrations.register(
        "services/u1", "echo", name, version="1.0.0", endpoint=f"unix:{folder / name}.sock"
    )


def events(folder: Path, name: str) -> list[str]:
    return [line.split()[0] for line in (folder / f"{name}-state" / "events").read_text().splitlines()]


async def unavailable(bench: Bench) -> DriverUnreachable:
    """Waits until the service is UNAVAILABLE, and returns why."""
    # A probe that breaks off with the sidecar says UNAVAILABLE before it is known that nobody serves any more.
    await bench.until(
        lambda: bench.supervisor.endpoint("u1") is None and bench.supervisor.state("u1")[0] is ServiceState.UNAVAILABLE
    )
    error = bench.supervisor.state("u1")[1]
    assert isinstance(error, DriverUnreachable)
    return error


async def test_a_service_waits_for_one_and_takes_it_as_it_comes(bench: Bench, tmp_path: Path) -> None:
    await bench.supervisor.apply(bench.target(runtime=WAITS))
    assert "has registered for services/u1" in (await unavailable(bench)).message
    assert bench.supervisor.introduced  # nobody has to wait for it to know strangers
    async with strange_sidecar(tmp_path, "one"):
        registration = register(bench, tmp_path, "one")
        assert await bench.ready() == registration.identity.instance
        assert await bench.call() == " hello"
        [record] = bench.supervisor.sidecars("u1")
        assert (record.state, record.target) == (SidecarState.READY, f"unix:{tmp_path}/one.sock")
        bench.registrations.leave(registration)
        assert "has taken leave" in (await unavailable(bench)).message


async def test_a_broken_stream_of_one_that_answers_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    await bench.supervisor.apply(bench.target(runtime=WAITS))
    async with strange_sidecar(tmp_path, "one"):
        registration = register(bench, tmp_path, "one")
        instance = await bench.ready()
        bench.registrations.broken(registration)
        again = register(bench, tmp_path, "one")
        assert again.presence is registration.presence
        assert await bench.ready() == instance
        assert await bench.call() == " hello"
        bench.registrations.renew(again)
        assert events(tmp_path, "one").count("attach") == 1


async def test_a_broken_stream_of_one_that_is_dead_is_told_long_before_its_lease_ends(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.supervisor.apply(bench.target(runtime=WAITS))
    async with strange_sidecar(tmp_path, "one") as process:
        registration = register(bench, tmp_path, "one")
        await bench.ready()
        process.kill()
        await process.wait()
        bench.registrations.broken(registration)
        await unavailable(bench)
        assert registration.presence is not None
        assert not registration.presence.ended.is_set()  # its lease runs on, for what it may report
    async with strange_sidecar(tmp_path, "two"):
        successor = register(bench, tmp_path, "two")
        assert await bench.ready() == successor.identity.instance


async def test_one_that_hangs_loses_its_lease(bench: Bench, tmp_path: Path) -> None:
    await bench.supervisor.apply(bench.target(runtime=WAITS))
    async with strange_sidecar(tmp_path, "one") as process:
        registration = register(bench, tmp_path, "one")
        await bench.ready()
        os.kill(process.pid, signal.SIGSTOP)
        bench.registrations.lease = 0.05
        bench.registrations.renew(registration)  # the last that is heard of it
        assert "nothing was heard of it for 0.05 s" in (await unavailable(bench)).message


async def test_while_one_drains_another_one_serves(bench: Bench, tmp_path: Path) -> None:
    await bench.supervisor.apply(bench.target(runtime=WAITS))
    async with strange_sidecar(tmp_path, "one"), strange_sidecar(tmp_path, "two"):
        first = register(bench, tmp_path, "one")
        await bench.ready()
        bench.registrations.renew(first, draining=True)
        assert "takes no more calls" in (await unavailable(bench)).message
        second = register(bench, tmp_path, "two")
        assert await bench.ready() == second.identity.instance
        bench.registrations.leave(first)
        assert await bench.ready() == second.identity.instance


async def test_new_settings_reach_it_under_its_name(bench: Bench, tmp_path: Path) -> None:
    await bench.supervisor.apply(bench.target(runtime=WAITS))
    async with strange_sidecar(tmp_path, "one"):
        register(bench, tmp_path, "one")
        instance = await bench.ready()
        await bench.supervisor.apply(bench.target(runtime=WAITS, generation=2, app_version="2"))
        await bench.until(lambda: events(tmp_path, "one").count("attach") == 2)
        assert await bench.ready() == instance
        assert [record.name for record in bench.supervisor.sidecars("u1")] == [instance]


async def test_removing_the_service_detaches_it(bench: Bench, tmp_path: Path) -> None:
    await bench.supervisor.apply(bench.target(runtime=WAITS))
    async with strange_sidecar(tmp_path, "one"):
        register(bench, tmp_path, "one")
        await bench.ready()
        await bench.supervisor.remove("u1", 60)  # what it gets to answer: it does so at once
        assert events(tmp_path, "one")[-1] == "detach"
