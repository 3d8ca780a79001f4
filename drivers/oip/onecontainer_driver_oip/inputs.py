"""What a Predict request asks for, as requests of the Open Inference Protocol: one for tensors, else one per item."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format, struct_pb2

from onecontainer.api.ai.v1 import inference_pb2, tensor_pb2
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver import errors
from onecontainer.driver.open_inference.tensors import NAMES, packed, unpacked

MAX_ITEMS = 256
MAX_DIMENSIONS = 32
CODES: Mapping[str, str] = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""Datatype → the code of `struct` for an element."""

Spec = oip.ModelMetadataResponse.TensorMetadata


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it goes to the server: `data` is its raw contents."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes


def requests_of(
    served_model: str,
    version: str,
    inputs: Sequence[inference_pb2.Input],
    output: inference_pb2.OutputOptions,
    parameters: struct_pb2.Struct,
    spec: oip.ModelMetadataResponse,
) -> list[oip.ModelInferRequest]:
    """Tensors are shared by all items; several images, texts or JSON values of one name are several items.

    Raises FieldRequired, FieldInvalid, DataInvalid: with the path of the field.
    """
    if not inputs:
        raise errors.FieldRequired("inputs", "needs at least one")
    if len(inputs) > MAX_ITEMS:
        raise errors.FieldInvalid("inputs", f"has {len(inputs)}; {MAX_ITEMS} are allowed")
    tensors: dict[str, Tensor] = {}
    items: dict[str, list[Tensor]] = {}
    for number, one in enumerate(inputs):
        path = f"inputs[{number}]"
        told = _spec_of(one.name, spec.inputs, path)
        kind = one.WhichOneof("value")
        if kind is None:
            raise errors.FieldRequired(path, "needs one of tensor, image, text and json")
        made = _tensor(one, kind, told, path)
        name = told.name
        if name in tensors or (kind == "tensor" and name in items):
            raise errors.FieldInvalid(path, f"the input {name!r} has a tensor already; a tensor holds its whole batch")
        if kind == "tensor":
            tensors[name] = made
        else:
            items.setdefault(name, []).append(made)
    _complete(spec, {*tensors, *items})
    counts = {name: len(found) for name, found in items.items()}
    if len(set(counts.values())) > 1:
        raise errors.FieldInvalid("inputs", f"items must come as often for each input, not {counts}")
    outputs = _outputs(output, spec)
    fields = _parameters(parameters)
    return [
        _request(served_model, version, tensors | {name: found[at] for name, found in items.items()}, outputs, fields)
        for at in range(next(iter(counts.values()), 1))
    ]


def _request(
    model: str,
    version: str,
    tensors: Mapping[str, Tensor],
    outputs: Sequence[str],
    parameters: Mapping[str, oip.InferParameter],
) -> oip.ModelInferRequest:
    return oip.ModelInferRequest(
        model_name=model,
        model_version=version,
        parameters=parameters,
        inputs=[
            oip.ModelInferRequest.InferInputTensor(name=name, datatype=one.datatype, shape=one.shape)
            for name, one in tensors.items()
        ],
        outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=[one.data for one in tensors.values()],
    )


def _spec_of(name: str, told: Sequence[Spec], path: str) -> Spec:
    """The input's declaration; a bare one where the model declares nothing."""
    if not told:
        if not name:
            raise errors.FieldRequired(f"{path}.name", "the model does not say what it takes")
        return Spec(name=name)
    there = ", ".join(one.name for one in told)
    if not name:
        if len(told) > 1:
            raise errors.FieldRequired(f"{path}.name", f"the model has several inputs: {there}")
        return told[0]
    for one in told:
        if one.name == name:
            return one
    raise errors.FieldInvalid(f"{path}.name", f"the model has no input {name[:64]!r}; it has {there}")


def _complete(spec: oip.ModelMetadataResponse, given: set[str]) -> None:
    # An input may be optional, which the protocol does not tell; but with none of them there is nothing to ask.
    missing = [one.name for one in spec.inputs if one.name not in given]
    if missing and len(missing) == len(spec.inputs):
        raise errors.FieldRequired("inputs", f"the model also needs {', '.join(missing)}")


def _tensor(one: inference_pb2.Input, kind: str, told: Spec, path: str) -> Tensor:
    match kind:
        case "tensor":
            return _given(one.tensor, told, f"{path}.tensor")
        case "image" | "text":
            value = one.image if kind == "image" else one.text.encode()
            if told.datatype not in {"", "BYTES"}:
                raise errors.FieldInvalid(
                    f"{path}.{kind}", f"the input {told.name!r} takes {told.datatype}: send a tensor or JSON"
                )
            return Tensor("BYTES", (1,) * max(1, len(told.shape)), packed([value]))
        case "json":
            return _from_json(one.json, told, f"{path}.json")
    raise errors.FieldInvalid(f"{path}.artifact", "artifacts are not taken here: send the data in the message")


