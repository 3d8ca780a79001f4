"""What the service can do, for a person or a program that has never seen it."""

from __future__ import annotations

from google.protobuf import struct_pb2

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, usage_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver.models import labels
from onecontainer.driver.models import usage as described
from onecontainer.driver.models.driver import ModelBackend
from onecontainer.driver.models.images import MEDIA_TYPES
from onecontainer_driver_torchhub.config import Allowed
from onecontainer_driver_torchhub.runtime import Torch


def usage(backend: ModelBackend, service: str, allowed: Allowed, torch: Torch) -> usage_pb2.Usage:
    places = [
        *(["GitHub: " + ", ".join(allowed.repos)] if allowed.repos else []),
        *([f"folders in {allowed.folder}"] if allowed.folder is not None else []),
        *(["artifacts"] if allowed.artifacts else []),
    ]
    summary = (
        f"Serves models of PyTorch Hub with PyTorch {torch.version}, each in a process of its own. Repositories may come from"
        f" {'; '.join(places) or 'nowhere: the settings allow none'}. Default model: {backend.repository.default_model or 'none'}."
    )
    return usage_pb2.Usage(
        summary=summary,
        functions=_functions(service),
        limits=described.limits(backend),
        image_media_types=MEDIA_TYPES,
        model_sources=["torch_hub"],
        label_sets=sorted(labels.WELL_KNOWN),
        devices=torch.devices,
        models=described.models(backend, service),
    )


def _functions(service: str) -> list[usage_pb2.UsageFunction]:
    weights = struct_pb2.Struct()
    weights["weights"] = "IMAGENET1K_V1"
    serve = pb.ServeModelRequest(
        service=service,
        model="resnet18",
        config=model_pb2.ModelConfig(
            source=model_pb2.ModelSource(
                torch_hub=model_pb2.TorchHubSource(repo="pytorch/vision:v0.21.0", entrypoint="resnet18", kwargs=weights)
            ),
            image=described.IMAGENET,
            classification=model_pb2.Classification(labels=model_pb2.Labels(well_known="imagenet-1k")),
        ),
    )
    stored = pb.PredictRequest(service=service, inputs=[inference_pb2.Input(artifact="artifacts/IMAGE")])
    return described.functions(
        service,
        ["image", "tensor", "json", "artifact"],
        described.function(
            "ServeModel",
            "Serves what an entry point of a hub repository returns, beside the models that are there.",
            described.example("A classifier of torchvision", serve),
        ),
        described.example("Classify a stored image", stored),
    )
