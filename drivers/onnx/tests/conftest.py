"""The real model and real pictures; only the artifact store is in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import platformdirs
import pytest
from google.protobuf import any_pb2
from onecontainer_driver_onnx import OnnxDriver, built_in
from onecontainer_driver_onnx.config import rules
from onecontainer_driver_onnx.session import open_served

from onecontainer.api.ai.v1 import inference_pb2, inference_service_pb2
from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2
from onecontainer.api.type.v1 import progress_pb2
from onecontainer.driver import Attachment, Context, JobAttempt, errors
from onecontainer.driver.context import CallFacts
from onecontainer.driver.models.config import checked
from onecontainer.driver.models.labels import well_known
from onecontainer.driver.models.served import Served
from onecontainer.rpc.manifest import Manifest, load_manifest

FOLDER = Path(__file__).parents[1]
ASSETS = FOLDER / "onecontainer_driver_onnx" / "assets"
SERVICE = "services/cats"
# The user's own cache: the weights are fetched once per machine, as in use.
CACHE = platformdirs.user_cache_path("onecontainer") / "onnx"


def no_report(*_: object, **__: object) -> None: ...


@pytest.fixture(scope="session")
def manifest() -> Manifest:
    return load_manifest(FOLDER)


@pytest.fixture(scope="session")
def cat() -> bytes:
    """Chelsea, 451 × 300, RGB."""
    return (ASSETS / "chelsea.png").read_bytes()


@pytest.fixture(scope="session")
def model_file() -> Path:
    return asyncio.run(built_in.model_file(CACHE, None, no_report))


@pytest.fixture(scope="session")
def lite0(model_file: Path) -> Served:
    return open_served(model_file, checked(built_in.config(), rules()), well_known("imagenet-1k"), 1)


class FakeArtifacts:
    """An artifact store in memory; stands in for the gateway's."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[bytes, str]] = {}
        self.hold: asyncio.Event | None = None
        self.reads = 0
        self.reading = asyncio.Event()

    def for_call(self, *_: object) -> FakeArtifacts:
        return self

    def add(self, data: bytes, media_type: str = "") -> str:
        name = f"artifacts/a{len(self.stored)}"
        self.stored[name] = (data, media_type)
        return name

    async def get(self, name: str) -> artifact_pb2.Artifact:
        if name not in self.stored:
            raise errors.ResourceNotFound(f"no artifact {name}", resource=("artifact", name))
        data, media_type = self.stored[name]
        return artifact_pb2.Artifact(
            name=name, size_bytes=len(data), media_type=media_type, sha256=hashlib.sha256(data).digest()
        )

    async def read(self, name: str, offset: int = 0) -> AsyncIterator[bytes]:
        self.reads += 1
        self.reading.set()
        data = self.stored[name][0]
        for at in range(offset, len(data), 1 << 20):
            if self.hold is not None:
                await self.hold.wait()
            yield data[at : at + (1 << 20)]

    async def fetch(self, name: str, path: Path) -> None:
        path.write_bytes(await self.read_bytes(name, 0))

    async def put(self, path: Path, *, filename: str | None = None, media_type: str = "") -> artifact_pb2.Artifact:
        name = self.add(path.read_bytes(), media_type)
        return artifact_pb2.Artifact(name=name, filename=filename or path.name, media_type=media_type)

    async def read_bytes(self, name: str, limit_bytes: int) -> bytes:
        return b"".join([piece async for piece in self.read(name)])


class Events:
    """What a handler tells while it runs."""

    def __init__(self) -> None:
        self.reports: list[progress_pb2.Progress] = []
        self.checkpoints: list[any_pb2.Any] = []
        self.moved = asyncio.Event()

    def progress(self, progress: progress_pb2.Progress) -> None:
        self.reports.append(progress)

    def checkpoint(self, details: any_pb2.Any) -> None:
        self.checkpoints.append(details)
        self.moved.set()

    async def started(self, started: job_lease_service_pb2.Started) -> None: ...

    def phases(self) -> list[int]:
        found = []
        for report in self.reports:
            details = inference_service_pb2.ServeModelProgress()
            assert report.details.Unpack(details)
            found.append(details.phase)
        return found


class Bench:
    """A driver and all around it."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self.driver = OnnxDriver()
        self.artifacts = FakeArtifacts()
        self.events = Events()
        (root / "models").mkdir()

    async def attach(self, **options: Any) -> None:
        (self.root / "state").mkdir(exist_ok=True)
        defaults = {option.name: option.default for option in self.manifest.options}
        given = {"model_dir": str(self.root / "models"), "concurrency": 2, "threads": 1, **options}
        await self.driver.attach(
            Attachment(SERVICE, "onnx", "1.0", {}, defaults | given, self.root / "state", self.manifest)
        )

    async def restart(self, **options: Any) -> None:
        await self.driver.detach()
        self.driver = OnnxDriver()
        await self.attach(**options)

    async def ready(self) -> None:
        loader = self.driver._loader
        assert loader is not None
        await asyncio.wait_for(loader, 120)
        assert (await self.driver.probe()).ready

    def context(self, job: JobAttempt | None = None) -> Context:
        self.events = Events()
        return Context(
            CallFacts(SERVICE, job=job),
            asyncio.get_running_loop(),
            sink=self.events,
            artifacts=self.artifacts,  # type: ignore[arg-type]
            scratch_root=self.root / "scratch",
        )

    async def predict(self, *inputs: inference_pb2.Input, **fields: Any) -> inference_service_pb2.PredictResponse:
        request = inference_service_pb2.PredictRequest(service=SERVICE, inputs=inputs, **fields)
        return await self.driver.predict(request, self.context())

    async def serve(self, model: str, **fields: Any) -> inference_service_pb2.ServeModelResult:
        request = inference_service_pb2.ServeModelRequest(service=SERVICE, model=model, **fields)
        return await self.driver.serve_model(request, self.context())


@pytest.fixture
async def bench(tmp_path: Path, manifest: Manifest) -> AsyncIterator[Bench]:
    """Without the built-in model, so that tests of other things are quick."""
    made = Bench(tmp_path, manifest)
    await made.attach(default_model="none")
    await made.ready()
    yield made
    await made.driver.detach()


@pytest.fixture
async def cats(tmp_path: Path, manifest: Manifest, model_file: Path) -> AsyncIterator[Bench]:
    """With the built-in model."""
    made = Bench(tmp_path, manifest)
    await made.attach()
    await made.ready()
    yield made
    await made.driver.detach()


@pytest.fixture
def linear() -> Callable[..., bytes]:
    """Makes models."""
    return _linear


def _linear(weights: Any, *, inputs: list[Any] | None = None) -> bytes:
    """y = x · weights, x of shape (batch, n)."""
    matrix = np.asarray(weights, np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, inputs or ["batch", matrix.shape[0]])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", matrix.shape[1]])],
        [onnx.numpy_helper.from_array(matrix, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
