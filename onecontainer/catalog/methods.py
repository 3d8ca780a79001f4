"""What the gateway knows about methods: read from the FileDescriptorSet that a driver ships, one pool per driver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

import onecontainer
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
class MethodRoute:
    """The option `route` of a method whose request has no `string service = 1`.

    `field` is the number of the request's text field that begins with the service's id, 0 if there is none; `answer` is what the gateway
    answers to a call that names no service, None if that is an error.
    """

    field: int
    answer: bytes | None


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
    route: MethodRoute | None = None
    """None: the request has `string service = 1`."""

    @property
    def result_type(self) -> str:
        """What a job of this method ends with."""
        return self.long_running.result_type if self.long_running else self.response_type


class MethodTable:
    """The methods of a serialised FileDescriptorSet, imports included, in a descriptor pool of their own.

    With `services` (full names) only those count and each must be there; without it all services in the set do. Raises
    DataInvalid with every violation (`descriptor_set`): bytes that do not decode, a file without its imports, and
    methods that break the rules for service APIs (`string service = 1`, or the option `route`; long-running ones take JobOptions as
    field 2 and return Job).
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
                    problems += self._rule_problems(method, routed=proto.options.HasExtension(options_pb2.route))
                    if proto.options.HasExtension(options_pb2.route):
                        route, found = self._route(method, proto.options.Extensions[options_pb2.route])
                        method = replace(method, route=route)
                        problems += found
                    methods[method.full_name] = method
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

    def _route(self, method: Method, told: options_pb2.MethodRoute) -> tuple[MethodRoute, list[str]]:
        """The route, and what is wrong with it."""
        problems, number, answer = [], 0, None
        if told.field:
            field = self._message(method.request_type).fields_by_name.get(told.field)
            if field is None or field.type != field.TYPE_STRING or field.is_repeated:
                problems.append(
                    f"{method.full_name}: the request has no text field {told.field!r}, which `route` names"
                )
            else:
                number = field.number
        if told.answer and (told.field or method.client_streaming or method.server_streaming):
            problems.append(f"{method.full_name}: an `answer` of `route` is for unary methods, without `field`")
        elif told.answer:
            text = told.answer.replace("{gateway_version}", onecontainer.__version__)
            try:
                answer = json_format.Parse(text, self.message_class(method.response_type)()).SerializeToString()
            except json_format.ParseError as error:
                problems.append(f"{method.full_name}: the `answer` of `route` is no {method.response_type}: {error}")
        return MethodRoute(number, answer), problems

    def _rule_problems(self, method: Method, *, routed: bool) -> list[str]:
        request = self._message(method.request_type)
        problems = []
        first = request.fields_by_number.get(1)
        own = first is not None and first.name == "service" and first.type == first.TYPE_STRING
        if not own and not routed:
            problems.append(f"{method.full_name}: the request needs `string service = 1`")
        if routed and (own or method.long_running):
            problems.append(f"{method.full_name}: `route` is for requests of others, without `string service = 1`")
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
