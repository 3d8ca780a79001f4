"""Server reflection over the gateway's own services and those of every driver, plug-ins included.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md. v1 and v1alpha are the same on the wire; the
library has v1alpha, so its servicer serves both names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor

# Imported for their descriptors: clients decode error details and Any by reflection.
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from onecontainer.api.error.v1 import reason_pb2
from onecontainer.rpc.descriptors import with_dependencies

log = logging.getLogger(__name__)

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_ALWAYS: Any = (
    error_details_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
    reason_pb2.DESCRIPTOR,
)


DriverFiles = tuple[str, Sequence[str], Sequence[descriptor_pb2.FileDescriptorProto]]
"""A driver: its name, its services, and its files in dependency order."""


class Reflection:
    """Reflection whose content can change while the server runs."""

    def __init__(self, files: Iterable[FileDescriptor], services: Sequence[str]) -> None:
        """``files`` with the gateway's own services, and the names of those."""
        self._own = {file.name: file for file in with_dependencies([*files, *_ALWAYS])}
        self._services = tuple(services)
        self._servicer: Any = None
        self.update(())

    def update(self, drivers: Iterable[DriverFiles]) -> None:
        """Sets what drivers add; of two that define the same the first one is shown."""
        pool = descriptor_pool.DescriptorPool()
        for file in self._own.values():
            proto = descriptor_pb2.FileDescriptorProto()
            file.CopyToProto(proto)
            pool.Add(proto)
        services = set(self._services)
        added: dict[str, bytes] = dict.fromkeys(self._own, b"")
        for driver, names, files in drivers:
            if _add_all(pool, added, driver, files):
                services.update(names)
        self._servicer = reflection.aio.ReflectionServicer(sorted(services | {NAMES[1], _HEALTH}), pool=pool)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Handlers for both names. Reflection needs no credentials: it tells what the public protos tell."""

        async def info(requests: Any, context: Any) -> Any:
            async for response in self._servicer.ServerReflectionInfo(requests, context):
                yield response

        handler = grpc.stream_stream_rpc_method_handler(
            info,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in NAMES)


def _add_all(
    pool: descriptor_pool.DescriptorPool,
    added: dict[str, bytes],
    driver: str,
    files: Sequence[descriptor_pb2.FileDescriptorProto],
) -> bool:
    """Adds a driver's files to a pool that has `added` (name → content, empty for our own); whether all could be."""
    renamed: dict[str, str] = {}
    for file in files:
        content = _content(file)
        if added.get(file.name) in (b"", content):
            continue
        shown = descriptor_pb2.FileDescriptorProto()
        shown.CopyFrom(file)
        if file.name in added:
            # Two drivers that know nothing of each other may each have a `service.proto`.
            shown.name = renamed[file.name] = f"{driver}/{file.name}"
        shown.dependency[:] = [renamed.get(name, name) for name in file.dependency]
        try:
            pool.Add(shown)
        except TypeError as error:
            # Two versions of one contract: calls work, each with its own.
            log.warning("reflection leaves out %s of %s: %s", file.name, driver, error)
            return False
        added[shown.name] = content
    return True


def _content(file: descriptor_pb2.FileDescriptorProto) -> bytes:
    """Its bytes, but for the JSON names that some compilers write out: the same file gives the same ones."""
    bare = descriptor_pb2.FileDescriptorProto()
    bare.CopyFrom(file)
    for message in _messages(bare.message_type):
        for field in (*message.field, *message.extension):
            field.ClearField("json_name")
    for field in bare.extension:
        field.ClearField("json_name")
    return bare.SerializeToString(deterministic=True)


def _messages(found: Iterable[descriptor_pb2.DescriptorProto]) -> Iterator[descriptor_pb2.DescriptorProto]:
    for message in found:
        yield message
        yield from _messages(message.nested_type)
