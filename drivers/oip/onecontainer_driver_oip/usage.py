"""What the service can do, for a person or a program that has never seen it."""

from __future__ import annotations

import math

from google.protobuf import any_pb2
from google.protobuf.message import Message

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, tensor_pb2, usage_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver.open_inference.tensors import NAMES
from onecontainer_driver_oip.inputs import CODES, MAX_ITEMS

SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
MOST_EXAMPLE_BYTES = 64 * 1024
_KINDS = {"inputs": ["tensor", "image", "text", "json"], "outputs": ["tensors", "json"]}


def usage(service: str, target: str, max_message_bytes: int, models: list[model_pb2.Model]) -> usage_pb2.Usage:
    oip = model_pb2.OipSource(model="resnet50", manage_repository=True)
    serve = pb.ServeModelRequest(
        service=service,
        model="resnet",
        config=model_pb2.ModelConfig(source=model_pb2.ModelSource(oip=oip)),
    )
    example = _question(service, models)
    return usage_pb2.Usage(
        summary=f"The models of the inference server at {target}, asked over the Open Inference Protocol.",
        functions=[
            _function("GetUsage", "Describes the service."),
            _function(
                "Predict",
                "Asks a model: its tensors, or the same as JSON. Images and texts are for inputs of BYTES.",
                *([] if example is None else [_example("Zeros for the first model that is ready", example)]),
                **_KINDS,
            ),
            _function(
                "PredictStream", "Predict for item after item over one stream, a result or an error for each.", **_KINDS
            ),
            _function(
                "ServeModel",
                "Gives a model of the server a name here; with manage_repository the server loads it.",
                _example("A model of the server's repository", serve),
            ),
            _function("GetModel", "A model, where its versions stand and what they take and give."),
            _function("ListModels", "All models that the server lists, and those that were served here."),
            _function("UnloadModel", "Has the server unload a model that was served with manage_repository."),
        ],
        limits=usage_pb2.UsageLimits(max_message_bytes=max_message_bytes, max_items=MAX_ITEMS),
        model_sources=["oip"],
        models=models,
    )


def _question(service: str, models: list[model_pb2.Model]) -> pb.PredictRequest | None:
    for model in models:
        if model.state != model_pb2.MODEL_STATE_READY or not model.versions or not model.versions[0].inputs:
            continue
        inputs = [_zeros(spec) for spec in model.versions[0].inputs]
        if all(one is not None for one in inputs):
            made = [one for one in inputs if one is not None]
            return pb.PredictRequest(service=service, model=model.name.rpartition("/")[2], inputs=made)
    return None


def _zeros(spec: tensor_pb2.TensorSpec) -> inference_pb2.Input | None:
    shape = [1 if length < 0 else length for length in spec.shape]
    # Every number of these types is 0 where its bytes are.
    size = {"e": 2, "h": 2, "H": 2, "i": 4, "I": 4, "f": 4, "q": 8, "Q": 8, "d": 8}.get(
        CODES.get(NAMES.get(spec.dtype, ""), ""), 1
    )
    if NAMES.get(spec.dtype, "") not in CODES or math.prod(shape) * size > MOST_EXAMPLE_BYTES:
        return None
    data = bytes(math.prod(shape) * size)
    return inference_pb2.Input(name=spec.name, tensor=tensor_pb2.Tensor(dtype=spec.dtype, shape=shape, data=data))


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
