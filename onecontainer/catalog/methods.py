"""What the gateway knows about methods: read from the FileDescriptorSet that a driver ships, one pool per driver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from onecontainer.api.options.v1 import options_pb2
from onecontainer.errors import DataInvalid, FieldViolation

JOB_TYPE = "onecontainer.api.job.v1.Job"
JOB_OPTIONS_TYPE = "onecontainer.api.type.v1.JobOptions"
RESERVED_PACKAGES = (
    "onecontainer.api.artifact.",
    "onecontainer.api.driver.",
    "onecontainer.api.job.",
    "onecontainer.api.management.",
    "grpc.",
    "google.",
)
"""A driver that claimed one of these would take over the gateway's own services."""


@dataclass(frozen=True, slots=True)
class LongRunning:
    """The option `long_running` of a method; progress_type is empty if it reports no details."""

    result_type: str
    progress_type: str
    finishable: bool


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service API. `full_name` is `package.Service/Method`; types are full message names."""

    full_name: str
    request_type: str
    response_type: str
    client_streaming: bool
    server_streaming: bool
    idempotent: bool
    long_running: LongRunning | None

    @property
    def result_type(self) -> str:
        """What a job of this method ends with."""
        return self.long_running.result_type if self.long_running else self.response_type


class MethodTable:
    """The methods of a serialised FileDescriptorSet, imports included, in a descriptor pool of their own.

    With `services` (full names) only those count and each must be there; without it all services in the set do. Raises
    DataInvalid with every violation (`descriptor_set`): bytes that do not decode, a file without its imports, and
    methods that break the rules for service APIs (`string service = 1`; long-running ones take JobOptions as field 2
    and return Job).
    """

    def __init__(self, descriptor_set: bytes, services: Iterable[str] | None = None) -> None:
        self.pool = descriptor_pool.DescriptorPool()
        self.file_descriptor_protos = _in_dependency_order(_parse(descriptor_set))
        for file in self.file_descriptor_protos:
            try:
                self.pool.AddSerializedFile(file.SerializeToString())
            except Exception as error:
                raise _broken(f"{file.name}: {error}") from error
        there = [_qualified(file, service) for file in self.file_descriptor_protos for service in file.service]
        wanted = there if services is None else list(services)
        problems = [f"has no service {name}" for name in wanted if name not in there]
        problems += [f"{name} is one of the gateway's own services" for name in wanted if _is_reserved(name)]
        methods: dict[str, Method] = {}
        for file in self.file_descriptor_protos:
            for service in file.service:
                name = _qualified(file, service)
                if name not in wanted:
                    continue
                for proto in service.method:
                    method = _method(name, proto)
                    methods[method.full_name] = method
                    problems += self._rule_problems(method)
        if problems:
            raise DataInvalid(violations=[FieldViolation("descriptor_set", problem) for problem in problems])
        self.services: tuple[str, ...] = tuple(wanted)
        self.methods: Mapping[str, Method] = MappingProxyType(methods)

    def service(self, name: str) -> ServiceDescriptor:
        """Descriptor of a service by its full name. Raises KeyError."""
        return self.pool.FindServiceByName(name)

    def message_class(self, name: str) -> type[Message]:
        """Class of any message in the set by its full name. Raises KeyError."""
        return message_factory.GetMessageClass(self._message(name))

    def _message(self, name: str) -> Descriptor:
        return self.pool.FindMessageTypeByName(name)

    def _rule_problems(self, method: Method) -> list[str]:
        request = self._message(method.request_type)
        problems = []
        route = request.fields_by_number.get(1)
        if route is None or route.name != "service" or route.type != route.TYPE_STRING:
            problems.append(f"{method.full_name}: the request needs `string service = 1`")
        if method.long_running:
            options = request.fields_by_number.get(2)
            if options is None or options.message_type is None or options.message_type.full_name != JOB_OPTIONS_TYPE:
                problems.append(f"{method.full_name}: long_running needs `{JOB_OPTIONS_TYPE} job_options = 2`")
            if method.response_type != JOB_TYPE:
                problems.append(f"{method.full_name}: long_running needs to return {JOB_TYPE}")
            if method.client_streaming or method.server_streaming:
                problems.append(f"{method.full_name}: long_running is for unary methods")
            for kind in filter(None, (method.long_running.result_type, method.long_running.progress_type)):
                try:
                    self._message(kind)
                except KeyError:
                    problems.append(f"{method.full_name}: the set has no message {kind}")
            if not method.long_running.result_type:
                problems.append(f"{method.full_name}: long_running needs a result_type")
        return problems


def _broken(text: str) -> DataInvalid:
    return DataInvalid("descriptor_set", text)


def _parse(data: bytes) -> list[descriptor_pb2.FileDescriptorProto]:
    try:
        files = list(descriptor_pb2.FileDescriptorSet.FromString(data).file)
    except DecodeError as error:
        raise _broken("is not a serialised FileDescriptorSet") from error
    if not files:
        raise _broken("is empty")
    return files


def _in_dependency_order(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> tuple[descriptor_pb2.FileDescriptorProto, ...]:
    by_name = {file.name: file for file in files}
    done: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    under_way: set[str] = set()

    def visit(name: str, wanted_by: str) -> None:
        if name in done:
            return
        if name not in by_name:
            raise _broken(f"{wanted_by} imports {name}, which the set does not have (build it with its imports)")
        if name in under_way:
            raise _broken(f"{name} imports itself")
        under_way.add(name)
        for dependency in by_name[name].dependency:
            visit(dependency, name)
        done[name] = by_name[name]

    for file in files:
        visit(file.name, file.name)
    return tuple(done.values())


def _qualified(file: descriptor_pb2.FileDescriptorProto, service: descriptor_pb2.ServiceDescriptorProto) -> str:
    return f"{file.package}.{service.name}" if file.package else service.name


def _is_reserved(service: str) -> bool:
    return service.startswith(RESERVED_PACKAGES)


def _method(service: str, proto: descriptor_pb2.MethodDescriptorProto) -> Method:
    options = proto.options
    long_running = None
    if options.HasExtension(options_pb2.long_running):
        declared = options.Extensions[options_pb2.long_running]
        long_running = LongRunning(declared.result_type, declared.progress_type, declared.finishable)
    return Method(
        full_name=f"{service}/{proto.name}",
        request_type=proto.input_type.removeprefix("."),
        response_type=proto.output_type.removeprefix("."),
        client_streaming=proto.client_streaming,
        server_streaming=proto.server_streaming,
        idempotent=options.idempotency_level
        in (descriptor_pb2.MethodOptions.IDEMPOTENT, descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS),
        long_running=long_running,
    )
