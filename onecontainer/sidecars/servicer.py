"""RegistrationService on the internal listener: maps its messages to calls of the registrations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.driver.v1 import registration_pb2 as pb
from onecontainer.errors import FieldRequired, FieldViolation
from onecontainer.rpc.server import Context
from onecontainer.rpc.status import duration
from onecontainer.sidecars.registrations import Registration, Registrations


class Admission(Protocol):
    """What else has to be so before a sidecar that serves calls is taken in."""

    async def announce(self, service: str, manifest: driver_pb2.DriverManifest, descriptor_set: bytes) -> None:
        """Makes the driver known here, if it is not, and assigns it to the service, if that has none. Raises DataInvalid for a
        driver that cannot be used, ResourceNotFound for the service."""
        ...

    async def own(self, registration: Registration) -> None:
        """This gateway runs the sidecar's service from now on. Raises ResourceInUse if another one does, with another sidecar."""
        ...


class RegistrationServicer:
    """Serves `onecontainer.api.driver.v1.RegistrationService`."""

    def __init__(
        self,
        registrations: Registrations,
        job_source: Callable[[str, int], driver_pb2.JobSource],
        admission: Admission,
    ) -> None:
        self._registrations = registrations
        self._job_source = job_source
        self._admission = admission

    async def Register(
        self, requests: AsyncIterator[pb.RegisterRequest], context: Context
    ) -> AsyncIterator[pb.RegisterResponse]:
        registration: Registration | None = None
        try:
            async for request in requests:
                if registration is None:
                    registration = await self._register(request)
                    await self._own(registration)
                    yield self._welcome(registration)
                else:
                    retired = self._registrations.renew(registration, draining=request.draining)
                    await self._own(registration)
                    yield self._answer(registration, retired=retired)
        except BaseException:
            if registration is not None:
                self._registrations.broken(registration)
            raise
        if registration is not None:
            self._registrations.leave(registration)

    async def _own(self, registration: Registration) -> None:
        presence = registration.presence
        if presence is not None and not presence.draining.is_set():
            await self._admission.own(registration)

    async def _register(self, request: pb.RegisterRequest) -> Registration:
        absent = [name for name in ("service", "instance_id") if not getattr(request, name)]
        absent += [] if request.manifest.name else ["manifest.name"]
        if absent:
            raise FieldRequired(violations=[FieldViolation(name, "is required") for name in absent])
        manifest = request.manifest
        if request.endpoint and request.descriptor_set:
            await self._admission.announce(request.service, manifest, request.descriptor_set)
        return self._registrations.register(
            request.service,
            manifest.name,
            request.instance_id,
            request.slots,
            version=manifest.version,
            endpoint=request.endpoint,
            draining=request.draining,
        )

    def _welcome(self, registration: Registration) -> pb.RegisterResponse:
        identity = registration.identity
        response = self._answer(registration)
        response.instance_token = registration.token
        response.service_uid = identity.service_uid
        if registration.presence is None:
            response.job_source.CopyFrom(self._job_source(identity.service_uid, identity.slots))
        return response

    def _answer(self, registration: Registration, *, retired: bool = False) -> pb.RegisterResponse:
        return pb.RegisterResponse(
            sidecar=registration.identity.instance,
            lease_duration=duration(self._registrations.lease),
            retired=retired,
        )
