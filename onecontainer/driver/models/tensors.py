"""Tensors between the wire and numpy. Wire: dtype, shape, and little-endian row-major bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onecontainer.api.ai.v1 import tensor_pb2
from onecontainer.driver import errors

Array = npt.NDArray[Any]

# bfloat16 is not here: numpy does not have it.
_DTYPES: dict[tensor_pb2.DataType.ValueType, np.dtype[Any]] = {
    tensor_pb2.DATA_TYPE_BOOL: np.dtype("?"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("<u1"),
    tensor_pb2.DATA_TYPE_UINT16: np.dtype("<u2"),
    tensor_pb2.DATA_TYPE_UINT32: np.dtype("<u4"),
    tensor_pb2.DATA_TYPE_UINT64: np.dtype("<u8"),
    tensor_pb2.DATA_TYPE_INT8: np.dtype("<i1"),
    tensor_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    tensor_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    tensor_pb2.DATA_TYPE_BYTES: np.dtype(object),
}
_FROM_NUMPY = {dtype: number for number, dtype in _DTYPES.items()}
MAX_RANK = 32
MAX_ELEMENTS = 2**40


def numpy_dtype(dtype: tensor_pb2.DataType.ValueType) -> np.dtype[Any] | None:
    """None: the type has no numpy counterpart here."""
    return _DTYPES.get(dtype)


def dtype_name(dtype: int) -> str:
    """``FLOAT32`` for a person."""
    names = tensor_pb2.DataType
    return (
        names.Name(tensor_pb2.DataType.ValueType(dtype)).removeprefix("DATA_TYPE_")
        if dtype in names.values()
        else str(dtype)
    )


def array_from_tensor(tensor: tensor_pb2.Tensor, data: bytes, path: str) -> Array:
    """The tensor as an array that shares ``data`` (the tensor's own bytes, or those of its artifact) where it can.

    Raises:
        FieldRequired, FieldInvalid, DataInvalid: with the path of the field.
    """
    if tensor.dtype == tensor_pb2.DATA_TYPE_UNSPECIFIED:
        raise errors.FieldRequired(f"{path}.dtype")
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise errors.FieldInvalid(f"{path}.dtype", f"{dtype_name(tensor.dtype)} is not supported here")
    shape = tuple(tensor.shape)
    if len(shape) > MAX_RANK or any(n < 0 for n in shape):
        raise errors.FieldInvalid(f"{path}.shape", f"must have at most {MAX_RANK} dimensions, none negative")
    # Beside a 0 the others are free, as far as the data goes; numpy multiplies them all the same.
    if math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise errors.FieldInvalid(f"{path}.shape", f"{list(shape)} is too large")
    count = math.prod(shape)
    if dtype.kind == "O":
        return _split_bytes(data, count, path).reshape(shape)
    if count * dtype.itemsize != len(data):
        raise errors.DataInvalid(
            f"{path}.{tensor.WhichOneof('content') or 'data'}",
            f"has {len(data)} bytes; shape {list(shape)} of {dtype_name(tensor.dtype)} needs {count * dtype.itemsize}",
        )
    if tensor.dtype == tensor_pb2.DATA_TYPE_BOOL and data.translate(None, b"\x00\x01"):
        raise errors.DataInvalid(f"{path}.data", "booleans must be 0 or 1")
    return np.frombuffer(data, dtype).reshape(shape)


def _split_bytes(data: bytes, count: int, path: str) -> Array:
    # Each element has a length of four bytes at least, so a shape cannot ask for more memory than was sent.
    if count * 4 > len(data):
        raise errors.DataInvalid(f"{path}.data", f"is too short for {count} elements")
    values = np.empty(count, object)
    at = 0
    for index in range(count):
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            raise errors.DataInvalid(f"{path}.data", f"ends inside element {index}")
        try:
            # Runtimes of models take str only.
            values[index] = data[at + 4 : end].decode()
        except UnicodeDecodeError as error:
            raise errors.DataInvalid(f"{path}.data", f"element {index} is not UTF-8") from error
        at = end
    if at != len(data):
        raise errors.DataInvalid(f"{path}.data", f"has {len(data) - at} bytes after the last element")
    return values


def tensor_from_array(array: Array) -> tensor_pb2.Tensor:
    """Raises ValueError for a type that the wire does not have."""
    if array.dtype.kind in {"O", "U", "S"}:
        parts: list[bytes] = []
        for value in array.ravel():
            raw = value.encode() if isinstance(value, str) else bytes(value)
            parts += (len(raw).to_bytes(4, "little"), raw)
        return tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_BYTES, shape=array.shape, data=b"".join(parts))
    little = array.dtype.newbyteorder("<")
    if little not in _FROM_NUMPY:
        raise ValueError(f"{array.dtype} has no type on the wire")
    data = np.ascontiguousarray(array, little).tobytes()
    return tensor_pb2.Tensor(dtype=_FROM_NUMPY[little], shape=array.shape, data=data)
