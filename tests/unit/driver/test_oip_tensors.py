"""Typed contents of the Open Inference Protocol: the same bytes come back, and nonsense is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecontainer import errors
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver.open_inference.tensors import (
    CONFIG_TYPES,
    DATATYPES,
    contents_of,
    data_of,
    datatype_of,
    element_count,
    packed,
    unpacked,
)

CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}


@given(st.sampled_from(sorted(CODES)), st.binary(max_size=64))
def test_numbers_come_back(datatype: str, data: bytes) -> None:
    size = struct.calcsize(f"<{CODES[datatype]}")
    data = data[: len(data) // size * size]
    values = struct.unpack(f"<{len(data) // size}{CODES[datatype]}", data)
    if any(value != value for value in values):
        return  # what kind of NaN it is gets lost
    contents = contents_of(datatype, data, "t")
    assert contents is not None
    sent = oip.InferTensorContents.FromString(contents.SerializeToString())
    assert data_of(datatype, sent, len(values), "t") == data


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_bytes_come_back(values: list[bytes]) -> None:
    assert list(unpacked(packed(values), "t")) == values
    contents = contents_of("BYTES", packed(values), "t")
    assert contents is not None
    assert data_of("BYTES", contents, len(values), "t") == packed(values)


@given(st.binary(max_size=40))
def test_bytes_that_are_cut_off_are_refused_or_whole(data: bytes) -> None:
    try:
        found = list(unpacked(data, "t"))
    except errors.DataInvalid:
        return
    assert packed(found) == data


def test_booleans() -> None:
    assert data_of("BOOL", oip.InferTensorContents(bool_contents=[True, False]), 2, "t") == b"\1\0"


@pytest.mark.parametrize(
    ("datatype", "contents", "count", "field"),
    [
        ("INT8", oip.InferTensorContents(int_contents=[128]), 1, "t.contents.int_contents"),
        ("UINT16", oip.InferTensorContents(uint_contents=[65536]), 1, "t.contents.uint_contents"),
        ("FP32", oip.InferTensorContents(fp32_contents=[1, 2]), 3, "t.contents.fp32_contents"),
        ("FP32", oip.InferTensorContents(fp64_contents=[1]), 1, "t.contents.fp64_contents"),
        ("FP16", oip.InferTensorContents(), 0, "t.contents"),
    ],
)
def test_contents_that_do_not_fit(datatype: str, contents: oip.InferTensorContents, count: int, field: str) -> None:
    with pytest.raises((errors.DataInvalid, errors.FieldInvalid)) as caught:
        data_of(datatype, contents, count, "t")
    assert caught.value.violations[0].field == field


def test_datatypes_and_shapes() -> None:
    assert {CONFIG_TYPES[one] for one in DATATYPES.values()} == set(oip.DataType.values()) - {oip.TYPE_INVALID}
    with pytest.raises(errors.FieldRequired):
        datatype_of("", "t")
    with pytest.raises(errors.FieldInvalid, match="FP8"):
        datatype_of("FP8", "t")
    assert element_count([], "t") == 1
    assert element_count([2, 0, 3], "t") == 0
    for shape in ([-1], [1] * 33):
        with pytest.raises(errors.FieldInvalid):
            element_count(shape, "t")
