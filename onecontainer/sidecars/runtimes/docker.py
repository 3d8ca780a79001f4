"""Sidecars as containers. They outlive the gateway: the next one on the same data folder goes on with them (docs/adr/0016)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onecontainer.errors import DriverUnreachable, InternalError
from onecontainer.rpc.tls import KeyPair
from onecontainer.settings import private_folder
from onecontainer.sidecars.authority import CA_DAYS, Authority
from onecontainer.sidecars.model import RuntimeKind, Target
from onecontainer.sidecars.runtime import LeftBehind, StartSpec, TlsServer
from onecontainer.sidecars.runtimes import docker_spec as made
from onecontainer.sidecars.runtimes.docker_container import RunningContainer, remove
from onecontainer.sidecars.runtimes.docker_images import Images
from onecontainer.sidecars.runtimes.docker_ownership import give
from onecontainer.sidecars.runtimes.docker_threads import in_thread

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

log = logging.getLogger(__name__)

REAP_GRACE = 10.0


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """What a DockerRuntime is told. `gateway` is the folder with the internal listener's socket for containers, `mark` a folder that is
    there once this installation has had containers: without it nobody asks docker at the start."""

    installation: str
    gateway: Path
    mark: Path
    base_image: str
    build_timeout: float
    defaults: made.Defaults
    listen: str = ""
    """`HOST:PORT` of the internal listener for containers, with TLS. Empty: they and the gateway meet at UNIX sockets."""


class DockerRuntime:
    """`OutlivingRuntime` of containers, one for each instance. Docker is reached when it is needed, and need not be there before."""

    kind = RuntimeKind.DOCKER
    owns = True

    def __init__(self, settings: DockerSettings, authority: Authority) -> None:
        """`authority` signs what serves where sidecars and the gateway meet by TCP."""
        self._settings = settings
        self._tcp = bool(settings.listen)
        self.internal_target = (
            f"{made.HOST_NAME}:{settings.listen.rpartition(':')[2]}"
            if self._tcp
            else f"unix:{made.RUN / 'gateway' / made.GATEWAY_SOCKET}"
        )
        self._authority = authority
        self._user = made.container_user(os.getuid(), os.getgid())
        self._images = Images(settings.base_image, settings.build_timeout)
        self._client: DockerClient | None = None
        self._host_cpus = 1
        self._connecting = asyncio.Lock()
        self._networks = asyncio.Lock()
        # Instances of this gateway: what else has our label is from an earlier one.
        self._ours: set[str] = set()
        self._lost: set[str] = set()  # those that could not be removed when they had to go

    # --- the port ----------------------------------------------------------------------------------------------------

    async def start(self, spec: StartSpec) -> RunningContainer:
        if spec.folders is None:
            raise InternalError("a container needs folders")
        self._ours.add(spec.instance)
        made.check(spec.target)
        client = await self._docker()
        limits = made.limits_of(spec.target, self._settings.defaults, self._host_cpus)
        container = (
            await in_thread(self._find, client, spec.instance)
            if spec.adopted
            else await self._create(client, spec, limits)
        )
        tls = TlsServer(self._authority.ca_file, made.server_name(spec.instance)) if self._tcp else None
        return RunningContainer(
            container,
            await in_thread(_published, container) if self._tcp else f"unix:{spec.folders.socket}",
            spec.logs,
            limits.memory_bytes,
            tls=tls,
            on_removed=lambda: self._tidy(client, spec.target),
            on_lost=lambda: self._lost.add(spec.instance),
        )

    async def admit(self) -> None:
        """Lets containers in at the internal listener's socket: to be called when it is bound."""
        await asyncio.to_thread(give, self._settings.gateway, *self._user)

    def certificate(self) -> KeyPair | None:
        """For the internal listener that containers reach; None: it is a UNIX socket. Blocks for a moment."""
        return self._authority.issue([made.HOST_NAME, "localhost"]) if self._tcp else None

    async def take_over(self, target: Target, candidates: Collection[str]) -> LeftBehind:
        client = await self._docker()
        found = await in_thread(self._left, client, f"{made.UID_LABEL}={target.uid}")
        running = [
            one for one in found if one.status == "running" and one.labels.get(made.INSTANCE_LABEL) in candidates
        ]
        digest = self._digest(target, (await in_thread(self._images.plan, target))[1].tag) if running else ""
        fitting = [one for one in running if one.labels.get(made.SETTINGS_LABEL) == digest]
        others = [] if target.exclusive else [one for one in running if one not in fitting]
        current, older = _newest(fitting), _newest(others)
        for container in found:
            if container not in (current, older):
                log.info("%s is of an earlier gateway and not wanted any more: it ends", container.name)
                await in_thread(remove, container, REAP_GRACE)
        return LeftBehind(self._adopt(current), self._adopt(older))

    def _adopt(self, container: Container | None) -> str | None:
        if container is None:
            return None
        name = str(container.labels[made.INSTANCE_LABEL])
        self._ours.add(name)
        log.info("goes on with %s of an earlier gateway", name)
        return name

    async def discard(self, instance: str) -> None:
        client = await self._docker()
        await in_thread(self._remove_instance, client, instance)

    async def reap(self, is_orphan: Callable[[str], bool]) -> None:
        if not self._settings.mark.exists():
            return
        client = await self._docker()
        for container in await in_thread(self._left, client):
            uid = container.labels.get(made.UID_LABEL, "")
            # The list may be older than what its keeper has decided meanwhile.
            if container.labels.get(made.INSTANCE_LABEL) not in self._ours and is_orphan(uid):
                log.info("%s has no service any more: it ends", container.name)
                await in_thread(remove, container, REAP_GRACE)
                await in_thread(self._remove_network, client, self._network_name(uid))

    async def close(self) -> None:
        """Removes the shared network if nothing of this installation uses it."""
        if self._client is not None:
            await in_thread(self._remove_network, self._client, self._network_name())

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _docker(self) -> DockerClient:
        """The connection. Raises DriverUnreachable with what to do, if docker does not answer."""
        async with self._connecting:
            if self._client is not None:
                return self._client
            client, self._host_cpus = await in_thread(_connect)
            self._client = client
            return client

    def _left(self, client: DockerClient, *labels: str) -> list[Container]:
        wanted = [f"{made.INSTALLATION_LABEL}={self._settings.installation}", *labels]
        found = client.containers.list(all=True, filters={"label": wanted})
        return [one for one in found if one.labels.get(made.INSTANCE_LABEL) not in self._ours]

    def _of(self, client: DockerClient, instance: str) -> list[Container]:
        return client.containers.list(all=True, filters={"label": f"{made.INSTANCE_LABEL}={instance}"})

    def _remove_instance(self, client: DockerClient, instance: str) -> None:
        for container in self._of(client, instance):
            remove(container, REAP_GRACE)

    def _find(self, client: DockerClient, instance: str) -> Container:
        found = self._of(client, instance)
        if not found:
            raise DriverUnreachable(f"the container of {instance} is gone")
        return found[0]

    def _digest(self, target: Target, image: str) -> str:
        extra: dict[str, object] = {
            "user": self._user,
            "defaults": str(self._settings.defaults),
            "gateway": self.internal_target,
        }
        return made.settings_digest(target, image, extra)

    async def _create(self, client: DockerClient, spec: StartSpec, limits: made.Limits) -> Container:
        for instance in list(self._lost):
            await in_thread(self._remove_instance, client, instance)
            self._lost.discard(instance)
        recipes = await in_thread(self._images.plan, spec.target)
        if await self._images.missing(client, recipes):
            spec.doing(
                f"building the image {recipes[-1].tag}, which may take minutes; `oca sidecar logs` shows how far it is"
            )
        try:
            image = await self._images.make(client, recipes, spec.logs)
        finally:
            spec.doing("")
        network = await self._network(client, spec.target)
        making = asyncio.ensure_future(in_thread(self._make, client, spec, limits, image, network))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            # The thread goes on: what it makes must not be left behind.
            container = await making
            await in_thread(remove, container, 0)
            raise

    def _make(self, client: DockerClient, spec: StartSpec, limits: made.Limits, image: str, network: str) -> Container:
        folders, target = spec.folders, spec.target
        assert folders is not None
        private_folder(self._settings.mark)
        if self._tcp:
            names = [made.server_name(spec.instance), "localhost", "127.0.0.1"]
            # It may run for long, and nobody renews its certificate while it does.
            self._authority.hand_out(made.tls_folder(folders), names, days=CA_DAYS)
        for outside, _, _ in made.folders_of(folders, self._settings.gateway, self._tcp):
            give(outside, *self._user)
        labels = {
            made.INSTALLATION_LABEL: self._settings.installation,
            made.UID_LABEL: target.uid,
            made.SERVICE_LABEL: target.service,
            made.INSTANCE_LABEL: spec.instance,
            made.SETTINGS_LABEL: self._digest(target, image),
            made.DRIVER_LABEL: target.driver,
            made.IMAGE_LABEL: image,
        }
        container = client.containers.create(
            **made.container_options(
                spec=spec,
                folders=folders,
                gateway=self._settings.gateway,
                image=image,
                network=network,
                user=self._user,
                limits=limits,
                labels=labels,
                tcp=self._tcp,
            )
        )
        try:
            container.start()
        except BaseException:
            remove(container, 0)
            raise
        return container

    # --- networks ----------------------------------------------------------------------------------------------------

    def _network_name(self, uid: str = "") -> str:
        name = f"onecontainer-{self._settings.installation[:12]}"
        return f"{name}-{uid[:13]}" if uid else name

    async def _network(self, client: DockerClient, target: Target) -> str:
        name = self._network_name(target.uid if target.runtime.private_network else "")
        async with self._networks:
            await in_thread(self._make_network, client, name)
        return name

    def _make_network(self, client: DockerClient, name: str) -> None:
        if any(network.name == name for network in client.networks.list(names=[name])):
            return
        client.networks.create(
            name,
            driver="bridge",
            # Containers reach their backends, and not each other.
            options={"com.docker.network.bridge.enable_icc": "false"},
            labels={made.INSTALLATION_LABEL: self._settings.installation},
        )

    def _tidy(self, client: DockerClient, target: Target) -> None:
        if target.runtime.private_network:
            self._remove_network(client, self._network_name(target.uid))

    def _remove_network(self, client: DockerClient, name: str) -> None:
        from docker.errors import APIError

        for network in client.networks.list(names=[name]):
            if network.name == name:
                try:
                    network.remove()
                except APIError as error:
                    log.debug("the network %s stays: %s", name, error)


def _newest(containers: list[Container]) -> Container | None:
    return max(containers, key=lambda one: str(one.attrs["Created"]), default=None)


def _published(container: Container) -> str:
    container.reload()
    ports = container.attrs["NetworkSettings"]["Ports"].get(f"{made.PORT}/tcp") or []
    if not ports:
        raise DriverUnreachable(f"{container.name} has no port at which it can be reached: it has ended")
    return f"127.0.0.1:{ports[0]['HostPort']}"


def _connect() -> tuple[DockerClient, int]:
    import docker

    client = docker.from_env()
    return client, int(client.info()["NCPU"])
