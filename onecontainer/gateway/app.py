"""The composition root: the one place that names implementations, and the life of a gateway from start to drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health
from platformdirs import user_cache_path

from onecontainer import __version__
from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.artifacts.artifacts import Artifacts
from onecontainer.artifacts.files import FileArtifactStore, folder_of_url
from onecontainer.artifacts.sweep import ArtifactSweeper
from onecontainer.catalog.catalog import Catalog
from onecontainer.catalog.drivers import bundled_folder
from onecontainer.catalog.installing import Installer
from onecontainer.catalog.model import DriverSource
from onecontainer.catalog.plugins import PluginShelf
from onecontainer.catalog.servicer import ManagementServicer
from onecontainer.catalog.sources import Sources
from onecontainer.catalog.sql import SqlCatalogStore
from onecontainer.catalog.sql_plugins import SqlPluginStore
from onecontainer.clock import Clock, SystemClock
from onecontainer.cluster.leadership import Alone, Leadership
from onecontainer.database import Database
from onecontainer.errors import Draining
from onecontainer.gateway import migrations
from onecontainer.gateway.admission import Admission
from onecontainer.gateway.bindings import ArtifactArchives, ArtifactPayloads, AttemptArtifacts, LedgerView, LiveJobs
from onecontainer.gateway.instances import InstanceTokensOnly, InstanceWatch, RegistrationTokenOnly
from onecontainer.gateway.listeners import (
    bind_for_containers,
    bind_internal,
    bind_public,
    check_free,
    sidecar_roots,
)
from onecontainer.gateway.lock import DataFolder, Note
from onecontainer.gateway.routing import JobDirectory, Routes
from onecontainer.gateway.servers import internal_server, public_server
from onecontainer.gateway.smoke import SmokeTest
from onecontainer.gateway.tasks import Tasks
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.dispatch.embedded import EmbeddedDispatch
from onecontainer.jobs.dispatch.port import Dispatch
from onecontainer.jobs.jobs import Jobs
from onecontainer.jobs.ledger import Ledger
from onecontainer.jobs.servicer_lease import JobLeaseServicer
from onecontainer.jobs.sql import SqlLedger
from onecontainer.jobs.sql_outbox import SqlOutbox
from onecontainer.jobs.unconfirmed import Unconfirmed
from onecontainer.settings import Settings, is_loopback, kafka_servers, private_folder, runtime_dir
from onecontainer.sidecars.authority import Authority
from onecontainer.sidecars.folders import Folders
from onecontainer.sidecars.model import Target
from onecontainer.sidecars.policy import Policy
from onecontainer.sidecars.registrations import Post, Registrations
from onecontainer.sidecars.runtimes.attached import AttachedRuntime
from onecontainer.sidecars.runtimes.docker import DockerRuntime, DockerSettings
from onecontainer.sidecars.runtimes.docker_spec import GATEWAY_SOCKET, Defaults
from onecontainer.sidecars.runtimes.process import ProcessRuntime
from onecontainer.sidecars.secrets import SecretStore
from onecontainer.sidecars.servicer import RegistrationServicer
from onecontainer.sidecars.supervisor import Supervisor
from onecontainer.sidecars.tokens import registration_token

if TYPE_CHECKING:
    from onecontainer.gateway.cluster import Cluster

log = logging.getLogger(__name__)

GATEWAY_FOLDER = "gateway"
REFUSING_SECONDS = 0.1
"""Between the last call that is taken and the listener's end: calls get a typed refusal. Later ones are ended by gRPC, with CANCELLED."""


