"""The gateway goes away on each dispatch, for longer than a lease: what its sidecars run goes on, or follows the lost-lease rule."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import Client
from onecontainer.client.sync import Job
from onecontainer.errors import Reason
from onecontainer.rpc.status import from_status
from tests.contract.dispatch.scene import FAILED, LEASE, SUCCEEDED, Scene, begun
from tests.fixtures.ledger_desk import options
from tests.fixtures.processes import GatewayProcess, Process, running
from tests.fixtures.waiting import until

TOKEN = "only-the-gateway-and-the-sidecar-know"


@pytest.fixture(scope="module")
def scene(dispatch: str, dispatch_url: str, drivers: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp(f"away-{dispatch}")
    secrets = folder / "data" / "secrets"
    secrets.mkdir(parents=True, mode=0o700)
    (secrets / "sidecar").write_text(TOKEN)
    (secrets / "sidecar").chmod(0o600)
    gateway = GatewayProcess(
        folder / "data",
        [drivers],
        dispatch_url=dispatch_url,
        job_sweep_interval="0.1",
        lease_duration=str(LEASE),
        probe_interval="0.5",
    )
    with running(gateway), Client(gateway.address) as client:
        scene = Scene(dispatch, gateway, client, folder)
        yield scene
        scene.channel.close()


@pytest.fixture(scope="module")
def sidecar(scene: Scene, drivers: Path) -> Iterator[Process]:
    """A sidecar that somebody else starts, and the service `services/attached` on it."""
    with tempfile.TemporaryDirectory() as short:
        token = scene.folder / "token"
        token.write_text(TOKEN)
        process = Process(
            [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(drivers / "echo")],
            {
                "ONECONTAINER_LISTEN": f"unix:{short}/s",
                "ONECONTAINER_TOKEN_FILE": str(token),
                "ONECONTAINER_STATE_DIR": f"{short}/state",
            },
            "serves on",
        )
        with running(process):
            runtime = resources_pb2.Runtime(
                kind=resources_pb2.RUNTIME_KIND_ATTACHED, endpoint=f"unix:{short}/s", token_secret="secrets/sidecar"
            )
            scene.client.services.create("attached", app="echo", runtime=runtime)
            scene.client.services.wait_ready("attached", timeout=180)
            yield process


def ended(marks: Path) -> int:
    return len([line for line in marks.read_text().splitlines() if line.startswith("end")])


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_an_attached_sidecar_goes_on_and_reports_when_the_gateway_is_back(
    scene: Scene, sidecar: Process, how: str
) -> None:
    marks, first, second = scene.marks(), scene.marks(), scene.marks()

    def work(method: str, wait_file: Path) -> Job:
        fields = {"steps": 1, "mark_file": str(marks), "wait_file": str(wait_file)}
        job = scene.job(method, service="services/attached", **fields)
        scene.wait_progress(job)
        return job

    # Two end while the gateway is away, for longer than a lease; two go on beyond its return.
    early, late = [[work(method, file) for method in ("Work", "WorkOnce")] for file in (first, second)]
    gone = time.monotonic()
    if how == "killed":
        scene.gateway.kill()
    else:
        scene.gateway.stop()
    until(lambda: time.monotonic() - gone > LEASE + 1, "a lease has passed")
    first.touch()
    until(lambda: ended(marks) == 2, "two handlers have ended")
    scene.gateway.start()
    for job in early:
        record = job.wait(timeout=180)
        assert (record.state, record.attempt_count) == (SUCCEEDED, 1), record.error
    second.touch()
    for job in late:
        record = job.wait(timeout=180)
        assert (record.state, record.attempt_count) == (SUCCEEDED, 1), record.error
    assert len(begun(marks)) == 4
    # And it takes new ones.
    assert scene.job(service="services/attached", steps=1).wait(timeout=180).state == SUCCEEDED


def test_process_sidecars_end_with_the_gateway_and_their_attempts_are_lost(scene: Scene) -> None:
    service, marks = scene.service("owned"), scene.marks()
    go = scene.marks()
    long = {"steps": 1, "mark_file": str(marks), "wait_file": str(go)}
    again = scene.job(service=service, given=options(initial_backoff=0.01), **long)
    once = scene.job("WorkOnce", service=service, **long)
    for job in (again, once):
        scene.wait_progress(job)
    scene.gateway.kill()
    go.touch()
    scene.gateway.start()
    record = again.wait(timeout=180)
    assert (record.state, record.attempt_count) == (SUCCEEDED, 2)
    record = once.wait(timeout=180)
    assert (record.state, from_status(record.error).reason) == (FAILED, Reason.OUTCOME_UNKNOWN)
    assert len(begun(marks)) == 3


def test_an_attached_sidecar_that_was_started_anew_is_attached_again(scene: Scene, sidecar: Process) -> None:
    """Its attempts are lost with it; the one that must not be repeated is not begun again."""
    marks, go = scene.marks(), scene.marks()
    long = {"steps": 1, "mark_file": str(marks), "wait_file": str(go)}
    again = scene.job(service="services/attached", given=options(initial_backoff=0.01), **long)
    once = scene.job("WorkOnce", service="services/attached", **long)
    for job in (again, once):
        scene.wait_progress(job)
    sidecar.kill()
    go.touch()
    sidecar.start()
    assert again.wait(timeout=180).state == SUCCEEDED
    record = once.wait(timeout=180)
    assert (record.state, from_status(record.error).reason) == (FAILED, Reason.OUTCOME_UNKNOWN)
    assert sorted(line.split()[2] for line in begun(marks) if once.name in line) == ["1"]
