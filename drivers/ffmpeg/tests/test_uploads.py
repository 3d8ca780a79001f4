"""Uploads to real emulators of object stores: what gets there, what is tried again, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onecontainer_driver_ffmpeg import uploads
from onecontainer_driver_ffmpeg.egress import HostRules
from onecontainer_driver_ffmpeg.object_writers import PART_BYTES
from onecontainer_driver_ffmpeg.secrets import Secrets
from onecontainer_driver_ffmpeg.targets.target import MadeFile
from onecontainer_driver_ffmpeg.uploads import check_uploads, upload_files

from drivers.ffmpeg.tests.conftest import Bench
from onecontainer.api.media.v1 import pipeline_pb2 as pb
from onecontainer.api.media.v1.input_pb2 import Input, MediaSource
from onecontainer.api.media.v1.media_pb2 import RunPipelineRequest
from onecontainer.api.media.v1.output_pb2 import (
    AzureStore,
    FileOutput,
    GcsStore,
    HlsOutput,
    LiveOutput,
    Output,
    S3Store,
    UdpSink,
    Upload,
)
from onecontainer.api.media.v1.pipeline_pb2 import PipelineLimits
from onecontainer.driver import errors
from tests.fixtures.object_stores import (
    AZURE_ACCOUNT,
    BUCKET,
    KEY,
    AzureEmulator,
    Emulator,
    GcsEmulator,
    S3Emulator,
)

KINDS = {"s3": S3Emulator, "gcs": GcsEmulator, "azure": AzureEmulator}
SCHEMES = {"s3": "s3", "gcs": "gs", "azure": "az"}


class Emulators:
    """Each kind is started when it is first needed, and once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: dict[str, Emulator] = {}

    def __getitem__(self, kind: str) -> Emulator:
        if kind not in self._started:
            folder = self._folder / kind
            folder.mkdir()
            started = KINDS[kind](folder)
            started.start()
            self._started[kind] = started
        return self._started[kind]

    def stop(self) -> None:
        for one in self._started.values():
            one.stop()


@pytest.fixture(scope="module")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulators]:
    started = Emulators(tmp_path_factory.mktemp("stores"))
    yield started
    started.stop()


@pytest.fixture(params=list(KINDS))
def emulator(request: pytest.FixtureRequest, emulators: Emulators) -> Emulator:
    return emulators[request.param]


@pytest.fixture
def s3(emulators: Emulators) -> Emulator:
    return emulators["s3"]


def kind_of(emulator: Emulator) -> str:
    return next(name for name, kind in KINDS.items() if isinstance(emulator, kind))


def upload_to(emulator: Emulator, bucket: str = BUCKET, **fields: Any) -> Upload:
    upload = Upload(credentials_secret="secrets/store", **fields)
    store = getattr(upload, kind_of(emulator))
    setattr(store, "container" if isinstance(emulator, AzureEmulator) else "bucket", bucket)
    store.endpoint = emulator.endpoint
    return upload


def secrets_of(emulator: Emulator, **changes: str) -> dict[str, str]:
    """The service's option."""
    return {"store": json.dumps({**emulator.credentials, **changes})}


def plan_of(upload: Upload, emulator: Emulator, **changes: str) -> uploads.UploadPlan:
    output = Output(key="a", file=FileOutput(container="mp4"), uploads=[upload])
    secrets = Secrets.from_option(secrets_of(emulator, **changes))
    (plan,) = check_uploads(output, HostRules.parse([emulator.host]), secrets, "outputs[0]")
    return plan


def made(path: Path, name: str, content: bytes, role: pb.FileRole.ValueType = pb.FILE_ROLE_MEDIA) -> MadeFile:
    file = path / name.replace("/", "-")
    file.write_bytes(content)
    return MadeFile(file, name, role, "video/mp4")


async def within(seconds: float, condition: Any) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)


# --- each store -------------------------------------------------------------------------------------------------------