class Gateway:
    """A running gateway. An async context manager: entering it opens everything and listens, leaving it drains."""

    def __init__(self, settings: Settings, clock: Clock | None = None, *, log_file: str = "") -> None:
        self.settings = settings
        self.address = ""
        self._internal_address = ""
        self._clock: Clock = clock or SystemClock()
        self._log_file = log_file
        self._name = f"gateways/{uuid.uuid4().hex[:12]}"
        self._draining = False
        self._started = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Gateway:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._draining = True
        await self._stack.aclose()

    async def _open(self, stack: AsyncExitStack) -> None:
        settings, clock = self.settings, self._clock
        check_free(settings.listen)
        folder = stack.enter_context(DataFolder(settings.data_dir))
        stack.callback(_remove_runtime_dir, settings.data_dir)
        database = await stack.enter_async_context(Database(settings.database_url))
        await asyncio.to_thread(migrations.upgrade, database.engine)

        changes = Changes()
        cluster = _cluster(settings, database, self._name, folder.node, changes)
        leadership: Leadership = Alone() if cluster is None else cluster.leadership
        ledger = SqlLedger(
            database,
            clock,
            AttemptArtifacts(),
            lease=settings.lease_duration,
            retention=settings.job_retention,
            request_id_retention=settings.request_id_retention,
            record_events=bool(kafka_servers(settings.dispatch_url)),
            tell=None if cluster is None else cluster.tell_jobs,
        )
        store = await stack.enter_async_context(FileArtifactStore(folder_of_url(settings.artifact_url)))
        artifacts = Artifacts(database, store, LedgerView(), clock, max_bytes=settings.max_artifact_bytes)
        secrets = SecretStore(settings.secrets_dir)

        def limits(service: str) -> tuple[int, int]:
            return routes.job_limits(service)  # there by the time that it is asked

        def post_of(service: str) -> Post:
            return routes.post(service)

        def registration_changed(uid: str) -> None:
            supervisor.tell(uid)

        def registration_ended(instance: str, left: bool) -> None:
            watch.ended(instance, left)

        registration = registration_token(settings.registration_token_file)
        registrations = Registrations(
            registration,
            post_of=post_of,
            clock=clock,
            lease=settings.lease_duration,
            on_change=registration_changed,
            on_end=registration_ended,
        )
        authority = Authority(settings.ca_dir)

        dispatch, publishing = _dispatch(settings, database, ledger, changes, clock, secrets, limits)

        def source_of(uid: str, slots: int) -> driver_pb2.JobSource:
            source = dispatch.source(uid)
            source.internal_target = self._internal_address
            source.slots = slots
            return source

        def job_source(target: Target) -> driver_pb2.JobSource:
            return source_of(target.uid, target.slots)

        if database.dialect == "sqlite":
            # The attempts of the last gateway's own sidecars ended with it; nobody has to wait for their leases. Where several
            # gateways share a database the others may be alive, and the leases tell.
            await ledger.lose(other_gateways_than=self._name)
        run_dir = private_folder(self._run_dir())
        containers = _docker(settings, folder.node, run_dir, authority)
        stack.push_async_callback(containers.close)
        processes = ProcessRuntime(ca_file=None if is_loopback(settings.internal_listen) else authority.ca_file)
        attached = AttachedRuntime(registrations)
        supervisor = Supervisor(
            [containers, processes, attached] if settings.runtime == "docker" else [processes, containers, attached],
            folders=Folders(settings.data_dir, run_dir, settings.state_dir),
            secrets=secrets,
            clock=clock,
            policy=Policy.of(settings),
            job_source=job_source,
            registrations=registrations,
            roots=lambda: sidecar_roots(settings, authority),
            # Where there are other gateways, one of them takes over.
            leave_running=cluster is None,
        )
        sidecars = supervisor if cluster is None else cluster.share(supervisor)
        tell = None if cluster is None else cluster.tell_services
        catalog_store = SqlCatalogStore(database, tell)
        shelf = PluginShelf(SqlPluginStore(database, tell), settings.data_dir / "drivers")
        smoke_test = SmokeTest(user_cache_path("onecontainer", appauthor=False) / "smoke-tests")
        catalog = Catalog(
            catalog_store,
            sidecars,
            secrets,
            LiveJobs(ledger, changes),
            clock,
            driver_folders=_driver_folders(settings),
            plugins=shelf,
            drain_timeout=settings.drain_timeout,
            shared=cluster is not None,
            check=smoke_test,
        )
        installer = Installer(catalog, shelf, catalog_store, _sources(settings, artifacts), check=smoke_test)
        routes = Routes(catalog, sidecars, registrations)
        directory = JobDirectory(routes, sidecars)
        jobs = Jobs(
            ledger,
            changes,
            directory,
            ArtifactPayloads(artifacts, settings.max_message_bytes),
            clock,
            inline_bytes=settings.inline_request_bytes,
            reachable=lambda: dispatch.reachable,
        )
        watch = InstanceWatch(
            supervisor,
            ledger,
            changes,
            dispatch,
            self._name,
            lambda service: limits(service)[0],
        )

        tasks = await stack.enter_async_context(Tasks())
        tasks.start(watch.run(), "instance watch")
        if publishing is not None:
            tasks.start(leadership.lead(publishing), "publishing to the broker")
        tasks.start(_sweep(ledger, changes, leadership, settings.job_sweep_interval), "job sweeper")
        sweeper = ArtifactSweeper(database, store, LedgerView(), clock)
        tasks.start(leadership.lead(lambda: sweeper.run(settings.artifact_sweep_interval)), "artifact sweeper")

        lease_servicer = JobLeaseServicer(ledger, changes, dispatch, watch.worker_of, lease=settings.lease_duration)
        instances = InstanceTokensOnly(supervisor)
        admission = Admission(catalog, None if cluster is None else cluster.sidecars)
        internal = internal_server(
            settings,
            instances,
            lease_servicer,
            artifacts,
            RegistrationServicer(registrations, source_of, admission),
            RegistrationTokenOnly(registration),
            unless=self._internal_refusal,
        )
        self._internal_address = bind_internal(internal, settings, authority)
        certificate = await asyncio.to_thread(containers.certificate)
        bind_for_containers(internal, run_dir / GATEWAY_FOLDER / GATEWAY_SOCKET, settings.docker_listen, certificate)
        await containers.admit()
        await internal.start()
        stack.push_async_callback(internal.stop, 1.0)

        if cluster is not None:
            await stack.enter_async_context(cluster)
        await stack.enter_async_context(supervisor)
        # Renewed until the supervisor closes: before the others may take the sidecars over.
        owning = await stack.enter_async_context(Tasks())
        await catalog.start()
        instances.complete()
        tasks.start(supervisor.reap(), "reaping what earlier gateways left")
        self._started = True

        management = (
            ManagementServicer(catalog, installer, request_id_retention=settings.request_id_retention)
            if cluster is None
            else cluster.management(catalog, installer)
        )
        public, health_servicer = public_server(
            settings, management, catalog, routes, jobs, artifacts, clock, unless=self._refusal
        )
        # What start-up made stays for ever: the collector need not look through it again and again, and hold calls up meanwhile.
        gc.collect()
        gc.freeze()
        self.address = bind_public(public, settings)
        await public.start()
        if cluster is not None:
            await cluster.start(owning, self.address, catalog, lease_servicer)
        stack.push_async_callback(self._drain, public, health_servicer)
        # Before the drain, which would otherwise wait for watches that never end by themselves.
        stack.callback(catalog.close)
        stack.callback(changes.close)
        folder.tell(Note(os.getpid(), self.address, self._internal_address, __version__, self._log_file))
        log.info("listening on %s, data in %s", self.address, settings.data_dir)

    def _run_dir(self) -> Path:
        # Sockets' paths are bounded: the data folder's own one is used if it is short enough for them.
        run = self.settings.data_dir / "run"
        return run if len(os.fsencode(run)) <= 70 else runtime_dir(self.settings.data_dir)

    def _refusal(self, _method: str) -> BaseException | None:
        if not self._draining:
            return None
        return Draining("the gateway is stopping; call again, the next one answers", retry_after=2.0)

    def _internal_refusal(self, method: str) -> BaseException | None:
        if self._started:
            return self._refusal(method)
        return Draining("the gateway is starting and does not know its services yet; call again", retry_after=0.2)

    async def _drain(self, public: grpc.aio.Server, health_servicer: health.aio.HealthServicer) -> None:
        self._draining = True
        log.info("draining")
        await health_servicer.enter_graceful_shutdown()
        await asyncio.sleep(REFUSING_SECONDS)
        await public.stop(self.settings.gateway_drain_timeout)


