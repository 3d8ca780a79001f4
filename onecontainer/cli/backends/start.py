"""Starts backends and registers them, one after the other; one that fails keeps no other from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import click

from onecontainer.cli.backends.catalog import Backend
from onecontainer.cli.backends.containers import Containers
from onecontainer.cli.backends.images import Say
from onecontainer.cli.backends.services import register, registered, runtime_of, settled
from onecontainer.cli.failures import as_dict, exit_code, lines
from onecontainer.cli.session import Session
from onecontainer.client.management import state_name
from onecontainer.errors import OneContainerError
from onecontainer.gateway.lock import DataFolder
from onecontainer.settings import Settings, private_folder

SETTLE_TIMEOUT = 60.0
"""Seconds that a service gets to be READY; it goes on starting afterwards."""


@dataclass(frozen=True, slots=True)
class Started:
    """What came of one backend.

    Attributes:
        container: created, replaced, started or running (it ran already); empty if it needs none.
        addresses: port → HOST:PORT.
        service: its name; empty if it has none.
        message: why the service is not READY.
    """

    backend: str
    container: str = ""
    addresses: dict[str, str] = field(default_factory=dict)
    service: str = ""
    state: str = ""
    message: str = ""


def containers_of(settings: Settings) -> Containers:
    """The containers of the installation in the data folder."""
    return Containers(DataFolder(private_folder(settings.data_dir)).node[:12])


def start_backend(session: Session, containers: Containers, backend: Backend, say: Say) -> Started:
    """Makes a backend's container run and its service be there; what is so already stays as it is."""
    client, timeout = session.client, session.timeout
    found = None
    if backend.service is not None:
        # First: a gateway that is away, or a name that is taken, is told before anything is started.
        found = registered(client, backend, timeout)
    done = ""
    if backend.container is not None:
        done = containers.start(backend, runtime_of(backend, found), say)
    if backend.service is None:
        return Started(backend.name, done, backend.addresses)
    name = register(client, backend, found, timeout).name
    service = settled(client, backend, timeout or SETTLE_TIMEOUT)
    return Started(backend.name, done, backend.addresses, name, state_name(service), service.error.message)


def start_backends(
    session: Session, settings: Settings, backends: Iterable[Backend]
) -> tuple[list[dict[str, object]], int]:
    """Starts all; shows what comes of each as it comes. Returns that for programs, and the exit code: that of the first failure."""
    shown: list[dict[str, object]] = []
    code = 0
    with containers_of(settings) as containers:
        for backend in backends:
            try:
                started = start_backend(session, containers, backend, _teller(session, backend))
            except OneContainerError as error:
                code = code or exit_code(error)
                shown.append({"backend": backend.name, "error": as_dict(error)})
                if not session.screen.is_json:
                    for line in lines(error, session.address):
                        click.echo(f"{backend.name}: {line}", err=True)
                continue
            shown.append(
                {
                    "backend": started.backend,
                    "container": started.container,
                    "ports": started.addresses,
                    "service": started.service,
                    "state": started.state,
                    "message": started.message,
                }
            )
            for line in _lines(started):
                session.screen.say(line)
    return shown, code


def _teller(session: Session, backend: Backend) -> Say:
    return lambda text: session.screen.say(f"{backend.name}: {text}")


def _lines(started: Started) -> list[str]:
    """What came of it, for people."""
    facts = []
    if started.container:
        places = ", ".join(f"{port} on {address}" for port, address in started.addresses.items())
        facts.append(f"{started.container}, {places}")
    if started.service:
        facts.append(f"{started.service} is {started.state}")
    found = [f"{started.backend}: {'; '.join(facts)}"]
    if started.message:
        found.append(f"  {started.message}")
        found.append(
            f"  → Install a driver that fits; then `oca backend start {started.backend}` gives it to the service."
        )
    return found