async def test_small_and_large_files_get_there_and_replace_what_was_there(emulator: Emulator, tmp_path: Path) -> None:
    large = bytes(range(256)) * (PART_BYTES // 256) + b"and a little more"
    files = [
        made(tmp_path, "main.m3u8", b"playlist", pb.FILE_ROLE_MANIFEST),
        made(tmp_path, "a/00001.ts", large, pb.FILE_ROLE_SEGMENT),
        made(tmp_path, "a/00002.ts", b"", pb.FILE_ROLE_SEGMENT),
    ]
    plan = plan_of(upload_to(emulator, prefix="shows/42/"), emulator)
    told: list[str] = []
    for content in (b"playlist", b"another one"):
        files[0].path.write_bytes(content)
        result = pb.UploadResult()
        assert await upload_files(plan, files, result, told.append) is None
        assert (result.state, result.attempts) == (pb.UPLOAD_STATE_SUCCEEDED, 1)
        assert emulator.read("shows/42/main.m3u8") == content
    scheme = SCHEMES[kind_of(emulator)]
    assert list(result.urls) == [f"{scheme}://{BUCKET}/shows/42/{file.name}" for file in files]
    assert emulator.read("shows/42/a/00001.ts") == large
    assert emulator.media_type("shows/42/a/00001.ts") == "video/mp4"
    assert emulator.read("shows/42/a/00002.ts") == b""
    assert f"uploading to {scheme}://{BUCKET}" in told


async def test_a_bucket_that_is_not_there_is_told_and_not_tried_again(emulator: Emulator, tmp_path: Path) -> None:
    result = pb.UploadResult()
    plan = plan_of(upload_to(emulator, bucket="nowhere"), emulator)
    error = await upload_files(plan, [made(tmp_path, "a.mp4", b"x")], result)
    assert isinstance(error, errors.ResourceNotFound), error
    assert error.violations[0].field == "outputs[0].uploads[0]"
    assert f"{SCHEMES[kind_of(emulator)]}://nowhere" in error.message
    assert (result.state, result.attempts, result.error.message) == (pb.UPLOAD_STATE_FAILED, 1, error.message)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("s3", {"secret_access_key": "not-the-secret-key"}),
        ("s3", {"access_key_id": "unknown-key"}),
        ("azure", {"account_key": "bm90LXRoZS1rZXk="}),
    ],
)
async def test_wrong_credentials_are_told_without_them(
    kind: str, wrong: dict[str, str], emulators: Emulators, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store, result = emulators[kind], pb.UploadResult()
    error = await upload_files(plan_of(upload_to(store), store, **wrong), [made(tmp_path, "a.mp4", b"x")], result)
    assert isinstance(error, errors.CredentialsInvalid), error
    assert (result.state, result.attempts) == (pb.UPLOAD_STATE_FAILED, 1)
    for text in (*wrong.values(), *store.credentials.values()):
        if text != AZURE_ACCOUNT:
            assert text not in f"{error} {result} {caplog.text}"


# --- what passes, and what does not -----------------------------------------------------------------------------------


async def test_a_store_that_is_away_for_a_while_is_tried_again(tmp_path: Path) -> None:
    store = S3Emulator(tmp_path)
    files = [made(tmp_path, f"{number}.mp4", b"x") for number in range(3)]
    result = pb.UploadResult()
    running = asyncio.create_task(upload_files(plan_of(upload_to(store), store), files, result))
    try:
        await within(180, lambda: result.attempts >= 2)
        await asyncio.to_thread(store.start)
        assert await running is None
        assert result.attempts >= 2
        assert store.names() == ["0.mp4", "1.mp4", "2.mp4"]
    finally:
        store.stop()


async def test_a_store_that_stays_away_fails_after_some_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MOST_ATTEMPTS", 2)
    store = S3Emulator(tmp_path)
    result = pb.UploadResult()
    error = await upload_files(plan_of(upload_to(store), store), [made(tmp_path, "a.mp4", b"x")], result)
    assert isinstance(error, errors.BackendUnreachable)
    assert (result.state, result.attempts) == (pb.UPLOAD_STATE_FAILED, 2)
    assert store.endpoint not in error.message


async def test_an_abort_ends_an_upload_that_hangs(tmp_path: Path) -> None:
    met = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        try:
            with contextlib.suppress(ConnectionError):
                await reader.read()
        finally:  # also if the loop ends before the other side's end is heard
            writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        store = S3Emulator(tmp_path)
        store.port = server.sockets[0].getsockname()[1]
        store.endpoint = f"http://127.0.0.1:{store.port}"
        plan = plan_of(upload_to(store), store)
        running = asyncio.create_task(upload_files(plan, [made(tmp_path, "a.mp4", b"x")], pb.UploadResult()))
        async with asyncio.timeout(180):
            await met.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running


async def test_a_store_that_sends_elsewhere_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_ATTEMPTS", 1)
    reached = 0

    async def inner(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal reached
        reached += 1
        writer.close()

    async with await asyncio.start_server(inner, "127.0.0.1", 0) as inside:
        place = f"127.0.0.1:{inside.sockets[0].getsockname()[1]}"

        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{place}/a\r\nContent-Length: 0\r\n\r\n"
            writer.write(head.encode())
            writer.close()

        async with await asyncio.start_server(redirect, "127.0.0.1", 0) as outside:
            store = S3Emulator(tmp_path)
            store.port = outside.sockets[0].getsockname()[1]
            store.endpoint = f"http://127.0.0.1:{store.port}"
            error = await upload_files(
                plan_of(upload_to(store), store), [made(tmp_path, "a.mp4", b"x")], pb.UploadResult()
            )
    assert error is not None
    assert reached == 0


async def test_an_allowed_name_does_not_lead_into_the_machine(
    tmp_path: Path, emulators: Emulators, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server's answer is not the operator's word; the name `localhost` is."""
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host == "rebound.test" else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    store = emulators["s3"]
    errors_of: dict[str, errors.OneContainerError | None] = {}
    for name in ("rebound.test", "localhost"):
        upload = Upload(credentials_secret="secrets/store")
        upload.s3.bucket, upload.s3.endpoint = BUCKET, f"http://{name}:{store.port}"
        output = Output(key="a", file=FileOutput(container="mp4"), uploads=[upload])
        rules = HostRules.parse([f"{name}:{store.port}"])
        (plan,) = check_uploads(output, rules, Secrets.from_option(secrets_of(store)), "outputs[0]")
        errors_of[name] = await upload_files(plan, [made(tmp_path, "a.mp4", b"x")], pb.UploadResult())
    assert isinstance(errors_of["rebound.test"], errors.SourceNotAllowed)
    assert errors_of["localhost"] is None


@pytest.mark.parametrize(
    "key",
    [
        {"client_email": "a@b.test", "private_key": "no key at all", "private_key_id": "1"},
        {"type": "authorized_user", "client_id": "a", "client_secret": "very-secret", "refresh_token": "very-secret"},
    ],
)
async def test_google_is_asked_for_a_token_and_the_credentials_are_not_told(
    key: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an emulator's endpoint. What cannot be used is told at once, and nobody is asked; else Google is, which is away here."""
    monkeypatch.setattr(uploads, "MOST_ATTEMPTS", 1)
    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    output = Output(
        key="a",
        file=FileOutput(container="mp4"),
        uploads=[Upload(gcs=GcsStore(bucket="abc"), credentials_secret="secrets/key")],
    )
    secrets = Secrets.from_option({"key": json.dumps(key)})
    (plan,) = check_uploads(output, HostRules(()), secrets, "outputs[0]")
    result = pb.UploadResult()
    error = await upload_files(plan, [made(tmp_path, "a.mp4", b"x")], result)
    assert isinstance(error, errors.BackendUnreachable if "type" in key else errors.CredentialsInvalid), error
    assert result.attempts == 1
    assert not any(text in f"{error} {result}" for text in ("no key at all", "very-secret"))


def no_such_host(host: str, *_arguments: Any, **_more: Any) -> Any:
    if host == "127.0.0.1":
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, _arguments[0]))]
    raise socket.gaierror(socket.EAI_NONAME, "no such host")


