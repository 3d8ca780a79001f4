"""ModelInfer in terms of Predict: the request to ask with, and the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import struct_pb2

from onecontainer import errors
from onecontainer.api.ai.v1 import inference_pb2, tensor_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver.open_inference.tensors import (
    NAMES,
    contents_of,
    data_of,
    datatype_of,
    element_count,
    packed,
    unpacked,
)

CLASSIFICATION = "classification"
"""Triton's extension: a parameter of an output, how many classes are wanted instead of its scores."""
_PATHS = (
    (re.compile(r"^model$"), "model_name"),
    (re.compile(r"^version$"), "model_version"),
    (re.compile(r"^output\.names(\[\d+\])"), r"outputs\1.name"),
    (re.compile(r"^output\.(kind|top_k)$"), "outputs[0].parameters.classification"),
)
"""Fields of PredictRequest, and what they are in a ModelInferRequest; its inputs aside."""
_INPUT = re.compile(r"^inputs\[(\d+)\](.*)$")
_TENSOR = ((re.compile(r"^\.tensor\.dtype$"), ".datatype"), (re.compile(r"^\.tensor(\.data)?"), ""))
_TYPE = re.compile(r"'[^']*'|\b(?:BFLOAT16|FLOAT(?:16|32|64)|float(?:16|32|64)|u?int(?:8|16|32|64)|bool)\b")
"""A datatype in our words, or in numpy's; what is quoted is somebody's name."""
_HERE = frozenset({"binary_data", "binary_data_size"})
"""Parameters of tensors that tell how HTTP carries them. Here they say nothing."""


@dataclass(frozen=True, slots=True)
class Question:
    """A PredictRequest, and what each of its inputs is in the ModelInferRequest."""

    request: pb.PredictRequest
    origins: Sequence[tuple[str, int | None]]
    """Path, and which element there is meant if the path does not say it."""