def _given(tensor: tensor_pb2.Tensor, told: Spec, path: str) -> Tensor:
    if tensor.WhichOneof("content") == "artifact":
        raise errors.FieldInvalid(f"{path}.artifact", "artifacts are not taken here: send the data in the message")
    datatype = NAMES.get(tensor.dtype, "")
    if not datatype:
        raise errors.FieldRequired(f"{path}.dtype")
    if told.datatype and datatype != told.datatype:
        raise errors.DataInvalid(f"{path}.dtype", f"is {datatype}, but the input {told.name!r} takes {told.datatype}")
    shape = tuple(tensor.shape)
    if len(shape) > MAX_DIMENSIONS or any(length < 0 for length in shape):
        raise errors.DataInvalid(
            f"{path}.shape", f"must have at most {MAX_DIMENSIONS} dimensions, none of them negative"
        )
    _fits(shape, told, f"{path}.shape")
    count = math.prod(shape)
    if datatype == "BYTES":
        found = sum(1 for _ in unpacked(tensor.data, f"{path}.data"))
        if found != count:
            raise errors.DataInvalid(f"{path}.data", f"has {found} elements; the shape has {count}")
    else:
        size = 2 if datatype == "BF16" else struct.calcsize(f"<{CODES[datatype]}")
        if len(tensor.data) != count * size:
            raise errors.DataInvalid(f"{path}.data", f"has {len(tensor.data)} bytes; the shape takes {count * size}")
    return Tensor(datatype, shape, tensor.data)


def _fits(shape: tuple[int, ...], told: Spec, path: str) -> None:
    wanted = tuple(told.shape)
    if not wanted:
        return
    if len(shape) != len(wanted) or any(w not in {-1, s} for s, w in zip(shape, wanted, strict=True)):
        raise errors.DataInvalid(path, f"is {list(shape)}, but the input {told.name!r} takes {list(wanted)}")


def _from_json(value: struct_pb2.Value, told: Spec, path: str) -> Tensor:
    if told.datatype not in CODES and told.datatype != "BYTES":
        raise errors.FieldInvalid(path, f"the model does not say of which type its input {told.name!r} is")
    elements: list[Any] = []
    shape = tuple(_flatten(json_format.MessageToDict(value), elements, path))
    if len(shape) == len(told.shape) - 1 and told.shape[0] == -1:
        shape = (1, *shape)  # one item of a batched input may come without the dimension that counts items
    _fits(shape, told, path)
    if told.datatype == "BYTES":
        if not all(isinstance(one, str) for one in elements):
            raise errors.DataInvalid(path, f"the input {told.name!r} takes text")
        return Tensor("BYTES", shape, packed([one.encode() for one in elements]))
    code = CODES[told.datatype]
    whole = code not in "efd?"
    try:
        made = [int(one) if whole and float(one).is_integer() else one for one in elements]
        return Tensor(told.datatype, shape, struct.pack(f"<{len(made)}{code}", *made))
    except (struct.error, TypeError, ValueError, OverflowError) as error:
        raise errors.DataInvalid(path, f"has a value that is no {told.datatype}: {error}") from error


def _flatten(value: Any, elements: list[Any], path: str) -> list[int]:
    """Puts the elements in row-major order; returns the shape."""
    if not isinstance(value, list):
        if isinstance(value, dict) or value is None:
            raise errors.DataInvalid(path, "must be an array of values, nested as the shape is")
        elements.append(value)
        return []
    shapes = [_flatten(one, elements, path) for one in value]
    if any(shape != shapes[0] for shape in shapes):
        raise errors.DataInvalid(path, "is ragged: each row must have the same shape")
    return [len(value), *(shapes[0] if shapes else [])]


def _outputs(output: inference_pb2.OutputOptions, spec: oip.ModelMetadataResponse) -> list[str]:
    if output.kind not in inference_pb2.OutputKind.values():
        raise errors.FieldInvalid("output.kind", f"is no OutputKind: {output.kind}")
    if output.kind == inference_pb2.OUTPUT_KIND_CLASSIFICATION:
        raise errors.FieldInvalid("output.kind", "this driver gives the model's own tensors, or JSON")
    if not 0 <= output.top_k <= 1000:
        raise errors.FieldInvalid("output.top_k", "must be 1 to 1000")
    there = [one.name for one in spec.outputs]
    for number, name in enumerate(output.names):
        if there and name not in there:
            raise errors.FieldInvalid(
                f"output.names[{number}]", f"the model has no output {name[:64]!r}; it has {', '.join(there)}"
            )
    return list(output.names)


def _parameters(parameters: struct_pb2.Struct) -> dict[str, oip.InferParameter]:
    made = {}
    for name, value in parameters.fields.items():
        match value.WhichOneof("kind"):
            case "bool_value":
                made[name] = oip.InferParameter(bool_param=value.bool_value)
            case "string_value":
                made[name] = oip.InferParameter(string_param=value.string_value)
            case "number_value":
                number = value.number_value
                whole = number.is_integer() and abs(number) < 2**53
                made[name] = (
                    oip.InferParameter(int64_param=int(number)) if whole else oip.InferParameter(double_param=number)
                )
            case _:
                raise errors.FieldInvalid(f"parameters.{name[:64]}", "must be a number, text, true or false")
    return made
