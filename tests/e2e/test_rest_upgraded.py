"""A plug-in that is installed in a newer version while the REST front runs: its new methods and fields are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tests.fixtures.rest import RestProcess, in_front_of, problem
from tests.fixtures.waiting import until

TEXT = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
OPTIONAL = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL


def reflection_of(methods: list[str], fields: list[str]) -> Any:
    """A reflection service that shows grown.v1.Grown with these methods, which take and give a message with these text fields."""
    file = descriptor_pb2.FileDescriptorProto(name="grown.proto", package="grown.v1", syntax="proto3")
    message = file.message_type.add(name="Text")
    for number, name in enumerate(fields, 1):
        message.field.add(name=name, number=number, type=TEXT, label=OPTIONAL, json_name=name)
    service = file.service.add(name="Grown")
    for name in methods:
        service.method.add(name=name, input_type=".grown.v1.Text", output_type=".grown.v1.Text")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return reflection.ReflectionServicer(["grown.v1.Grown"], pool=pool)


class Gateway(grpc.GenericRpcHandler):
    """Answers every call with its request, and shows what a test has put into `shown`."""

    def __init__(self) -> None:
        self.shown = reflection_of(["One"], ["a"])

    def service(self, details: Any) -> Any:
        if details.method == "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo":
            kind = reflection_pb2
            return grpc.stream_stream_rpc_method_handler(
                self.shown.ServerReflectionInfo,
                request_deserializer=kind.ServerReflectionRequest.FromString,
                response_serializer=kind.ServerReflectionResponse.SerializeToString,
            )
        if details.method.startswith("/grown.v1.Grown/"):
            return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
        return None


@pytest.fixture
def both() -> Iterator[tuple[Gateway, RestProcess]]:
    gateway = Gateway()
    with in_front_of(gateway, threads=16) as rest:
        yield gateway, rest


def test_what_is_new_is_called(both: tuple[Gateway, RestProcess]) -> None:
    gateway, rest = both

    def call(method: str, **body: str) -> Any:
        return rest("POST", f"/v1/services/s:call/grown.v1.Grown/{method}", json=body)

    assert call("One", a="x").json() == {"a": "x"}
    problem(call("Two", a="x"), 404, "METHOD_UNKNOWN")
    problem(call("One", b="x"), 400, "BODY_INVALID")
    gateway.shown = reflection_of(["One", "Two"], ["a", "b"])
    # What the gateway said is believed for seconds.
    until(lambda: call("Two", b="x").status_code == 200, "the new method and its field to be known")
    assert call("One", b="x").json() == {"b": "x"}
