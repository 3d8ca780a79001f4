"""The driver behind a real gateway: pipelines as jobs, from upload to download, ended early, aborted, and after a crash of the sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import av
import pytest
import pytest_asyncio
from click.testing import CliRunner
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration

from drivers.ffmpeg.tests.conftest import processes_of
from drivers.ffmpeg.tests.test_live import free_port, is_bound, until
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.media.v1 import media_pb2, output_pb2, pipeline_pb2
from onecontainer.api.media.v1.input_pb2 import Input, MediaSource
from onecontainer.api.media.v1.output_pb2 import LiveOutput, Output, SrtSink, UdpSink
from onecontainer.api.media.v1.stream_pb2 import Filter, FilterArgument, ParamValue, VideoStream
from onecontainer.api.type.v1.job_options_pb2 import JobOptions
from onecontainer.cli.main import cli
from onecontainer.client import AsyncClient, AsyncJob, job_error, job_options, transcode_request
from onecontainer.driver import errors
from onecontainer.errors import Reason
from tests.fixtures.object_stores import BUCKET, KEY, S3Emulator
from tests.fixtures.processes import GatewayProcess, running

pytestmark = pytest.mark.asyncio(loop_scope="module")
SLOW = VideoStream(codec="libx264", preset="slower")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path_factory.mktemp("gateway") / "data")
    secret = process.data_dir / "secrets" / "STORE"
    secret.parent.mkdir(parents=True, mode=0o700)
    secret.write_text(json.dumps(dict(S3Emulator.credentials)))
    secret.chmod(0o600)
    with running(process):
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway: GatewayProcess) -> AsyncIterator[AsyncClient]:
    """Connected, with `services/films` READY."""
    async with AsyncClient(gateway.address) as client:
        await client.services.create("films", app="ffmpeg")
        await client.services.wait_ready("films", timeout=180)
        yield client


async def started(client: AsyncClient, clip: Path, video: VideoStream = SLOW, *, real_time: bool = True) -> AsyncJob:
    """A pipeline whose first seconds are done; at the pace of playing it is in its middle for as long as the clip is."""
    artifact = await client.artifacts.upload(clip)
    request = transcode_request(artifact.name, "mp4", video=video)
    request.inputs[0].real_time = real_time
    job = await client.media.run_pipeline("films", request)
    async for record in job.watch(timeout=180):
        if record.progress.done > 0:
            break
    return job


async def wait_until_gone(folder: Path) -> None:
    async with asyncio.timeout(120):
        while processes_of(folder):
            await asyncio.to_thread(os.sched_yield)


async def test_upload_transcode_download(client: AsyncClient, clip: Path) -> None:
    artifact = await client.artifacts.upload(clip)
    info = await client.media.probe("films", artifact.name)
    assert info.streams[0].video.width == 320
    video = VideoStream(codec="libx264", preset="ultrafast", width=160)
    job = await client.media.run_pipeline("films", transcode_request(artifact.name, "mkv", video=video))
    seen: list[float] = []
    record = await job.wait(on_progress=lambda record: seen.append(record.progress.done), timeout=180)
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
        await job.result(pipeline_pb2.RunPipelineResult, timeout=180)
    assert caught.value.violations[0].field == "elementary_streams[0].video.codec"


async def test_outputs_of_many_files_are_artifacts(client: AsyncClient, clip: Path, tmp_path: Path) -> None:
    artifact = await client.artifacts.upload(clip)
    request = transcode_request(artifact.name, "mp4")
    del request.outputs[:], request.elementary_streams[:]
    request.outputs.add(key="show").hls.segment_duration.seconds = 1
    request.outputs.add(key="bar").sprites.columns = 5
    job = await client.media.run_pipeline("films", request)
    result = await job.result(pipeline_pb2.RunPipelineResult, timeout=180)
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
    record = await job.wait(timeout=180)
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
    record = await job.wait(timeout=180)
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
    record = await job.wait(timeout=240)
    assert record.state == job_pb2.JOB_STATE_FAILED
    assert job_error(record).reason == Reason.STALLED
    await wait_until_gone(gateway.data_dir)


async def test_a_lost_attempt_runs_again(client: AsyncClient, gateway: GatewayProcess, long_clip: Path) -> None:
    """The method is idempotent: its sidecar is killed, its ffmpeg goes with it, and the next attempt succeeds."""
    job = await started(client, long_clip, VideoStream(codec="libx264", preset="medium"), real_time=False)
    old = processes_of(gateway.data_dir)
    sidecars = [pid for pid in map(parent_of, old) if pid]
    os.kill(sidecars[0], signal.SIGKILL)
    record = await job.wait(timeout=240)
    assert record.state == job_pb2.JOB_STATE_SUCCEEDED
    assert record.attempt_count == 2
    assert not set(old) & set(processes_of(gateway.data_dir))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_live_stream_does_not_run_again_when_its_sidecar_is_lost(
    client: AsyncClient, gateway: GatewayProcess, clip: Path
) -> None:
    """kill -9 of the sidecar: its processes are gone, the port is free, and nobody is sent the beginning a second time."""
    await client.services.create("tv", app="ffmpeg", options={"sink_hosts": ["127.0.0.1"]})
    await client.services.wait_ready("tv", timeout=180)
    artifact = await client.artifacts.upload(clip)
    port = free_port()
    sinks = [
        LiveOutput(srt=SrtSink(port=port, mode=output_pb2.SRT_MODE_LISTENER)),
        LiveOutput(udp=UdpSink(host="127.0.0.1", port=free_port())),
    ]
    request = media_pb2.RunPipelineRequest(
        inputs=[Input(source=MediaSource(artifact=artifact.name), real_time=True, loop_forever=True)],
        outputs=[Output(key=f"live{number}", live=sink) for number, sink in enumerate(sinks)],
    )
    job = await client.media.run_pipeline("tv", request)
    async for record in job.watch(timeout=180):
        if record.progress.done > 0:
            break
    await until(lambda: is_bound(port, "udp"))
    lost = processes_of(gateway.data_dir)
    assert len(lost) == 2
    (sidecar,) = {parent_of(pid) for pid in lost}
    os.kill(sidecar, signal.SIGKILL)
    await until(lambda: not set(lost) & set(processes_of(gateway.data_dir)))
    await until(lambda: not is_bound(port, "udp"))  # the kernel takes a moment to close what a killed process had
    record = await job.wait(timeout=240)
    assert (record.state, record.attempt_count) == (job_pb2.JOB_STATE_FAILED, 1)
    assert processes_of(gateway.data_dir) == []


async def test_what_went_well_is_kept_when_an_upload_fails(
    client: AsyncClient, gateway: GatewayProcess, clip: Path, tmp_path: Path
) -> None:
    store = S3Emulator(tmp_path)
    await asyncio.to_thread(store.start)
    try:
        options = {"upload_hosts": [store.host], "secrets": {"store": "secrets/STORE"}}
        service = await client.services.create("stored", app="ffmpeg", options=options)
        await client.services.wait_ready("stored", timeout=180)
        artifact = await client.artifacts.upload(clip)
        request = transcode_request(artifact.name, "mp4", key="good")
        for key, bucket in (("good", BUCKET), ("bad", "nowhere")):
            output = request.outputs[0] if key == "good" else request.outputs.add(key=key)
            output.file.container = "mp4"
            upload = output.uploads.add(credentials_secret="secrets/store")
            upload.s3.bucket, upload.s3.endpoint = bucket, store.endpoint
        job = await client.media.run_pipeline("stored", request)
        with pytest.raises(errors.ResourceNotFound) as caught:
            await job.result(pipeline_pb2.RunPipelineResult, timeout=180)
        record = await job.refresh()
        told = caught.value.detail(pipeline_pb2.RunPipelineResult)
        assert told is not None
        assert [output.state for output in told.outputs] == [
            pipeline_pb2.OUTPUT_STATE_SUCCEEDED,
            pipeline_pb2.OUTPUT_STATE_FAILED,
        ]
        kept = told.outputs[0].files[0].artifact
        assert list(record.artifacts) == [kept]
        assert await client.artifacts.read_all(kept) == store.read("good.mp4")
        assert record.attempt_count == 1, "uploads make it not idempotent"

        shown = await asyncio.to_thread(
            CliRunner().invoke,
            cli,
            ["media", "run", "stored", json_format.MessageToJson(request), "-a", gateway.address],
        )
        assert shown.exit_code == 3
        rows = [line.split() for line in shown.output.splitlines()]
        assert ["good", "SUCCEEDED", "good.mp4"] in [row[:3] for row in rows]
        assert ["bad", "FAILED"] in [row[:2] for row in rows]
        assert f"s3://{BUCKET}/good.mp4" in shown.output
    finally:
        store.stop()
    sidecar = await client.sidecars.get((await client.services.get("stored")).sidecars[0])
    seen = [
        shown.output.encode(),
        str((record, service)).encode(),
        Path(f"/proc/{sidecar.runtime_id}/environ").read_bytes(),
    ]
    files = list(contents_of(gateway.data_dir))
    assert len(files) > 5
    for text in (*seen, *files, "\n".join(gateway.lines).encode()):
        assert KEY.encode() not in text


def contents_of(folder: Path) -> Iterator[bytes]:
    """All files but the secrets. What the gateway removes meanwhile, as the artifact of an output that failed, is not there to be read."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "secrets"]
        for path in (Path(root, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path.read_bytes()


async def test_the_time_of_a_result_goes_on_over_a_restart(
    client: AsyncClient, gateway: GatewayProcess, clip: Path
) -> None:
    artifact = await client.artifacts.upload(clip)
    request = transcode_request(artifact.name, "mp4", video=VideoStream(codec="libx264", preset="ultrafast", width=64))

    async def made(**fields: int) -> tuple[AsyncJob, str]:
        options = JobOptions(result_ttl=Duration(**fields))
        job = await client.media.run_pipeline("films", request, options=options)
        result = await job.result(pipeline_pb2.RunPipelineResult, timeout=180)
        return job, result.outputs[0].files[0].artifact

    with pytest.raises(errors.FieldInvalid):
        await made(seconds=-1)
    (long, stays), (once, _) = await made(seconds=3600), await made(seconds=0)
    record = await once.refresh()  # while it is there
    assert record.expire_time.seconds - record.end_time.seconds in (59, 60, 61), "0: a minute to fetch the artifacts in"
    for seconds in (2, 20, 120):  # as long as it takes this machine to fetch it in time
        with contextlib.suppress(errors.ResultExpired):
            short, goes = await made(seconds=seconds)
            break
    before = (await long.refresh()).expire_time
    await asyncio.to_thread(gateway.kill)
    await asyncio.to_thread(gateway.start)
    async with asyncio.timeout(300):
        while not (await client.jobs.get(short.name)).result_expired:  # noqa: ASYNC110 - another process's sweeper
            await asyncio.sleep(0.2)
    with pytest.raises(errors.ResourceNotFound):
        await client.artifacts.get(goes)
    after = await client.jobs.get(long.name)
    assert (after.expire_time, list(after.artifacts)) == (before, [stays])
    assert len(await client.artifacts.read_all(stays)) > 0
    assert await client.artifacts.get(artifact.name), "what was uploaded stays"
