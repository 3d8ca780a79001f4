"""What a service of models can do, for a person or a program that has never seen it: the parts that are the same for all."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import any_pb2
from google.protobuf.message import Message

from onecontainer.api.ai.v1 import inference_pb2, inference_service_pb2, model_pb2, usage_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver.models.driver import ModelBackend
from onecontainer.driver.models.mapping import model_to_proto
from onecontainer.driver.models.repository import MAX_VERSIONS
from onecontainer.driver.models.request import MAX_ITEMS

SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
IMAGENET = model_pb2.ImagePreprocess(
    resize=model_pb2.Resize(shorter_side=256),
    center_crop=model_pb2.Size(width=224, height=224),
    scale=1 / 255,
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
)
"""As torchvision's models want their images."""


def limits(backend: ModelBackend) -> usage_pb2.UsageLimits:
    images = backend.calls.limits
    return usage_pb2.UsageLimits(
        max_image_bytes=images.image_bytes,
        max_image_pixels=images.image_pixels,
        max_items=MAX_ITEMS,
        max_model_bytes=backend.max_model_bytes,
        max_loaded_models=backend.repository.max_loaded,
        max_models=MAX_VERSIONS,
    )


def models(backend: ModelBackend, service: str) -> list[model_pb2.Model]:
    return [model_to_proto(backend.repository, service, name) for name in backend.repository.names()]


def functions(
    service: str, inputs: Sequence[str], serve: usage_pb2.UsageFunction, *predict: usage_pb2.UsageExample
) -> list[usage_pb2.UsageFunction]:
    """`inputs`: fields of Input that models here take. `serve` and the examples of Predict are the driver's own."""
    kinds = {"inputs": inputs, "outputs": ["classification", "tensors", "json"]}
    stored = inference_pb2.Input(artifact="artifacts/IMAGE")
    return [
        function("GetUsage", "Describes the service."),
        function(
            "Predict",
            "Asks a model: for a classifier, the most probable classes of each image; else the model's tensors.",
            *predict,
            example(
                "The three best classes of a stored image",
                pb.PredictRequest(service=service, inputs=[stored], output=inference_pb2.OutputOptions(top_k=3)),
            ),
            **kinds,
        ),
        function(
            "PredictStream", "Predict for item after item over one stream, a result or an error for each.", **kinds
        ),
        function(
            "BatchPredict",
            "Predict for many artifacts, the files of an archive, or lines of JSON; the answers become an artifact.",
            example(
                "All pictures in an archive",
                pb.BatchPredictRequest(service=service, source=pb.BatchSource(archive="artifacts/ARCHIVE")),
            ),
            **kinds,
        ),
        serve,
        function("GetModel", "A model, where its versions stand and what they take and give."),
        function("ListModels", "All models."),
        function("UnloadModel", "Takes a model out of memory, and forgets it if that is wanted."),
        function("GetModelStatistics", "How often models were asked, where the time went, batch sizes."),
    ]


def function(
    name: str,
    description: str,
    *examples: usage_pb2.UsageExample,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> usage_pb2.UsageFunction:
    return usage_pb2.UsageFunction(
        method=f"{SERVICE}/{name}", description=description, inputs=inputs, outputs=outputs, examples=examples
    )


def example(description: str, request: Message) -> usage_pb2.UsageExample:
    packed = any_pb2.Any()
    packed.Pack(request)
    return usage_pb2.UsageExample(description=description, request=packed)
