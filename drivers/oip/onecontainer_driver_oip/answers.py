"""Answers of the server as predictions."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from google.protobuf import struct_pb2

from onecontainer.api.ai.v1 import inference_pb2, tensor_pb2
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver import errors
from onecontainer.driver.open_inference.tensors import DATATYPES, data_of, unpacked
from onecontainer_driver_oip.inputs import CODES


def prediction_of(answer: oip.ModelInferResponse, kind: inference_pb2.OutputKind.ValueType) -> inference_pb2.Prediction:
    """Tensors, or JSON if that is asked for. Raises BackendExecutionFailed if the server's answer is none."""
    try:
        tensors = _tensors(answer)
        if kind != inference_pb2.OUTPUT_KIND_JSON:
            return inference_pb2.Prediction(tensors=inference_pb2.TensorResult(tensors=tensors))
        fields = {one.name: _json(one.tensor, answer.outputs[at].datatype) for at, one in enumerate(tensors)}
    except (errors.DataInvalid, errors.FieldInvalid, errors.FieldRequired) as error:
        # Not the caller's data is wrong, but the server's.
        raise broken(str(error)) from error
    return inference_pb2.Prediction(json=struct_pb2.Value(struct_value=struct_pb2.Struct(fields=fields)))


def broken(what: str) -> errors.BackendExecutionFailed:
    return errors.BackendExecutionFailed(
        f"the inference server's answer is broken: {what}", code=errors.Code.INTERNAL, hop="backend"
    )


def _tensors(answer: oip.ModelInferResponse) -> list[tensor_pb2.NamedTensor]:
    raw = answer.raw_output_contents
    if raw and len(raw) != len(answer.outputs):
        raise broken(f"{len(raw)} raw contents for {len(answer.outputs)} outputs")
    made = []
    for number, one in enumerate(answer.outputs):
        if one.datatype not in DATATYPES:
            raise broken(f"the output {one.name!r} is of the datatype {one.datatype!r}")
        count = math.prod(one.shape)
        data = raw[number] if raw else data_of(one.datatype, one.contents, count, one.name)
        if one.datatype in CODES and len(data) != count * struct.calcsize(f"<{CODES[one.datatype]}"):
            raise broken(f"the output {one.name!r} has {len(data)} bytes for the shape {list(one.shape)}")
        tensor = tensor_pb2.Tensor(dtype=DATATYPES[one.datatype], shape=one.shape, data=data)
        made.append(tensor_pb2.NamedTensor(name=one.name, tensor=tensor))
    return made


def _json(tensor: tensor_pb2.Tensor, datatype: str) -> struct_pb2.Value:
    elements: Sequence[Any]
    if datatype == "BYTES":
        elements = [one.decode(errors="replace") for one in unpacked(tensor.data, "data")]
    elif datatype in CODES:
        elements = struct.unpack(f"<{math.prod(tensor.shape)}{CODES[datatype]}", tensor.data)
    else:
        raise errors.FieldInvalid("output.kind", f"{datatype} has no form in JSON; ask for tensors")
    return _nested([_value(one) for one in elements], list(tensor.shape))


def _nested(values: list[struct_pb2.Value], shape: list[int]) -> struct_pb2.Value:
    if not shape:
        return values[0]
    size = math.prod(shape[1:])
    rows = [_nested(values[at * size : (at + 1) * size], shape[1:]) for at in range(shape[0])]
    return struct_pb2.Value(list_value=struct_pb2.ListValue(values=rows))


def _value(value: Any) -> struct_pb2.Value:
    """Numbers that JSON does not have become their names, as proto3 JSON writes them."""
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if math.isfinite(value):
        return struct_pb2.Value(number_value=value)
    return struct_pb2.Value(string_value="NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")
