"""Commands against a server that speaks the contract: what they print, how they end, and how they are interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.cli.main import cli
from onecontainer.errors import DriverUnreachable, PermissionDenied

Oca = Callable[..., Result]


@pytest.fixture
def oca(blocking) -> Oca:
    """Runs a command against the fake gateway."""
    client, _world = blocking

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, [*arguments, "-a", client.address])

    return run


def too_short(oca: Oca, *arguments: str, told: str) -> Result:
    """How a command ends whose time is over before what it waits for; it has as much as this machine needs to hear of it at all."""
    for timeout in ("500ms", "3s", "20s"):
        result = oca(*arguments, "--timeout", timeout)
        if told in result.output:
            break
    assert told in result.output
    assert result.exit_code == 5
    return result


def finished_job(name: str = "jobs/1") -> job_pb2.Job:
    job = job_pb2.Job(name=name, service="services/films", state=job_pb2.JOB_STATE_SUCCEEDED)
    job.result.Pack(pipeline_pb2.RunPipelineResult(validated_only=True))
    return job


def test_lists_are_tables_or_json(oca, blocking, elsewhere) -> None:
    elsewhere.run(blocking[1].put_service, "cats", resources_pb2.SERVICE_STATE_READY)
    table = oca("service", "list")
    assert table.exit_code == 0
    assert [line.split() for line in table.output.splitlines()][1][:2] == ["cats", "READY"]
    found = json.loads(oca("service", "list", "-o", "json").stdout)
    assert found == [{"name": "services/cats", "state": "SERVICE_STATE_READY"}]


def test_an_option_of_the_root_counts_for_the_command(blocking) -> None:
    result = CliRunner().invoke(cli, ["-a", blocking[0].address, "-o", "json", "service", "list"])
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


def test_the_limits_of_jobs_are_set_one_by_one(oca, blocking) -> None:
    given = ("--max-running", "4", "--max-queued", "100", "--default-max-attempts", "5", "--drain-timeout", "90s")
    assert oca("service", "create", "films", "--app", "ffmpeg", *given).exit_code == 0
    assert oca("service", "update", "films", "--max-queued", "0", "--description", "x").exit_code == 0
    created, changed = blocking[1].writes
    limits = resources_pb2.JobLimits(max_running=4, max_queued=100, default_max_attempts=5)
    limits.drain_timeout.FromSeconds(90)
    assert created.service.job_limits == limits
    assert list(changed.update_mask.paths) == ["description", "job_limits.max_queued"]
    assert changed.service.job_limits == resources_pb2.JobLimits()


def test_what_is_not_there_exits_with_3_and_tells_where_to_look(oca) -> None:
    result = oca("service", "get", "nope")
    assert result.exit_code == 3
    assert "RESOURCE_NOT_FOUND" in result.stderr
    assert "oca service list" in result.stderr


def test_nobody_there_exits_with_4() -> None:
    result = CliRunner().invoke(cli, ["service", "list", "-a", "127.0.0.1:1", "--timeout", "60s"])
    assert result.exit_code == 4
    assert "no gateway answers at 127.0.0.1:1" in result.stderr


def test_a_pause_is_explained_once(oca, blocking, elsewhere) -> None:
    elsewhere.run(blocking[1].put_service, "cats", resources_pb2.SERVICE_STATE_READY)
    blocking[1].faults["GetService"] = [DriverUnreachable("it is starting", retry_after=0.51)] * 2
    result = oca("service", "get", "cats")
    assert result.exit_code == 0
    assert result.stderr == "not available yet, trying again (Ctrl-C ends it): it is starting\n"


def test_a_wait_that_is_too_short_exits_with_5(oca, blocking, elsewhere) -> None:
    elsewhere.run(blocking[1].put_job, job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_RUNNING))
    result = too_short(oca, "job", "wait", "1", told="still RUNNING")
    assert "still RUNNING" in result.stderr


def test_a_watched_job_shows_its_way_and_its_result(oca, blocking, elsewhere) -> None:
    elsewhere.run(blocking[1].put_job, finished_job())
    result = oca("job", "watch", "1")
    assert result.exit_code == 0
    assert "SUCCEEDED" in result.output
    assert '"validated_only": true' in result.output
    lines = oca("job", "watch", "1", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["JOB_STATE_SUCCEEDED"]


def test_a_job_that_failed_fails_the_command_with_its_reason(oca, blocking, elsewhere) -> None:
    failed = job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_FAILED)
    failed.error.code, failed.error.message = 13, "it broke"
    elsewhere.run(blocking[1].put_job, failed)
    for verb in ("watch", "wait"):
        result = oca("job", verb, "1")
        assert result.exit_code == 1
        assert "it broke" in result.stderr


def test_a_job_whose_service_cannot_work_is_not_waited_for(oca, blocking, elsewhere) -> None:
    waiting = job_pb2.Job(name="jobs/1", service="services/cats", state=job_pb2.JOB_STATE_QUEUED)
    elsewhere.run(blocking[1].put_job, waiting)
    elsewhere.run(blocking[1].put_service, "cats", resources_pb2.SERVICE_STATE_FAILED, "options.hub_dir: no folder")
    for arguments in (("job", "watch", "1"), ("job", "wait", "1"), ("job", "wait", "1", "-o", "json")):
        result = oca(*arguments, "--timeout", "120s")
        assert result.exit_code == 1
        assert "services/cats is FAILED: options.hub_dir: no folder" in result.stderr
    assert "jobs/1 stays queued" in oca("job", "wait", "1", "--timeout", "120s").stderr
    # One that runs already has what it needs.
    waiting.state = job_pb2.JOB_STATE_RUNNING
    elsewhere.run(blocking[1].put_job, waiting)
    assert "still RUNNING" in too_short(oca, "job", "wait", "1", told="still RUNNING").stderr


def test_a_job_that_waits_tells_why(oca, blocking, elsewhere) -> None:
    waiting = job_pb2.Job(name="jobs/1", service="services/cats", state=job_pb2.JOB_STATE_QUEUED)
    elsewhere.run(blocking[1].put_job, waiting)
    elsewhere.run(blocking[1].put_service, "cats", resources_pb2.SERVICE_STATE_UNAVAILABLE, "the backend is away")
    too_short(oca, "job", "watch", "1", told="services/cats is UNAVAILABLE: the backend is away")
    # Who may not see services waits all the same.
    blocking[1].faults["WatchServices"] = [PermissionDenied("no")] * 10
    assert "still QUEUED" in too_short(oca, "job", "wait", "1", told="still QUEUED").stderr


def test_a_wait_for_a_service_tells_what_keeps_it(oca, blocking, elsewhere) -> None:
    elsewhere.run(blocking[1].put_service, "cats", resources_pb2.SERVICE_STATE_UNAVAILABLE, "password wrong\nfor cats")
    result = too_short(oca, "service", "wait", "cats", told="password wrong")
    assert result.stderr.splitlines()[0] == "services/cats is UNAVAILABLE: password wrong"


def test_several_jobs_are_waited_for_at_once_and_one_failure_fails_the_command(oca, blocking, elsewhere) -> None:
    failed = job_pb2.Job(name="jobs/2", state=job_pb2.JOB_STATE_FAILED)
    failed.error.code, failed.error.message = 13, "it broke"
    for record in (finished_job(), failed):
        elsewhere.run(blocking[1].put_job, record)
    result = oca("job", "wait", "1", "2", "-o", "json")
    assert result.exit_code == 1
    assert "it broke" in result.stderr
    assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == ["jobs/1", "jobs/2"]
    assert oca("job", "wait", "1", "1").exit_code == 0


def test_tensors_are_shown_as_numbers(oca) -> None:
    shown = oca("ai", "predict", "cats", "--text", "tensor").output
    assert "output  UINT8 [3]  [2, 4, 6]" in shown


def test_files_go_up_and_come_down(oca, blocking, tmp_path: Path) -> None:
    source = tmp_path / "a.bin"
    source.write_bytes(b"content")
    up = json.loads(oca("artifact", "upload", str(source), "-o", "json").stdout)
    assert (up["filename"], up["size_bytes"]) == ("a.bin", "7")
    down = oca("artifact", "download", up["name"], "--to", str(tmp_path / "b.bin"))
    assert down.exit_code == 0
    assert str(tmp_path / "b.bin") in down.stdout
    assert (tmp_path / "b.bin").read_bytes() == b"content"
    assert oca("artifact", "delete", up["name"]).exit_code == 0
    assert not blocking[1].blobs


def test_a_folder_that_is_not_there_is_the_users_mistake(oca, blocking, tmp_path: Path) -> None:
    blocking[0].artifacts.upload(b"x")
    result = oca("artifact", "download", "1", "--to", str(tmp_path / "no" / "b"))
    assert result.exit_code == 2
    assert "no folder" in result.stderr


def test_ctrl_c_leaves_with_130_and_the_job_running(blocking, elsewhere) -> None:
    client, world = blocking
    elsewhere.run(world.put_job, job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_RUNNING))
    command = [sys.executable, "-m", "onecontainer.cli", "job", "watch", "1", "-a", client.address]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert "RUNNING" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _out, errors = process.communicate(timeout=180)
    assert process.returncode == 130
    assert "jobs/1 goes on" in errors
    assert "Traceback" not in errors
    assert world.calls["CancelJob"] == 0


def test_a_reader_that_has_enough_ends_the_command_quietly(blocking, elsewhere) -> None:
    client, world = blocking
    for number in range(3000):
        world.services[f"services/s{number}"] = resources_pb2.Service(name=f"services/s{number}")
    command = f"{sys.executable} -m onecontainer.cli service list -a {client.address} | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=180)
    assert result.stdout.startswith("NAME")
    assert "Traceback" not in result.stderr
