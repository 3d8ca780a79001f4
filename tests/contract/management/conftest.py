"""ManagementService over a real server, a real database and real sidecar processes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from onecontainer.api.management.v1 import management_service_pb2 as pb
from onecontainer.api.management.v1 import management_service_pb2_grpc, resources_pb2
from onecontainer.catalog.catalog import Catalog
from onecontainer.catalog.installing import CheckInstalled, Installer, unchecked
from onecontainer.catalog.model import DriverSource
from onecontainer.catalog.plugins import PluginShelf
from onecontainer.catalog.servicer import ManagementServicer
from onecontainer.catalog.sources import Sources
from onecontainer.catalog.sql import SqlCatalogStore
from onecontainer.catalog.sql_plugins import SqlPluginStore
from onecontainer.clock import SystemClock
from onecontainer.database import Database
from onecontainer.errors import LimitExceeded, OneContainerError, ResourceNotFound
from onecontainer.gateway import migrations
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.server import StaticTokens, service_handler
from onecontainer.rpc.status import from_rpc_error
from onecontainer.sidecars.folders import Folders
from onecontainer.sidecars.policy import Policy
from onecontainer.sidecars.runtimes.attached import AttachedRuntime
from onecontainer.sidecars.runtimes.process import ProcessRuntime
from onecontainer.sidecars.secrets import SecretStore
from onecontainer.sidecars.supervisor import Supervisor
from tests.fixtures.echo_folder import write_driver

PROGRAM = Path(__file__).parent.parent / "sidecars" / "program.py"
LIMIT = 180.0


class FakeLiveJobs:
    """`LiveJobs`: so many jobs per service uid as the test says."""

    def __init__(self) -> None:
        self.live: dict[str, int] = {}
        self.cancelled: list[str] = []

    async def count(self, service_uid: str) -> int:
        return self.live.get(service_uid, 0)

    async def cancel_all(self, service_uid: str) -> None:
        self.cancelled.append(service_uid)
        self.live.pop(service_uid, None)


class FakeArchives:
    """What was uploaded, by name."""

    def __init__(self) -> None:
        self.uploaded: dict[str, bytes] = {}

    async def read(self, name: str, max_bytes: int) -> bytes:
        if name not in self.uploaded:
            raise ResourceNotFound(f"{name} does not exist")
        if len(self.uploaded[name]) > max_bytes:
            raise LimitExceeded(f"{name} is too large")
        return self.uploaded[name]


class Station:
    """One gateway's management half at a time, on one data folder; `restart` is another gateway on the same folder."""

    def __init__(self, root: Path, run_dir: Path) -> None:
        self.root = root
        self.run_dir = run_dir
        self.jobs = FakeLiveJobs()
        self.archives = FakeArchives()
        self.check: CheckInstalled = unchecked
        self.stub: management_service_pb2_grpc.ManagementServiceAsyncStub
        self.supervisor: Supervisor
        self.catalog: Catalog
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        stack = self._stack = AsyncExitStack()
        clock = SystemClock()
        database = await stack.enter_async_context(Database(f"sqlite:///{self.root / 'catalog.db'}"))
        await asyncio.to_thread(migrations.upgrade, database.engine)
        secrets = SecretStore(self.root / "secrets", {"ONECONTAINER_SECRET_PASSWORD": "hush"})
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
        self.supervisor = await stack.enter_async_context(
            Supervisor(
                [
                    ProcessRuntime(lambda target: [sys.executable, str(PROGRAM), str(target.folder)], environment),
                    AttachedRuntime(),
                ],
                folders=Folders(self.root / "data", self.run_dir),
                secrets=secrets,
                clock=clock,
                policy=Policy(probe_interval=0.2, first_probe_interval=0.02, backoff_initial=0.05, stop_grace=2),
                job_source=lambda _target: None,
            )
        )
        store = SqlCatalogStore(database)
        shelf = PluginShelf(SqlPluginStore(database), self.root / "data" / "drivers")
        self.catalog = Catalog(
            store,
            self.supervisor,
            secrets,
            self.jobs,
            clock,
            driver_folders=[(self.root / "drivers", DriverSource.PLUGIN)],
            plugins=shelf,
        )
        await self.catalog.start()
        sources = Sources(
            self.archives.read,
            folders=[self.root / "allowed"],
            git_urls=[f"file://{self.root / 'git'}"],
            max_bytes=1_000_000,
            git_timeout=120,
        )
        installer = Installer(self.catalog, shelf, store, sources, check=self.check)
        server = grpc.aio.server()
        service = pb.DESCRIPTOR.services_by_name["ManagementService"]
        server.add_generic_rpc_handlers(
            (
                service_handler(
                    ManagementServicer(self.catalog, installer), service, StaticTokens({"bob": "bob"}, "local")
                ),
            )
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0.1)
        channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{port}"))
        self.stub = management_service_pb2_grpc.ManagementServiceStub(channel)

    async def stop(self) -> None:
        self.catalog.close()
        await self._stack.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def create(self, service_id: str = "a", **fields: object) -> resources_pb2.Service:
        service = resources_pb2.Service(**{"app": "echo:latest", "app_version": "1.2"} | fields)
        return await self.stub.CreateService(pb.CreateServiceRequest(service=service, service_id=service_id))

    async def get(self, name: str = "services/a") -> resources_pb2.Service:
        return await self.stub.GetService(pb.GetServiceRequest(name=name))

    async def until(
        self, condition: Callable[[resources_pb2.Service], bool], name: str = "services/a"
    ) -> resources_pb2.Service:
        """Watches until a service is as it should be, and returns it."""
        async with asyncio.timeout(LIMIT):
            call = self.stub.WatchServices(pb.WatchServicesRequest())
            try:
                async for response in call:
                    if response.service.name == name and condition(response.service):
                        return response.service
            finally:
                call.cancel()
        raise AssertionError("the watch ended")

    async def ready(self, name: str = "services/a") -> resources_pb2.Service:
        return await self.until(lambda service: service.state == resources_pb2.SERVICE_STATE_READY, name)


async def failure(call: Awaitable[object]) -> OneContainerError:
    """The typed error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


@pytest.fixture(name="failure")
def failure_fixture() -> Callable[[Awaitable[object]], Awaitable[OneContainerError]]:
    return failure


@pytest.fixture(name="add_driver")
def add_driver_fixture(tmp_path: Path) -> Callable[..., Path]:
    return lambda folder, **changes: write_driver(tmp_path / "drivers", folder, **changes)


@pytest.fixture
async def station(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Station]:
    write_driver(tmp_path / "drivers", "echo")
    write_driver(tmp_path / "drivers", "other", name="other", app="other")
    found = Station(tmp_path, tmp_path_factory.mktemp("r"))
    await found.start()
    yield found
    await found.stop()
