"""What the composition root puts together, made from settings: the parts that there may be in more than one form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from onecontainer.artifacts.artifacts import Artifacts
from onecontainer.catalog.drivers import bundled_folder
from onecontainer.catalog.model import DriverSource
from onecontainer.catalog.sources import Sources
from onecontainer.clock import Clock
from onecontainer.database import Database
from onecontainer.gateway.bindings import ArtifactArchives
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.dispatch.embedded import EmbeddedDispatch
from onecontainer.jobs.dispatch.port import Dispatch
from onecontainer.jobs.ledger import Ledger
from onecontainer.jobs.sql_outbox import SqlOutbox
from onecontainer.jobs.unconfirmed import Unconfirmed
from onecontainer.settings import Settings, kafka_servers
from onecontainer.sidecars.authority import Authority
from onecontainer.sidecars.runtimes.docker import DockerRuntime, DockerSettings
from onecontainer.sidecars.runtimes.docker_spec import Defaults
from onecontainer.sidecars.secrets import SecretStore

if TYPE_CHECKING:
    from onecontainer.gateway.cluster import Cluster

CONTAINERS_FOLDER = "gateway"
"""Of the folder for sockets: what containers are given of it."""


def cluster(settings: Settings, database: Database, name: str, node: str, changes: Changes) -> Cluster | None:
    """This gateway's place among others; None where its database is its own."""
    if database.dialect != "postgresql":
        return None
    # Here, so that a gateway on SQLite starts without the other one's driver.
    from onecontainer.gateway.cluster import Cluster

    return Cluster(settings, database, name, node, changes)


def dispatch(
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


def docker(settings: Settings, installation: str, run_dir: Path, authority: Authority) -> DockerRuntime:
    """The runtime of containers. It is there without docker, too, and tells then how to get it."""
    return DockerRuntime(
        DockerSettings(
            installation=installation,
            gateway=run_dir / CONTAINERS_FOLDER,
            mark=settings.data_dir / "docker",
            base_image=settings.docker_base_image,
            build_timeout=settings.docker_build_timeout,
            listen=settings.docker_listen,
            defaults=Defaults(settings.docker_memory_bytes, settings.docker_cpus, settings.docker_pids),
        ),
        authority,
    )


def driver_folders(settings: Settings) -> list[tuple[Path, DriverSource]]:
    bundled = bundled_folder()
    folders = [] if bundled is None else [(bundled, DriverSource.BUNDLED)]
    return folders + [(path, DriverSource.PLUGIN) for path in settings.driver_paths]


def sources(settings: Settings, artifacts: Artifacts) -> Sources:
    return Sources(
        ArtifactArchives(artifacts).read,
        folders=settings.plugin_folders,
        git_urls=settings.plugin_git_urls,
        uploads=settings.plugin_uploads,
        max_bytes=settings.plugin_max_bytes,
        git_timeout=settings.plugin_git_timeout,
    )
