"""Contracts that are not among our stubs, asked from the server: for plug-ins' own services and messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from onecontainer.client.calls import Caller
from onecontainer.errors import MethodUnknown, OneContainerError


class Reflection:
    """Descriptors of a server, loaded as they are needed.

    Attributes:
        pool: what has been loaded, apart from our own stubs' pool: a plug-in may have another version of a file.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        # The reflection package's types know only the blocking API, and none of its methods is declared idempotent.
        self._stub: Any = ServerReflectionStub(caller.channel)  # type: ignore[arg-type]
        self.pool = descriptor_pool.DescriptorPool()
        self._loaded: set[str] = set()

    async def services(self) -> Sequence[str]:
        """Full names of the server's services."""
        answer = await self._ask(pb.ServerReflectionRequest(list_services=""))
        return sorted(service.name for service in answer.list_services_response.service)

    async def service(self, name: str) -> ServiceDescriptor:
        """A service by its full name, or by the end of it if only one ends so. Raises MethodUnknown."""
        known = await self.services()
        matches = [name] if name in known else [full for full in known if full.endswith(f".{name}")]
        if len(matches) != 1:
            what = f"is the end of {', '.join(matches)}" if matches else f"is none of {', '.join(known)}"
            raise MethodUnknown(f"the service {name} {what}")
        await self.load_symbol(matches[0])
        return self.pool.FindServiceByName(matches[0])

    async def method(self, name: str) -> MethodDescriptor:
        """A method, `package.Service/Method` or `Service/Method`. Raises MethodUnknown."""
        service_name, _, method_name = name.strip("/").rpartition("/" if "/" in name.strip("/") else ".")
        service = await self.service(service_name)
        if method_name not in service.methods_by_name:
            raise MethodUnknown(
                f"{service.full_name} has no method {method_name!r}, but {', '.join(service.methods_by_name)}"
            )
        return service.methods_by_name[method_name]

    async def load_symbol(self, name: str) -> None:
        """Loads the file that defines a service or message, with all that it needs. A symbol that is not known is left out."""
        try:
            answer = await self._ask(pb.ServerReflectionRequest(file_containing_symbol=name))
        except MethodUnknown:
            return
        await self._add(answer)

    async def _add(self, answer: pb.ServerReflectionResponse) -> None:
        files = [FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_response.file_descriptor_proto]
        by_name = {file.name: file for file in files}
        for file in files:
            await self._add_file(file, by_name)

    async def _add_file(self, file: FileDescriptorProto, beside: dict[str, FileDescriptorProto]) -> None:
        if file.name in self._loaded:
            return
        self._loaded.add(file.name)
        for needed in file.dependency:
            if needed in self._loaded:
                continue
            if needed in beside:
                await self._add_file(beside[needed], beside)
            else:
                await self._add(await self._ask(pb.ServerReflectionRequest(file_by_filename=needed)))
        self.pool.Add(file)

    async def _ask(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        call: AsyncGenerator[pb.ServerReflectionResponse] = self._caller.talk(
            self._stub.ServerReflectionInfo, [request], timeout=self._caller.timeout
        )
        async with aclosing(call) as answers:
            async for answer in answers:
                if answer.HasField("error_response"):
                    raise MethodUnknown(answer.error_response.error_message or "the server does not know it")
                return answer
        raise OneContainerError("the server answered nothing to reflection")
