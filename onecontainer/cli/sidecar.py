"""`oca sidecar`: running drivers."""

from __future__ import annotations

from collections.abc import Callable

import click

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.cli.render import enum_name, moment
from onecontainer.cli.session import Session, connected
from onecontainer.client.names import short_name
from onecontainer.errors import ResourceNotFound

COLUMNS: dict[str, Callable[[resources_pb2.Sidecar], object]] = {
    "name": lambda s: short_name(s.name),
    "service": lambda s: short_name(s.service),
    "state": lambda s: enum_name(resources_pb2.SidecarState, s.state),
    "driver": lambda s: short_name(s.driver),
    "runtime": lambda s: f"{enum_name(resources_pb2.RuntimeKind, s.runtime).lower()} {s.runtime_id}".strip(),
    "restarts": lambda s: s.restart_count,
    "started": lambda s: moment(s.create_time),
    "error": lambda s: s.error.message.partition("\n")[0],
}


@click.group()
def sidecar() -> None:
    """See running drivers and their logs.

    \b
    Examples:
      oca sidecar list
      oca sidecar logs cats --follow
    """


@sidecar.command("list")
@click.option("--service", default="", help="Only of this service.")
@connected
def list_(session: Session, service: str) -> None:
    """List sidecars, newest first."""
    session.screen.messages(session.client.sidecars.list(service=service, timeout=session.timeout), COLUMNS)


@sidecar.command()
@click.argument("name")
@connected
def get(session: Session, name: str) -> None:
    """Show a sidecar."""
    found = session.client.sidecars.get(name, timeout=session.timeout)
    session.screen.message(
        found,
        {column: cell(found) for column, cell in COLUMNS.items()}
        | {"error": found.error.message, "target": found.target},
    )


@sidecar.command()
@click.argument("name")
@click.option(
    "--tail", type=click.IntRange(0, 10_000), default=100, show_default=True, help="So many of the last lines."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with each new line until Ctrl-C.")
@connected
def logs(session: Session, name: str, tail: int, follow: bool) -> None:
    """Show what the sidecar NAME wrote; NAME may be its service's, too."""
    if not name.startswith("sidecars/"):
        of_service = session.client.sidecars.list(service=name, limit=1, timeout=session.timeout)
        name = of_service[0].name if of_service else name
    try:
        for line in session.client.sidecars.logs(name, tail=tail, follow=follow):
            if session.screen.is_json:
                session.screen.data(session.screen.to_json(line))
            else:
                click.echo(line.text)
    except ResourceNotFound as error:
        raise ResourceNotFound(
            f"{name} is no sidecar, and no service that has one", resource=error.resource, hop=error.hop
        ) from None
