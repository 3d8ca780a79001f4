"""ManagementService where several gateways share the sidecars: what only a sidecar's owner can do is done there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf import empty_pb2

from onecontainer.api.management.v1 import management_service_pb2 as pb
from onecontainer.api.management.v1 import management_service_pb2_grpc
from onecontainer.catalog.catalog import Catalog
from onecontainer.catalog.installing import Installer
from onecontainer.catalog.servicer import Context, ManagementServicer
from onecontainer.cluster.owners import Owner
from onecontainer.cluster.sidecars import SharedSidecars
from onecontainer.gateway import onward
from onecontainer.gateway.peers import Peers
from onecontainer.rpc.status import from_rpc_error

T = TypeVar("T")


class SharedManagementServicer(ManagementServicer):
    """`ManagementServicer` of one of several gateways."""

    def __init__(
        self,
        catalog: Catalog,
        installer: Installer,
        sidecars: SharedSidecars,
        peers: Peers,
        *,
        request_id_retention: float,
    ) -> None:
        super().__init__(catalog, installer, request_id_retention=request_id_retention)
        self._shared = catalog
        self._sidecars = sidecars
        self._peers = peers

    def _owner(self, service: str) -> Owner | None:
        record = self._shared.services.get(service)
        return None if record is None else self._sidecars.owner(record.uid)

    def _stub(self, owner: Owner) -> Any:
        channel = self._peers.channel(owner.address)
        return management_service_pb2_grpc.ManagementServiceStub(channel)

    async def DeleteService(
        self, request: pb.DeleteServiceRequest, context: Context[pb.DeleteServiceRequest, empty_pb2.Empty]
    ) -> empty_pb2.Empty:
        owner = self._owner(request.name)
        if owner is None:
            return await super().DeleteService(request, context)
        await self._ask(self._stub(owner).DeleteService, request, context)
        # Whoever deletes a service here finds it gone here.
        await self._shared.refresh()
        return empty_pb2.Empty()

    async def CheckHeartbeat(
        self, request: pb.CheckHeartbeatRequest, context: Context[pb.CheckHeartbeatRequest, pb.CheckHeartbeatResponse]
    ) -> pb.CheckHeartbeatResponse:
        owner = self._owner(request.name)
        if owner is None:
            return await super().CheckHeartbeat(request, context)
        return await self._ask(self._stub(owner).CheckHeartbeat, request, context)

    async def StreamSidecarLogs(
        self,
        request: pb.StreamSidecarLogsRequest,
        context: Context[pb.StreamSidecarLogsRequest, pb.StreamSidecarLogsResponse],
    ) -> AsyncIterator[pb.StreamSidecarLogsResponse]:
        owner = self._sidecars.owner_of_sidecar(request.name)
        if owner is None:
            async for response in super().StreamSidecarLogs(request, context):
                yield response
            return
        metadata, timeout = self._peers.metadata(context), onward.time_left(context)
        rpc = self._stub(owner).StreamSidecarLogs(request, timeout=timeout, metadata=metadata)
        try:
            async for response in rpc:
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            rpc.cancel()

    async def _ask(
        self, method: Callable[..., Awaitable[T]], request: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> T:
        metadata = self._peers.metadata(context)
        try:
            return await method(request, timeout=onward.time_left(context), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
