"""Driver folders: the bundled ones, broken ones beside good ones, and descriptor sets that break the rules."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.media.v1 import media_pb2
from onecontainer.api.options.v1 import options_pb2
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.catalog.drivers import bundled_folder, read_driver, scan
from onecontainer.catalog.methods import MethodTable
from onecontainer.catalog.model import DriverSource, DriverState
from onecontainer.catalog.packing import digest_of
from onecontainer.errors import DataInvalid

BUNDLED = bundled_folder()


def descriptor_set(*files: object) -> descriptor_pb2.FileDescriptorSet:
    """The files with all they import."""
    found: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(file: object) -> None:
        for dependency in file.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        found[file.name] = proto

    for file in files:
        add(file)
    return descriptor_pb2.FileDescriptorSet(file=found.values())


def plugin(**method: object) -> descriptor_pb2.FileDescriptorSet:
    """A service of its own, `hpc.v1.Solver/Solve`, as a plug-in brings it."""
    files = descriptor_set(job_pb2.DESCRIPTOR, job_options_pb2.DESCRIPTOR, options_pb2.DESCRIPTOR)
    file = files.file.add(name="hpc/v1/solver.proto", package="hpc.v1", syntax="proto3")
    file.dependency.extend([job_pb2.DESCRIPTOR.name, job_options_pb2.DESCRIPTOR.name, options_pb2.DESCRIPTOR.name])
    request = file.message_type.add(name="SolveRequest")
    request.field.add(name=method.get("route", "service"), number=1, type=9, label=1)
    if method.get("job_options", True):
        request.field.add(
            name="job_options", number=2, type=11, label=1, type_name=".onecontainer.api.type.v1.JobOptions"
        )
    file.message_type.add(name="SolveResult")
    proto = file.service.add(name=method.get("service", "Solver")).method.add(
        name="Solve", input_type=".hpc.v1.SolveRequest", output_type=method.get("output", f".{JOB}")
    )
    if method.get("long", True):
        long_running = proto.options.Extensions[options_pb2.long_running]
        long_running.result_type = method.get("result", "hpc.v1.SolveResult")
        long_running.finishable = True
    return files


JOB = "onecontainer.api.job.v1.Job"


def test_a_plug_in_brings_its_own_service() -> None:
    table = MethodTable(plugin().SerializeToString(), ["hpc.v1.Solver"])
    method = table.methods["hpc.v1.Solver/Solve"]
    assert method.long_running is not None
    assert (method.result_type, method.long_running.finishable, method.idempotent) == (
        "hpc.v1.SolveResult",
        True,
        False,
    )
    message = table.message_class("hpc.v1.SolveRequest")(service="services/a")
    assert message.SerializeToString() == b"\n\nservices/a"
    # A pool of its own: another driver may have another hpc.v1.Solver.
    MethodTable(plugin(long=False, output=".hpc.v1.SolveResult").SerializeToString())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"route": "target"}, "needs `string service = 1`"),
        ({"job_options": False}, "job_options = 2"),
        ({"output": ".hpc.v1.SolveResult"}, f"needs to return {JOB}"),
        ({"result": "hpc.v1.Nothing"}, "has no message hpc.v1.Nothing"),
        ({"result": ""}, "needs a result_type"),
    ],
)
def test_methods_that_break_the_rules_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        MethodTable(plugin(**changes).SerializeToString(), ["hpc.v1.Solver"])
    assert said in caught.value.message
    assert {violation.field for violation in caught.value.violations} == {"descriptor_set"}


def test_services_of_the_gateway_cannot_be_taken_over() -> None:
    files = descriptor_set(job_pb2.DESCRIPTOR)
    file = files.file.add(name="evil.proto", package="onecontainer.api.job.v1", syntax="proto3")
    file.service.add(name="JobService")
    with pytest.raises(DataInvalid, match="one of the gateway's own"):
        MethodTable(files.SerializeToString(), ["onecontainer.api.job.v1.JobService"])


def test_sets_that_cannot_be_used_are_refused() -> None:
    whole = descriptor_set(media_pb2.DESCRIPTOR)
    without_imports = descriptor_pb2.FileDescriptorSet(file=[whole.file[-1]])
    for data, said in (
        (b"", "is empty"),
        (b"\xff\xff", "not a serialised"),
        (without_imports.SerializeToString(), "which the set does not have"),
    ):
        with pytest.raises(DataInvalid, match=said):
            MethodTable(data)
    with pytest.raises(DataInvalid, match="has no service a.B"):
        MethodTable(whole.SerializeToString(), ["a.B"])


def test_the_order_of_files_does_not_matter() -> None:
    whole = descriptor_set(media_pb2.DESCRIPTOR)
    turned = descriptor_pb2.FileDescriptorSet(file=reversed(whole.file))
    assert (
        MethodTable(turned.SerializeToString()).methods.keys() == MethodTable(whole.SerializeToString()).methods.keys()
    )


def test_the_bundled_drivers_are_found_and_ready() -> None:
    assert BUNDLED is not None
    records, descriptors = scan([(BUNDLED, DriverSource.BUNDLED)], now=7)
    found = {record.manifest.name: record for record in records if record.manifest is not None}
    assert {"sql", "cassandra", "onnx", "torchhub", "oip", "ffmpeg"} <= set(found)
    for record in found.values():
        assert record.state is DriverState.READY, record.error
        assert record.descriptor_digest in descriptors
        assert record.digest.startswith("sha256:")
        assert record.create_time == 7
        assert record.origin == ""
    pipeline = found["ffmpeg"].methods.methods["onecontainer.api.media.v1.MediaService/RunPipeline"]
    assert pipeline.long_running is not None
    assert pipeline.long_running.finishable


def test_a_broken_driver_harms_no_other(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "sql", tmp_path / "sql")
    metadata = json.loads((tmp_path / "sql" / "metadata.json").read_text())

    def folder(name: str, text: str, descriptors: bytes | None = b"") -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.json").write_text(text)
        if descriptors is not None:
            (tmp_path / name / "descriptors.binpb").write_bytes(descriptors)

    folder("no-json", "{,")
    folder("no-app", json.dumps({key: value for key, value in metadata.items() if key != "app"}))
    folder("no-descriptors", json.dumps(metadata_of("sql") | {"name": "nodesc", "services": ["x.v1.Y"]}), None)
    folder("named", json.dumps(metadata | {"name": "named", "descriptor_set": "mine.binpb"}), None)
    folder(
        "misspelt",
        json.dumps(metadata_of("sql") | {"name": "misspelt", "services": ["onecontainer.api.db.v1.None"]}),
        None,
    )
    folder("garbage", json.dumps(metadata | {"name": "garbage"}), b"\xff\x00")
    folder("twin", json.dumps(metadata), (tmp_path / "sql" / "descriptors.binpb").read_bytes())
    (tmp_path / "a-file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    records, _ = scan([(tmp_path, DriverSource.PLUGIN), (tmp_path / "none", DriverSource.PLUGIN)], now=1)
    by_folder = {record.folder.name: record for record in records if record.folder is not None}
    assert set(by_folder) == {"sql", "no-json", "no-app", "no-descriptors", "named", "misspelt", "garbage", "twin"}
    assert len({record.name for record in records}) == len(records)
    assert by_folder["sql"].state is DriverState.READY
    said = {name: str(record.error) for name, record in by_folder.items() if record.state is DriverState.BROKEN}
    assert "metadata: Invalid JSON" in said["no-json"]
    assert "metadata.app: Field required" in said["no-app"]
    assert "descriptors.binpb is not there" in said["no-descriptors"]
    assert "mine.binpb is not there" in said["named"]
    assert "descriptors.binpb is not there" in said["misspelt"]
    assert "not a serialised FileDescriptorSet" in said["garbage"]
    assert "already there" in said["twin"]


def metadata_of(name: str) -> dict[str, object]:
    """A bundled driver's, without the name of a descriptor set."""
    assert BUNDLED is not None
    content = json.loads((BUNDLED / name / "metadata.json").read_text())
    return {key: value for key, value in content.items() if key != "descriptor_set"}


