"""`oca demo`: all of it once, for real, from nothing."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from onecontainer.api.media.v1 import media_info_pb2, pipeline_pb2, stream_pb2
from onecontainer.catalog.drivers import bundled_folder
from onecontainer.cli.artifact import fetch, send
from onecontainer.cli.bars import JobBar, duration
from onecontainer.cli.options import data_dir_option
from onecontainer.cli.process import settings_of, start_detached, stop
from onecontainer.cli.render import size
from onecontainer.cli.session import Session, connected
from onecontainer.client import transcode_request
from onecontainer.client.media import stream_of
from onecontainer.errors import OneContainerError, ResourceNotFound

CLIP_SECONDS = 8
CLIP_HEIGHT = 360
READY_TIMEOUT = 180.0
APPS = ("onnx", "ffmpeg", "sql")
CATS = frozenset({"tabby", "tiger cat", "Egyptian cat", "Persian cat", "Siamese cat"})
COLUMNS = {"id": "int64", "name": "text", "price": "decimal(10,2)", "in_stock": "bool", "added": "timestamp"}
ROWS: list[dict[str, Any]] = [
    {
        "id": 1,
        "name": "cup",
        "price": Decimal("9.90"),
        "in_stock": True,
        "added": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    },
    {
        "id": 2,
        "name": "Kanne, groß",
        "price": Decimal("24.50"),
        "in_stock": False,
        "added": datetime(2026, 2, 3, tzinfo=UTC),
    },
    {
        "id": 3,
        "name": "茶",
        "price": Decimal("0.05"),
        "in_stock": True,
        "added": datetime(2026, 3, 4, 5, 6, 7, 890000, tzinfo=UTC),
    },
]


@click.command()
@data_dir_option
@connected
def demo(session: Session, data_dir: Path | None) -> None:
    """Classify a photo, transcode a clip and write and read rows, each through the gateway, and check the results.

    Without --address it starts a gateway of its own in a temporary folder (or --data-dir), on a free port, and stops it afterwards;
    with --address it uses that one. It needs no other service, and leaves nothing behind. The first time, the classifier's weights
    (19 MB) are fetched; later it takes a few seconds. Fails if a result is not what it must be.
    """
    begin = time.monotonic()
    # So that a SIGTERM, too, unwinds what is below, and no gateway is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oca-demo-")))
        clip = making_clip(work / "clip.mp4")
        stack.callback(clip.kill)
        if not given_address():
            session.address = stack.enter_context(own_gateway(session, data_dir or work / "data"))
        services = stack.enter_context(demo_services(session))
        step(session, "1  A photo is classified", f"service {services['onnx']}, ONNX Runtime, EfficientNet-Lite0")
        classify(session, services["onnx"])
        step(session, "2  A clip is transcoded", f"service {services['ffmpeg']}, ffmpeg, as a durable job")
        transcode(session, services["ffmpeg"], finished_clip(clip, work / "clip.mp4"), work)
        step(session, "3  Rows are written and read back", f"service {services['sql']}, SQLite")
        rows(session, services["sql"])
        session.screen.say("")
        clean_up = time.monotonic()
    session.screen.say(
        f"All three checked; done in {clean_up - begin:.1f} s (and {time.monotonic() - clean_up:.1f} s to clean up)."
    )


def given_address() -> bool:
    """Whether the user named a gateway: an option, or the environment."""
    ctx = click.get_current_context()
    return bool(ctx.params.get("address") or ctx.find_root().params.get("address"))


def step(session: Session, title: str, about: str) -> None:
    session.screen.console.print(f"\n[bold]{title}[/bold]  [dim]{about}[/dim]")


def check(holds: bool, what: str) -> None:
    """Ends the demo if something is not what it must be."""
    if not holds:
        raise click.ClickException(f"the demo failed: {what}")


@contextmanager
def own_gateway(session: Session, data_dir: Path) -> Iterator[str]:
    """A gateway that is there as long as the context; gives its address."""
    settings = settings_of(data_dir, listen="127.0.0.1:0")
    note = start_detached(settings, timeout=60.0)
    session.screen.say(f"gateway on {note.address}, data in {settings.data_dir}")
    try:
        yield note.address
    finally:
        session.close()
        stop(settings.data_dir, note, timeout=settings.gateway_drain_timeout + 30.0)


@contextmanager
def demo_services(session: Session) -> Iterator[dict[str, str]]:
    """A service for each app, READY; deleted afterwards."""
    suffix = secrets.token_hex(2)
    names = {app: f"demo-{app}-{suffix}" for app in APPS}
    try:
        for app, name in names.items():
            session.client.services.create(name, app, description="made by oca demo")
        with session.screen.console.status("the drivers start (the first time, the classifier's weights are fetched)"):
            session.client.services.wait_ready(*names.values(), timeout=session.timeout or READY_TIMEOUT)
        session.screen.say(f"three services are READY: {', '.join(names.values())}")
        yield names
    finally:
        for name in names.values():
            try:
                session.client.services.delete(name, force=True)
            except ResourceNotFound:
                pass
            except OneContainerError as error:
                click.echo(f"services/{name} could not be deleted: {error}", err=True)


def driver_folder(name: str) -> Path:
    bundled = bundled_folder()
    if bundled is None or not (bundled / name).is_dir():
        raise click.ClickException(f"the driver {name} is not there; `oca doctor` tells more")
    return bundled / name


def classify(session: Session, service: str) -> None:
    photo = driver_folder("onnx") / "onecontainer_driver_onnx" / "assets" / "chelsea.png"
    begin = time.monotonic()
    answer = session.client.ai.predict(service, photo, top_k=3)
    took = time.monotonic() - begin
    classes = answer.predictions[0].classification.classes
    session.screen.rows([{"probability": f"{found.probability:.1%}", "label": found.label} for found in classes])
    labels = [found.label for found in classes]
    check(bool(CATS.intersection(labels)), f"{photo.name} shows a cat, but it is taken for {', '.join(labels)}")
    session.screen.say(f"✓ {photo.name} is a cat ({took * 1000:.0f} ms)")


def making_clip(path: Path) -> subprocess.Popen[bytes]:
    """Makes the clip in a process of its own, while the gateway starts."""
    code = (
        "import sys; from pathlib import Path; from onecontainer_driver_ffmpeg import make_demo_clip; "
        "make_demo_clip(Path(sys.argv[1]), seconds=int(sys.argv[2]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(CLIP_SECONDS)],
        # `-c` puts the working folder first on the import path: the driver is found whether it is installed or not.
        cwd=driver_folder("ffmpeg"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finished_clip(clip: subprocess.Popen[bytes], path: Path) -> Path:
    _out, errors = clip.communicate(timeout=120)
    check(clip.returncode == 0, f"the clip was not made: {errors.decode(errors='replace').strip()[-500:]}")
    return path


def transcode(session: Session, service: str, clip: Path, work: Path) -> None:
    client = session.client
    source = send(session, clip)
    try:
        before = client.media.probe(service, source.name)
        request = transcode_request(
            source.name,
            "mkv",
            video=stream_pb2.VideoStream(codec="hevc", preset="ultrafast", height=CLIP_HEIGHT),
            audio=stream_pb2.AudioStream(codec="libopus"),
        )
        job = client.media.run_pipeline(service, request)
        with JobBar(session.screen.console, "transcoding") as bar:
            result = job.result(pipeline_pb2.RunPipelineResult, on_progress=bar)
        output = result.outputs[0].files[0]
        target = work / "transcoded.mkv"
        fetch(session, output.artifact, target)
        after = client.media.probe(service, output.artifact)
        session.screen.rows(
            [info_row("before", before, source.size_bytes), info_row("after", after, target.stat().st_size)]
        )
        verify(before, after)
        check(target.stat().st_size == output.size_bytes, "the download has not the size that the job told")
        session.screen.say(f"✓ {job.name}: codecs, size and duration are right, and the download's SHA-256 too")
        job.delete()
    finally:
        client.artifacts.delete(source.name)


def info_row(title: str, info: media_info_pb2.MediaInfo, length: int) -> dict[str, object]:
    video, audio = stream_of(info, media_info_pb2.STREAM_KIND_VIDEO), stream_of(info, media_info_pb2.STREAM_KIND_AUDIO)
    return {
        "": title,
        "container": info.format.name.partition(",")[0],
        "video": f"{video.codec} {video.video.width}x{video.video.height}" if video else "none",
        "audio": audio.codec if audio else "none",
        "duration": duration(info.format.duration),
        "size": size(length),
    }


def verify(before: media_info_pb2.MediaInfo, after: media_info_pb2.MediaInfo) -> None:
    """Checks codec, picture and duration of what came out."""
    video, audio = (
        stream_of(after, media_info_pb2.STREAM_KIND_VIDEO),
        stream_of(after, media_info_pb2.STREAM_KIND_AUDIO),
    )
    check(video is not None and video.codec == "hevc", f"the video is {video.codec if video else 'missing'}, not hevc")
    check(video is not None and video.video.height == CLIP_HEIGHT, f"the picture is not {CLIP_HEIGHT} lines high")
    check(audio is not None and audio.codec == "opus", f"the sound is {audio.codec if audio else 'missing'}, not opus")
    difference = abs(after.format.duration.ToMilliseconds() - before.format.duration.ToMilliseconds())
    check(difference < 500, f"it is {difference} ms longer or shorter than its source")


def rows(session: Session, service: str) -> None:
    client = session.client
    table = "demo_items"
    client.db.create_table(service, table, COLUMNS, key=["id"])
    try:
        client.db.insert(service, table, ROWS)
        found = client.db.select(service, table, order_by=["id"])
        session.screen.rows(found)
        check(list(found) == ROWS, "the rows that were read are not those that were written")
        session.screen.say(f"✓ {len(found)} rows came back as they were written, each value with its type")
    finally:
        client.db.drop_table(service, table)
