"""Tensors for people: short ones whole, of long ones the ends."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from onecontainer.api.ai.v1 import tensor_pb2
from onecontainer.cli.render import enum_name

WHOLE = 100
"""Up to so many elements are all shown."""
ENDS = 4
"""Of more, so many from each end."""

_CODES: Mapping[int, str] = {
    tensor_pb2.DATA_TYPE_BOOL: "?",
    tensor_pb2.DATA_TYPE_UINT8: "B",
    tensor_pb2.DATA_TYPE_UINT16: "H",
    tensor_pb2.DATA_TYPE_UINT32: "I",
    tensor_pb2.DATA_TYPE_UINT64: "Q",
    tensor_pb2.DATA_TYPE_INT8: "b",
    tensor_pb2.DATA_TYPE_INT16: "h",
    tensor_pb2.DATA_TYPE_INT32: "i",
    tensor_pb2.DATA_TYPE_INT64: "q",
    tensor_pb2.DATA_TYPE_FLOAT16: "e",
    tensor_pb2.DATA_TYPE_FLOAT32: "f",
    tensor_pb2.DATA_TYPE_FLOAT64: "d",
}


def shown(tensor: tensor_pb2.Tensor) -> str:
    """`FLOAT32 [3]  [2, 4, 6]`; numbers with up to 7 digits."""
    head = f"{enum_name(tensor_pb2.DataType, tensor.dtype)} {list(tensor.shape)}"
    if tensor.WhichOneof("content") == "artifact":
        return f"{head}  {tensor.artifact}"
    count = math.prod(tensor.shape)
    elements = _elements(tensor)
    if elements is None or len(elements) != count:
        return f"{head}  {len(tensor.data)} bytes"
    if count > WHOLE:
        return f"{head}  [{', '.join(map(_word, elements[:ENDS]))}, …, {', '.join(map(_word, elements[-ENDS:]))}]"
    return f"{head}  {_nested(elements, list(tensor.shape))}"


def _elements(tensor: tensor_pb2.Tensor) -> Sequence[Any] | None:
    """None: they cannot be told apart."""
    data = tensor.data
    if tensor.dtype == tensor_pb2.DATA_TYPE_BYTES:
        found, at = [], 0
        while at + 4 <= len(data):
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            found.append(data[at + 4 : end].decode(errors="replace"))
            at = end
        return found if at == len(data) else None
    if tensor.dtype == tensor_pb2.DATA_TYPE_BFLOAT16:
        # The upper half of a float32.
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
        code = "f"
    elif tensor.dtype in _CODES:
        code = _CODES[tensor.dtype]
    else:
        return None
    size = struct.calcsize(f"<{code}")
    return None if len(data) % size else struct.unpack(f"<{len(data) // size}{code}", data)


def _nested(elements: Sequence[Any], shape: list[int]) -> str:
    if not shape:
        return _word(elements[0])
    inner = math.prod(shape[1:])
    parts = (_nested(elements[n * inner : (n + 1) * inner], shape[1:]) for n in range(shape[0]))
    return f"[{', '.join(parts)}]"


def _word(value: Any) -> str:
    match value:
        case str():
            return repr(value)
        case float():
            return f"{value:.7g}"
    return str(value)
