"""RegistrationService on the internal listener: maps its messages to calls of the registered workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.driver.v1 import registration_pb2 as pb
from onecontainer.errors import CapabilityMissing, FieldRequired, FieldViolation
from onecontainer.rpc.server import Context
from onecontainer.rpc.status import duration
from onecontainer.sidecars.workers import RegisteredWorkers, Registration


class RegistrationServicer:
    """Serves `onecontainer.api.driver.v1.RegistrationService`."""

    def __init__(self, workers: RegisteredWorkers, job_source: Callable[[str, int], driver_pb2.JobSource]) -> None:
        self._workers = workers
        self._job_source = job_source

    async def Register(
        self, requests: AsyncIterator[pb.RegisterRequest], context: Context
    ) -> AsyncIterator[pb.RegisterResponse]:
        registration: Registration | None = None
        try:
            async for request in requests:
                if registration is None:
                    registration = self._register(request)
                    yield self._welcome(registration)
                else:
                    retired = self._workers.renew(registration)
                    yield self._answer(registration, retired=retired)
        except BaseException:
            if registration is not None:
                self._workers.broken(registration)
            raise
        if registration is not None:
            self._workers.leave(registration)

    def _register(self, request: pb.RegisterRequest) -> Registration:
        if request.endpoint:
            raise CapabilityMissing(
                "a sidecar that serves calls cannot register itself: give its address as `runtime.endpoint` of the service; "
                "without an endpoint it is registered as a worker only"
            )
        absent = [name for name in ("service", "instance_id") if not getattr(request, name)]
        absent += [] if request.manifest.name else ["manifest.name"]
        if absent:
            raise FieldRequired(violations=[FieldViolation(name, "is required") for name in absent])
        return self._workers.register(request.service, request.manifest.name, request.instance_id, request.slots)

    def _welcome(self, registration: Registration) -> pb.RegisterResponse:
        identity = registration.identity
        response = self._answer(registration)
        response.instance_token = registration.token
        response.service_uid = identity.service_uid
        response.job_source.CopyFrom(self._job_source(identity.service_uid, identity.slots))
        return response

    def _answer(self, registration: Registration, *, retired: bool = False) -> pb.RegisterResponse:
        return pb.RegisterResponse(
            sidecar=registration.identity.instance,
            lease_duration=duration(self._workers.lease),
            retired=retired,
        )
