"""make bench-cold-start: from the CreateService request to READY, for processes and for containers, and what a sidecar holds at rest.

`image.sdk_s` and `image.driver_s` are builds of which docker knows no layer but the base image's; `image.cached_s` is the look for an
image that is there. Memory is that of the sidecar's processes: RSS, and for containers what docker counts.

    python -m tests.bench.cold_start [ROUNDS]
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

import docker

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import Client
from onecontainer.clock import SystemClock
from onecontainer.rpc.manifest import load_manifest, manifest_to_proto
from onecontainer.sidecars.logs import LogBuffer
from onecontainer.sidecars.model import RuntimeSpec, Target
from onecontainer.sidecars.runtimes.docker_context import BuildFile
from onecontainer.sidecars.runtimes.docker_images import Images, Recipe
from tests.bench import figures
from tests.drivers.build import build_driver
from tests.fixtures.docker import DockerGateway, base_image, docker_gateway

MIB = 1024 * 1024
RUNTIMES = {"process": resources_pb2.RUNTIME_KIND_PROCESS, "docker": resources_pb2.RUNTIME_KIND_DOCKER}


def starts(gateway: DockerGateway, client: Client, rounds: int) -> dict[str, float]:
    """Seconds until READY, and MiB of a sidecar at rest."""
    found: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for number in range(rounds):
        for runtime, kind in RUNTIMES.items():
            service = f"{runtime}-{number}"
            begin = time.monotonic()
            client.services.create(service, app="echo", app_version="1.0", runtime=resources_pb2.Runtime(kind=kind))
            client.services.wait_ready(service, timeout=120)
            add(f"start.{runtime}_s", time.monotonic() - begin)
            (sidecar,) = client.sidecars.list(service=service)
            time.sleep(1.0)
            if runtime == "process":
                add("memory.process_mib", _rss(int(sidecar.runtime_id)))
            else:
                container = gateway.docker.containers.get(sidecar.runtime_id)
                add("memory.docker_mib", container.stats(stream=False)["memory_stats"]["usage"] / MIB)
                # All its processes: the init that docker puts before it, and Python.
                pids = [int(row[1]) for row in container.top()["Processes"]]
                add("memory.docker_rss_mib", sum(_rss(pid) for pid in pids))
            begin = time.monotonic()
            client.services.delete(service)
            add(f"delete.{runtime}_s", time.monotonic() - begin)
    return {name: statistics.median(values) for name, values in found.items()}


def _rss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def images(folder: Path) -> dict[str, float]:
    """Seconds of builds, and MiB of what they make."""
    builder = Images(base_image(), timeout=900)
    logs = LogBuffer(SystemClock())
    manifest = manifest_to_proto(load_manifest(folder))
    target = Target("u", "services/u", "echo", "", {}, {}, (), "drivers/echo", manifest, folder, RuntimeSpec(), 1, 1, 1)  # type: ignore[arg-type]
    with contextlib.closing(docker.from_env()) as client:
        sdk, driver = builder.plan(target)
        # A line that no earlier build had, at the top: docker knows no layer of it.
        fresh_sdk = _fresh(sdk, sdk.base)
        fresh = _fresh(driver, fresh_sdk.tag)
        out: dict[str, float] = {}
        try:
            for name, recipe in (("sdk", fresh_sdk), ("driver", fresh)):
                begin = time.monotonic()
                await builder.make(client, (recipe,), logs)
                out[f"image.{name}_s"] = time.monotonic() - begin
            begin = time.monotonic()
            await builder.make(client, (sdk, driver), logs)
            begin = time.monotonic()
            await builder.make(client, builder.plan(target), logs)
            out["image.cached_s"] = time.monotonic() - begin
            base = client.images.get(sdk.base).attrs["Size"]
            out["image.base_mib"] = base / MIB
            out["image.sdk_mib"] = (client.images.get(fresh_sdk.tag).attrs["Size"] - base) / MIB
            out["image.driver_mib"] = (
                client.images.get(fresh.tag).attrs["Size"] - client.images.get(fresh_sdk.tag).attrs["Size"]
            ) / MIB
        finally:
            for recipe in (fresh, fresh_sdk):
                client.images.remove(recipe.tag, force=True)
    return out


def _fresh(recipe: Recipe, base: str) -> Recipe:
    mark = uuid.uuid4().hex
    first, rest = recipe.context["Dockerfile"].data.decode().split("FROM ${BASE_IMAGE}\n")
    text = f"{first}FROM ${{BASE_IMAGE}}\nENV FRESH={mark}\n{rest}"
    return Recipe(f"onecontainer/bench:{mark}", {**recipe.context, "Dockerfile": BuildFile(text.encode())}, base)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    folder = Path(tempfile.mkdtemp(prefix="oc-bench-"))
    try:
        driver = build_driver("echo", folder / "drivers")
        out = asyncio.run(images(driver))
        with docker_gateway(folder / "data", [folder / "drivers"]) as gateway, Client(gateway.address) as client:
            out |= starts(gateway, client, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    out["start.docker_over_process_s"] = out["start.docker_s"] - out["start.process_s"]
    path = figures.write("cold-start", out)
    rows = [(name, f"{value:.2f}") for name, value in sorted(out.items())]
    figures.show(f"Cold start, the median of {rounds} (in {path})", ("what", "value"), rows, {})


if __name__ == "__main__":
    main()
