"""`oca backend`: software of the catalog, as containers of this host and registered services."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from onecontainer.cli.backends.catalog import Backend, choose, load
from onecontainer.cli.process import settings_of
from onecontainer.cli.session import Session, connected
from onecontainer.errors import OneContainerError, ResourceNotFound

if TYPE_CHECKING:
    from onecontainer.cli.backends.containers import Containers

LOOK_TIMEOUT = 5.0


@click.group()
def backend() -> None:
    """Start software as containers of this host, and register it.

    What there is says a catalog; ONECONTAINER_BACKEND_CATALOG adds one of your own. `oca up --backend NAME` does at the start what
    `oca backend start` does later. Containers belong to the gateway's data folder, and go on when the gateway stops.

    \b
    Examples:
      oca backend list
      oca backend start cassandra web-rtmp
      oca backend stop web-rtmp
      oca backend remove cassandra --data
    """


@backend.command("list")
@connected
def list_(session: Session) -> None:
    """List the catalog, with what runs and what is registered."""
    from onecontainer.cli.backends.start import containers_of

    settings = settings_of(None)
    catalog = load(settings)
    services, gateway_problem = _services(session)
    with containers_of(settings) as containers:
        states, docker_problem = _states(containers, catalog.values())
    rows = []
    for entry in catalog.values():
        rows.append(
            {
                "name": entry.name,
                "container": states.get(entry.name, "unknown") if entry.container else "needs none",
                "ports": [f"{port} {address}" for port, address in entry.addresses.items()],
                "service": services.get(entry.name, "unknown" if gateway_problem else "")
                if entry.service
                else "has none",
                "description": entry.description,
            }
        )
    session.screen.rows(rows)
    for problem in filter(None, (docker_problem, gateway_problem)):
        click.echo(problem, err=True)


def _states(containers: Containers, entries: Iterable[Backend]) -> tuple[dict[str, str], str]:
    """Backend → how it stands with its container; and why nothing is known of it."""
    try:
        return {entry.name: containers.state(entry).value for entry in entries if entry.container is not None}, ""
    except OneContainerError as error:
        return {}, error.message


def _services(session: Session) -> tuple[dict[str, str], str]:
    """Backend → its service and how it stands; and why nothing is known of it."""
    from onecontainer.cli.backends.services import LABEL
    from onecontainer.cli.failures import is_gateway_away
    from onecontainer.client.management import state_name

    try:
        found = session.client.services.list(timeout=session.timeout or LOOK_TIMEOUT)
    except OneContainerError as error:
        if not is_gateway_away(error):
            raise
        return {}, f"no gateway answers at {session.address}: which services are registered is unknown"
    return {
        service.labels[LABEL]: f"{service.name} {state_name(service)}" for service in found if LABEL in service.labels
    }, ""


@backend.command()
@click.argument("names", nargs=-1, required=True)
@connected
def start(session: Session, names: tuple[str, ...]) -> None:
    """Start the backends NAMES (`all`: each of the catalog) and register them. What is so already stays as it is.

    An image that is not on this host is pulled or built. A container whose catalog entry or settings have changed is replaced; its data
    stays. One that fails keeps no other from it. A service whose driver is not installed is registered, and UNASSIGNED.
    """
    from onecontainer.cli.backends.start import start_backends

    settings = settings_of(None)
    shown, code = start_backends(session, settings, choose(load(settings), names))
    if session.screen.is_json:
        session.screen.data(shown)
    if code:
        raise click.exceptions.Exit(code)


@backend.command()
@click.argument("names", nargs=-1, required=True)
@connected
def stop(session: Session, names: tuple[str, ...]) -> None:
    """Stop the containers of the backends NAMES. Their services stay registered, and are not READY until the next start."""
    from onecontainer.cli.backends.start import containers_of

    settings = settings_of(None)
    rows = []
    with containers_of(settings) as containers:
        for entry in choose(load(settings), names):
            done = "needs none"
            if entry.container is not None:
                done = "stopped" if containers.stop(entry) else "did not run"
            rows.append({"backend": entry.name, "container": done})
            session.screen.say(f"{entry.name}: container {done}")
    if session.screen.is_json:
        session.screen.data(rows)


@backend.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--data", is_flag=True, help="Its volumes too: all that it has kept is lost.")
@click.option("--force", is_flag=True, help="End the live jobs of its service.")
@connected
def remove(session: Session, names: tuple[str, ...], data: bool, force: bool) -> None:
    """Remove the backends NAMES: their services and containers. Their data stays, unless --data is given; so do images."""
    from onecontainer.cli.backends.start import containers_of

    settings = settings_of(None)
    rows: list[dict[str, Any]] = []
    with containers_of(settings) as containers:
        for entry in choose(load(settings), names):
            row: dict[str, Any] = {"backend": entry.name}
            if entry.service is not None:
                # First: while jobs are at work on it nothing is removed.
                row["service"] = _delete_service(session, entry, force)
            if entry.container is not None:
                was_there, kept = containers.remove(entry, data=data)
                row |= {"container": "removed" if was_there else "was not there", "volumes_kept": kept}
            rows.append(row)
            session.screen.say(f"{entry.name}: " + ", ".join(_words(row)))
    if session.screen.is_json:
        session.screen.data(rows)


def _delete_service(session: Session, entry: Backend, force: bool) -> str:
    from onecontainer.cli.backends.services import registered

    assert entry.service is not None
    if registered(session.client, entry, session.timeout) is None:
        return "was not there"
    try:
        session.client.services.delete(entry.service.id, force=force, timeout=session.timeout)
    except ResourceNotFound:
        return "was not there"
    return "removed"


def _words(row: dict[str, Any]) -> list[str]:
    words = [f"{part} {row[part]}" for part in ("service", "container") if part in row]
    if row.get("volumes_kept"):
        words.append(f"its data stays in {', '.join(row['volumes_kept'])} (--data removes it)")
    return words