@pytest.mark.parametrize("name", ["sql", "cassandra", "onnx", "torchhub", "oip", "ffmpeg"])
def test_without_a_descriptor_set_our_own_contracts_are_those_of_the_package(name: str, tmp_path: Path) -> None:
    assert BUNDLED is not None
    shipped, _data = read_driver(BUNDLED / name, DriverSource.BUNDLED, 1)
    folder = tmp_path / name
    shutil.copytree(BUNDLED / name, folder)
    (folder / "descriptors.binpb").unlink()
    (folder / "metadata.json").write_text(json.dumps(metadata_of(name)))
    record, data = read_driver(folder, DriverSource.PLUGIN, 1)
    assert (record.state, record.error) == (DriverState.READY, None)
    assert shipped.methods is not None
    assert record.methods is not None
    assert record.methods.methods == shipped.methods.methods
    assert MethodTable(data, record.manifest.services).methods == shipped.methods.methods


def test_the_gateways_own_services_cannot_be_taken_over_without_a_descriptor_set_either(tmp_path: Path) -> None:
    metadata = metadata_of("sql") | {"services": ["onecontainer.api.job.v1.JobService"]}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    record, _data = read_driver(tmp_path, DriverSource.PLUGIN, 1)
    assert "one of the gateway's own" in str(record.error)


def test_the_digest_is_of_names_and_bytes_and_not_of_caches(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    first = digest_of(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert digest_of(tmp_path) == first
    (tmp_path / "a.py").write_text("2")
    second = digest_of(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, digest_of(tmp_path)}) == 3


def test_a_folder_that_is_no_driver_is_broken_and_says_so(tmp_path: Path) -> None:
    record, data = read_driver(tmp_path, DriverSource.PLUGIN, 1)
    assert (record.state, data) == (DriverState.BROKEN, b"")
    assert "metadata.json cannot be read" in str(record.error)