# --- what is refused before anything runs -----------------------------------------------------------------------------

GOOD = {
    "good": json.dumps({"access_key_id": "a-key", "secret_access_key": "its-secret"}),
    "text": "no-json",
    "list": "[1]",
}
AWAY = "http://store.test:9000"


@pytest.mark.parametrize(
    ("output", "field", "error"),
    [
        (Output(uploads=[Upload()]), "uploads[0].s3", errors.FieldRequired),
        (Output(uploads=[Upload(s3=S3Store())]), "uploads[0].s3.bucket", errors.FieldRequired),
        (Output(uploads=[Upload(s3=S3Store(bucket="a/b"))]), "uploads[0].s3.bucket", errors.FieldInvalid),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc", region="x.evil.test/"))]),
            "uploads[0].s3.region",
            errors.FieldInvalid,
        ),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc", endpoint=AWAY))]),
            "uploads[0].s3.endpoint",
            errors.SourceNotAllowed,
        ),
        (
            Output(uploads=[Upload(gcs=GcsStore(bucket="abc", endpoint=AWAY))]),
            "uploads[0].gcs.endpoint",
            errors.SourceNotAllowed,
        ),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc", endpoint="http://me:pw@allowed.test"))]),
            "uploads[0].s3.endpoint",
            errors.FieldInvalid,
        ),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc", endpoint="file:///etc"))]),
            "uploads[0].s3.endpoint",
            errors.FieldInvalid,
        ),
        (Output(uploads=[Upload(azure=AzureStore(container="abc"))]), "uploads[0].azure.account", errors.FieldRequired),
        (
            Output(uploads=[Upload(azure=AzureStore(container="abc", account="evil.test/"))]),
            "uploads[0].azure.account",
            errors.FieldInvalid,
        ),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc"), credentials_secret="secrets/other")]),
            "uploads[0].credentials_secret",
            errors.SourceNotAllowed,
        ),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc"), credentials_secret="secrets/text")]),
            "uploads[0].credentials_secret",
            errors.FieldInvalid,
        ),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc"), credentials_secret="secrets/list")]),
            "uploads[0].credentials_secret",
            errors.FieldInvalid,
        ),
        (
            Output(uploads=[Upload(gcs=GcsStore(bucket="abc"), credentials_secret="secrets/good")]),
            "uploads[0].credentials_secret",
            errors.FieldInvalid,
        ),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc"), prefix="a/../b/")]),
            "uploads[0].prefix",
            errors.FieldInvalid,
        ),
        (Output(uploads=[Upload(s3=S3Store(bucket="abc"), prefix="/a/")]), "uploads[0].prefix", errors.FieldInvalid),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc"), prefix="a" * 513)]),
            "uploads[0].prefix",
            errors.FieldInvalid,
        ),
        (Output(uploads=[Upload(s3=S3Store(bucket="abc"))] * 9), "uploads", errors.FieldInvalid),
        (Output(upload_only=True), "uploads", errors.FieldRequired),
        (
            Output(uploads=[Upload(s3=S3Store(bucket="abc"))], live=LiveOutput(udp=UdpSink(host="a", port=5000))),
            "uploads",
            errors.FieldInvalid,
        ),
    ],
)
def test_what_is_wrong_is_refused_at_its_field(output: Output, field: str, error: type[errors.FieldInvalid]) -> None:
    with pytest.raises(error) as caught:
        check_uploads(output, HostRules.parse(["allowed.test"]), Secrets.from_option(GOOD), "outputs[0]")
    assert caught.value.violations[0].field == f"outputs[0].{field}"
    assert "its-secret" not in str(caught.value)


