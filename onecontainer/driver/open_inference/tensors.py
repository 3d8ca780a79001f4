"""Tensors of the Open Inference Protocol and ours. Raw contents are the same bytes in both: little-endian, BYTES behind lengths."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence

from onecontainer import errors
from onecontainer.api.ai.v1 import tensor_pb2
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip

DATATYPES: Mapping[str, tensor_pb2.DataType.ValueType] = {
    "BOOL": tensor_pb2.DATA_TYPE_BOOL,
    "UINT8": tensor_pb2.DATA_TYPE_UINT8,
    "UINT16": tensor_pb2.DATA_TYPE_UINT16,
    "UINT32": tensor_pb2.DATA_TYPE_UINT32,
    "UINT64": tensor_pb2.DATA_TYPE_UINT64,
    "INT8": tensor_pb2.DATA_TYPE_INT8,
    "INT16": tensor_pb2.DATA_TYPE_INT16,
    "INT32": tensor_pb2.DATA_TYPE_INT32,
    "INT64": tensor_pb2.DATA_TYPE_INT64,
    "FP16": tensor_pb2.DATA_TYPE_FLOAT16,
    "BF16": tensor_pb2.DATA_TYPE_BFLOAT16,
    "FP32": tensor_pb2.DATA_TYPE_FLOAT32,
    "FP64": tensor_pb2.DATA_TYPE_FLOAT64,
    "BYTES": tensor_pb2.DATA_TYPE_BYTES,
}
"""Name in the protocol → ours."""
NAMES: Mapping[int, str] = {ours: name for name, ours in DATATYPES.items()}
CONFIG_TYPES: Mapping[int, oip.DataType.ValueType] = {
    ours: oip.DataType.Value(f"TYPE_{'STRING' if name == 'BYTES' else name}") for name, ours in DATATYPES.items()
}
"""Ours → the enum of a ModelConfig."""
_CONTENTS: Mapping[str, tuple[str, str]] = {
    "BOOL": ("bool_contents", "?"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
    "BYTES": ("bytes_contents", ""),
}
"""Datatype → the field of its typed contents, and the code of `struct` for an element. The 16-bit floats have raw contents only."""
MAX_DIMENSIONS = 32


def datatype_of(name: str, path: str) -> tensor_pb2.DataType.ValueType:
    """Raises FieldRequired or FieldInvalid at the path."""
    if not name:
        raise errors.FieldRequired(path)
    if name not in DATATYPES:
        raise errors.FieldInvalid(path, f"is {name[:32]!r}; the datatypes are {', '.join(DATATYPES)}")
    return DATATYPES[name]


def element_count(shape: Sequence[int], path: str) -> int:
    """Elements of a shape. Raises FieldInvalid for one that is none."""
    if len(shape) > MAX_DIMENSIONS or any(length < 0 for length in shape):
        raise errors.FieldInvalid(path, f"must have at most {MAX_DIMENSIONS} dimensions, none of them negative")
    return math.prod(shape)


def data_of(datatype: str, contents: oip.InferTensorContents, count: int, path: str) -> bytes:
    """The bytes of typed contents with so many elements. Raises FieldInvalid or DataInvalid at the path of the tensor."""
    if datatype not in _CONTENTS:
        raise errors.FieldInvalid(f"{path}.contents", f"{datatype} has no typed contents: use raw_input_contents")
    name, code = _CONTENTS[datatype]
    for field, _value in contents.ListFields():
        if field.name != name:
            raise errors.FieldInvalid(f"{path}.contents.{field.name}", f"{datatype} is in {name}")
    values = getattr(contents, name)
    if len(values) != count:
        raise errors.DataInvalid(f"{path}.contents.{name}", f"has {len(values)} elements; the shape has {count}")
    if datatype == "BYTES":
        return packed(values)
    try:
        return struct.pack(f"<{count}{code}", *values)
    except struct.error as error:
        raise errors.DataInvalid(f"{path}.contents.{name}", f"has a value that is no {datatype}: {error}") from error


def contents_of(datatype: str, data: bytes, path: str) -> oip.InferTensorContents | None:
    """Typed contents of a tensor's bytes; None for a datatype that has raw contents only. Raises DataInvalid if they are cut off."""
    if datatype not in _CONTENTS:
        return None
    name, code = _CONTENTS[datatype]
    contents = oip.InferTensorContents()
    if datatype == "BYTES":
        contents.bytes_contents.extend(unpacked(data, path))
        return contents
    size = struct.calcsize(f"<{code}")
    if len(data) % size:
        raise errors.DataInvalid(path, f"has {len(data)} bytes, which are no whole elements of {datatype}")
    getattr(contents, name).extend(struct.unpack(f"<{len(data) // size}{code}", data))
    return contents


def packed(values: Sequence[bytes]) -> bytes:
    """Elements of BYTES, each behind its length."""
    return b"".join(itertools.chain.from_iterable((len(value).to_bytes(4, "little"), value) for value in values))


def unpacked(data: bytes, path: str) -> Iterator[bytes]:
    """The elements of BYTES. Raises DataInvalid at the path if the last one is cut off."""
    at = 0
    while at < len(data):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise errors.DataInvalid(path, "is cut off: each element is its length in 4 bytes, and so many bytes")
        yield data[start:at]
