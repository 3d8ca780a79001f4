"""Containers of backends. They belong to an installation (a data folder), and go on when its gateway stops."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

from onecontainer.cli.backends.catalog import HOST_NAME, LOOPBACK, Backend, Runtime
from onecontainer.cli.backends.images import Say, ensure_image, image_of
from onecontainer.cli.backends.readiness import answers
from onecontainer.errors import (
    BackendExecutionFailed,
    DeadlineExceeded,
    OneContainerError,
    ResourceConflict,
    StateInvalid,
)

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.networks import Network

BACKEND_LABEL = "dev.onecontainer.backend"
# Not the label of sidecars' installation: a gateway removes what has that and is none of its sidecars.
INSTALLATION_LABEL = "dev.onecontainer.backend-installation"
RECIPE_LABEL = "dev.onecontainer.backend-recipe"

LOG_BYTES, LOG_FILES, SHOWN_LINES = "10m", "3", 20
PIDS = 4096
STOP_GRACE = 60
POLL_SECONDS = 0.2
_TAKEN = re.compile(r"port is already allocated|address already in use")
_PLACE = re.compile(r"\d+\.\d+\.\d+\.\d+:(\d+)")


class ContainerState(StrEnum):
    """How it stands with a backend's container."""

    ABSENT = "ABSENT"
    STOPPED = "STOPPED"
    STARTING = "STARTING"
    READY = "READY"
    FAILED = "FAILED"
    """It ends again and again."""


