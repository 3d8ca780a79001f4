"""Services, drivers and sidecars."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from google.protobuf import field_mask_pb2

from onecontainer.api.management.v1 import management_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.api.management.v1.management_service_pb2_grpc import ManagementServiceStub
from onecontainer.client.calls import Caller, Deadline
from onecontainer.client.names import all_pages, filter_of, full_name, seconds, struct
from onecontainer.errors import DeadlineExceeded, OneContainerError, ResourceNotFound, StateInvalid
from onecontainer.rpc.status import from_status

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["ManagementService"]
UPDATABLE = ("description", "app", "app_version", "endpoints", "options", "labels", "driver", "runtime", "job_limits")
SETTLED = (resources_pb2.SERVICE_STATE_UNASSIGNED, resources_pb2.SERVICE_STATE_FAILED)
"""States that a service does not leave by itself."""


class Services:
    """Registered backends.

    Attributes:
        stub: the generated ManagementService stub, for what has no method here.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.stub = caller.stub(ManagementServiceStub, DESCRIPTOR)

    async def create(
        self,
        service_id: str,
        app: str,
        *,
        app_version: str = "",
        endpoints: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        description: str = "",
        driver: str = "",
        runtime: resources_pb2.Runtime | None = None,
        job_limits: resources_pb2.JobLimits | None = None,
        request_id: str = "",
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> resources_pb2.Service:
        """Registers a backend and starts its sidecar. Answers before it is READY: see `wait_ready`."""
        service = resources_pb2.Service(
            description=description,
            app=app,
            app_version=app_version,
            endpoints=endpoints or {},
            options=struct(options),
            labels=labels or {},
            driver=full_name("drivers", driver),
            runtime=runtime,
            job_limits=job_limits,
        )
        request = pb.CreateServiceRequest(
            service=service, service_id=service_id, request_id=request_id, validate_only=validate_only
        )
        return await self._caller.unary(self.stub.CreateService, request, timeout=timeout)

    async def get(self, name: str, *, timeout: float | None = None) -> resources_pb2.Service:
        """One service; raises ResourceNotFound."""
        request = pb.GetServiceRequest(name=full_name("services", name))
        return await self._caller.unary(self.stub.GetService, request, timeout=timeout)

    async def list(
        self,
        *,
        filter: str = "",  # noqa: A002 - the contract's word
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Sequence[resources_pb2.Service]:
        """All services that the filter takes, by name."""

        async def fetch(size: int, token: str) -> tuple[Sequence[resources_pb2.Service], str]:
            request = pb.ListServicesRequest(page_size=size, page_token=token, filter=filter)
            page = await self._caller.unary(self.stub.ListServices, request, timeout=timeout)
            return page.services, page.next_page_token

        return [service async for service in all_pages(fetch, limit)]

    async def update(
        self,
        name: str,
        changes: resources_pb2.Service,
        *,
        paths: Sequence[str] = (),
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> resources_pb2.Service:
        """Changes the fields named by `paths` (`options.KEY` and `job_limits.FIELD` too), or else those that are set in `changes`.

        With `changes.etag` set, raises EtagMismatch if somebody else was faster.
        """
        service = resources_pb2.Service()
        service.CopyFrom(changes)
        service.name = full_name("services", name)
        request = pb.UpdateServiceRequest(service=service, validate_only=validate_only)
        if paths:
            request.update_mask.CopyFrom(field_mask_pb2.FieldMask(paths=paths))
        return await self._caller.unary(self.stub.UpdateService, request, timeout=timeout)

    async def delete(self, name: str, *, force: bool = False, etag: str = "", timeout: float | None = None) -> None:
        """Deletes a service. Raises ResourceInUse while it has live jobs, unless `force` ends them."""
        request = pb.DeleteServiceRequest(name=full_name("services", name), force=force, etag=etag)
        await self._caller.unary(self.stub.DeleteService, request, timeout=timeout)

    async def check_heartbeat(
        self, name: str, *, layer_timeout: float | None = None, timeout: float | None = None
    ) -> pb.CheckHeartbeatResponse:
        """Asks sidecar, driver and backend now; what does not work is in the answer, not an error."""
        request = pb.CheckHeartbeatRequest(name=full_name("services", name), timeout=seconds(layer_timeout))
        return await self._caller.unary(self.stub.CheckHeartbeat, request, timeout=timeout)

    async def match_drivers(
        self, service: str = "", *, app: str = "", app_version: str = "", timeout: float | None = None
    ) -> pb.MatchDriversResponse:
        """Drivers that fit a service, or an app and version, best first, and why the others do not."""
        request = pb.MatchDriversRequest(service=full_name("services", service), app=app, app_version=app_version)
        return await self._caller.unary(self.stub.MatchDrivers, request, timeout=timeout)

    async def assign_driver(
        self,
        service: str,
        driver: str = "",
        *,
        runtime: resources_pb2.Runtime | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> resources_pb2.Service:
        """Gives a service a driver (the best match if none is named) and starts its sidecar anew."""
        request = pb.AssignDriverRequest(
            service=full_name("services", service), driver=full_name("drivers", driver), runtime=runtime, etag=etag
        )
        return await self._caller.unary(self.stub.AssignDriver, request, timeout=timeout)

    async def watch(
        self,
        *,
        filter: str = "",  # noqa: A002 - the contract's word
        timeout: float | None = None,
    ) -> AsyncGenerator[pb.WatchServicesResponse]:
        """All services, then `synchronized`, then each change. After a broken connection it starts over by itself."""

        def start(left: float | None) -> AsyncGenerator[pb.WatchServicesResponse]:
            return self._caller.stream(self.stub.WatchServices, pb.WatchServicesRequest(filter=filter), timeout=left)

        async for event in self._caller.resumed(start, timeout=timeout):
            yield event

    async def wait_ready(
        self,
        *names: str,
        timeout: float = 60.0,
        on_progress: Callable[[resources_pb2.Service], None] | None = None,
    ) -> Sequence[resources_pb2.Service]:
        """Waits until all named services are READY, and returns them in that order. `on_progress` is told of each change of one of them.

        Raises the service's own error as soon as one cannot become ready by itself (FAILED, UNASSIGNED), ResourceNotFound if
        one is not there, and DeadlineExceeded with the last known cause when the time is over.
        """
        wanted = [full_name("services", name) for name in names]
        seen: dict[str, resources_pb2.Service] = {}
        deadline = Deadline(timeout)
        watch = self.watch(timeout=deadline.remaining())
        try:
            async for event in watch:
                match event.WhichOneof("event"):
                    case "service":
                        seen[event.service.name] = event.service
                        if on_progress is not None and event.service.name in wanted:
                            on_progress(event.service)
                    case "deleted" if event.deleted in wanted:
                        raise _no_service(event.deleted)
                    case "synchronized":
                        for name in wanted:
                            if name not in seen:
                                raise _no_service(name)
                if all(name in seen for name in wanted) and self._all_ready([seen[name] for name in wanted]):
                    break
        except DeadlineExceeded:
            late = [seen[n] for n in wanted if n in seen and seen[n].state != resources_pb2.SERVICE_STATE_READY]
            raise self._late(late, timeout) from None
        finally:
            await watch.aclose()
        return [seen[name] for name in wanted]

    @staticmethod
    def _all_ready(services: Sequence[resources_pb2.Service]) -> bool:
        for service in services:
            if service.state in SETTLED:
                raise service_error(service)
        return all(service.state == resources_pb2.SERVICE_STATE_READY for service in services)

    @staticmethod
    def _late(services: Sequence[resources_pb2.Service], timeout: float) -> DeadlineExceeded:
        words = [
            f"{service.name} is {state_name(service)}" + (f": {service.error.message}" if service.error.message else "")
            for service in services
        ]
        return DeadlineExceeded(f"not ready after {timeout:g} s: " + ("; ".join(words) or "nothing was heard"))


class Drivers:
    """Installed drivers."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.stub = caller.stub(ManagementServiceStub, DESCRIPTOR)

    async def get(self, name: str, *, timeout: float | None = None) -> resources_pb2.Driver:
        """One driver, `drivers/{name}-{version}`; raises ResourceNotFound."""
        request = pb.GetDriverRequest(name=full_name("drivers", name))
        return await self._caller.unary(self.stub.GetDriver, request, timeout=timeout)

    async def list(
        self,
        *,
        filter: str = "",  # noqa: A002 - the contract's word
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Sequence[resources_pb2.Driver]:
        """All drivers that the filter takes, broken ones too."""

        async def fetch(size: int, token: str) -> tuple[Sequence[resources_pb2.Driver], str]:
            request = pb.ListDriversRequest(page_size=size, page_token=token, filter=filter)
            page = await self._caller.unary(self.stub.ListDrivers, request, timeout=timeout)
            return page.drivers, page.next_page_token

        return [driver async for driver in all_pages(fetch, limit)]

    async def install(
        self,
        *,
        folder: str = "",
        artifact: str = "",
        git: pb.GitSource | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> resources_pb2.Driver:
        """Installs a plug-in driver from exactly one of the sources."""
        request = pb.InstallDriverRequest(validate_only=validate_only)
        if folder:
            request.folder = folder
        elif artifact:
            request.artifact = full_name("artifacts", artifact)
        elif git is not None:
            request.git.CopyFrom(git)
        return await self._caller.unary(self.stub.InstallDriver, request, timeout=timeout)

    async def uninstall(self, name: str, *, timeout: float | None = None) -> None:
        """Removes a plug-in driver; raises ResourceInUse while services use it."""
        request = pb.UninstallDriverRequest(name=full_name("drivers", name))
        await self._caller.unary(self.stub.UninstallDriver, request, timeout=timeout)


class Sidecars:
    """Running drivers."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.stub = caller.stub(ManagementServiceStub, DESCRIPTOR)

    async def get(self, name: str, *, timeout: float | None = None) -> resources_pb2.Sidecar:
        """One sidecar; raises ResourceNotFound. Every start of a driver is a new one."""
        request = pb.GetSidecarRequest(name=full_name("sidecars", name))
        return await self._caller.unary(self.stub.GetSidecar, request, timeout=timeout)

    async def list(
        self, *, service: str = "", limit: int | None = None, timeout: float | None = None
    ) -> Sequence[resources_pb2.Sidecar]:
        """Sidecars, newest first; of one service only, if it is named."""
        terms = filter_of({"service": full_name("services", service)})

        async def fetch(size: int, token: str) -> tuple[Sequence[resources_pb2.Sidecar], str]:
            request = pb.ListSidecarsRequest(page_size=size, page_token=token, filter=terms)
            page = await self._caller.unary(self.stub.ListSidecars, request, timeout=timeout)
            return page.sidecars, page.next_page_token

        return [sidecar async for sidecar in all_pages(fetch, limit)]

    async def logs(
        self, name: str, *, tail: int | None = None, follow: bool = False, timeout: float | None = None
    ) -> AsyncGenerator[pb.LogLine]:
        """The last lines that a sidecar wrote; with `follow` each further one until it ends."""
        request = pb.StreamSidecarLogsRequest(name=full_name("sidecars", name), tail_lines=tail, follow=follow)
        async for answer in self._caller.stream(self.stub.StreamSidecarLogs, request, timeout=timeout):
            for line in answer.lines:
                yield line


def _no_service(name: str) -> ResourceNotFound:
    return ResourceNotFound(f"there is no {name}", resource=("onecontainer.dev/Service", name))


def state_name(service: resources_pb2.Service) -> str:
    """READY, STARTING …"""
    return resources_pb2.ServiceState.Name(service.state).removeprefix("SERVICE_STATE_")


def service_error(service: resources_pb2.Service) -> OneContainerError:
    """Why a service is not READY, as the typed error that its record holds."""
    if service.error.code:
        error = from_status(service.error)
        error.message = f"{service.name} is {state_name(service)}: {error.message}"
        error.args = (error.message,)
        return error
    return StateInvalid(f"{service.name} is {state_name(service)}", resource=("service", service.name))
