"""What the service can do, for a person or a program that has never seen it."""

from __future__ import annotations

from functools import cache
from importlib import resources

from google.protobuf import any_pb2
from google.protobuf.message import Message

from onecontainer.api.ai.v1 import inference_pb2, inference_service_pb2, model_pb2, usage_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer_driver_onnx import built_in, labels
from onecontainer_driver_onnx.config import MODEL_SOURCES
from onecontainer_driver_onnx.images import MEDIA_TYPES
from onecontainer_driver_onnx.mapping import model_to_proto
from onecontainer_driver_onnx.repository import MAX_VERSIONS, Repository
from onecontainer_driver_onnx.request import MAX_ITEMS, Limits
from onecontainer_driver_onnx.session import RUNTIME_OPTIONS, devices

SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name


@cache
def example_image() -> bytes:
    """A small photo of a cat (Chelsea, by Stefan van der Walt, CC0)."""
    return resources.files(__package__).joinpath("assets", "cat.webp").read_bytes()


def usage(repository: Repository, service: str, limits: Limits, max_model_bytes: int) -> usage_pb2.Usage:
    models = [model_to_proto(repository, service, name) for name in repository.names()]
    default = repository.default_model or "none"
    return usage_pb2.Usage(
        summary=f"Serves ONNX models with ONNX Runtime: classifiers of images, and any model of tensors. Default model: {default}.",
        functions=_functions(service),
        limits=usage_pb2.UsageLimits(
            max_image_bytes=limits.image_bytes,
            max_image_pixels=limits.image_pixels,
            max_items=MAX_ITEMS,
            max_model_bytes=max_model_bytes,
            max_loaded_models=repository.max_loaded,
            max_models=MAX_VERSIONS,
        ),
        image_media_types=MEDIA_TYPES,
        model_sources=MODEL_SOURCES,
        model_formats=["onnx"],
        built_in_models=[built_in.NAME],
        label_sets=sorted(labels.WELL_KNOWN),
        devices=devices(),
        runtime_options=RUNTIME_OPTIONS,
        models=models,
    )


def _functions(service: str) -> list[usage_pb2.UsageFunction]:
    kinds = {
        "inputs": ["image", "tensor", "text", "json", "artifact"],
        "outputs": ["classification", "tensors", "json"],
    }
    cat = inference_pb2.Input(image=example_image())
    stored = inference_pb2.Input(artifact="artifacts/IMAGE")
    serve = pb.ServeModelRequest(
        service=service,
        model="my-classifier",
        config=model_pb2.ModelConfig(
            source=model_pb2.ModelSource(artifact="artifacts/MODEL"),
            image=model_pb2.ImagePreprocess(
                resize=model_pb2.Resize(shorter_side=256),
                center_crop=model_pb2.Size(width=224, height=224),
                scale=1 / 255,
                mean=[0.485, 0.456, 0.406],
                std=[0.229, 0.224, 0.225],
            ),
            classification=model_pb2.Classification(labels=model_pb2.Labels(artifact="artifacts/LABELS")),
        ),
    )
    return [
        _function("GetUsage", "Describes the service."),
        _function(
            "Predict",
            "Asks a model: for a classifier, the most probable classes of each image; else the model's tensors.",
            _example("Classify a photo of a cat", pb.PredictRequest(service=service, inputs=[cat])),
            _example(
                "The three best classes of a stored image",
                pb.PredictRequest(service=service, inputs=[stored], output=inference_pb2.OutputOptions(top_k=3)),
            ),
            **kinds,
        ),
        _function(
            "PredictStream", "Predict for item after item over one stream, a result or an error for each.", **kinds
        ),
        _function(
            "BatchPredict",
            "Predict for many artifacts, the files of an archive, or lines of JSON; the answers become an artifact.",
            _example(
                "All pictures in an archive",
                pb.BatchPredictRequest(service=service, source=pb.BatchSource(archive="artifacts/ARCHIVE")),
            ),
            **kinds,
        ),
        _function(
            "ServeModel",
            "Serves an ONNX model beside those that are there.",
            _example("A classifier that torchvision has trained", serve),
        ),
        _function("GetModel", "A model, where its versions stand and what they take and give."),
        _function("ListModels", "All models."),
        _function("UnloadModel", "Takes a model out of memory, and forgets it if that is wanted."),
        _function("GetModelStatistics", "How often models were asked, where the time went, batch sizes."),
    ]


def _function(
    name: str,
    description: str,
    *examples: usage_pb2.UsageExample,
    inputs: list[str] | None = None,
    outputs: list[str] | None = None,
) -> usage_pb2.UsageFunction:
    return usage_pb2.UsageFunction(
        method=f"{SERVICE}/{name}",
        description=description,
        inputs=inputs or [],
        outputs=outputs or [],
        examples=examples,
    )


def _example(description: str, request: Message) -> usage_pb2.UsageExample:
    packed = any_pb2.Any()
    packed.Pack(request)
    return usage_pb2.UsageExample(description=description, request=packed)
