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


class Reflection:
    """Reflection whose content can change while the server runs."""

    def __init__(self, files: Iterable[FileDescriptor], services: Sequence[str]) -> None:
        """``files`` with the gateway's own services, and the names of those."""
        self._own = {file.name: file for file in with_dependencies([*files, *_ALWAYS])}
        self._services = tuple(services)
        self._servicer: Any = None
        self.update(())

    def update(self, drivers: Iterable[tuple[Sequence[str], Sequence[descriptor_pb2.FileDescriptorProto]]]) -> None:
        """Sets what drivers add: for each, its service names and its files in dependency order."""
        pool = descriptor_pool.DescriptorPool()
        for file in self._own.values():
            proto = descriptor_pb2.FileDescriptorProto()
            file.CopyToProto(proto)
            pool.Add(proto)
        services = set(self._services)
        for names, files in drivers:
            if all(_add(pool, self._own, file) for file in files):
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


def _add(
    pool: descriptor_pool.DescriptorPool, own: dict[str, FileDescriptor], file: descriptor_pb2.FileDescriptorProto
) -> bool:
    if file.name in own:
        return True
    try:
        pool.Add(file)
    except TypeError as error:
        if _same(pool.FindFileByName(file.name), file):
            return True
        # Two drivers with other versions of one file: calls work, each with its own; reflection shows the first.
        log.warning("reflection leaves out %s: %s", file.name, error)
        return False
    return True


def _same(known: FileDescriptor, file: descriptor_pb2.FileDescriptorProto) -> bool:
    """Whether it is the same file but for the JSON names that some compilers write out."""
    one, other = descriptor_pb2.FileDescriptorProto(), descriptor_pb2.FileDescriptorProto()
    known.CopyToProto(one)
    other.CopyFrom(file)
    for message in (*_messages(one.message_type), *_messages(other.message_type)):
        for field in (*message.field, *message.extension):
            field.ClearField("json_name")
    for field in (*one.extension, *other.extension):
        field.ClearField("json_name")
    return one == other


def _messages(found: Iterable[descriptor_pb2.DescriptorProto]) -> Iterator[descriptor_pb2.DescriptorProto]:
    for message in found:
        yield message
        yield from _messages(message.nested_type)