def _cluster(settings: Settings, database: Database, name: str, node: str, changes: Changes) -> Cluster | None:
    """This gateway's place among others; None where its database is its own."""
    if database.dialect != "postgresql":
        return None
    # Here, so that a gateway on SQLite starts without the other one's driver.
    from onecontainer.gateway.cluster import Cluster

    return Cluster(settings, database, name, node, changes)


def _dispatch(
    settings: Settings,
    database: Database,
    ledger: Ledger,
    changes: Changes,
    clock: Clock,
    secrets: SecretStore,
    limits: Callable[[str], tuple[int, int]],
) -> tuple[Dispatch, Callable[[], Awaitable[None]] | None]:
    """The dispatch that is set, and what it does in the background."""
    servers = kafka_servers(settings.dispatch_url)
    if not servers:
        return EmbeddedDispatch(ledger, changes), None
    # Here, so that a gateway without Kafka starts without its client.
    from onecontainer.jobs.dispatch.kafka import KafkaDispatch, KafkaSettings
    from onecontainer.rpc.kafka import client_options

    kafka = KafkaSettings(
        servers, settings.kafka_partitions, settings.kafka_replication_factor, dict(settings.kafka_client)
    )
    client = client_options(settings.kafka_client, secrets.read_all)
    dispatch = KafkaDispatch(
        SqlOutbox(database, clock), Unconfirmed(ledger, changes), changes, clock, kafka, limits, client
    )
    return dispatch, dispatch.run


