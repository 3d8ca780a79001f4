"""A sidecar that registers itself with a gateway: what it says of itself, and how it comes and goes."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import ServiceDescriptor

from onecontainer.api.driver.v1 import registration_pb2 as pb
from onecontainer.driver.lifecycle import Sidecar
from onecontainer.driver.registration import Registration, is_passing
from onecontainer.errors import OneContainerError, Reason
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.descriptors import with_dependencies
from onecontainer.rpc.manifest import manifest_to_proto

log = logging.getLogger(__name__)

WAITED_OUT = frozenset({Reason.RESOURCE_NOT_FOUND, Reason.DRIVER_NOT_AVAILABLE, Reason.RESOURCE_IN_USE})
"""Service, driver and gateway may come in any order, and a successor waits until its place is free."""


class Announcement:
    """Keeps a sidecar registered. An async context manager: entering it begins, leaving it takes leave."""

    def __init__(self, sidecar: Sidecar, endpoint: str) -> None:
        """``endpoint`` is where the gateway reaches it. Raises ValueError or OSError for a registration token that cannot be read."""
        settings = sidecar.settings
        self._sidecar = sidecar
        self._token = settings.registration_token()
        self._request = pb.RegisterRequest(
            service=f"services/{settings.service.removeprefix('services/')}",
            endpoint=endpoint,
            manifest=manifest_to_proto(sidecar.manifest),
            # A new one for each process: what another one held must not be taken for ours.
            instance_id=f"sidecar-{secrets.token_hex(8)}",
            descriptor_set=descriptor_set(sidecar.services),
        )
        self._channel: grpc.aio.Channel | None = None
        self._registration: Registration | None = None

    async def __aenter__(self) -> Announcement:
        settings = self._sidecar.settings
        ca_file = None if settings.gateway.startswith("unix:") else settings.tls_ca_file
        # Jobs and artifacts go the same way as the registration: of several gateways it is the one that knows this sidecar.
        self._channel = open_channel(settings.gateway, max_message_bytes=settings.max_message_bytes, ca_file=ca_file)
        self._sidecar.gateway_channel = self._channel
        self._registration = Registration(
            self._channel, self._token, self._request, passing=_is_waited_out, on_welcome=self._welcome
        )
        await self._registration.__aenter__()
        return self

    def _welcome(self, response: pb.RegisterResponse) -> None:
        self._sidecar.registered(response.sidecar, response.instance_token)
        log.info("registered as %s, at %s", response.sidecar, self._request.endpoint)

    async def wait_end(self) -> None:
        """Returns when the gateway wants nothing more of it: its service has another driver. Raises what waiting does not mend."""
        registration = self._registration
        assert registration is not None
        ending = asyncio.ensure_future(registration.wait_end())
        retired = asyncio.ensure_future(registration.retired.wait())
        try:
            await asyncio.wait((ending, retired), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                ending.result()
            else:
                log.warning("%s has another driver now: this sidecar ends", self._request.service)
        finally:
            for wait in (ending, retired):
                wait.cancel()
            await asyncio.gather(ending, retired, return_exceptions=True)

    def drain(self) -> None:
        """The gateway sends no more calls here; what runs may still be reported."""
        if self._registration is not None:
            self._registration.drain()

    async def __aexit__(self, *_exception: object) -> None:
        if self._registration is not None:
            await self._registration.leave()
            await self._registration.__aexit__(None, None, None)
        if self._channel is not None:
            await self._channel.close()


def _is_waited_out(error: OneContainerError) -> bool:
    return is_passing(error) or error.reason in WAITED_OUT


def descriptor_set(services: Iterable[ServiceDescriptor]) -> bytes:
    """The serialised FileDescriptorSet of service APIs, with all imports, in dependency order."""
    found = with_dependencies(service.file for service in services)
    files = [descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb) for file in found]
    return descriptor_pb2.FileDescriptorSet(file=files).SerializeToString()
