"""The methods of a driver's services, with their messages: by reflection, from a descriptor set, or from our own stubs."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto
from google.protobuf.message import DecodeError, Message
from grpc_reflection.v1alpha import reflection_pb2

from onecontainer.api.options.v1 import options_pb2
from onecontainer.driver.conformance.wire import Answer, Wire

REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
OWN_CONTRACTS = (
    "onecontainer.api.ai.v1.inference_service_pb2",
    "onecontainer.api.db.v1.database_pb2",
    "onecontainer.api.media.v1.media_pb2",
    "onecontainer.api.third_party.inference.grpc_service_pb2",
)


class ContractUnknown(Exception):
    """A service's methods cannot be found out. The message is for people."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method as its service declares it. `result` is what a job of it gives: the response, or the long-running method's result type."""

    name: str
    request: type[Message]
    response: type[Message]
    result: type[Message]
    client_streaming: bool
    server_streaming: bool
    long_running: bool
    finishable: bool

    @property
    def service(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def short(self) -> str:
        """`DatabaseService.CreateTable`."""
        service, _, method = self.name.rpartition("/")
        return f"{service.rpartition('.')[2]}.{method}"

    @property
    def unary(self) -> bool:
        return not (self.client_streaming or self.server_streaming)

    @property
    def signature(self) -> tuple[object, ...]:
        """What a caller relies on."""
        types = (
            self.request.DESCRIPTOR.full_name,
            self.response.DESCRIPTOR.full_name,
            self.result.DESCRIPTOR.full_name,
        )
        return (*types, self.client_streaming, self.server_streaming, self.long_running)

    def empty(self, service: str) -> Message:
        """A request with nothing in it but its route."""
        return with_service(self.request(), service)


def with_service(request: Message, service: str) -> Message:
    """The request with `service` filled in, if it has such a field and leaves it empty."""
    field = request.DESCRIPTOR.fields_by_name.get("service")
    if field is not None and field.number == 1 and field.type == field.TYPE_STRING and not getattr(request, "service"):  # noqa: B009
        setattr(request, "service", service)  # noqa: B010 - only the descriptor knows of it
    return request


def methods_of(pool: descriptor_pool.DescriptorPool, service: str, file: FileDescriptorProto) -> list[Method]:
    """The methods of a service that is in the pool. Raises ContractUnknown."""
    descriptor = pool.FindServiceByName(service)
    declared = _declared(file, service)
    return [_method(pool, descriptor, method.name, declared.get(method.name)) for method in descriptor.methods]


def _declared(file: FileDescriptorProto, service: str) -> Mapping[str, MethodDescriptorProto]:
    for one in file.service:
        if f"{file.package}.{one.name}" == service:
            return {method.name: method for method in one.method}
    return {}


def _method(
    pool: descriptor_pool.DescriptorPool,
    service: ServiceDescriptor,
    name: str,
    declared: MethodDescriptorProto | None,
) -> Method:
    method = service.methods_by_name[name]
    # From the file's own message, whose extensions are those of our stubs: a pool of its own has other classes.
    options = None if declared is None else declared.options
    long_running = options is not None and options.HasExtension(options_pb2.long_running)
    result, finishable = method.output_type, False
    if options is not None and long_running:
        told = options.Extensions[options_pb2.long_running]
        finishable = told.finishable
        try:
            result = pool.FindMessageTypeByName(told.result_type)
        except KeyError:
            raise ContractUnknown(
                f"{service.full_name}/{name}: its result type {told.result_type!r} is unknown"
            ) from None
    return Method(
        f"{service.full_name}/{name}",
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
        message_factory.GetMessageClass(result),
        method.client_streaming,
        method.server_streaming,
        long_running,
        finishable,
    )


def own_methods(service: str) -> list[Method]:
    """The methods of one of the contracts that come along. Raises ContractUnknown."""
    for module in OWN_CONTRACTS:
        file = importlib.import_module(module).DESCRIPTOR
        if service.rpartition(".")[0] == file.package and service.rpartition(".")[2] in file.services_by_name:
            return methods_of(descriptor_pool.Default(), service, FileDescriptorProto.FromString(file.serialized_pb))
    raise ContractUnknown(f"{service} is none of the contracts of oneContainer")


def methods_from_set(data: bytes, services: Iterable[str]) -> list[Method]:
    """The methods of services in a FileDescriptorSet. Raises ContractUnknown."""
    try:
        files = FileDescriptorSet.FromString(data).file
    except DecodeError as error:
        raise ContractUnknown(f"this is no FileDescriptorSet: {error}") from error
    return _from_files(files, services)


def _from_files(files: Sequence[FileDescriptorProto], services: Iterable[str]) -> list[Method]:
    pool = descriptor_pool.DescriptorPool()
    by_name = {file.name: file for file in files}
    added: set[str] = set()

    def add(file: FileDescriptorProto) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for needed in file.dependency:
            if needed not in by_name:
                raise ContractUnknown(f"{file.name} imports {needed}, which is not there")
            add(by_name[needed])
        pool.Add(file)

    for file in files:
        add(file)
    found: list[Method] = []
    for service in services:
        owners = [file for file in files if _declared(file, service)]
        if not owners:
            raise ContractUnknown(f"no file defines {service}")
        found += methods_of(pool, service, owners[0])
    return found


class Reflection:
    """What a server tells of itself."""

    def __init__(self, wire: Wire, timeout: float) -> None:
        self._wire = wire
        self._timeout = timeout

    async def services(self) -> list[str]:
        """Raises ContractUnknown."""
        answer = await self._ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        return [service.name for service in answer.list_services_response.service]

    async def methods(self, services: Iterable[str]) -> list[Method]:
        """Raises ContractUnknown."""
        files: dict[str, FileDescriptorProto] = {}
        for service in services:
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
            await self._load(request, files)
        return _from_files(list(files.values()), services)

    async def _load(
        self, request: reflection_pb2.ServerReflectionRequest, files: dict[str, FileDescriptorProto]
    ) -> None:
        answer = await self._ask(request)
        try:
            found = [
                FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_response.file_descriptor_proto
            ]
        except DecodeError as error:
            raise ContractUnknown(f"reflection gives a file that does not decode: {error}") from error
        files.update({file.name: file for file in found if file.name not in files})
        for file in found:
            for needed in file.dependency:
                if needed not in files:
                    await self._load(reflection_pb2.ServerReflectionRequest(file_by_filename=needed), files)

    async def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        answer: Answer = await self._wire.call(REFLECTION, request.SerializeToString(), timeout=self._timeout)
        if not answer.ok or not answer.messages:
            raise ContractUnknown(f"reflection (grpc.reflection.v1alpha) answers {answer}")
        response = reflection_pb2.ServerReflectionResponse.FromString(answer.message)
        if response.HasField("error_response"):
            raise ContractUnknown(f"reflection answers {response.error_response.error_message!r}")
        return response
