"""`oca artifact`: stored bytes."""

from __future__ import annotations

from pathlib import Path

import click

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.cli.bars import transfer
from onecontainer.cli.options import DURATION, FILE, PAIR
from onecontainer.cli.render import moment, size
from onecontainer.cli.session import Session, connected
from onecontainer.client.names import filter_of, full_name, short_name


@click.group()
def artifact() -> None:
    """Upload, download and delete files.

    \b
    Examples:
      oca artifact upload clip.mp4
      oca artifact download 01jd… --to clip.mp4
      oca artifact list --job 01jd…
    """


def show(session: Session, found: artifact_pb2.Artifact) -> None:
    session.screen.message(
        found,
        {
            "name": found.name,
            "file": found.filename,
            "media type": found.media_type,
            "size": f"{size(found.size_bytes)} ({found.size_bytes} bytes)",
            "sha256": found.sha256,
            "job": found.job,
            "labels": dict(found.labels),
            "created": found.create_time,
            "expires": found.expire_time if found.HasField("expire_time") else "",
        },
    )


@artifact.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--media-type", default="", help="Default: guessed from the file's name.")
@click.option("--label", "labels", type=PAIR, multiple=True, help="KEY=VALUE; may be repeated.")
@click.option("--ttl", type=DURATION, help="Deleted after so long. Default: stays until it is deleted.")
@connected
def upload(
    session: Session, files: tuple[Path, ...], media_type: str, labels: tuple[tuple[str, str], ...], ttl: float | None
) -> None:
    """Upload files; each becomes an artifact."""
    done = [send(session, path, media_type=media_type, labels=dict(labels), ttl=ttl) for path in files]
    if len(done) == 1:
        show(session, done[0])
    else:
        session.screen.messages(done, COLUMNS)


def send(
    session: Session,
    path: Path,
    *,
    media_type: str = "",
    labels: dict[str, str] | None = None,
    ttl: float | None = None,
) -> artifact_pb2.Artifact:
    """Uploads a file with a bar."""
    with transfer(session.screen.console, path.name) as move:
        return session.client.artifacts.upload(
            path, media_type=media_type, labels=labels, ttl=ttl, on_progress=move, timeout=session.timeout
        )


def fetch(session: Session, name: str, path: Path, *, resume: bool = True) -> Path:
    """Downloads an artifact with a bar; returns the file's path."""
    with transfer(session.screen.console, path.name if path.suffix else short_name(name)) as move:
        return session.client.artifacts.download(name, path, resume=resume, on_progress=move, timeout=session.timeout)


@artifact.command()
@click.argument("name")
@click.option(
    "--to", "path", type=click.Path(path_type=Path), default=Path(), help="File or folder. Default: this folder."
)
@click.option("--restart", is_flag=True, help="Begin anew, even if a part is there from an earlier time.")
@connected
def download(session: Session, name: str, path: Path, restart: bool) -> None:
    """Download an artifact; its digest is checked. One that was broken off goes on where it was."""
    found = session.client.artifacts.get(name, timeout=session.timeout)
    saved = fetch(session, found.name, path, resume=not restart)
    if session.screen.is_json:
        session.screen.data({**session.screen.to_json(found), "path": str(saved)})
    else:
        session.screen.say(f"{saved}  {size(found.size_bytes)}, SHA-256 {found.sha256.hex()}")


COLUMNS = {
    "name": lambda a: short_name(a.name),
    "file": lambda a: a.filename,
    "size": lambda a: size(a.size_bytes),
    "media type": lambda a: a.media_type,
    "job": lambda a: short_name(a.job),
    "created": lambda a: moment(a.create_time),
}


@artifact.command("list")
@click.option("--job", default="", help="Only of this job.")
@click.option("--media-type", default="", help="Only of this media type.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@connected
def list_(session: Session, job: str, media_type: str, limit: int) -> None:
    """List artifacts, newest first."""
    terms = filter_of({"job": full_name("jobs", job), "media_type": media_type})
    session.screen.messages(session.client.artifacts.list(filter=terms, limit=limit, timeout=session.timeout), COLUMNS)


@artifact.command()
@click.argument("name")
@connected
def get(session: Session, name: str) -> None:
    """Show an artifact, without its bytes."""
    show(session, session.client.artifacts.get(name, timeout=session.timeout))


@artifact.command()
@click.argument("names", nargs=-1, required=True)
@connected
def delete(session: Session, names: tuple[str, ...]) -> None:
    """Delete artifacts."""
    for name in names:
        session.client.artifacts.delete(name, timeout=session.timeout)
        session.screen.say(f"deleted {full_name('artifacts', name)}")
