"""Tensors on the wire: what is sent is what arrives, whatever it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onecontainer.api.ai.v1 import tensor_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.tensors import array_from_tensor, tensor_from_array

NUMBERS = st.sampled_from(["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", ">f4", ">i8"])


@given(hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)))
def test_numbers(array: np.ndarray) -> None:
    tensor = tensor_from_array(array)
    assert list(tensor.shape) == list(array.shape)
    assert len(tensor.data) == array.nbytes
    again = array_from_tensor(tensor_pb2.Tensor.FromString(tensor.SerializeToString()), tensor.data, "t")
    np.testing.assert_array_equal(again, array)
    assert again.dtype == array.dtype.newbyteorder("<")


@given(hnp.arrays(object, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=st.text(max_size=9)))
def test_text(array: np.ndarray) -> None:
    tensor = tensor_from_array(array)
    np.testing.assert_array_equal(array_from_tensor(tensor, tensor.data, "t"), array)


@given(st.integers(0, 14), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), st.binary(max_size=64))
def test_nonsense_is_refused(dtype: int, shape: list[int], data: bytes) -> None:
    """Nothing but a typed error, and no memory beyond what was sent."""
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DataType.ValueType(dtype), shape=shape, data=data)
    try:
        array = array_from_tensor(tensor, data, "inputs[0].tensor")
    except errors.OneContainerError as error:
        found = error
    else:
        assert array.size <= 64
        return
    assert found.violations[0].field.startswith("inputs[0].tensor.")


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0, 8], [2**62], [1] * 33, [-1]])
def test_wrong_shapes(shape: list[int]) -> None:
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape)
    with pytest.raises(errors.FieldInvalid, match="shape"):
        array_from_tensor(tensor, b"", "t")


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"\1\0\0\0", 1),
        (b"\0\0\0\0\0", 1),
        (b"\0\0\0", 1),
        (b"\xff\xff\xff\xff", 1),
        (b"\1\0\0\0\xff", 1),
        (b"", 2**30),
    ],
)
def test_wrong_byte_strings(data: bytes, count: int) -> None:
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_BYTES, shape=[count], data=data)
    with pytest.raises(errors.DataInvalid):
        array_from_tensor(tensor, data, "t")
