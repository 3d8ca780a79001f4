"""A database driver that does not do what it says fails the method that lies; so does one with a contract of its own making."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from google.protobuf import empty_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2
from onecontainer_driver_sql import SqlDriver

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.driver.conformance import Examples, Kit, Report, Selection, ServiceSpec, render
from onecontainer.rpc.manifest import Manifest, load_manifest
from tests.contract.conformance.examine import PATIENCE
from tests.contract.conformance.fault import Answer, edited
from tests.contract.conformance.proxy import Faults, Told
from tests.contract.conformance.reference import InProcess, examined

NAME = "onecontainer.api.db.v1.DatabaseService"
TABLE = b"conformance_"
"""In requests that mean the kit's own table, and so something real."""
FOLDER = Path(__file__).parents[3] / "drivers" / "sql"


class Unfiltered(Faults):
    """SelectRecords gives everything, whatever is asked for."""

    def request(self, told: Told, data: bytes) -> bytes:
        if told.method != f"{NAME}/SelectRecords" or TABLE not in data:
            return data
        return edited(pb.SelectRecordsRequest, data, lambda one: one.query.ClearField("where"))[0]


class Swallowed(Faults):
    """A write that answers as if it had been done."""

    def __init__(self, method: str, answer: bytes) -> None:
        self._method = f"{NAME}/{method}"
        self._answer = answer

    def instead(self, told: Told) -> Answer:
        return (self._answer,) if told.method == self._method and TABLE in told.first else None


class Unrailed(Faults):
    """A delete whose filter is empty deletes everything."""

    def request(self, told: Told, data: bytes) -> bytes:
        if told.method != f"{NAME}/DeleteRecords" or TABLE not in data:
            return data
        return edited(pb.DeleteRecordsRequest, data, self._changed)[0]

    @staticmethod
    def _changed(request: pb.DeleteRecordsRequest) -> None:
        if request.where.HasField("all_of"):
            request.ClearField("where")
            request.all_records = True


class OwnContract(Faults):
    """Reflection has GetTable as a stream."""

    def responses(self, told: Told, data: bytes) -> Sequence[bytes]:
        if "ServerReflection" not in told.method:
            return (data,)
        return edited(reflection_pb2.ServerReflectionResponse, data, self._changed)

    @staticmethod
    def _changed(answer: reflection_pb2.ServerReflectionResponse) -> None:
        files = answer.file_descriptor_response.file_descriptor_proto
        for index, raw in enumerate(files):
            file = FileDescriptorProto.FromString(raw)
            for service in file.service:
                for method in service.method:
                    method.server_streaming = method.server_streaming or method.name == "GetTable"
            files[index] = file.SerializeToString()


UPDATED = pb.UpdateRecordsResponse(applied=True, affected=1).SerializeToString()
LIES = {
    "works.DatabaseService.SelectRecords": Unfiltered(),
    "works.DatabaseService.UpdateRecords": Swallowed("UpdateRecords", UPDATED),
    "works.DatabaseService.DeleteRecords": Unrailed(),
    "works.DatabaseService.DropTable": Swallowed("DropTable", empty_pb2.Empty().SerializeToString()),
    "reflection.contract": OwnContract(),
}


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    logger = logging.getLogger("onecontainer")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # what a broken driver writes is not what is tested
    yield
    logger.setLevel(before)


def started(faults: Faults, manifest: Manifest) -> InProcess:
    descriptors = (FOLDER / manifest.descriptor_set).read_bytes()
    return InProcess(SqlDriver, manifest, faults, Faults(), descriptors)


def report_of(faults: Faults) -> Report:
    return asyncio.run(examined(started(faults, load_manifest(FOLDER)), ServiceSpec(), Examples(), timeout=PATIENCE))


def features_of(manifest: Manifest) -> Report:
    selection = Selection(only=["features.*"])
    return asyncio.run(Kit(started(Faults(), manifest), selection=selection, timeout=PATIENCE).run())


def declaring(change: Callable[[list[str]], list[str]]) -> Manifest:
    """The sql driver's manifest with other features of SQLite."""
    manifest = load_manifest(FOLDER)
    changed = [
        one.model_copy(update={"features": change(one.features)}) if one.name == "SQLite" else one
        for one in manifest.backends
    ]
    return manifest.model_copy(update={"backends": changed})


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("check", LIES)
def test_it_fails_by_what_it_does_not_do(check: str) -> None:
    report = report_of(LIES[check])
    assert [result.id for result in report.failures] == [check], render.text(report)


HIDDEN = frozenset({"CreateTable.type.JSON", "UpdateRecords.add"})
"""Features that SQLite has, of two methods."""


@pytest.mark.usefixtures("quiet")
def test_it_fails_by_features_that_are_not_as_declared() -> None:
    manifest = declaring(lambda features: [*(set(features) - HIDDEN), "SelectRecords.consistency"])
    report = features_of(manifest)
    failed = {result.id: result.sent for result in report.failures}
    assert {name.rpartition(".")[2] for name in failed} == {"CreateTable", "UpdateRecords", "SelectRecords"}
    for name, what in (("CreateTable", "type.JSON"), ("UpdateRecords", "add"), ("SelectRecords", "consistency")):
        assert f"{name}.{what} " in failed[f"features.DatabaseService.{name}"]


class Endless(Faults):
    """The last day of the calendar is kept as the first of the year after it, which is none of the contract's."""

    def responses(self, told: Told, data: bytes) -> Sequence[bytes]:
        if told.method != f"{NAME}/SelectRecords":
            return (data,)
        return edited(pb.SelectRecordsResponse, data, self._changed)

    @staticmethod
    def _changed(answer: pb.SelectRecordsResponse) -> None:
        for one in answer.records:
            if "content" in one.fields and one.fields["content"].date_value.year == 9999:
                one.fields["content"].native_value.text = "infinity"


@pytest.mark.usefixtures("quiet")
def test_it_fails_by_a_value_that_does_not_come_back() -> None:
    selection = Selection(only=["features.DatabaseService.CreateTable"])
    report = asyncio.run(Kit(started(Endless(), load_manifest(FOLDER)), selection=selection, timeout=PATIENCE).run())
    (failed,) = report.failures
    assert "9999" in failed.sent
    assert "infinity" in failed.came


@pytest.mark.usefixtures("quiet")
def test_a_feature_that_nobody_knows_fails_them_all() -> None:
    report = features_of(declaring(lambda features: [*features, "SelectRecords.magic"]))
    assert len(report.failures) == 6
    assert all("SelectRecords.magic" in result.came for result in report.failures)
