"""Whether the contracts that a plug-in brings go with those of the drivers that are there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message

from onecontainer.catalog.methods import MethodTable
from onecontainer.catalog.model import DriverRecord

SHARED = ("onecontainer.api.", "google.")
"""Our own contracts, of whatever release a driver was built with: they are compatible with each other."""


def conflict(name: str, methods: MethodTable, drivers: Iterable[DriverRecord]) -> str:
    """What of the driver `name` (without a version) cannot be beside the others, and why; empty if all can.

    Versions of one driver may have different messages, as one contract has over time. Others may not: a full name has one
    meaning. How a method streams is the same for all, for a call is relayed before anybody knows whose it is.
    """
    own = dict(_definitions(methods.file_descriptor_protos))
    for driver in drivers:
        if driver.methods is None or driver.manifest is None:
            continue
        for full_name, method in methods.methods.items():
            other = driver.methods.methods.get(full_name)
            if other is not None and (other.client_streaming, other.server_streaming) != (
                method.client_streaming,
                method.server_streaming,
            ):
                return f"{full_name} streams otherwise in {driver.name}: give the method another name"
        if driver.manifest.name == name:
            continue
        for full_name, definition in _definitions(driver.methods.file_descriptor_protos):
            if own.get(full_name, definition) != definition:
                return f"{full_name} is defined differently by {driver.name}: give the proto package another name"
    return ""


def _definitions(files: Iterable[FileDescriptorProto]) -> Iterator[tuple[str, bytes]]:
    """Full name and definition of all that is at the top of the files that are not ours."""
    for file in files:
        package = f"{file.package}." if file.package else ""
        if package.startswith(SHARED):
            continue
        kinds: tuple[Iterable[Message], ...] = (file.message_type, file.enum_type, file.service, file.extension)
        for definitions in kinds:
            for definition in definitions:
                name = getattr(definition, "name")  # noqa: B009 - each of these kinds has one
                yield f"{package}{name}", _told(definition)


def _told(definition: Message) -> bytes:
    """What it says, the same whichever compiler has written it: some spell out the JSON names that follow from the fields' names."""
    copy = type(definition)()
    copy.CopyFrom(definition)
    _without_usual_json_names(copy)
    return copy.SerializeToString(deterministic=True)


def _without_usual_json_names(definition: Message) -> None:
    if isinstance(definition, FieldDescriptorProto):
        first, *more = definition.name.split("_")
        if definition.json_name == first + "".join(part[:1].upper() + part[1:] for part in more):
            definition.ClearField("json_name")
    elif isinstance(definition, DescriptorProto):
        for part in (*definition.field, *definition.extension, *definition.nested_type):
            _without_usual_json_names(part)
