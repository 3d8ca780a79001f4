"""What the service can do, for a person or a program that has never seen it."""

from __future__ import annotations

from functools import cache
from importlib import resources

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, usage_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver.models import labels
from onecontainer.driver.models import usage as described
from onecontainer.driver.models.driver import ModelBackend
from onecontainer.driver.models.images import MEDIA_TYPES
from onecontainer_driver_onnx import built_in
from onecontainer_driver_onnx.config import RUNTIME_OPTIONS, rules


@cache
def example_image() -> bytes:
    """A small photo of a cat (Chelsea, by Stefan van der Walt, CC0)."""
    return resources.files("onecontainer_driver_onnx").joinpath("assets", "cat.webp").read_bytes()


def usage(backend: ModelBackend, service: str) -> usage_pb2.Usage:
    default = backend.repository.default_model or "none"
    takes = rules()
    return usage_pb2.Usage(
        summary=f"Serves ONNX models with ONNX Runtime: classifiers of images, and any model of tensors. Default model: {default}.",
        functions=_functions(service),
        limits=described.limits(backend),
        image_media_types=MEDIA_TYPES,
        model_sources=takes.sources,
        model_formats=takes.formats,
        built_in_models=[built_in.NAME],
        label_sets=sorted(labels.WELL_KNOWN),
        devices=takes.devices,
        runtime_options=RUNTIME_OPTIONS,
        models=described.models(backend, service),
    )


def _functions(service: str) -> list[usage_pb2.UsageFunction]:
    cat = inference_pb2.Input(image=example_image())
    serve = pb.ServeModelRequest(
        service=service,
        model="my-classifier",
        config=model_pb2.ModelConfig(
            source=model_pb2.ModelSource(artifact="artifacts/MODEL"),
            image=described.IMAGENET,
            classification=model_pb2.Classification(labels=model_pb2.Labels(artifact="artifacts/LABELS")),
        ),
    )
    return described.functions(
        service,
        ["image", "tensor", "text", "json", "artifact"],
        described.function(
            "ServeModel",
            "Serves an ONNX model beside those that are there.",
            described.example("A classifier that torchvision has trained", serve),
        ),
        described.example("Classify a photo of a cat", pb.PredictRequest(service=service, inputs=[cat])),
    )
