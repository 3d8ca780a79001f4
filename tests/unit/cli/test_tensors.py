"""Tensors as a person sees them."""

from __future__ import annotations

import struct

import pytest

from onecontainer.api.ai.v1 import tensor_pb2
from onecontainer.cli.tensors import shown

FLOAT32, INT64, BYTES = tensor_pb2.DATA_TYPE_FLOAT32, tensor_pb2.DATA_TYPE_INT64, tensor_pb2.DATA_TYPE_BYTES


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "text"),
    [
        (FLOAT32, [3], struct.pack("<3f", 2, 4.5, 0.1), "FLOAT32 [3]  [2, 4.5, 0.1]"),
        (FLOAT32, [], struct.pack("<f", float("nan")), "FLOAT32 []  nan"),
        (FLOAT32, [0, 4], b"", "FLOAT32 [0, 4]  []"),
        (INT64, [2, 2], struct.pack("<4q", 1, -2, 3, 2**62), "INT64 [2, 2]  [[1, -2], [3, 4611686018427387904]]"),
        (INT64, [1, 500], struct.pack("<500q", *range(500)), "INT64 [1, 500]  [0, 1, 2, 3, …, 496, 497, 498, 499]"),
        (tensor_pb2.DATA_TYPE_BOOL, [2], b"\0\1", "BOOL [2]  [False, True]"),
        (tensor_pb2.DATA_TYPE_BFLOAT16, [1], b"\x80\x3f", "BFLOAT16 [1]  [1]"),
        (BYTES, [2], b"\1\0\0\0a\2\0\0\0\x1bx", "BYTES [2]  ['a', '\\x1bx']"),
        # What does not fit its shape is no reason to fail.
        (FLOAT32, [3], b"12345", "FLOAT32 [3]  5 bytes"),
        (BYTES, [1], b"\xff\0\0\0a", "BYTES [1]  5 bytes"),
    ],
)
def test_tensors(dtype: tensor_pb2.DataType.ValueType, shape: list[int], data: bytes, text: str) -> None:
    assert shown(tensor_pb2.Tensor(dtype=dtype, shape=shape, data=data)) == text


def test_one_that_is_an_artifact_is_named() -> None:
    assert shown(tensor_pb2.Tensor(dtype=FLOAT32, shape=[9], artifact="artifacts/1")) == "FLOAT32 [9]  artifacts/1"
