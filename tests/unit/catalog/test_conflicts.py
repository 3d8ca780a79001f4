"""Contracts of two drivers beside each other."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from onecontainer.catalog.conflicts import conflict
from onecontainer.catalog.contracts import own_descriptor_set
from onecontainer.catalog.drivers import bundled_folder, read_driver
from onecontainer.catalog.methods import MethodTable
from onecontainer.catalog.model import DriverRecord, DriverSource

INFERENCE = "inference.GRPCInferenceService"


def oip() -> DriverRecord:
    bundled = bundled_folder()
    assert bundled is not None
    return read_driver(Path(bundled) / "oip", DriverSource.BUNDLED, 1)[0]


def test_the_same_contract_from_another_compiler_is_the_same() -> None:
    data = own_descriptor_set([INFERENCE])  # as Python has it: without the JSON names that protoc spells out
    assert data is not None
    there = oip()
    assert there.methods is not None
    plain = MethodTable(data, [INFERENCE])
    spelt = {file.name: file for file in there.methods.file_descriptor_protos}
    assert all(
        field.json_name
        for field in spelt["onecontainer/api/third_party/inference/grpc_service.proto"].message_type[1].field
    )
    assert conflict("mine", plain, [there]) == ""


def test_another_meaning_of_a_name_is_a_conflict() -> None:
    data = own_descriptor_set([INFERENCE])
    assert data is not None
    files = FileDescriptorSet.FromString(data)
    (service,) = [file for file in files.file if file.package == "inference"]
    service.message_type[1].field[0].json_name = "alive"
    told = conflict("mine", MethodTable(files.SerializeToString(), [INFERENCE]), [oip()])
    assert told == (
        "inference.ServerLiveResponse is defined differently by drivers/oip-0.1.0: give the proto package another name"
    )