def question(request: oip.ModelInferRequest, service: str, model: str, images: frozenset[str]) -> Question:
    """The question; elements of BYTES for an input in `images` are encoded images.

    Raises FieldRequired, FieldInvalid, DataInvalid: with the path in `request`.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise errors.FieldInvalid("raw_input_contents", f"has {len(raw)} entries for {len(request.inputs)} inputs")
    inputs: list[inference_pb2.Input] = []
    origins: list[tuple[str, int | None]] = []
    for number, one in enumerate(request.inputs):
        path = f"inputs[{number}]"
        found = list(_inputs(one, raw[number] if raw else None, path, images))
        inputs += found
        if not (one.datatype == "BYTES" and one.name in images):
            origins.append((path, None))
        elif raw:
            origins += [(f"raw_input_contents[{number}]", element) for element in range(len(found))]
        else:
            origins += [(f"{path}.contents.bytes_contents[{element}]", None) for element in range(len(found))]
    asked = pb.PredictRequest(
        service=service,
        model=model,
        version=request.model_version,
        inputs=inputs,
        output=_output(request.outputs),
        parameters=_parameters(request.parameters),
    )
    return Question(asked, origins)


def _inputs(
    one: oip.ModelInferRequest.InferInputTensor, raw: bytes | None, path: str, images: frozenset[str]
) -> Iterator[inference_pb2.Input]:
    _refuse({name: value for name, value in one.parameters.items() if name not in _HERE}, f"{path}.parameters")
    dtype = datatype_of(one.datatype, f"{path}.datatype")
    count = element_count(one.shape, f"{path}.shape")
    if raw is not None and one.HasField("contents"):
        raise errors.FieldInvalid(f"{path}.contents", "must be empty when raw_input_contents is there")
    data = data_of(one.datatype, one.contents, count, path) if raw is None else raw
    if one.datatype == "BYTES" and one.name in images:
        for image in unpacked(data, path):
            yield inference_pb2.Input(name=one.name, image=image)
        return
    yield inference_pb2.Input(name=one.name, tensor=tensor_pb2.Tensor(dtype=dtype, shape=one.shape, data=data))


def _output(outputs: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor]) -> inference_pb2.OutputOptions:
    classes = classified(outputs)
    if classes:
        if len(outputs) > 1:
            raise errors.FieldInvalid("outputs", "ask for classes, or for tensors, not for both in one call")
        return inference_pb2.OutputOptions(kind=inference_pb2.OUTPUT_KIND_CLASSIFICATION, top_k=classes)
    for number, one in enumerate(outputs):
        given = {name: value for name, value in one.parameters.items() if name not in _HERE}
        _refuse(given, f"outputs[{number}].parameters")
    return inference_pb2.OutputOptions(kind=inference_pb2.OUTPUT_KIND_TENSORS, names=[one.name for one in outputs])


def classified(outputs: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor]) -> int:
    """How many classes are asked for; 0: tensors are. Raises FieldInvalid."""
    for number, one in enumerate(outputs):
        if CLASSIFICATION in one.parameters:
            path = f"outputs[{number}].parameters"
            _refuse({name: value for name, value in one.parameters.items() if name != CLASSIFICATION}, path)
            count = one.parameters[CLASSIFICATION].int64_param
            if not 1 <= count <= 1000:
                raise errors.FieldInvalid(f"{path}.{CLASSIFICATION}", "must be 1 to 1000")
            return count
    return 0


def _refuse(parameters: Mapping[str, Any], path: str) -> None:
    for name in parameters:
        raise errors.FieldInvalid(
            f"{path}.{name[:64]}", "is not served here: tensors are in the message, and have no parameters"
        )


def _parameters(parameters: Mapping[str, oip.InferParameter]) -> struct_pb2.Struct:
    fields = {}
    for name, one in parameters.items():
        choice = one.WhichOneof("parameter_choice")
        value = getattr(one, choice) if choice else None
        if isinstance(value, bool):
            fields[name] = struct_pb2.Value(bool_value=value)
        elif isinstance(value, int | float):
            fields[name] = struct_pb2.Value(number_value=value)
        elif isinstance(value, str):
            fields[name] = struct_pb2.Value(string_value=value)
        else:
            raise errors.FieldInvalid(f"parameters.{name[:64]}", "has no value")
    return struct_pb2.Struct(fields=fields)


def in_their_terms(
    error: errors.OneContainerError, origins: Sequence[tuple[str, int | None]]
) -> errors.OneContainerError:
    """The error about a PredictRequest, as one about the ModelInferRequest: its fields, and its names of datatypes."""
    if not isinstance(error, errors.FieldInvalid | errors.FieldRequired | errors.DataInvalid):
        return error
    found = []
    for violation in error.violations:
        path, description = violation.field, _TYPE.sub(_their_type, violation.description)
        match = _INPUT.match(path)
        if match is not None and int(match[1]) < len(origins):
            origin, element = origins[int(match[1])]
            rest = match[2] if origin.startswith("inputs") and origin.count("[") == 1 else ""
            for pattern, theirs in _TENSOR:
                rest = pattern.sub(theirs, rest)
            path = origin + rest
            if element is not None:
                description = f"element {element}: {description}"
        for pattern, theirs in _PATHS:
            path = pattern.sub(theirs, path)
        found.append(errors.FieldViolation(path, description))
    return type(error)(violations=found, metadata=error.metadata, retry_after=error.retry_after, hop=error.hop)


def _their_type(match: re.Match[str]) -> str:
    word = match[0]
    if word.startswith("'"):
        return word
    return word.upper().replace("BFLOAT", "BF").replace("FLOAT", "FP")


def infer_response(request: oip.ModelInferRequest, answer: pb.PredictResponse) -> oip.ModelInferResponse:
    """The answer in the form of the question: raw contents for raw contents, typed ones for typed ones.

    Raises BackendCapabilityMissing if the model's answer has no form in this protocol.
    """
    response = oip.ModelInferResponse(model_name=request.model_name, model_version=answer.version, id=request.id)
    classes = classified(request.outputs)
    tensors = _classes(request, answer) if classes else _joined(answer.predictions)
    raw = bool(request.raw_input_contents) or any(
        NAMES.get(one.tensor.dtype, "") in {"FP16", "BF16"} for one in tensors
    )
    for one in tensors:
        name = NAMES.get(one.tensor.dtype, "")
        output = response.outputs.add(name=one.name, datatype=name, shape=one.tensor.shape)
        contents = None if raw else _contents(name, one)
        if contents is None:
            response.raw_output_contents.append(one.tensor.data)
        else:
            output.contents.CopyFrom(contents)
    return response


def _contents(datatype: str, one: tensor_pb2.NamedTensor) -> oip.InferTensorContents | None:
    try:
        return contents_of(datatype, one.tensor.data, one.name)
    except errors.DataInvalid as error:
        raise errors.DriverMisimplemented(f"the driver's answer is broken: {error}") from error


def _joined(predictions: Sequence[inference_pb2.Prediction]) -> list[tensor_pb2.NamedTensor]:
    """The tensors; those of several items one behind the other."""
    first = predictions[0] if predictions else inference_pb2.Prediction()
    if any(not one.HasField("tensors") for one in predictions) or not predictions:
        raise errors.BackendCapabilityMissing("model_name", "this model does not answer with tensors: use Predict")
    if len(predictions) == 1:
        joined = list(first.tensors.tensors)
    else:
        joined = [
            _behind_each_other([one.tensors.tensors[number] for one in predictions])
            for number in range(len(first.tensors.tensors))
        ]
    for tensor in joined:
        if tensor.tensor.WhichOneof("content") == "artifact":
            raise errors.BackendCapabilityMissing(
                "outputs", f"{tensor.name} is an artifact, which this protocol does not have: use Predict"
            )
    return joined


def _behind_each_other(parts: Sequence[tensor_pb2.NamedTensor]) -> tensor_pb2.NamedTensor:
    first = parts[0]
    kinds = {(one.name, one.tensor.dtype, tuple(one.tensor.shape[1:])) for one in parts}
    if len(kinds) > 1 or not all(one.tensor.shape for one in parts):
        raise errors.BackendCapabilityMissing(
            "inputs", f"the answers of these items do not fit into one tensor {first.name}: ask about one at a time"
        )
    rows = sum(one.tensor.shape[0] for one in parts)
    return tensor_pb2.NamedTensor(
        name=first.name,
        tensor=tensor_pb2.Tensor(
            dtype=first.tensor.dtype,
            shape=[rows, *first.tensor.shape[1:]],
            data=b"".join(one.tensor.data for one in parts),
        ),
    )


def _classes(request: oip.ModelInferRequest, answer: pb.PredictResponse) -> list[tensor_pb2.NamedTensor]:
    """`SCORE:INDEX:LABEL`, as Triton writes it: one row per item."""
    rows = []
    for prediction in answer.predictions:
        if not prediction.HasField("classification"):
            raise errors.BackendCapabilityMissing(
                "outputs[0].parameters.classification", "this model does not answer with classes"
            )
        rows.append([_class(one) for one in prediction.classification.classes])
    width = len(rows[0]) if rows else 0
    return [
        tensor_pb2.NamedTensor(
            name=request.outputs[0].name,
            tensor=tensor_pb2.Tensor(
                dtype=tensor_pb2.DATA_TYPE_BYTES,
                shape=[len(rows), width],
                data=packed([text for row in rows for text in row]),
            ),
        )
    ]


def _class(one: inference_pb2.ClassScore) -> bytes:
    return f"{one.probability:f}:{one.index}".encode() + (f":{one.label}".encode() if one.label else b"")
