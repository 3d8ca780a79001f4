"""Drivers that nobody installed here: a sidecar that registered itself has brought its manifest and its descriptors."""

from __future__ import annotations

import hashlib
import json

from google.protobuf import json_format

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.catalog.drivers import MAX_DESCRIPTOR_BYTES
from onecontainer.catalog.methods import MethodTable
from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState
from onecontainer.errors import DataInvalid
from onecontainer.rpc.manifest import Manifest, parse_manifest

ELSEWHERE = "elsewhere:Driver"
"""Stands for the entry point, which only a driver that is started here has."""


def announced_driver(manifest: driver_pb2.DriverManifest, descriptor_set: bytes, now: int) -> DriverRecord:
    """The driver as a record; it has no folder and no digest. Raises DataInvalid (`manifest.app`, `descriptor_set`)."""
    if len(descriptor_set) > MAX_DESCRIPTOR_BYTES:
        raise DataInvalid("descriptor_set", f"is larger than {MAX_DESCRIPTOR_BYTES} bytes")
    told = _manifest(manifest)
    return DriverRecord(
        name=f"drivers/{told.name}-{told.version}",
        source=DriverSource.REGISTERED,
        state=DriverState.READY,
        manifest=told,
        methods=MethodTable(descriptor_set, told.services),
        descriptor_digest=f"sha256:{hashlib.sha256(descriptor_set).hexdigest()}",
        create_time=now,
    )


def _manifest(message: driver_pb2.DriverManifest) -> Manifest:
    values = json_format.MessageToDict(message, preserving_proto_field_name=True)
    if values.get("job_slots") == 0:
        del values["job_slots"]
    for option in values.get("options", []):
        option["type"] = option.get("type", "").removeprefix("OPTION_TYPE_").lower()
        if "default_value" in option:
            option["default"] = option.pop("default_value")
    if "memory_bytes" in values.get("resources", {}):
        values["resources"]["memory_bytes"] = int(values["resources"]["memory_bytes"])  # 64 bits are text in JSON
    return parse_manifest(json.dumps(values | {"entry_point": ELSEWHERE}))
