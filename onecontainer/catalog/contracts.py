"""Descriptors of the contracts that come along, for drivers that serve nothing else: they need not ship what the gateway has already."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

CONTRACTS = "onecontainer.api."
THIRD_PARTY = f"{CONTRACTS}third_party."
"""What the contracts of others are generated into, each in a Python package of its proto package's name."""


def own_descriptor_set(services: Iterable[str]) -> bytes | None:
    """The files that define the services, imports first, as a serialised FileDescriptorSet. None if one is not among ours."""
    found: dict[str, FileDescriptorProto] = {}
    for service in services:
        package, _, name = service.rpartition(".")
        file = _files_of(package if service.startswith(CONTRACTS) else THIRD_PARTY + package).get(name)
        if file is None:
            return None
        add_with_imports(file, found)
    return FileDescriptorSet(file=found.values()).SerializeToString(deterministic=True)


def add_with_imports(file: FileDescriptor, found: dict[str, FileDescriptorProto]) -> None:
    """Adds a file to those that were found (name → file), behind all that it imports."""
    if file.name in found:
        return
    for dependency in file.dependencies:
        add_with_imports(dependency, found)
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    found[file.name] = proto


@cache
def _files_of(package: str) -> dict[str, FileDescriptor]:
    """The file of each service of a proto package, which is a Python package of the same name."""
    try:
        stubs = importlib.import_module(package)
    except ModuleNotFoundError:
        return {}
    files = [
        importlib.import_module(f"{package}.{module.name}").DESCRIPTOR
        for module in pkgutil.iter_modules(stubs.__path__)
        if module.name.endswith("_pb2")
    ]
    return {name: file for file in files for name in file.services_by_name}
