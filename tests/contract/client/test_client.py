"""The asynchronous client against a server that speaks the contract."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from pathlib import Path

import pytest
from google.protobuf import any_pb2

from onecontainer.api.ai.v1 import inference_service_pb2 as ai_pb
from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.client import AsyncClient, RetryPolicy
from onecontainer.errors import (
    Cancelled,
    CredentialsInvalid,
    DataCorrupt,
    DeadlineExceeded,
    Draining,
    DriverUnreachable,
    FieldInvalid,
    OneContainerError,
    ResourceNotFound,
    ResultExpired,
    StateInvalid,
)

READY, STARTING, FAILED = (
    resources_pb2.SERVICE_STATE_READY,
    resources_pb2.SERVICE_STATE_STARTING,
    resources_pb2.SERVICE_STATE_FAILED,
)


async def test_an_error_arrives_as_the_class_that_was_raised(client, world) -> None:
    with pytest.raises(ResourceNotFound) as caught:
        await client.services.get("nobody")
    assert caught.value.resource == ("service", "services/nobody")
    assert caught.value.hop == "gateway"


async def test_an_idempotent_call_outlives_a_short_outage(client, world) -> None:
    await world.put_service("a", READY)
    world.faults["GetService"] = [DriverUnreachable(retry_after=0.001), DriverUnreachable()]
    assert (await client.services.get("a")).name == "services/a"
    assert world.calls["GetService"] == 3


async def test_a_call_that_may_not_be_repeated_is_not(client, world) -> None:
    world.faults["CreateService"] = [DriverUnreachable(retry_after=0.001)]
    with pytest.raises(DriverUnreachable):
        await client.services.create("a", "onnx")
    assert world.calls["CreateService"] == 1


async def test_retries_end_at_the_deadline(client, world) -> None:
    world.faults["GetService"] = [DriverUnreachable(retry_after=30.0)] * 2
    with pytest.raises(DriverUnreachable):
        await client.services.get("a", timeout=20)
    assert world.calls["GetService"] == 1


async def test_nobody_there_is_told_soon() -> None:
    async with AsyncClient("127.0.0.1:1", timeout=120) as client:
        with pytest.raises(DriverUnreachable) as caught:
            await client.services.get("a")
    assert caught.value.hop is None
    assert "the gateway at 127.0.0.1:1 is not reachable" in str(caught.value)


async def test_no_time_is_a_deadline(client, world) -> None:
    await world.put_service("a", READY)
    for timeout in (0, -1):
        with pytest.raises(DeadlineExceeded, match="more than 0 seconds"):
            await client.services.get("a", timeout=timeout)
        with pytest.raises(DeadlineExceeded, match="more than 0 seconds"):
            await anext(client.jobs.watch("x", timeout=timeout))
    assert world.calls["GetService"] == 0


async def test_a_token_is_sent_with_each_call(world, start) -> None:

    server, address = await start(world, {"s3cret": "alice"})
    async with AsyncClient(address, token="s3cret") as known, AsyncClient(address) as unknown:
        assert list(await known.services.list()) == []
        with pytest.raises(CredentialsInvalid):
            await unknown.services.list()
    await server.stop(0)


async def test_wait_ready_waits_for_all_and_ends_its_watch(client, world) -> None:
    await world.put_service("a", READY)
    await world.put_service("b", STARTING)
    waiting = asyncio.create_task(client.services.wait_ready("a", "b", timeout=120))
    await world.until(lambda: world.watchers == 1)
    await world.put_service("b", READY)
    assert [service.name for service in await waiting] == ["services/a", "services/b"]
    await world.until(lambda: world.watchers == 0)


async def test_wait_ready_tells_why_it_will_never_be(client, world) -> None:
    await world.put_service("a", FAILED, "the model does not load")
    with pytest.raises(StateInvalid, match="FAILED: the model does not load"):
        await client.services.wait_ready("a", timeout=120)


async def test_wait_ready_names_what_is_late_and_what_is_missing(client, world) -> None:
    await world.put_service("a", STARTING, "backend not there yet")
    for timeout in (0.2, 2.0, 20.0):  # as long as it takes this machine to hear of it at all
        with pytest.raises(DeadlineExceeded) as caught:
            await client.services.wait_ready("a", timeout=timeout)
        if "nothing was heard" not in str(caught.value):
            break
    assert "services/a is STARTING: backend not there yet" in str(caught.value)
    with pytest.raises(ResourceNotFound, match="services/b"):
        await client.services.wait_ready("a", "b", timeout=120)


async def test_wait_ready_ends_when_its_service_is_deleted(client, world) -> None:
    await world.put_service("a", STARTING)
    waiting = asyncio.create_task(client.services.wait_ready("a", timeout=120))
    await world.until(lambda: world.watchers == 1)
    await world.delete_service("a")
    with pytest.raises(ResourceNotFound, match="services/a"):
        await waiting


async def test_wait_ready_goes_on_after_a_gateway_restart(client, world) -> None:
    world.faults["WatchServices"] = [Draining(retry_after=0.001), Draining()]
    await world.put_service("a", READY)
    await client.services.wait_ready("a", timeout=120)
    assert world.calls["WatchServices"] == 3


async def test_a_call_that_meets_a_server_just_stopping_was_not_cancelled(world, start) -> None:
    """gRPC's server ends the calls that reach it while it stops with CANCELLED, which would be the caller's own doing."""
    await world.put_service("a", READY)

    async def ask(client: AsyncClient) -> OneContainerError:
        while True:
            try:
                await client.services.get("a")
            except OneContainerError as error:
                return error

    seen: list[OneContainerError] = []
    async with asyncio.timeout(300):
        while not any("one does that is stopping" in str(error) for error in seen):
            server, address = await start(world)
            async with AsyncClient(address, retry=RetryPolicy(max_attempts=1), timeout=120) as client:
                asking = [asyncio.create_task(ask(client)) for _ in range(8)]
                await asyncio.sleep(0.05)
                await server.stop(1)
                seen += await asyncio.gather(*asking)
    assert {type(error) for error in seen} == {DriverUnreachable}


async def test_waiting_for_many_is_resumed_with_those_that_are_left(client, world) -> None:
    for name in ("jobs/1", "jobs/2", "jobs/3"):
        await world.put_job(job_pb2.Job(name=name, state=job_pb2.JOB_STATE_SUCCEEDED))
    world.faults["WaitJobs.next"] = [Draining(retry_after=0.001)]
    told = [(name, job.state) async for name, job in client.jobs.wait_all(["1", "jobs/2", "3"], timeout=120)]
    assert told == [(f"jobs/{n}", job_pb2.JOB_STATE_SUCCEEDED) for n in (1, 2, 3)]
    assert world.waited == [["jobs/1", "jobs/2", "jobs/3"], ["jobs/2", "jobs/3"]]


async def test_a_watch_is_resumed_from_the_last_sequence_and_ends_with_the_job(client, world) -> None:
    job = client.jobs.handle("1")
    await world.put_job(job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_RUNNING))
    world.faults["WatchJob.next"] = [Draining(retry_after=0.001)]
    seen: list[int] = []
    begun = asyncio.Event()

    def note(record: job_pb2.Job) -> None:
        seen.append(record.sequence)
        begun.set()

    waiting = asyncio.create_task(job.wait(on_progress=note))
    await begun.wait()
    done = job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_SUCCEEDED)
    done.result.Pack(pipeline_pb2.RunPipelineResult(ended_early=True))
    await world.put_job(done)
    assert (await waiting).state == job_pb2.JOB_STATE_SUCCEEDED
    assert seen == [1, 2]
    assert world.calls["WatchJob"] == 2
    assert (await job.result(pipeline_pb2.RunPipelineResult)).ended_early
    with pytest.raises(TypeError, match="RunPipelineResult, not a"):
        await job.result(ai_pb.PredictResponse)


async def test_a_large_result_is_fetched_from_its_artifact(client, world) -> None:
    result = pipeline_pb2.RunPipelineResult(validated_only=True).SerializeToString()
    kept = await client.artifacts.upload(result, media_type="application/x-protobuf")
    method = "onecontainer.api.media.v1.MediaService/RunPipeline"
    record = job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_SUCCEEDED, result_artifact=kept.name, method=method)
    assert (await client.jobs.handle(record).result(pipeline_pb2.RunPipelineResult)).validated_only


async def test_a_job_that_did_not_succeed_raises_its_own_error(client, world) -> None:
    failed = job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_EXPIRED)
    failed.error.code, failed.error.message = 4, "no worker came"
    with pytest.raises(DeadlineExceeded, match="no worker came"):
        await client.jobs.handle(failed).result(pipeline_pb2.RunPipelineResult)
    with pytest.raises(Cancelled):
        await client.jobs.handle(job_pb2.Job(state=job_pb2.JOB_STATE_CANCELLED)).packed_result()
    with pytest.raises(ResultExpired):
        await client.jobs.handle(job_pb2.Job(state=job_pb2.JOB_STATE_SUCCEEDED)).packed_result()


async def test_a_wait_that_is_too_short_leaves_the_job_alone(client, world) -> None:
    await world.put_job(job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_RUNNING))
    for timeout in (0.2, 2.0, 20.0):  # as long as it takes this machine to hear of it at all
        with pytest.raises(DeadlineExceeded) as caught:
            await client.jobs.handle("1").wait(timeout=timeout)
        if "UNSPECIFIED" not in str(caught.value):
            break
    assert f"jobs/1 is still RUNNING after {timeout:g} s" in str(caught.value)
    assert world.calls["CancelJob"] == 0


async def test_any_call_can_be_made_a_job(client, world) -> None:
    job = await client.jobs.create("cat", "onecontainer.api.ai.v1.InferenceService/Predict", any_pb2.Any())
    assert (job.record.service, job.record.state) == ("services/cat", job_pb2.JOB_STATE_QUEUED)
    await job.cancel(finish=True)
    assert job.done
    assert job.record.cancel_mode == job_pb2.CANCEL_MODE_FINISH


async def test_a_file_goes_up_and_comes_down_piece_by_piece(client, world, tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    source = tmp_path / "clip.bin"
    source.write_bytes(content)
    sent: list[tuple[int, int | None]] = []
    artifact = await client.artifacts.upload(source, on_progress=lambda done, total: sent.append((done, total)))
    assert artifact.filename == "clip.bin"
    assert [done for done, _ in sent] == [1_048_576, 2_097_152, 2_560_000]
    (tmp_path / "down").mkdir()
    world.break_download_after = 5_000
    got: list[int] = []
    await client.artifacts.download(artifact.name, tmp_path / "down", on_progress=lambda done, _total: got.append(done))
    assert (tmp_path / "down" / "clip.bin").read_bytes() == content
    assert [path.name for path in (tmp_path / "down").iterdir()] == ["clip.bin"]
    assert world.calls["Download"] == 2
    assert got == sorted(got)


async def test_a_download_goes_on_with_what_an_earlier_one_left(client, world, tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    artifact = await client.artifacts.upload(content)
    (tmp_path / ".x.1.part").write_bytes(content[:20_000])
    done: list[int] = []
    await client.artifacts.download(artifact.name, tmp_path / "x", on_progress=lambda at, _total: done.append(at))
    assert (tmp_path / "x").read_bytes() == content
    assert min(done) == 20_000


async def test_a_left_over_longer_than_the_artifact_is_not_believed(client, world, tmp_path: Path) -> None:
    artifact = await client.artifacts.upload(b"short")
    (tmp_path / ".x.1.part").write_bytes(b"much longer than that")
    await client.artifacts.download(artifact.name, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"short"


async def test_a_digest_that_differs_is_never_kept(client, world, tmp_path: Path) -> None:
    world.corrupt = True
    with pytest.raises(DataCorrupt):
        await client.artifacts.upload(b"content")
    with pytest.raises(DataCorrupt):
        await client.artifacts.download("1", tmp_path / "x")
    with pytest.raises(DataCorrupt):
        await client.artifacts.read_all("1")
    assert not list(tmp_path.iterdir())


async def test_a_download_into_nowhere_names_the_folder(client, world, tmp_path: Path) -> None:
    with pytest.raises(FieldInvalid, match="no folder"):
        await client.artifacts.download("1", tmp_path / "no" / "where")


async def test_a_part_of_an_artifact_can_be_read_over_a_broken_stream(client, world) -> None:
    content = hashlib.sha256(b"").digest() * 1000
    await client.artifacts.upload(content)
    world.break_download_after = 9_000
    async with aclosing(client.artifacts.read("1", offset=7_000, limit=5_000)) as pieces:
        assert b"".join([piece async for piece in pieces]) == content[7_000:12_000]


async def test_inputs_are_told_apart(client, world, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"12345")
    answer = await client.ai.predict("cat", [tmp_path / "cat.png", b"123", "artifacts/1", "words", {"a": 1}])
    kinds = [prediction.json.string_value for prediction in answer.predictions]
    assert kinds == ["image:5", "image:3", "artifact:0", "text:0", "json:0"]


async def test_a_stream_both_ways_names_the_service_in_each_item(client, world) -> None:
    items = (ai_pb.PredictStreamRequest(item_id=str(number)) for number in range(3))
    answers = [answer.item_id async for answer in client.ai.predict_stream("cat", items)]
    assert answers == ["services/cat/0", "services/cat/1", "services/cat/2"]


async def test_an_error_of_the_items_ends_the_stream_and_comes_out(client, world) -> None:
    async def broken():
        yield ai_pb.PredictStreamRequest(item_id="0")
        raise LookupError("no such file")

    with pytest.raises(LookupError, match="no such file"):
        async for _ in client.ai.predict_stream("cat", broken()):
            pass


async def test_a_refusal_that_comes_before_the_items_are_written_is_not_lost(world, start) -> None:
    server, address = await start(world, {"s3cret": "alice"})
    async with AsyncClient(address) as unknown:
        for _ in range(20):
            with pytest.raises(CredentialsInvalid):
                async for _ in unknown.ai.predict_stream("cat", [ai_pb.PredictStreamRequest()] * 100):
                    pass
    await server.stop(0)


async def test_a_stub_of_ones_own_gets_the_same_care(client, world) -> None:
    from onecontainer.api.artifact.v1.artifact_pb2_grpc import ArtifactServiceStub

    stub = client.stub(ArtifactServiceStub, artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"])
    await client.artifacts.upload(b"x")
    world.faults["GetArtifact"] = [Draining(retry_after=0.001)]
    request = artifact_pb2.GetArtifactRequest(name="artifacts/1")
    assert (await client.caller.unary(stub.GetArtifact, request)).size_bytes == 1
