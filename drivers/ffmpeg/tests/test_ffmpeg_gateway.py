"""The driver behind a real gateway: pipelines as jobs, from upload to download, ended early, aborted, and after a crash of the sidecar."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import av
import pytest
import pytest_asyncio

from drivers.ffmpeg.tests.conftest import processes_of
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.api.media.v1.stream_pb2 import Filter, FilterArgument, ParamValue, VideoStream
from onecontainer.client import AsyncClient, AsyncJob, job_error, job_options, transcode_request
from onecontainer.driver import errors
from onecontainer.errors import Reason
from tests.fixtures.processes import GatewayProcess, running

pytestmark = pytest.mark.asyncio(loop_scope="module")
SLOW = VideoStream(codec="libx264", preset="slower")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path_factory.mktemp("gateway") / "data")
    with running(process):
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway: GatewayProcess) -> AsyncIterator[AsyncClient]:
    """Connected, with `services/films` READY."""
    async with AsyncClient(gateway.address) as client:
        await client.services.create("films", app="ffmpeg")
        await client.services.wait_ready("films", timeout=60)
        yield client


async def started(client: AsyncClient, clip: Path, video: VideoStream = SLOW) -> AsyncJob:
    """A pipeline whose first seconds are done."""
    artifact = await client.artifacts.upload(clip)
    job = await client.media.run_pipeline("films", transcode_request(artifact.name, "mp4", video=video))
    async for record in job.watch(timeout=60):
        if record.progress.done > 0:
            break
    return job


async def wait_until_gone(folder: Path) -> None:
    async with asyncio.timeout(5):
        while processes_of(folder):
            await asyncio.to_thread(os.sched_yield)


async def test_upload_transcode_download(client: AsyncClient, clip: Path) -> None:
    artifact = await client.artifacts.upload(clip)
    info = await client.media.probe("films", artifact.name)
    assert info.streams[0].video.width == 320
    video = VideoStream(codec="libx264", preset="ultrafast", width=160)
    job = await client.media.run_pipeline("films", transcode_request(artifact.name, "mkv", video=video))
    seen: list[float] = []
    record = await job.wait(on_progress=lambda record: seen.append(record.progress.done), timeout=60)
    assert record.state == job_pb2.JOB_STATE_SUCCEEDED
    assert record.progress.done == pytest.approx(3, abs=0.1)
    assert record.progress.total == pytest.approx(3, abs=0.1)
    assert seen == sorted(seen)
    result = await job.result(pipeline_pb2.RunPipelineResult)
    data = await client.artifacts.read_all(result.outputs[0].files[0].artifact)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].width == 160
        assert sum(1 for _ in container.decode(video=0)) == 90


async def test_errors_name_the_field(client: AsyncClient, clip: Path) -> None:
    artifact = await client.artifacts.upload(clip)
    request = transcode_request(artifact.name, "mp4", video=VideoStream(codec="nope"))
    job = await client.media.run_pipeline("films", request)
    with pytest.raises(errors.BackendCapabilityMissing) as caught:
        await job.result(pipeline_pb2.RunPipelineResult, timeout=60)
    assert caught.value.violations[0].field == "elementary_streams[0].video.codec"


async def test_outputs_of_many_files_are_artifacts(client: AsyncClient, clip: Path, tmp_path: Path) -> None:
    artifact = await client.artifacts.upload(clip)
    request = transcode_request(artifact.name, "mp4")
    del request.outputs[:], request.elementary_streams[:]
    request.outputs.add(key="show").hls.segment_duration.seconds = 1
    request.outputs.add(key="bar").sprites.columns = 5
    job = await client.media.run_pipeline("films", request)
    result = await job.result(pipeline_pb2.RunPipelineResult, timeout=60)
    show, bar = result.outputs
    assert [file.name for file in show.files[:3]] == ["show.m3u8", "main/index.m3u8", "main/00001.ts"]
    assert [file.name for file in bar.files] == ["bar.vtt", "bar-001.jpg"]
    for file in (*show.files, *bar.files):
        stored = await client.artifacts.get(file.artifact)
        assert (stored.filename, stored.media_type) == (file.name.replace("/", "-"), file.media_type)
        path = tmp_path / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(await client.artifacts.read_all(file.artifact))
    with av.open(tmp_path / "show.m3u8") as container:
        assert sum(1 for _ in container.decode(video=0)) == 90


async def test_finish_keeps_what_is_done(client: AsyncClient, gateway: GatewayProcess, long_clip: Path) -> None:
    job = await started(client, long_clip)
    await job.cancel(finish=True)
    record = await job.wait(timeout=60)
    assert (record.state, record.ended_early) == (job_pb2.JOB_STATE_SUCCEEDED, True)
    result = await job.result(pipeline_pb2.RunPipelineResult)
    data = await client.artifacts.read_all(result.outputs[0].files[0].artifact)
    with av.open(io.BytesIO(data)) as container:
        assert 0 < sum(1 for _ in container.decode(video=0)) < 30 * 60
    assert processes_of(gateway.data_dir) == []


async def test_abort_leaves_nothing(client: AsyncClient, gateway: GatewayProcess, long_clip: Path) -> None:
    job = await started(client, long_clip)
    assert processes_of(gateway.data_dir)
    await job.cancel()
    record = await job.wait(timeout=20)
    assert record.state == job_pb2.JOB_STATE_CANCELLED
    await wait_until_gone(gateway.data_dir)
    assert [path for path in (gateway.data_dir / "scratch").rglob("*") if path.is_file()] == []


async def test_a_pipeline_that_stands_still_is_ended(client: AsyncClient, gateway: GatewayProcess, clip: Path) -> None:
    """An expression without end: ffmpeg runs, and nothing moves any more."""
    artifact = await client.artifacts.upload(clip)
    endless = Filter(
        name="setpts", arguments=[FilterArgument(name="expr", value=ParamValue(text="if(gt(N,30),while(1,0),PTS)"))]
    )
    request = transcode_request(artifact.name, "mkv", video=VideoStream(codec="ffv1", filters=[endless]))
    options = job_options(stall_timeout=3.0, max_attempts=1)
    job = await client.media.run_pipeline("films", request, options=options)
    record = await job.wait(timeout=120)
    assert record.state == job_pb2.JOB_STATE_FAILED
    assert job_error(record).reason == Reason.STALLED
    await wait_until_gone(gateway.data_dir)


async def test_a_lost_attempt_runs_again(client: AsyncClient, gateway: GatewayProcess, long_clip: Path) -> None:
    """The method is idempotent: its sidecar is killed, its ffmpeg goes with it, and the next attempt succeeds."""
    job = await started(client, long_clip, VideoStream(codec="libx264", preset="medium"))
    old = processes_of(gateway.data_dir)
    sidecars = [pid for pid in map(parent_of, old) if pid]
    os.kill(sidecars[0], signal.SIGKILL)
    record = await job.wait(timeout=120)
    assert record.state == job_pb2.JOB_STATE_SUCCEEDED
    assert record.attempt_count == 2
    assert not set(old) & set(processes_of(gateway.data_dir))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
