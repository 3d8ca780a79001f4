"""What can be a job and what its result is, on each dispatch: batches, replays, results' ends, large ones, lost methods."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from google.protobuf import any_pb2

from onecontainer.api.db.v1 import database_pb2 as db_pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client.jobs import create_request
from onecontainer.client.sync import Job
from onecontainer.errors import (
    CapabilityMissing,
    DataInvalid,
    OneContainerError,
    Reason,
    RequestIdReused,
    ResourceInUse,
    ResourceNotFound,
    ResultExpired,
)
from onecontainer.rpc.status import from_status
from tests.contract.dispatch.scene import CANCELLED, ECHO, FAILED, RUNNING, SUCCEEDED, Scene
from tests.fixtures.ledger_desk import options
from tests.fixtures.waiting import until

MIB = 1024 * 1024
LARGE = 64 * MIB - 64 * 1024
"""Just below the limit of a message, with room for what is around the payload."""


def test_in_a_batch_each_item_counts_for_itself(scene: Scene) -> None:
    good = create_request("echo", f"{ECHO}/Work", scene.pb.WorkRequest(steps=1))
    wrong = create_request("echo", f"{ECHO}/Work", scene.pb.EchoRequest())
    nobody = create_request("nobody", f"{ECHO}/Work", scene.pb.WorkRequest())
    made = scene.client.jobs.create_many([good, wrong, good, nobody])
    kinds = [type(item) for item in made]
    assert kinds == [Job, DataInvalid, Job, ResourceNotFound]
    assert {item.wait(timeout=180).state for item in made if isinstance(item, Job)} == {SUCCEEDED}


def test_the_same_request_id_gives_the_same_job(scene: Scene) -> None:
    marks, given = scene.marks(), options(request_id="only-once")
    first = scene.job(given=given, steps=1, mark_file=str(marks))
    assert first.wait(timeout=180).state == SUCCEEDED
    replayed = scene.job(given=given, steps=1, mark_file=str(marks))
    assert (replayed.name, replayed.record.state) == (first.name, SUCCEEDED)
    with pytest.raises(RequestIdReused):
        scene.job(given=given, steps=2, mark_file=str(marks))
    assert len(marks.read_text().splitlines()) == 2


def test_a_result_with_ttl_0_is_delivered_once(scene: Scene) -> None:
    job = scene.job("Echo", given=options(result_ttl=0), payload=b"once")
    assert job.result(scene.pb.EchoResponse, timeout=180).payload == b"once"
    again = until(lambda: record if (record := job.refresh()).result_expired else None, "result expired")
    assert (again.state, again.HasField("result")) == (SUCCEEDED, False)
    with pytest.raises(ResultExpired):
        job.result(scene.pb.EchoResponse)


def test_a_result_goes_after_its_ttl_with_the_artifacts_of_the_job(scene: Scene) -> None:
    for ttl in (0.5, 5, 60):  # as long as it takes this machine to fetch it in time
        job = scene.job(given=options(result_ttl=ttl), steps=1, artifact_bytes=1000)
        with suppress(ResultExpired):
            made = job.result(scene.pb.WorkResult, timeout=180).artifact
            break
    assert made
    until(lambda: job.refresh().result_expired, "result expired")
    with pytest.raises(ResourceNotFound):
        scene.client.artifacts.get(made)


def test_a_result_is_kept_if_that_is_asked(scene: Scene) -> None:
    job = scene.job("Echo", given=options(keep_result=True), payload=b"kept")
    ended = job.wait(timeout=180)
    assert not ended.HasField("expire_time")
    assert [job.result(scene.pb.EchoResponse).payload for _ in range(2)] == [b"kept", b"kept"]


def test_any_unary_method_is_a_job(scene: Scene) -> None:
    job = scene.job("EchoOnce", payload=b"now a job")
    assert job.result(scene.pb.EchoResponse, timeout=180).payload == b"now a job"
    with pytest.raises(CapabilityMissing):
        scene.client.jobs.create("echo", f"{ECHO}/Down", scene.pb.EchoRequest())


def test_a_query_is_a_job(scene: Scene) -> None:
    """A vertical's own method, of a bundled driver that knows nothing of jobs."""
    client = scene.client
    client.services.create("records", app="sql")
    client.services.wait_ready("records", timeout=180)
    client.db.create_table("records", "cats", {"name": "text"}, key=["name"])
    client.db.insert("records", "cats", [{"name": "Chelsea"}])
    request = db_pb.SelectRecordsRequest(table="cats")
    job = client.jobs.create("records", "onecontainer.api.db.v1.DatabaseService/SelectRecords", request)
    answer = job.result(db_pb.SelectRecordsResponse, timeout=180)
    assert "Chelsea" in str(answer)


