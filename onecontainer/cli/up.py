"""`oca up` and `oca down`."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import click

from onecontainer.cli.options import DURATION, data_dir_option
from onecontainer.cli.process import LOG_FILE_VARIABLE, LOG_NAME, last_lines, note_of, settings_of, start_detached, stop
from onecontainer.errors import OneContainerError
from onecontainer.gateway.lock import Note

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
STOP_MARGIN = 30.0


@click.command()
@click.option("--detach", "-d", is_flag=True, help="Go on in the background; answers when the gateway is ready.")
@data_dir_option
@click.option(
    "--listen",
    envvar="ONECONTAINER_LISTEN",
    metavar="HOST:PORT",
    help="Default: 127.0.0.1:50051; port 0 takes a free one.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: info.")
@click.option(
    "--start-timeout",
    type=DURATION,
    default="60s",
    show_default=True,
    help="With --detach: longest wait until it is ready.",
)
def up(detach: bool, data_dir: Path | None, listen: str | None, log_level: str | None, start_timeout: float) -> None:
    """Start the gateway.

    In the foreground it runs until Ctrl-C (or SIGTERM), and then drains. All other settings are ONECONTAINER_… variables, see
    docs/reference/settings.md.

    \b
    Examples:
      oca up                                  here, until Ctrl-C
      oca up --detach --data-dir /srv/oca     in the background
      oca up --listen 127.0.0.1:0             on a free port
    """
    settings = settings_of(data_dir, listen=listen, log_level=log_level)
    if detach:
        running = note_of(settings.data_dir)
        if running is not None:
            tell("already running", running, settings.data_dir)
            return
        tell("ready", start_detached(settings, timeout=start_timeout), settings.data_dir)
        return
    # Imported here: the gateway brings its database and all else with it.
    from onecontainer.gateway.app import serve

    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT)
    asyncio.run(
        serve(
            settings,
            ready=lambda address: click.echo(
                f"oneContainer listens on {address}; data in {settings.data_dir}. Ctrl-C ends it."
            ),
            log_file=os.environ.get(LOG_FILE_VARIABLE, ""),
        )
    )
    click.echo("stopped")


def tell(what: str, note: Note, data_dir: Path) -> None:
    click.echo(f"{what}: gateway on {note.address}, pid {note.pid}")
    click.echo(f"  data  {data_dir}")
    if note.log_file:
        click.echo(f"  log   {note.log_file}")
    click.echo("  stop  oca down" + ("" if data_dir == settings_of(None).data_dir else f" --data-dir {data_dir}"))


@click.command()
@data_dir_option
@click.option(
    "--wait", "timeout", type=DURATION, help="Longest wait for it to end. Default: its drain timeout and 30s more."
)
def down(data_dir: Path | None, timeout: float | None) -> None:
    """Stop the gateway of a data folder: it takes nothing new, lets running calls end, and stops its sidecars.

    Queued jobs wait for the next start. Does nothing if none runs.
    """
    settings = settings_of(data_dir)
    note = note_of(settings.data_dir)
    if note is None:
        click.echo(f"no gateway runs on {settings.data_dir}")
        return
    click.echo(f"stopping the gateway on {note.address} (pid {note.pid}) …")
    try:
        stop(settings.data_dir, note, timeout=timeout or settings.gateway_drain_timeout + STOP_MARGIN)
    except OneContainerError:
        log = settings.data_dir / LOG_NAME
        if log.exists():
            click.echo(last_lines(log, 0), err=True)
        raise
    click.echo("stopped")