def _docker(settings: Settings, installation: str, run_dir: Path, authority: Authority) -> DockerRuntime:
    """The runtime of containers. It is there without docker, too, and tells then how to get it."""
    return DockerRuntime(
        DockerSettings(
            installation=installation,
            gateway=run_dir / GATEWAY_FOLDER,
            mark=settings.data_dir / "docker",
            base_image=settings.docker_base_image,
            build_timeout=settings.docker_build_timeout,
            listen=settings.docker_listen,
            defaults=Defaults(settings.docker_memory_bytes, settings.docker_cpus, settings.docker_pids),
        ),
        authority,
    )


def _remove_runtime_dir(data_dir: Path) -> None:
    """The sockets of a data folder whose path is too long for them go; those of sidecars that outlive the gateway stay."""
    folder = runtime_dir(data_dir)
    if not any((folder / "sidecars").glob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def _driver_folders(settings: Settings) -> list[tuple[Path, DriverSource]]:
    bundled = bundled_folder()
    folders = [] if bundled is None else [(bundled, DriverSource.BUNDLED)]
    return folders + [(path, DriverSource.PLUGIN) for path in settings.driver_paths]


def _sources(settings: Settings, artifacts: Artifacts) -> Sources:
    return Sources(
        ArtifactArchives(artifacts).read,
        folders=settings.plugin_folders,
        git_urls=settings.plugin_git_urls,
        uploads=settings.plugin_uploads,
        max_bytes=settings.plugin_max_bytes,
        git_timeout=settings.plugin_git_timeout,
    )


async def _sweep(ledger: Ledger, changes: Changes, leadership: Leadership, interval: float) -> None:
    """Looks at leases, timeouts and retries, for ever; of several gateways one at a time."""
    while True:
        try:
            if leadership.held:
                outcome = await ledger.sweep()
                changes.publish(outcome.changed)
        except Exception:  # a database that is away for a moment must not end the sweeps
            log.exception("the job sweeper failed; it goes on")
        await asyncio.sleep(interval)


async def serve(
    settings: Settings, *, ready: Callable[[str], None] = lambda _address: None, log_file: str = ""
) -> None:
    """Runs a gateway until SIGTERM or SIGINT, then drains. ``ready`` is called with the address once it listens.

    Raises:
        StateInvalid: another gateway uses the data folder, or the address is taken.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with Gateway(settings, log_file=log_file) as gateway:
        ready(gateway.address)
        await stop.wait()
