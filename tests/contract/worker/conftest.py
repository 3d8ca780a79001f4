"""A registration desk on a real socket: the registered workers behind RegistrationService."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from onecontainer.api.driver.v1 import driver_pb2, registration_pb2, registration_pb2_grpc
from onecontainer.clock import SystemClock
from onecontainer.errors import OneContainerError, ResourceInUse, ResourceNotFound
from onecontainer.gateway.instances import RegistrationTokenOnly
from onecontainer.rpc.channel import open_channel, server_options
from onecontainer.rpc.server import service_handler
from onecontainer.rpc.status import from_rpc_error
from onecontainer.rpc.writing import write
from onecontainer.sidecars.registrations import Post, Registration, Registrations
from onecontainer.sidecars.servicer import RegistrationServicer

TOKEN = "registration-s3cret"
LEASE = 30.0


def post(driver: str = "echo", version: str = "1.0.0", *, serves: bool = True) -> Post:
    return Post("uid-1", f"drivers/{driver}-{version}", driver, 3, version, serves)


class RegisterCall:
    """A Register stream."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]
        self.call = call

    async def say(self, **fields: object) -> registration_pb2.RegisterResponse:
        """Sends a message and returns its answer. Raises the typed error that the stream ends with."""
        try:
            # Not by the call's own write, which loses the status of a server that refuses the stream before it is written to.
            await write(self.call, registration_pb2.RegisterRequest(**fields))  # type: ignore[arg-type]
            answer = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        assert isinstance(answer, registration_pb2.RegisterResponse), "the stream has ended"
        return answer

    async def announce(self, instance_id: str = "one", **fields: object) -> registration_pb2.RegisterResponse:
        manifest = driver_pb2.DriverManifest(name="echo", version="1.0.0")
        return await self.say(
            **{"service": "services/echo", "manifest": manifest, "instance_id": instance_id, **fields}
        )

    async def leave(self) -> None:
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF

    def break_off(self) -> None:
        self.call.cancel()


class Desk:
    """Services to register for, and the gateway's side of the registrations."""

    def __init__(self, lease: float = LEASE) -> None:
        self.posts = {"services/echo": post()}
        self.lease = lease
        self.changes: list[str] = []
        self.ends: list[tuple[str, bool]] = []
        self.announced: list[tuple[str, str, bytes]] = []
        self.elsewhere: ResourceInUse | None = None
        """What another gateway has against it."""
        self.start()

    def start(self) -> None:
        """A gateway that has just started knows nobody."""
        self.workers = Registrations(
            TOKEN,
            post_of=self._post,
            clock=SystemClock(),
            lease=self.lease,
            on_change=self.changes.append,
            on_end=lambda instance, left: self.ends.append((instance, left)),
        )

    async def announce(self, service: str, manifest: driver_pb2.DriverManifest, descriptor_set: bytes) -> None:
        self.announced.append((service, manifest.name, descriptor_set))

    async def own(self, registration: Registration) -> None:
        if self.elsewhere is not None:
            raise self.elsewhere

    def _post(self, service: str) -> Post:
        if service not in self.posts:
            raise ResourceNotFound(f"there is no {service}", resource=("onecontainer.dev/Service", service))
        return self.posts[service]

    def handler(self) -> grpc.GenericRpcHandler:
        def source(uid: str, slots: int) -> driver_pb2.JobSource:
            assert uid == "uid-1"
            return driver_pb2.JobSource(internal_target="unix:x", embedded=driver_pb2.EmbeddedDispatch(), slots=slots)

        service = registration_pb2.DESCRIPTOR.services_by_name["RegistrationService"]
        return service_handler(RegistrationServicer(self.workers, source, self), service, RegistrationTokenOnly(TOKEN))

    @property
    def states(self) -> list[str]:
        return [record.state.value for record in self.workers.workers()]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short temporary folder: the path of a UNIX socket has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="oc-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def desk() -> Desk:
    return Desk()


@pytest.fixture
async def channel(desk: Desk, folder: Path) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers((desk.handler(),))
    server.add_insecure_port(f"unix:{folder}/internal.sock")
    await server.start()
    async with open_channel(f"unix:{folder}/internal.sock") as channel:
        yield channel
    await server.stop(None)


def register(channel: grpc.aio.Channel, token: str = TOKEN) -> RegisterCall:
    stub = registration_pb2_grpc.RegistrationServiceStub(channel)
    return RegisterCall(stub.Register(metadata=(("authorization", f"Bearer {token}"),)))  # type: ignore[arg-type]


async def refusal(waiting: object) -> OneContainerError:
    """The typed error of what fails."""
    try:
        await waiting  # type: ignore[misc]
    except OneContainerError as error:
        return error
    raise AssertionError("it was not refused")
