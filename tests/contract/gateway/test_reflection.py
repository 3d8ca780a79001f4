"""Reflection while drivers come and go: each shows what it brings, whatever others call their files."""

from __future__ import annotations

import grpc
from google.protobuf import descriptor_pb2

from onecontainer.api.job.v1 import job_service_pb2
from onecontainer.client.aio import AsyncClient
from onecontainer.client.reflection import Reflection as ReflectionClient
from onecontainer.gateway.reflection import Reflection

OWN = job_service_pb2.DESCRIPTOR.services_by_name["JobService"]


def file(package: str, *fields: str) -> descriptor_pb2.FileDescriptorProto:
    """A file of the same name for all, with a service and its messages."""
    found = descriptor_pb2.FileDescriptorProto(name="service.proto", package=package, syntax="proto3")
    message = found.message_type.add(name="Request")
    for number, name in enumerate(("service", *fields), 1):
        message.field.add(name=name, number=number, type=9, label=1)
    found.service.add(name="Service").method.add(
        name="Call", input_type=f".{package}.Request", output_type=f".{package}.Request"
    )
    return found


def user_of(package: str) -> descriptor_pb2.FileDescriptorProto:
    """A file that imports `service.proto`."""
    found = descriptor_pb2.FileDescriptorProto(
        name=f"{package}/more.proto", package=package, syntax="proto3", dependency=["service.proto"]
    )
    found.service.add(name="More").method.add(
        name="Call", input_type=f".{package}.Request", output_type=f".{package}.Request"
    )
    return found


async def test_drivers_come_and_go_and_may_name_their_files_alike() -> None:
    reflection = Reflection([OWN.file], [OWN.full_name])
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(reflection.handlers())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def shown(*names: str) -> dict[str, list[str]]:
        """The services that are listed, and the fields of the request of the one method of each that is named."""
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            reader = ReflectionClient(client.caller)
            listed: dict[str, list[str]] = {name: [] for name in await reader.services()}
            for name in names:
                method = (await reader.service(name)).methods[0]
                listed[name] = [field.name for field in method.input_type.fields]
            return listed

    try:
        assert not {"a.v1.Service", "b.v1.Service"} & (await shown()).keys()
        a = ("a-1.0", ("a.v1.Service", "a.v1.More"), [file("a.v1", "of_a"), user_of("a.v1")])
        b = ("b-1.0", ("b.v1.Service", "b.v1.More"), [file("b.v1", "of_b"), user_of("b.v1")])
        reflection.update([a, b])
        found = await shown("a.v1.Service", "a.v1.More", "b.v1.Service", "b.v1.More")
        assert OWN.full_name in found
        assert found["a.v1.Service"] == found["a.v1.More"] == ["service", "of_a"]
        assert found["b.v1.Service"] == found["b.v1.More"] == ["service", "of_b"]
        # Two versions: the first that is given, which is the newest, is the one that is shown.
        newer = ("a-2.0", ("a.v1.Service",), [file("a.v1", "of_a", "new")])
        reflection.update([newer, a])
        found = await shown("a.v1.Service")
        assert found["a.v1.Service"] == ["service", "of_a", "new"]
        assert "b.v1.Service" not in found
    finally:
        await server.stop(None)