def test_just_below_the_limit_request_and_result_go_as_artifacts(scene: Scene) -> None:
    before = peak_memory(scene.gateway.pid)
    job = scene.job("Echo", payload=bytes(LARGE))
    ended = job.wait(timeout=240)
    assert ended.state == SUCCEEDED, ended.error
    assert (ended.HasField("result"), bool(ended.result_artifact)) == (False, True)
    assert len(job.result(scene.pb.EchoResponse, timeout=240).payload) == LARGE
    # The message itself is in memory a few times while it is taken in; what goes to and from the worker is streamed.
    assert peak_memory(scene.gateway.pid) - before < 6 * LARGE
    names = {artifact.name for artifact in scene.client.artifacts.list()}
    job.delete()
    assert ended.result_artifact not in {artifact.name for artifact in scene.client.artifacts.list()}
    assert ended.result_artifact in names


def peak_memory(pid: int) -> int:
    """Most bytes that a process has had in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def test_a_service_with_live_jobs_is_deleted_by_force_only(scene: Scene) -> None:
    service = scene.service("doomed", max_running=1)
    runs = scene.blocker(service)
    waits = scene.job(service=service, steps=1)
    with pytest.raises(ResourceInUse):
        scene.client.services.delete(service)
    assert scene.client.jobs.get(runs.name).state == RUNNING
    scene.client.services.delete(service, force=True)
    for job in (runs, waits):
        ended = job.wait(timeout=180)
        assert (ended.state, from_status(ended.error).reason) == (CANCELLED, Reason.CANCELLED)


def test_a_queued_job_whose_method_goes_with_its_driver_fails(scene: Scene) -> None:
    service = scene.service("changing", max_running=1)
    runs = scene.blocker(service)
    kept = scene.job("Echo", service=service, payload=b"kept")
    lost = scene.job("EchoOnce", service=service, payload=b"lost")
    scene.client.services.assign_driver(service, "drivers/lesser-0.9.0")
    ended = lost.wait(timeout=180)
    assert (ended.state, from_status(ended.error).reason) == (FAILED, Reason.CAPABILITY_MISSING)
    runs.cancel()
    assert kept.result(scene.pb.EchoResponse, timeout=180).payload == b"kept"
    with pytest.raises(OneContainerError) as raised:
        scene.job("EchoOnce", service=service)
    assert raised.value.reason is Reason.CAPABILITY_MISSING


def test_a_request_of_another_type_is_refused(scene: Scene) -> None:
    request = create_request("echo", f"{ECHO}/Work", scene.pb.WorkRequest())
    request.request.CopyFrom(any_pb2.Any(type_url="type.googleapis.com/onecontainer.test.echo.v1.Unheard"))
    (error,) = scene.client.jobs.create_many([request])
    assert isinstance(error, DataInvalid)


def test_a_service_without_a_driver_takes_no_jobs(scene: Scene) -> None:
    scene.client.services.create("lonely", app="nothing-has-this-app")
    assert scene.client.services.get("lonely").state == resources_pb2.SERVICE_STATE_UNASSIGNED
    with pytest.raises(OneContainerError) as raised:
        scene.job(service="services/lonely")
    assert raised.value.reason is Reason.DRIVER_NOT_AVAILABLE