class Containers:
    """The containers of one installation. Docker is reached on first use; without it that raises StateInvalid."""

    def __init__(self, installation: str) -> None:
        self._installation = installation
        self._client: DockerClient | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # --- what there is -----------------------------------------------------------------------------------------------

    def state(self, backend: Backend) -> ContainerState:
        """How it stands now; its port is asked once."""
        assert backend.container is not None
        with typed_errors(backend):
            container = self._find(backend)
            if container is None:
                return ContainerState.ABSENT
            if container.status == "restarting":
                return ContainerState.FAILED
            if container.status != "running":
                return ContainerState.STOPPED
            return ContainerState.READY if self._is_ready(backend, container) else ContainerState.STARTING

    # --- changes -----------------------------------------------------------------------------------------------------

    def start(self, backend: Backend, runtime: Runtime, say: Say) -> str:
        """Makes it run as the catalog says, for sidecars of that runtime; returns what was done: running, started, created or replaced.

        Raises StateInvalid without docker or its image, ResourceConflict for a port that is taken, BackendExecutionFailed if it ends,
        DeadlineExceeded if it is not ready in time (it goes on starting).
        """
        with typed_errors(backend):
            recipe = self._recipe(backend, runtime)
            found = self._find(backend)
            if found is not None and found.labels.get(RECIPE_LABEL) == recipe:
                done = "running" if found.status == "running" else "started"
                if done == "started":
                    say("starting its container")
                    found.start()
                container = found
            else:
                image = ensure_image(self._docker, backend, say)
                if found is not None:
                    say("the catalog or a setting has changed: its container is replaced, its data stays")
                    _end(found)
                container = self._create(backend, runtime, image, recipe)
                done = "created" if found is None else "replaced"
            self._wait_ready(backend, container, say)
            return done

    def stop(self, backend: Backend) -> bool:
        """Ends it and keeps it; whether it ran."""
        with typed_errors(backend):
            found = self._find(backend)
            if found is None or found.status not in ("running", "restarting"):
                return False
            found.stop(timeout=STOP_GRACE)
            return True

    def remove(self, backend: Backend, *, data: bool) -> tuple[bool, list[str]]:
        """Ends and removes it, with `data` its volumes too. Returns whether it was there, and the volumes that stay."""
        assert backend.container is not None
        with typed_errors(backend):
            found = self._find(backend)
            if found is not None:
                _end(found)
            volumes = self._docker.volumes.list(filters={"label": self._labels_of(backend)})
            if data:
                for volume in volumes:
                    volume.remove()
            self._remove_network()
            return found is not None, [] if data else sorted(str(volume.name) for volume in volumes)

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _docker(self) -> DockerClient:
        if self._client is None:
            import docker

            self._client = docker.from_env()
        return self._client

    def _name(self, *parts: str) -> str:
        return "-".join(("onecontainer-backend", self._installation, *parts))

    def _labels(self, backend: Backend) -> dict[str, str]:
        return {BACKEND_LABEL: backend.name, INSTALLATION_LABEL: self._installation}

    def _labels_of(self, backend: Backend) -> list[str]:
        return [f"{key}={value}" for key, value in self._labels(backend).items()]

    def _find(self, backend: Backend) -> Container | None:
        found = self._docker.containers.list(all=True, filters={"label": self._labels_of(backend)}, ignore_removed=True)
        return found[0] if found else None

    def _create(self, backend: Backend, runtime: Runtime, image: str, recipe: str) -> Container:
        entry = backend.container
        assert entry is not None
        for name in entry.volumes:
            self._docker.volumes.create(self._name(backend.name, name), labels=self._labels(backend))
        options = container_options(
            backend,
            image=image,
            volumes={self._name(backend.name, name): path for name, path in entry.volumes.items()},
            hosts=self._hosts(runtime),
        )
        container = self._docker.containers.create(
            **options,
            name=self._name(backend.name),
            network=self._network(),
            labels={**self._labels(backend), RECIPE_LABEL: recipe},
        )
        try:
            container.start()
        except BaseException:
            container.remove(force=True)
            raise
        return container

    def _recipe(self, backend: Backend, runtime: Runtime) -> str:
        """Names all that a container is made of: another one is another container."""
        options = container_options(backend, image=image_of(backend), volumes={}, hosts=self._hosts(runtime))
        assert backend.container is not None
        facts = {**options, "mounts": dict(backend.container.volumes)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _hosts(self, runtime: Runtime) -> list[str]:
        """Addresses of this host at which its ports are published."""
        return [LOOPBACK, self._bridge_address()] if runtime == "docker" else [LOOPBACK]

    def _bridge_address(self) -> str:
        """What `host-gateway` is for containers: the host's address on docker's own bridge, which other hosts do not reach."""
        for config in self._docker.networks.get("bridge").attrs["IPAM"]["Config"] or ():
            subnet = ipaddress.ip_network(config["Subnet"], strict=False)
            if subnet.version == 4:
                return str(config.get("Gateway") or subnet[1])
        raise StateInvalid(f"docker has no bridge network at which sidecars in containers could reach {HOST_NAME}")

    def _network(self) -> str:
        """The network of backends: they do not reach each other in it. Of one that two starts at the same moment have made twice, one
        stays: docker would not know which is meant."""
        from docker.errors import APIError

        name = self._name()
        if not self._networks(name):
            try:
                self._docker.networks.create(
                    name,
                    driver="bridge",
                    check_duplicate=True,  # as well as docker can
                    options={"com.docker.network.bridge.enable_icc": "false"},
                    labels={INSTALLATION_LABEL: self._installation},
                )
            except APIError as error:
                if error.status_code != HTTPStatus.CONFLICT:
                    raise
        first, *more = self._networks(name)
        surplus = len(more)
        for network in (*more, first):
            surplus -= bool(surplus) and self._removed(network)  # one in use stays: then another one goes
        return name

    @staticmethod
    def _removed(network: Network) -> bool:
        from docker.errors import APIError

        try:
            network.remove()
        except APIError:
            return False
        return True

    def _networks(self, name: str) -> list[Network]:
        """Those of this very name, in the same order for all who ask."""
        found = [network for network in self._docker.networks.list(names=[name]) if network.name == name]
        return sorted(found, key=lambda network: str(network.id))

    def _remove_network(self) -> None:
        label = f"{INSTALLATION_LABEL}={self._installation}"
        if not self._docker.containers.list(all=True, filters={"label": label}):
            for network in self._docker.networks.list(filters={"label": label}):
                network.remove()

    def _wait_ready(self, backend: Backend, container: Container, say: Say) -> None:
        entry = backend.container
        assert entry is not None
        container.reload()
        restarts = container.attrs["RestartCount"]
        begin = time.monotonic()
        told = False
        while not self._is_ready(backend, container):
            container.reload()
            if container.status != "running" or container.attrs["RestartCount"] > restarts:
                raise _ended(backend, container)
            passed = time.monotonic() - begin
            if passed > entry.ready.timeout:
                raise DeadlineExceeded(
                    f"{backend.name} is not ready after {entry.ready.timeout:g} s (it goes on starting); its last lines:\n"
                    f"{_last_lines(container)}"
                )
            if passed > 1 and not told:
                told = True
                say("waiting until it is ready")
            time.sleep(POLL_SECONDS)

    def _is_ready(self, backend: Backend, container: Container) -> bool:
        entry = backend.container
        assert entry is not None
        if not answers(backend.addresses[entry.ready.port], entry.ready.path):
            return False
        if entry.ready.log is None:
            return True
        # Since the end of its last run: what it says first may be older than the moment that docker notes for its start.
        end = datetime.fromisoformat(container.attrs["State"]["FinishedAt"])
        return entry.ready.log.encode() in container.logs(since=end.timestamp() if end.year > 1 else None)


def container_options(backend: Backend, *, image: str, volumes: dict[str, str], hosts: list[str]) -> dict[str, Any]:
    """Arguments of docker's `containers.create`: what a backend is given, and above all what it is not."""
    from docker.types import LogConfig, Mount

    entry = backend.container
    assert entry is not None
    return {
        "image": image,
        "command": list(entry.command) or None,
        "detach": True,
        "environment": dict(entry.environment),
        "restart_policy": {"Name": "unless-stopped"},
        "log_config": LogConfig(type="json-file", config={"max-size": LOG_BYTES, "max-file": LOG_FILES}),
        "mounts": [Mount(path, name, type="volume") for name, path in volumes.items()],
        "ports": {f"{port.container}/tcp": [(host, port.host) for host in hosts] for port in entry.ports.values()},
        # What it may do.
        "user": entry.user or None,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": entry.read_only,
        "tmpfs": {path: f"rw,noexec,nosuid,nodev,size={size},mode=1777" for path, size in entry.tmpfs.items()},
        "init": True,
        # What it may use.
        "mem_limit": entry.memory,
        "memswap_limit": entry.memory,
        "pids_limit": PIDS,
    }


def _end(container: Container) -> None:
    container.stop(timeout=STOP_GRACE)
    container.remove(force=True)


def _last_lines(container: Container) -> str:
    return container.logs(tail=SHOWN_LINES).decode("utf-8", "replace").rstrip()


def _ended(backend: Backend, container: Container) -> OneContainerError:
    """Why it ended. It is stopped, for else docker would start it again and again."""
    assert backend.container is not None
    state = container.attrs["State"]
    how = (
        f"was killed, for it took more memory than its {backend.container.memory}"
        if state.get("OOMKilled")
        else "ended by itself"
        if container.status == "running"  # again: docker has started it meanwhile
        else f"ended with exit code {state['ExitCode']}"
    )
    container.stop(timeout=0)
    error = BackendExecutionFailed(f"{backend.name} {how}, and was stopped; its last lines:\n{_last_lines(container)}")
    error.add_note(f"All it said: `docker logs {container.name}`. Then `oca backend start {backend.name}` again.")
    return error


@contextmanager
def typed_errors(backend: Backend) -> Iterator[None]:
    """What docker raises, or the way to it, as errors that tell what to do."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except APIError as error:
        raise _refused(backend, str(error.explanation or error)) from error
    except (DockerException, RequestException) as error:
        away = StateInvalid(f"docker does not answer: {error}")
        away.add_note(
            "Install Docker, start its daemon and let this user in (group `docker`, or DOCKER_HOST); then run it again."
        )
        raise away from error


def _refused(backend: Backend, text: str) -> OneContainerError:
    error: OneContainerError
    if not _TAKEN.search(text):
        error = BackendExecutionFailed(f"docker refused to run {backend.name}: {text}")
        error.add_note(f"See docker's log, correct the cause, and run `oca backend start {backend.name}` again.")
        return error
    place = _PLACE.search(text)
    ports = {str(port.host): name for name, port in backend.container.ports.items()} if backend.container else {}
    number = place[1] if place else ""
    port = ports.get(number, "PORT")
    error = ResourceConflict(f"port {number} of this host, for {port} of {backend.name}, is taken by another program")
    error.add_note(
        f"""Stop that, or take another port: ONECONTAINER_BACKEND_PORTS='{{"{backend.name}.{port}": NUMBER}}'."""
    )
    return error
