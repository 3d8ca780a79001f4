"""The driver as its users have it: in a container of a gateway's, with Debian's PyTorch and the real weights of a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from onecontainer.api.ai.v1 import inference_pb2, model_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.job.v1 import job_pb2
from onecontainer.client import Client
from tests.fixtures.docker import DockerGateway, docker_gateway
from tests.fixtures.hub import lite0_repository
from tests.fixtures.torch_image import torch_image
from tests.fixtures.waiting import until

ROOT = Path(__file__).parents[3]
LOAD_SECONDS = 300.0
"""A load imports PyTorch, which takes two seconds, or a minute where much else runs."""
IMAGENET_LITE = model_pb2.ImagePreprocess(
    resize=model_pb2.Resize(shorter_side=256, interpolation=model_pb2.INTERPOLATION_BICUBIC),
    center_crop=model_pb2.Size(width=224, height=224),
    mean=[127.0],
    std=[128.0],
)


def struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(dict(values))
    return made


class Bench:
    """A service of the driver in a gateway, and what is uploaded for it."""

    name = "vision"

    def __init__(self, gateway: DockerGateway, client: Client) -> None:
        self.gateway = gateway
        self.client = client
        archive, weights = lite0_repository()
        self.lite0 = client.artifacts.upload(archive).name
        self.weights = client.artifacts.upload(weights).name
        self.small = client.artifacts.upload(Path(__file__).with_name("hubconf.py")).name

    def start(self, service: str, **options: Any) -> None:
        given = {"allow_repo_artifacts": True, "threads": 1, **options}
        self.client.services.create(service, "torchhub", options=given)
        self.client.services.wait_ready(service, timeout=LOAD_SECONDS)

    def classifier(self, entrypoint: str = "efficientnet_lite0", **kwargs: Any) -> model_pb2.ModelConfig:
        given = {"pretrained": True, **kwargs}
        hub = model_pb2.TorchHubSource(repo_artifact=self.lite0, entrypoint=entrypoint, kwargs=struct(given))
        labels = model_pb2.Labels(well_known="imagenet-1k")
        return model_pb2.ModelConfig(
            source=model_pb2.ModelSource(torch_hub=hub),
            image=IMAGENET_LITE,
            classification=model_pb2.Classification(labels=labels),
        )

    def config(self, entrypoint: str, **kwargs: Any) -> model_pb2.ModelConfig:
        hub = model_pb2.TorchHubSource(repo_artifact=self.small, entrypoint=entrypoint, kwargs=struct(kwargs))
        return model_pb2.ModelConfig(source=model_pb2.ModelSource(torch_hub=hub))

    def job(self, model: str, config: model_pb2.ModelConfig | None, **fields: Any) -> Any:
        return self.client.ai.serve_model(self.name, model, config=config, **fields)

    def serve(self, model: str, config: model_pb2.ModelConfig | None, **fields: Any) -> Any:
        """The job's result; raises its error."""
        return self.job(model, config, **fields).result(pb.ServeModelResult, timeout=LOAD_SECONDS)

    def values(self, value: object, model: str = "", **fields: Any) -> Any:
        """What the model gives for a nested list, as nested lists."""
        output = inference_pb2.OutputOptions(kind=inference_pb2.OUTPUT_KIND_JSON)
        answer = self.client.ai.predict(self.name, [value], model=model, output=output, timeout=LOAD_SECONDS, **fields)
        found = json_format.MessageToDict(answer.predictions[0].json)
        return found["output"] if list(found) == ["output"] else found

    def state(self, model: str, version: str = "1") -> model_pb2.ModelVersion:
        found = self.client.ai.get_model(self.name, model)
        return next(one for one in found.versions if one.version == version)

    def in_memory(self) -> set[str]:
        models = self.client.ai.list_models(self.name)
        ready = model_pb2.MODEL_STATE_READY
        return {
            model.name.rpartition("/")[2]
            for model in models
            if any(version.state == ready for version in model.versions)
        }

    def processes(self) -> list[int]:
        """The models' processes, by number on this host."""
        (container,) = self.gateway.containers(self.name)
        top = container.top(ps_args="-eo pid,args")
        return [
            int(row[top["Titles"].index("PID")])
            for row in top["Processes"] or []
            if "-m onecontainer_driver_torchhub.process" in row[-1] and "warden.py" not in row[-1]
        ]

    def clear(self) -> None:
        for job in self.client.jobs.list():
            if job.state in (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING):
                self.client.jobs.cancel(job.name)
        until(lambda: not self._loading(), "no load left", timeout=180)
        for model in self.client.ai.list_models(self.name):
            self.client.ai.unload_model(self.name, model.name, forget=True, timeout=240)
        until(lambda: not self.processes(), "no model's process", timeout=180)

    def _loading(self) -> bool:
        loading = model_pb2.MODEL_STATE_LOADING
        models = self.client.ai.list_models(self.name)
        return any(version.state == loading for model in models for version in model.versions)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerGateway]:
    folder = tmp_path_factory.mktemp("torchhub")
    with docker_gateway(folder / "data", [ROOT / "drivers"], docker_base_image=torch_image()) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def _bench(gateway: DockerGateway) -> Iterator[Bench]:
    with Client(gateway.address) as client:
        bench = Bench(gateway, client)
        bench.start(bench.name, max_loaded_models=3)
        yield bench


@pytest.fixture
def bench(_bench: Bench) -> Iterator[Bench]:
    """Without a model before and after."""
    yield _bench
    _bench.clear()


@pytest.fixture(scope="session")
def cat() -> bytes:
    """Chelsea, 451 × 300, RGB."""
    return (ROOT / "drivers/onnx/onecontainer_driver_onnx/assets/chelsea.png").read_bytes()
