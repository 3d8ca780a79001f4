"""make bench-media: a pipeline against bare ffmpeg with the same arguments, and many of them against a shell loop.

One run has all: in each round bare ffmpeg, RunPipeline in a process and RunPipeline in a container take turns, on clips of 60 seconds,
so what the machine does to one of them it does to all; ratios are of the same round. `pipeline_over_ffmpeg.RUNTIME` is from the call
until the job has ended, over the time of the bare process, of a clip of 1280x720; the same with `.small` of one of 640x360, where what a
pipeline costs whatever its length weighs most, and `overhead.RUNTIME_s` are those seconds. `start_to_first_progress.RUNTIME_ms` is until
the first report that something was made. `queued_over_shell` is eight pipelines that are created at once, over `xargs -P` with as many
processes as the service has.

    python -m tests.bench.media [ROUNDS]
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from onecontainer_driver_ffmpeg import make_demo_clip
from onecontainer_driver_ffmpeg.binaries import find_ffmpeg

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.api.media.v1.stream_pb2 import AudioStream, VideoStream
from onecontainer.client import AsyncClient, transcode_request
from tests.bench import figures
from tests.fixtures.docker import docker_gateway

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = {"process": resources_pb2.RUNTIME_KIND_PROCESS, "docker": resources_pb2.RUNTIME_KIND_DOCKER}
# Height of the clip: seconds. H.264 to H.264 at half the size, sound anew.
CLIPS = {"": (720, 60), ".small": (360, 60), ".queued": (360, 15)}
SIZES = ("", ".small")
QUEUED, PROCESSES = 8, 2
AUDIO = AudioStream(codec="aac")
GOAL = 1.03


class Bench:
    """The services of both runtimes with the clips, and the same commands for a shell."""

    def __init__(self, client: AsyncClient, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self.clips = {
            size: make_demo_clip(folder / f"clip{size}.mp4", seconds=seconds, width=height * 16 // 9, height=height)
            for size, (height, seconds) in CLIPS.items()
        }
        self._artifacts: dict[str, str] = {}
        self._commands: dict[str, list[str]] = {}

    async def prepare(self) -> None:
        for name, kind in RUNTIMES.items():
            await self._client.services.create(name, app="ffmpeg", runtime=resources_pb2.Runtime(kind=kind))
        for name in RUNTIMES:
            await self._client.services.wait_ready(name, timeout=600)
        for size, clip in self.clips.items():
            self._artifacts[size] = (await self._client.artifacts.upload(clip)).name
            request = self.request(size)
            request.validate_only = True
            for name in RUNTIMES:  # both have then read what their ffmpeg can do
                job = await self._client.media.run_pipeline(name, request)
                result = await job.result(pipeline_pb2.RunPipelineResult, timeout=120)
                self._commands[size] = list(result.outputs[0].command)

    def request(self, size: str) -> media_pb2.RunPipelineRequest:
        video = VideoStream(codec="libx264", preset="medium", height=CLIPS[size][0] // 2)
        return transcode_request(self._artifacts[size], "mp4", video=video, audio=AUDIO)

    def command(self, size: str, output: Path) -> list[str]:
        """What the driver runs, with real names in place of those that it shows instead; the list of allowed formats is left out."""
        words = self._commands[size]
        at = words.index("-format_whitelist")
        words = [find_ffmpeg(""), *words[1:at], *words[at + 2 :]]
        address = next(word for word in words if "{output}" in word)
        return [{"{input0}": str(self.clips[size]), address: str(output)}.get(word, word) for word in words]

    def bare(self, size: str) -> float:
        begin = time.monotonic()
        subprocess.run(
            self.command(size, self._folder / "bare.mp4"), check=True, capture_output=True, stdin=subprocess.DEVNULL
        )
        return time.monotonic() - begin

    async def pipeline(self, service: str, size: str) -> tuple[float, float]:
        """Seconds until the job has ended, and until the first report of something made."""
        begin = time.monotonic()
        first = 0.0
        job = await self._client.media.run_pipeline(service, self.request(size))
        async for record in job.watch(timeout=600):
            first = first or (time.monotonic() - begin if record.progress.done > 0 else 0.0)
        taken = time.monotonic() - begin
        if job.record.state != job_pb2.JOB_STATE_SUCCEEDED:
            raise RuntimeError(f"the pipeline of {service} ended {job.record}")
        return taken, first

    def shell(self) -> float:
        """A shell loop over the same number of outputs with the same parallelism."""
        words = self.command(".queued", self._folder / "loop-{}.mp4")
        script = f'seq {QUEUED} | xargs -P {PROCESSES} -I"{{}}" "$@" >/dev/null 2>&1'
        begin = time.monotonic()
        subprocess.run(["bash", "-c", script, "bash", *words], check=True, stdin=subprocess.DEVNULL)
        taken = time.monotonic() - begin
        if len(list(self._folder.glob("loop-*.mp4"))) != QUEUED:
            raise RuntimeError("the shell loop made not all of its outputs")
        return taken

    async def queued(self, service: str) -> float:
        begin = time.monotonic()
        jobs = await asyncio.gather(
            *(self._client.media.run_pipeline(service, self.request(".queued")) for _ in range(QUEUED))
        )
        ended = await asyncio.gather(*(job.wait(timeout=900) for job in jobs))
        if any(record.state != job_pb2.JOB_STATE_SUCCEEDED for record in ended):
            raise RuntimeError(f"a queued pipeline ended {[record.state for record in ended]}")
        return time.monotonic() - begin


async def rounds_of(address: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    async with AsyncClient(address) as client:
        bench = Bench(client, folder)
        await bench.prepare()
        for number in range(rounds):
            # Each in its turn first: what comes first in a round finds colder caches.
            names = ["bare", *RUNTIMES]
            for size in SIZES:
                for name in names[number % 3 :] + names[: number % 3]:
                    if name == "bare":
                        found.setdefault(f"bare{size}", []).append(await asyncio.to_thread(bench.bare, size))
                        continue
                    taken, first = await bench.pipeline(name, size)
                    found.setdefault(f"{name}{size}", []).append(taken)
                    if size == ".small":
                        found.setdefault(f"first.{name}", []).append(first)
        for number in range(max(1, rounds // 2)):
            for name in ("shell", "queued") if number % 2 == 0 else ("queued", "shell"):
                taken = await asyncio.to_thread(bench.shell) if name == "shell" else await bench.queued("process")
                found.setdefault(name, []).append(taken)
    return found


def summary(found: dict[str, Sequence[float]] | dict[str, list[float]]) -> dict[str, float]:
    names = [f"{name}{size}" for name in ("bare", *RUNTIMES) for size in SIZES]
    out = {f"{name}_s": statistics.median(found[name]) for name in (*names, "shell", "queued")}
    for name in RUNTIMES:
        for size in SIZES:
            out[f"pipeline_over_ffmpeg.{name}{size}"] = figures.median_ratio(
                found[f"{name}{size}"], found[f"bare{size}"]
            )
        extra = [taken - bare for taken, bare in zip(found[f"{name}.small"], found["bare.small"], strict=True)]
        out[f"overhead.{name}_s"] = statistics.median(extra)
        out[f"start_to_first_progress.{name}_ms"] = statistics.median(found[f"first.{name}"]) * 1e3
    out["pipeline_over_ffmpeg"] = out["pipeline_over_ffmpeg.process"]
    out["start_to_first_progress_ms"] = out["start_to_first_progress.process_ms"]
    out["queued_over_shell"] = figures.median_ratio(found["queued"], found["shell"])
    return out


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    folder = Path(tempfile.mkdtemp(prefix="oc-bench-"))
    try:
        with docker_gateway(folder / "data", [ROOT / "drivers"]) as gateway:
            out = summary(asyncio.run(rounds_of(gateway.address, folder, rounds)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    path = figures.write("media", out)
    figures.show(
        f"Media, the median of {rounds} rounds (in {path})",
        ("what", "value"),
        [(name, f"{value:,.3f}") for name, value in sorted(out.items())],
        {
            f"pipeline_over_ffmpeg.{name}{size}": (out[f"pipeline_over_ffmpeg.{name}{size}"], f"≤ {GOAL}")
            for name in RUNTIMES
            for size in SIZES
        }
        | {"queued_over_shell": (out["queued_over_shell"], "≤ 1")},
    )


if __name__ == "__main__":
    main()