# --- in a pipeline ----------------------------------------------------------------------------------------------------


def pipeline(bench: Bench, clip: Path, *outputs: Output, **fields: Any) -> RunPipelineRequest:
    (bench.sources / "clip.mp4").write_bytes(clip.read_bytes())
    return RunPipelineRequest(inputs=[Input(source=MediaSource(path="clip.mp4"))], outputs=outputs, **fields)


async def test_a_pipeline_uploads_and_keeps_what_is_asked(
    bench: Bench, clip: Path, s3: Emulator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onecontainer.driver.progress.INTERVAL_SECONDS", 0.0)  # else a short state may never be told
    caplog.set_level(logging.DEBUG)
    await bench.attach(secrets=secrets_of(s3), upload_hosts=[s3.host])
    request = pipeline(
        bench,
        clip,
        Output(key="file", file=FileOutput(container="mp4"), uploads=[upload_to(s3, prefix="both/")]),
        Output(key="ladder", hls=HlsOutput(), uploads=[upload_to(s3, prefix="only/")], upload_only=True),
    )
    context = bench.context()
    result = await bench.driver.run_pipeline(request, context)
    file, ladder = result.outputs
    assert [output.state for output in result.outputs] == [pb.OUTPUT_STATE_SUCCEEDED] * 2
    assert s3.read("both/file.mp4") == bench.artifacts.stored[file.files[0].artifact].read_bytes()
    assert len(bench.artifacts.stored) == 1, "what is only uploaded is no artifact"
    assert [made.artifact for made in ladder.files] == [""] * len(ladder.files)
    assert list(ladder.uploads[0].urls) == [f"s3://{BUCKET}/only/{made.name}" for made in ladder.files]
    assert set(s3.names()) >= {f"only/{made.name}" for made in ladder.files}
    states = {output.state for details in bench.events.details() for output in details.outputs}
    assert pb.OUTPUT_STATE_STORING in states
    assert bench.events.declared == [False], "it is not idempotent, and says so before it uploads"
    assert KEY not in f"{result} {bench.events.reports} {caplog.text}"


async def test_nothing_is_uploaded_when_ffmpeg_failed(bench: Bench, clip: Path, s3: Emulator) -> None:
    await bench.attach(secrets=secrets_of(s3), upload_hosts=[s3.host])
    output = Output(key="bad", file=FileOutput(container="mp4"), uploads=[upload_to(s3, prefix="never/")])
    request = pipeline(bench, clip, output, limits=PipelineLimits(max_output_bytes=2000))
    with pytest.raises(errors.LimitExceeded) as caught:
        await bench.driver.run_pipeline(request, bench.context())
    told = caught.value.detail(pb.RunPipelineResult)
    assert told is not None
    assert (told.outputs[0].state, told.outputs[0].uploads[0].state) == (
        pb.OUTPUT_STATE_FAILED,
        pb.UPLOAD_STATE_SKIPPED,
    )
    assert not [name for name in s3.names() if name.startswith("never/")]


@pytest.mark.parametrize("all_or_nothing", [False, True])
async def test_an_upload_that_fails_fails_its_output_alone(
    bench: Bench, clip: Path, s3: Emulator, all_or_nothing: bool
) -> None:
    await bench.attach(secrets=secrets_of(s3), upload_hosts=[s3.host])
    lost = upload_to(s3, bucket="nowhere")
    request = pipeline(
        bench,
        clip,
        Output(key="good", file=FileOutput(container="mp4")),
        Output(key="bad", file=FileOutput(container="mkv"), uploads=[lost, upload_to(s3, prefix="second/")]),
        all_or_nothing=all_or_nothing,
    )
    with pytest.raises(errors.ResourceNotFound) as caught:
        await bench.driver.run_pipeline(request, bench.context())
    told = caught.value.detail(pb.RunPipelineResult)
    assert told is not None
    good, bad = told.outputs
    assert (bad.state, bad.error.code, list(bad.files)) == (pb.OUTPUT_STATE_FAILED, 5, [])
    states = [upload.state for upload in bad.uploads]
    assert states == [pb.UPLOAD_STATE_FAILED, pb.UPLOAD_STATE_SUCCEEDED], "one store's failure is not another's"
    if all_or_nothing:
        assert (good.state, caught.value.kept_artifacts) == (pb.OUTPUT_STATE_CANCELLED, ())
    else:
        assert caught.value.kept_artifacts == (good.files[0].artifact,)
        assert bench.artifacts.stored[good.files[0].artifact].name.endswith("good.mp4")


async def test_what_cannot_be_uploaded_is_refused_before_ffmpeg_runs(bench: Bench, clip: Path, s3: Emulator) -> None:
    await bench.attach(secrets=secrets_of(s3), upload_hosts=[])
    output = Output(key="a", file=FileOutput(container="mp4"), uploads=[upload_to(s3)])
    with pytest.raises(errors.SourceNotAllowed) as caught:
        await bench.driver.run_pipeline(pipeline(bench, clip, output), bench.context())
    assert caught.value.violations[0].field == "outputs[0].uploads[0].s3.endpoint"
    assert bench.events.reports == []
