"""Requests to the models of the fixture, and what is in their answers."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from google.protobuf import json_format, struct_pb2
from onecontainer_driver_oip import OipDriver

from onecontainer.api.ai.v1 import inference_pb2, tensor_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import Context
from onecontainer.driver.context import CallFacts

SERVICE = "services/models"
PATIENCE = 180.0
"""Seconds that a busy machine may need."""
Attached = Callable[..., AbstractAsyncContextManager[OipDriver]]
JSON = inference_pb2.OutputOptions(kind=inference_pb2.OUTPUT_KIND_JSON)


def tensor(*rows: tuple[float, float, float], name: str = "x") -> inference_pb2.Input:
    data = struct.pack(f"<{3 * len(rows)}f", *(value for row in rows for value in row))
    shape = [len(rows), 3]
    return inference_pb2.Input(
        name=name, tensor=tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape, data=data)
    )


def json(value: Any, name: str = "") -> inference_pb2.Input:
    return inference_pb2.Input(name=name, json=json_format.ParseDict(value, struct_pb2.Value()))


def question(model: str, *inputs: inference_pb2.Input, **fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(service=SERVICE, model=model, inputs=inputs, **fields)


def floats(response: pb.PredictResponse) -> list[float]:
    (prediction,) = response.predictions
    (one,) = prediction.tensors.tensors
    assert one.tensor.dtype == tensor_pb2.DATA_TYPE_FLOAT32
    return list(struct.unpack(f"<{len(one.tensor.data) // 4}f", one.tensor.data))


def innermost(value: struct_pb2.Value) -> struct_pb2.Value:
    """The one element of a nested array."""
    while value.HasField("list_value"):
        (value,) = value.list_value.values
    return value


def call(seconds: float = PATIENCE) -> Context:
    """The context of a call that has so long."""
    loop = asyncio.get_running_loop()
    return Context(CallFacts(SERVICE, deadline=loop.time() + seconds), loop)


async def until(condition: Callable[[], bool]) -> None:
    """Returns when it is true. Raises TimeoutError if it never is."""
    async with asyncio.timeout(PATIENCE):
        # What is waited for is a file of another process.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
