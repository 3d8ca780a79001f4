"""The two servers, by what they serve: the public one for everybody, the internal one for sidecars."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.driver.v1 import registration_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2, job_service_pb2
from onecontainer.api.management.v1 import management_service_pb2
from onecontainer.artifacts.artifacts import Artifacts
from onecontainer.artifacts.servicer import ArtifactServicer
from onecontainer.catalog.catalog import Catalog
from onecontainer.catalog.matching import newest_first
from onecontainer.catalog.servicer import ManagementServicer
from onecontainer.clock import Clock
from onecontainer.gateway.instances import InstanceTokensOnly, RegistrationTokenOnly
from onecontainer.gateway.listeners import new_server, public_authenticator
from onecontainer.gateway.reflection import Reflection
from onecontainer.gateway.relay import Relay
from onecontainer.gateway.routing import Routes
from onecontainer.jobs import mapping
from onecontainer.jobs.jobs import Jobs
from onecontainer.jobs.model import NewJob
from onecontainer.jobs.servicer import JobServicer
from onecontainer.jobs.servicer_lease import JobLeaseServicer
from onecontainer.rpc.server import Call, service_handler
from onecontainer.settings import Settings
from onecontainer.sidecars.servicer import RegistrationServicer

PUBLIC_SERVICES = (
    management_service_pb2.DESCRIPTOR.services_by_name["ManagementService"],
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
    artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
)

Refusal = Callable[[str], BaseException | None]
"""By a method's name: why it takes no calls now, None if it does."""


def internal_server(
    settings: Settings,
    authenticator: InstanceTokensOnly,
    leases: JobLeaseServicer,
    artifacts: Artifacts,
    registrations: RegistrationServicer,
    registration_tokens: RegistrationTokenOnly,
    *,
    unless: Refusal,
) -> grpc.aio.Server:
    """For sidecars and workers; not bound yet."""
    lease_service = job_lease_service_pb2.DESCRIPTOR.services_by_name["JobLeaseService"]
    registration_service = registration_pb2.DESCRIPTOR.services_by_name["RegistrationService"]
    return new_server(
        settings,
        [
            service_handler(leases, lease_service, authenticator),
            service_handler(ArtifactServicer(artifacts, internal=True), PUBLIC_SERVICES[2], authenticator),
            service_handler(registrations, registration_service, registration_tokens, unless=unless),
        ],
    )


def public_server(
    settings: Settings,
    management: ManagementServicer,
    catalog: Catalog,
    routes: Routes,
    jobs: Jobs,
    artifacts: Artifacts,
    clock: Clock,
    *,
    unless: Refusal,
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """For everybody: our own services, and by relay those of the drivers; not bound yet."""
    authenticator = public_authenticator(settings)
    servicers: tuple[object, ...] = (management, JobServicer(jobs, clock), ArtifactServicer(artifacts))

    async def long_call(service: str, method: str, request: bytes, call: Call) -> bytes:
        job = await jobs.call(service, method, request, call.principal, call.traceparent)
        answer = mapping.new_to_proto(job) if isinstance(job, NewJob) else mapping.job_to_proto(job, clock.now())
        return answer.SerializeToString()

    reflection = Reflection(
        [service.file for service in PUBLIC_SERVICES], [service.full_name for service in PUBLIC_SERVICES]
    )

    def drivers_changed() -> None:
        routes.update()
        reflection.update(
            (driver.id, driver.methods.services, driver.methods.file_descriptor_protos)
            for driver in newest_first(catalog.drivers.values())
            if driver.methods is not None
        )

    drivers_changed()
    catalog.subscribe_drivers(drivers_changed)
    relay = Relay(
        routes,
        authenticator,
        long_call,
        max_message_bytes=settings.max_message_bytes,
        unary_timeout=settings.unary_timeout,
        margin=settings.deadline_margin,
        unless=unless,
    )
    server = new_server(
        settings,
        [
            *(
                service_handler(servicer, service, authenticator, unless=unless)
                for servicer, service in zip(servicers, PUBLIC_SERVICES, strict=True)
            ),
            *reflection.handlers(),
        ],
    )
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    server.add_generic_rpc_handlers((relay,))
    return server, health_servicer
