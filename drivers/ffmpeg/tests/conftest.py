"""Real clips, a real ffmpeg, the SDK's real context; only the artifact store is a folder."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import any_pb2
from onecontainer_driver_ffmpeg import FfmpegDriver, make_demo_clip
from onecontainer_driver_ffmpeg.binaries import find_ffmpeg
from onecontainer_driver_ffmpeg.capabilities import Capabilities

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2
from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.api.type.v1 import progress_pb2
from onecontainer.driver import Attachment, Context, errors
from onecontainer.driver.context import CallFacts


class FakeArtifacts:
    """An artifact store that is a folder; stands in for the gateway's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[str, Path] = {}
        self._numbers = itertools.count()

    def for_call(self, *_: object) -> FakeArtifacts:
        return self

    def add(self, path: Path) -> str:
        name = f"artifacts/a{next(self._numbers)}"
        self.stored[name] = path
        return name

    async def get(self, name: str) -> artifact_pb2.Artifact:
        if name not in self.stored:
            raise errors.ResourceNotFound(f"no artifact {name}", resource=("artifact", name))
        return artifact_pb2.Artifact(name=name, size_bytes=self.stored[name].stat().st_size)

    async def fetch(self, name: str, path: Path) -> None:
        if name not in self.stored:
            raise errors.ResourceNotFound(f"no artifact {name}", resource=("artifact", name))
        await asyncio.to_thread(shutil.copyfile, self.stored[name], path)

    async def put(
        self, path: Path, *, filename: str | None = None, media_type: str = "", **_: Any
    ) -> artifact_pb2.Artifact:
        # Outputs are stored side by side, and their files have the same names.
        kept = self.folder / f"{next(self._numbers)}-{filename or path.name}"
        await asyncio.to_thread(shutil.copyfile, path, kept)
        return artifact_pb2.Artifact(name=self.add(kept), filename=filename or path.name, media_type=media_type)


class Events:
    """What the handler tells while it runs."""

    def __init__(self) -> None:
        self.reports: list[progress_pb2.Progress] = []
        self.declared: list[bool] = []
        self.moved = asyncio.Event()

    def progress(self, progress: progress_pb2.Progress) -> None:
        self.reports.append(progress)
        if progress.done > 0:
            self.moved.set()

    def checkpoint(self, details: any_pb2.Any) -> None: ...

    async def started(self, started: job_lease_service_pb2.Started) -> None:
        self.declared.append(started.idempotent)

    def details(self) -> list[pipeline_pb2.PipelineProgress]:
        found = []
        for report in self.reports:
            details = pipeline_pb2.PipelineProgress()
            if report.details.Unpack(details):
                found.append(details)
        return found


class Bench:
    """An attached driver and all around it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources = root / "sources"
        self.driver = FfmpegDriver()
        self.events = Events()
        for name in ("sources", "store", "state", "scratch"):
            (root / name).mkdir()
        self.artifacts = FakeArtifacts(root / "store")
        self.options: dict[str, Any] = {"source_folders": [str(self.sources)], "threads": 2}

    async def attach(self, **options: Any) -> None:
        self.options |= options
        await self.driver.attach(
            Attachment("services/media", "ffmpeg", "7", {}, self.options, self.root / "state", SimpleNamespace())  # type: ignore[arg-type]
        )

    def context(self) -> Context:
        self.events = Events()
        loop = asyncio.get_running_loop()
        return Context(
            CallFacts("services/media"),
            loop,
            sink=self.events,
            artifacts=self.artifacts,  # type: ignore[arg-type]
            scratch_root=self.root / "scratch",
        )

    async def under_way(self, task: asyncio.Task[Any], *, milliseconds: int = 1) -> None:
        """Until so much is made of every output: one that is only being started has no process yet, and leaves nothing if it is ended."""
        async with asyncio.timeout(180):
            while not task.done():
                details = self.events.details()
                if details and all(one.media_time.ToMilliseconds() >= milliseconds for one in details[-1].outputs):
                    return
                await asyncio.sleep(0.05)
        await task
        raise AssertionError("ended before all was under way")

    def left_behind(self) -> list[Path]:
        return [path for path in (self.root / "scratch").rglob("*") if path.is_file()]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    await made.attach()
    yield made
    await made.driver.detach()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of 320x180 at 30 frames per second with a tone."""
    return make_demo_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=3, width=320, height=180)


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough to be still under way when a test wants it to."""
    return make_demo_clip(tmp_path_factory.mktemp("clips") / "long.mp4", seconds=60, width=640, height=360)


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    return find_ffmpeg("")


@pytest.fixture
async def capabilities(ffmpeg: str, tmp_path: Path) -> Capabilities:
    return await Capabilities.load(ffmpeg, tmp_path)


def make_media(ffmpeg: str, path: Path, *arguments: str) -> Path:
    subprocess.run(
        [ffmpeg, "-nostdin", "-loglevel", "error", "-y", *arguments, str(path)], check=True, capture_output=True
    )
    return path


def processes_of(folder: Path) -> list[int]:
    """ffmpeg processes that write into `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
            if str(folder).encode() in command and b"-progress" in command and b"child.py" not in command:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@pytest.fixture(scope="session")
def colours(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of 96x54 at 10 frames per second, one second of each of COLOURS, with a tone and subtitles in English."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "text.srt").write_text(
        "1\n00:00:00,500 --> 00:00:01,500\nGood evening\n\n2\n00:00:03,000 --> 00:00:03,500\nBye\n"
    )
    pads = "".join(f"color=c={name}:s=96x54:r=10:d=1[{name}];" for name in COLOURS)
    graph = f"{pads}{''.join(f'[{name}]' for name in COLOURS)}concat=n={len(COLOURS)}[v]"
    return make_media(
        ffmpeg, folder / "colours.mkv", "-f", "lavfi", "-i", "sine=d=4:r=48000", "-i", str(folder / "text.srt"), "-filter_complex", graph,
        "-map", "[v]", "-map", "0:a", "-map", "1:s", "-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-pix_fmt", "yuv420p",
        "-c:a", "aac", "-c:s", "srt", "-metadata:s:s:0", "language=eng",
    )  # fmt: skip


def colour_at(time: float) -> str:
    """Of the clip `colours`."""
    return list(COLOURS)[min(int(time), len(COLOURS) - 1)]


def colour_of(pixels: Any) -> str:
    """The colour of COLOURS that an array (height, width, 3) has on average; a failure if it is none of them."""
    mean = pixels.reshape(-1, 3).astype(float).mean(axis=0)
    near = [name for name, colour in COLOURS.items() if abs(mean - colour).max() < 40]
    assert near, f"no colour of the clip: {mean}"
    return near[0]


def unpacked(bench: Bench, result: pipeline_pb2.OutputResult) -> Path:
    """A folder with the files of an output under their own names."""
    folder = Path(tempfile.mkdtemp(dir=bench.root))
    for file in result.files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bench.artifacts.stored[file.artifact], path)
        assert path.stat().st_size == file.size_bytes > 0
    return folder


def play(ffmpeg: str, path: Path, *arguments: str) -> None:
    """Decodes all of a file or a playlist; a failure if ffmpeg tells of any error."""
    done = subprocess.run(
        [ffmpeg, "-nostdin", "-v", "error", "-xerror", "-i", str(path), *arguments, "-f", "null", "-"],
        check=False, capture_output=True, text=True, cwd=path.parent,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
