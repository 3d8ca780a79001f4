"""ManagementService: from protos to calls and back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import TypeVar

import grpc
from google.protobuf import empty_pb2

from onecontainer.api.management.v1 import management_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.catalog import listing, mapping
from onecontainer.catalog.catalog import Catalog
from onecontainer.catalog.installing import Installer
from onecontainer.catalog.model import SERVICE_ID, ServiceRecord
from onecontainer.catalog.ports import Replay
from onecontainer.catalog.validation import version_problem
from onecontainer.errors import (
    Draining,
    DriverNotAvailable,
    FieldInvalid,
    FieldRequired,
    FieldViolation,
    RequestIdReused,
    ResourceConflict,
)
from onecontainer.rpc.filters import Term
from onecontainer.rpc.labels import request_id_violations
from onecontainer.rpc.server import current_call

T = TypeVar("T")
Context = grpc.aio.ServicerContext

CREATE = "CreateService"
DEFAULT_HEARTBEAT_TIMEOUT = 5.0
MAX_HEARTBEAT_TIMEOUT = 60.0
DEFAULT_TAIL = 100
MAX_TAIL = 10_000
LINES_PER_MESSAGE = 200


class ManagementServicer:
    """Servicer of ManagementService. `request_id_retention` in seconds."""

    def __init__(self, catalog: Catalog, installer: Installer, *, request_id_retention: float = 7 * 86400.0) -> None:
        self._catalog = catalog
        self._installer = installer
        self._retention = int(request_id_retention * 1e6)

    # --- services ----------------------------------------------------------------------------------------------------

    async def CreateService(
        self, request: pb.CreateServiceRequest, context: Context[pb.CreateServiceRequest, resources_pb2.Service]
    ) -> resources_pb2.Service:
        principal = current_call().principal
        hashed = _request_hash(request)
        first = await self._first_answer(request, principal, hashed)
        if first is not None:
            return first
        sent = replace(mapping.service_from_proto(request.service), name=f"services/{request.service_id}")

        def replay(record: ServiceRecord, now: int) -> Replay:
            answer = self._proto(record).SerializeToString()
            return Replay(principal, CREATE, request.request_id, hashed, answer, now + self._retention)

        try:
            record = await self._catalog.create(
                sent,
                validate_only=request.validate_only,
                more_violations=_create_violations(request),
                replay=replay if request.request_id else None,
            )
        except ResourceConflict:
            # The same request may have been on its way twice.
            first = await self._first_answer(request, principal, hashed)
            if first is None:
                raise
            return first
        return self._proto(record)

    async def _first_answer(
        self, request: pb.CreateServiceRequest, principal: str, hashed: bytes
    ) -> resources_pb2.Service | None:
        """What this request_id was answered with before."""
        if not request.request_id or request.validate_only or any(request_id_violations(request.request_id)):
            return None
        replay = await self._catalog.replayed(principal, CREATE, request.request_id)
        if replay is None:
            return None
        if replay.request_hash != hashed:
            raise RequestIdReused(f"request_id {request.request_id!r} was used with another request; use a new one")
        return resources_pb2.Service.FromString(replay.response)

    async def GetService(
        self, request: pb.GetServiceRequest, context: Context[pb.GetServiceRequest, resources_pb2.Service]
    ) -> resources_pb2.Service:
        return self._proto(self._catalog.service(_required(request.name, "name")))

    async def ListServices(
        self, request: pb.ListServicesRequest, context: Context[pb.ListServicesRequest, pb.ListServicesResponse]
    ) -> pb.ListServicesResponse:
        terms = listing.service_filter(request.filter)
        found, token = listing.page(
            "ListServices",
            [record for record in self._catalog.services.values() if self._fits(terms, record)],
            lambda record: record.name,
            listing.by_name,
            size=request.page_size,
            token=request.page_token,
            filter_text=request.filter,
        )
        return pb.ListServicesResponse(services=[self._proto(record) for record in found], next_page_token=token)

    async def UpdateService(
        self, request: pb.UpdateServiceRequest, context: Context[pb.UpdateServiceRequest, resources_pb2.Service]
    ) -> resources_pb2.Service:
        _required(request.service.name, "service.name")
        record = await self._catalog.update(
            mapping.service_from_proto(request.service),
            request.update_mask.paths,
            etag=request.service.etag,
            validate_only=request.validate_only,
        )
        return self._proto(record)

    async def DeleteService(
        self, request: pb.DeleteServiceRequest, context: Context[pb.DeleteServiceRequest, empty_pb2.Empty]
    ) -> empty_pb2.Empty:
        await self._catalog.delete(_required(request.name, "name"), force=request.force, etag=request.etag)
        return empty_pb2.Empty()

    async def CheckHeartbeat(
        self, request: pb.CheckHeartbeatRequest, context: Context[pb.CheckHeartbeatRequest, pb.CheckHeartbeatResponse]
    ) -> pb.CheckHeartbeatResponse:
        record = self._catalog.service(_required(request.name, "name"))
        timeout = DEFAULT_HEARTBEAT_TIMEOUT
        if request.HasField("timeout"):
            timeout = request.timeout.ToNanoseconds() / 1e9
            if not 0 < timeout <= MAX_HEARTBEAT_TIMEOUT:
                raise FieldInvalid("timeout", f"must be above 0 and at most {MAX_HEARTBEAT_TIMEOUT:g} seconds")
        if not record.assigned_driver:
            _, why = self._catalog.state(record)
            raise DriverNotAvailable(f"{record.name} has no driver: {why}; call MatchDrivers, then AssignDriver")
        heartbeat = await self._catalog.sidecars.heartbeat(record.uid, timeout)
        return pb.CheckHeartbeatResponse(
            state=mapping.heartbeat_state(heartbeat),
            layers=[mapping.layer_to_proto(layer) for layer in heartbeat.layers],
            sidecar=heartbeat.sidecar,
            time=mapping.timestamp(self._catalog.now()),
        )

    async def WatchServices(
        self, request: pb.WatchServicesRequest, context: Context[pb.WatchServicesRequest, pb.WatchServicesResponse]
    ) -> AsyncIterator[pb.WatchServicesResponse]:
        terms = listing.service_filter(request.filter)
        sent: dict[str, bytes] = {}
        # A dict keeps the order of the changes and each name once: a slow reader gets the latest state, not all in between.
        changed: dict[str, None] = {}
        news = asyncio.Event()

        def note(name: str) -> None:
            changed[name] = None
            news.set()

        end = self._catalog.subscribe(note)
        try:
            changed.update(dict.fromkeys(sorted(self._catalog.services)))
            for response in self._changes(changed, terms, sent):
                yield response
            yield pb.WatchServicesResponse(synchronized=pb.WatchSynchronized())
            while True:
                await _first(news, self._catalog.closing)
                if self._catalog.closing.is_set():
                    raise Draining("the gateway stops; watch again", retry_after=1.0)
                news.clear()
                for response in self._changes(changed, terms, sent):
                    yield response
        finally:
            end()

    def _changes(
        self, changed: dict[str, None], terms: list[Term], sent: dict[str, bytes]
    ) -> list[pb.WatchServicesResponse]:
        """What is to be told of the services that have changed; empties `changed` and brings `sent` up to date."""
        responses = []
        names = list(changed)
        changed.clear()
        for name in names:
            record = self._catalog.services.get(name)
            if record is None:
                if sent.pop(name, None) is not None:
                    responses.append(pb.WatchServicesResponse(deleted=name))
                continue
            fits = self._fits(terms, record)
            if not fits and name not in sent:
                continue
            message = self._proto(record)
            data = message.SerializeToString(deterministic=True)
            if sent.get(name) != data:
                responses.append(pb.WatchServicesResponse(service=message))
            # One that the filter does not take any more is told once, so that the caller sees it leave.
            if fits:
                sent[name] = data
            else:
                del sent[name]
        return responses

    # --- drivers -----------------------------------------------------------------------------------------------------

    async def MatchDrivers(
        self, request: pb.MatchDriversRequest, context: Context[pb.MatchDriversRequest, pb.MatchDriversResponse]
    ) -> pb.MatchDriversResponse:
        if request.service:
            record = self._catalog.service(request.service)
            app, app_version, wanted = record.app, record.app_version, record.driver
        else:
            app, app_version, wanted = _required(request.app, "app"), request.app_version, ""
            if problem := version_problem(app_version):
                raise FieldInvalid("app_version", problem)
        match = self._catalog.match(app, app_version, wanted)
        return pb.MatchDriversResponse(
            candidates=[
                mapping.driver_to_proto(driver, self._catalog.services_of(driver.name)) for driver in match.candidates
            ],
            rejections=[
                pb.DriverRejection(driver=rejection.driver, cause=rejection.cause) for rejection in match.rejections
            ],
        )

    async def AssignDriver(
        self, request: pb.AssignDriverRequest, context: Context[pb.AssignDriverRequest, resources_pb2.Service]
    ) -> resources_pb2.Service:
        runtime = None
        if request.HasField("runtime"):
            runtime = mapping.service_from_proto(resources_pb2.Service(runtime=request.runtime)).runtime
        name = _required(request.service, "service")
        return self._proto(await self._catalog.assign(name, request.driver, runtime, request.etag))

    async def GetDriver(
        self, request: pb.GetDriverRequest, context: Context[pb.GetDriverRequest, resources_pb2.Driver]
    ) -> resources_pb2.Driver:
        record = self._catalog.driver(_required(request.name, "name"))
        return mapping.driver_to_proto(record, self._catalog.services_of(record.name))

    async def ListDrivers(
        self, request: pb.ListDriversRequest, context: Context[pb.ListDriversRequest, pb.ListDriversResponse]
    ) -> pb.ListDriversResponse:
        terms = listing.driver_filter(request.filter)
        found, token = listing.page(
            "ListDrivers",
            [record for record in self._catalog.drivers.values() if listing.driver_fits(terms, record)],
            listing.driver_key,
            listing.by_version,
            size=request.page_size,
            token=request.page_token,
            filter_text=request.filter,
        )
        return pb.ListDriversResponse(
            drivers=[mapping.driver_to_proto(record, self._catalog.services_of(record.name)) for record in found],
            next_page_token=token,
        )

    async def InstallDriver(
        self, request: pb.InstallDriverRequest, context: Context[pb.InstallDriverRequest, resources_pb2.Driver]
    ) -> resources_pb2.Driver:
        source = mapping.source_from_proto(request)
        record = await self._installer.install(source, validate_only=request.validate_only)
        return mapping.driver_to_proto(record, self._catalog.services_of(record.name))

    async def UninstallDriver(
        self, request: pb.UninstallDriverRequest, context: Context[pb.UninstallDriverRequest, empty_pb2.Empty]
    ) -> empty_pb2.Empty:
        await self._installer.uninstall(_required(request.name, "name"))
        return empty_pb2.Empty()

    # --- sidecars ----------------------------------------------------------------------------------------------------

    async def GetSidecar(
        self, request: pb.GetSidecarRequest, context: Context[pb.GetSidecarRequest, resources_pb2.Sidecar]
    ) -> resources_pb2.Sidecar:
        return mapping.sidecar_to_proto(self._catalog.sidecars.sidecar(_required(request.name, "name")))

    async def ListSidecars(
        self, request: pb.ListSidecarsRequest, context: Context[pb.ListSidecarsRequest, pb.ListSidecarsResponse]
    ) -> pb.ListSidecarsResponse:
        terms = listing.sidecar_filter(request.filter)
        found, token = listing.page(
            "ListSidecars",
            [record for record in self._catalog.sidecars.sidecars() if listing.sidecar_fits(terms, record)],
            listing.sidecar_key,
            listing.newest_first,
            size=request.page_size,
            token=request.page_token,
            filter_text=request.filter,
        )
        return pb.ListSidecarsResponse(
            sidecars=[mapping.sidecar_to_proto(record) for record in found], next_page_token=token
        )

    async def StreamSidecarLogs(
        self,
        request: pb.StreamSidecarLogsRequest,
        context: Context[pb.StreamSidecarLogsRequest, pb.StreamSidecarLogsResponse],
    ) -> AsyncIterator[pb.StreamSidecarLogsResponse]:
        tail = request.tail_lines if request.HasField("tail_lines") else DEFAULT_TAIL
        if not 0 <= tail <= MAX_TAIL:
            raise FieldInvalid("tail_lines", f"must be from 0 to {MAX_TAIL}")
        batches = self._catalog.sidecars.logs(_required(request.name, "name"), tail, request.follow)
        async for lines in _until(self._catalog.closing, batches):
            for start in range(0, len(lines), LINES_PER_MESSAGE):
                yield pb.StreamSidecarLogsResponse(
                    lines=[
                        pb.LogLine(**mapping.log_line_parts(line)) for line in lines[start : start + LINES_PER_MESSAGE]
                    ]
                )

    # --- inside ------------------------------------------------------------------------------------------------------

    def _proto(self, record: ServiceRecord) -> resources_pb2.Service:
        state, error = self._catalog.state(record)
        sidecars = self._catalog.sidecars.sidecars(record.uid)
        return mapping.service_to_proto(record, self._catalog.driver_of(record), state, error, sidecars)

    def _fits(self, terms: list[Term], record: ServiceRecord) -> bool:
        driver = self._catalog.driver_of(record)
        scope = driver.manifest.scope if driver is not None and driver.manifest is not None else ""
        return not terms or listing.service_fits(terms, record, scope, self._catalog.state(record)[0])


def _required(value: str, path: str) -> str:
    if not value:
        raise FieldRequired(path)
    return value


def _create_violations(request: pb.CreateServiceRequest) -> list[FieldViolation]:
    found = []
    if not request.service_id:
        found.append(FieldViolation("service_id", "is required"))
    elif not SERVICE_ID.fullmatch(request.service_id):
        found.append(FieldViolation("service_id", "must match [a-z][a-z0-9-]{0,62}"))
    return [*found, *request_id_violations(request.request_id)]


def _request_hash(request: pb.CreateServiceRequest) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def _until(closing: asyncio.Event, items: AsyncGenerator[T, None]) -> AsyncIterator[T]:
    """The items, up to their end; raises Draining when the gateway stops before."""
    closed = asyncio.ensure_future(closing.wait())
    try:
        async with contextlib.aclosing(items):
            while True:
                step = asyncio.ensure_future(_next(items))
                try:
                    await asyncio.wait((step, closed), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not step.done():
                        step.cancel()
                        await asyncio.gather(step, return_exceptions=True)
                if step.cancelled():
                    raise Draining("the gateway stops", retry_after=1.0)
                item = step.result()
                if item is None:
                    return
                yield item
    finally:
        closed.cancel()


async def _next(items: AsyncGenerator[T, None]) -> T | None:
    return await anext(items, None)
