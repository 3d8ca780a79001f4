"""`oca driver install`, `uninstall` and `pack`: plug-in drivers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from onecontainer.api.management.v1 import management_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.catalog.packing import pack as packed
from onecontainer.cli.artifact import send
from onecontainer.cli.options import output_option
from onecontainer.cli.render import enum_name, screen_of, size
from onecontainer.cli.session import Session, connected
from onecontainer.client.names import full_name, short_name
from onecontainer.errors import BackendUnreachable, OneContainerError, SourceNotAllowed
from onecontainer.rpc.manifest import METADATA_FILE, load_manifest

GIT = "git+"
KEPT = 3600.0
"""Seconds that an upload is kept if nobody deletes it: the gateway keeps what it installs by itself."""
PATIENCE = 300.0
"""Seconds that an installation may take, unless the user gives another time: a repository has to be fetched."""
MAX_PACKED_BYTES = 1 << 30
"""Beyond this no gateway would take it; the gateway's own limit is lower, and told by it."""


def git_source(text: str) -> pb.GitSource:
    """`git+https://HOST/PATH[@REF][#FOLDER]`."""
    address, _, folder = text.removeprefix(GIT).partition("#")
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    path, _, ref = path.rpartition("@") if "@" in path else (path, "", "")
    return pb.GitSource(url=f"{scheme}://{host}{slash}{path}", ref=ref, folder=folder)


@click.command()
@click.argument("source")
@click.option("--validate-only", is_flag=True, help="Check all, install nothing.")
@click.option("--on-gateway", is_flag=True, help="SOURCE is a folder on the gateway's machine, one that it allows.")
@connected
def install(session: Session, source: str, validate_only: bool, on_gateway: bool) -> None:
    """Install a plug-in driver, or a new version of one.

    SOURCE is a driver's folder or an archive of one (.tar, .tar.gz), which are uploaded, or
    git+https://HOST/PATH[@REF][#FOLDER], which the gateway fetches if it allows that URL.
    The same content again is no error. Services stay on their version until `oca service assign`.
    """
    if not source:
        raise click.UsageError("SOURCE is empty")
    drivers, timeout = session.client.drivers, session.timeout or PATIENCE
    try:
        if on_gateway:
            found = drivers.install(folder=source, validate_only=validate_only, timeout=timeout)
        elif source.startswith(GIT):
            with session.screen.console.status(f"the gateway fetches {source.removeprefix(GIT)}"):
                found = drivers.install(git=git_source(source), validate_only=validate_only, timeout=timeout)
        else:
            found = _uploaded(session, Path(source), validate_only, timeout)
    except (SourceNotAllowed, BackendUnreachable) as error:
        if error.hop is not None:
            error.add_note(
                "Install it from a folder or an archive here, or see docs/plugins.md for what the operator can allow."
            )
        raise
    _show(session, found, validate_only)


def _uploaded(session: Session, path: Path, validate_only: bool, timeout: float) -> resources_pb2.Driver:
    if not (path.is_dir() or path.is_file()):
        raise click.UsageError(f"{path} is no folder and no file; SOURCE is a folder, an archive, or git+https://…")
    if path.is_dir() and not (path / METADATA_FILE).is_file():
        raise click.UsageError(f"{path} has no {METADATA_FILE}: it is no driver's folder")
    with tempfile.TemporaryDirectory() as scratch:
        archive = path
        if path.is_dir():
            archive = Path(scratch) / f"{path.resolve().name}.tar.gz"
            archive.write_bytes(packed(path, MAX_PACKED_BYTES))
        artifact = send(session, archive, media_type="application/gzip", ttl=KEPT)
    try:
        with session.screen.console.status("checking and installing"):
            return session.client.drivers.install(artifact=artifact.name, validate_only=validate_only, timeout=timeout)
    finally:
        try:
            session.client.artifacts.delete(artifact.name, timeout=timeout)
        except OneContainerError as error:
            click.echo(f"{artifact.name} stays for an hour: {error.message}", err=True)


def _show(session: Session, found: resources_pb2.Driver, validate_only: bool) -> None:
    state = enum_name(resources_pb2.DriverState, found.state)
    if session.screen.is_json:
        session.screen.data(session.screen.to_json(found))
        return
    name = short_name(found.name)
    session.screen.say(f"{name} is valid; nothing was installed" if validate_only else f"{name} is {state}")
    if found.error.message:
        session.screen.say(f"  cause   {found.error.message}")
    session.screen.say(f"  digest  {found.digest}")
    session.screen.say(f"  methods {', '.join(method.name.rpartition('.')[2] for method in found.methods)}")
    if not validate_only and not found.services:
        session.screen.say(f"Next: oca service create NAME --app {found.manifest.app}")


@click.command()
@click.argument("name")
@connected
def uninstall(session: Session, name: str) -> None:
    """Remove a plug-in driver that no service uses."""
    session.client.drivers.uninstall(name, timeout=session.timeout)
    session.screen.say(f"uninstalled {full_name('drivers', name)}")


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--to", "target", type=click.Path(path_type=Path), help="File. Default: NAME-VERSION.tar.gz in this folder."
)
@output_option
def pack(folder: Path, target: Path | None, output: str | None) -> None:
    """Pack a driver's FOLDER into an archive that `install` takes; the same files give the same bytes.

    Tests, caches and hidden files stay out.
    """
    manifest = load_manifest(folder)
    data = packed(folder, MAX_PACKED_BYTES)
    path = target or Path(f"{manifest.name}-{manifest.version}.tar.gz")
    path.write_bytes(data)
    screen = screen_of(output)
    if screen.is_json:
        screen.data(
            {"path": str(path), "size_bytes": len(data), "driver": f"drivers/{manifest.name}-{manifest.version}"}
        )
    else:
        screen.say(f"{path}  {size(len(data))}, {manifest.name} {manifest.version} ({METADATA_FILE} is valid)")
