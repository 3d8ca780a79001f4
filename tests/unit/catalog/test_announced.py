"""A driver that comes with its sidecar: what its manifest and descriptors become."""

from __future__ import annotations

import json

import pytest

from onecontainer.api.db.v1 import database_pb2
from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.catalog.announced import announced_driver
from onecontainer.catalog.model import DriverSource, DriverState
from onecontainer.driver.announcement import descriptor_set
from onecontainer.errors import DataInvalid
from onecontainer.rpc.manifest import manifest_to_proto, parse_manifest

SERVICE = database_pb2.DESCRIPTOR.services_by_name["DatabaseService"]
METADATA = {
    "name": "rare",
    "version": "1.2.0",
    "app": "raredb",
    "app_version": ">=3,<4",
    "scope": "db",
    "entry_point": "rare:Rare",
    "services": [SERVICE.full_name],
    "job_slots": 7,
    "exclusive_state": True,
    "resources": {"memory_bytes": 1 << 33, "cpus": 0.5},
    "backends": [{"name": "RareDB", "features": ["SelectRecords.distinct"]}],
    "options": [
        {"name": "url", "type": "string", "description": "Where it is.", "required": True, "sensitive": True},
        {"name": "pool", "type": "int", "description": "Connections.", "default": 4},
        {"name": "mode", "type": "string", "description": "How.", "allowed_values": ["a", "b"]},
    ],
}
DESCRIPTORS = descriptor_set([SERVICE])


def test_it_is_what_its_metadata_says_without_folder_and_digest() -> None:
    manifest = parse_manifest(json.dumps(METADATA))
    record = announced_driver(manifest_to_proto(manifest), DESCRIPTORS, 5)
    assert record.manifest is not None
    assert record.methods is not None
    assert record.manifest == manifest.model_copy(update={"entry_point": record.manifest.entry_point})
    assert (record.name, record.source, record.state) == (
        "drivers/rare-1.2.0",
        DriverSource.REGISTERED,
        DriverState.READY,
    )
    assert (record.folder, record.digest, record.create_time) == (None, "", 5)
    assert record.methods.methods[f"{SERVICE.full_name}/SelectRecords"].idempotent
    assert record.methods.services == (SERVICE.full_name,)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Not A Name"}, "metadata.name"),
        ({"scope": "art"}, "metadata.scope"),
        ({"version": "x"}, "metadata.version"),
    ],
)
def test_a_manifest_that_is_none_is_refused(changes: dict[str, str], field: str) -> None:
    message = manifest_to_proto(parse_manifest(json.dumps(METADATA)))
    message.MergeFrom(driver_pb2.DriverManifest(**changes))  # type: ignore[arg-type]
    with pytest.raises(DataInvalid) as caught:
        announced_driver(message, DESCRIPTORS, 0)
    assert field in [violation.field for violation in caught.value.violations]


def test_descriptors_that_are_none_or_not_its_own_are_refused() -> None:
    message = manifest_to_proto(parse_manifest(json.dumps(METADATA)))
    with pytest.raises(DataInvalid):
        announced_driver(message, b"rubbish", 0)
    message.services[:] = ["onecontainer.api.ai.v1.InferenceService"]
    with pytest.raises(DataInvalid):
        announced_driver(message, DESCRIPTORS, 0)
