"""`oca sidecar`: running drivers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.cli.options import DURATION, data_dir_option
from onecontainer.cli.process import settings_of
from onecontainer.cli.render import enum_name, moment
from onecontainer.cli.session import Session, connected
from onecontainer.client.names import short_name
from onecontainer.errors import ResourceNotFound, StateInvalid

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
      oca sidecar certificate movies.internal 10.0.0.7 --out movies-tls
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


@sidecar.command()
@click.argument("hosts", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to write cert.pem, key.pem and ca.pem to.",
)
@click.option("--valid", type=DURATION, default="730d", show_default=True, help="How long the certificate is valid.")
@data_dir_option
def certificate(hosts: tuple[str, ...], out: Path, valid: float, data_dir: Path | None) -> None:
    """Make a certificate for a sidecar that somebody starts elsewhere, reached by HOSTS (names, IP addresses).

    It is signed by the authority in the gateway's data folder, so run it there, and bring the folder to the sidecar: cert.pem and
    key.pem are what it serves with, ca.pem is how it knows the gateway.
    """
    # Imported here: the usage must not wait for cryptography.
    from onecontainer.sidecars.authority import Authority

    try:
        Authority(settings_of(data_dir).ca_dir).hand_out(out, hosts, days=max(1, round(valid / 86400)))
    except FileExistsError:
        raise StateInvalid(f"{out} has a key already: choose another folder, or remove that one") from None
    click.echo(f"{out}: certificate for {', '.join(hosts)}")
