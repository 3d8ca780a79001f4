"""`oca up` and `oca down`."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path

import click

from onecontainer.cli.options import DURATION, data_dir_option, output_option
from onecontainer.cli.process import LOG_FILE_VARIABLE, LOG_NAME, last_lines, note_of, settings_of, start_detached, stop
from onecontainer.cli.render import Screen, screen_of
from onecontainer.errors import OneContainerError
from onecontainer.gateway.lock import Note

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
@click.option(
    "--jobs",
    envvar="ONECONTAINER_DISPATCH_URL",
    metavar="URL",
    help="How jobs reach workers: embedded:// (the default) or kafka://HOST:PORT,HOST:PORT.",
)
@click.option(
    "--runtime",
    envvar="ONECONTAINER_RUNTIME",
    type=click.Choice(["process", "docker"]),
    help="Where sidecars run of services that do not say. Default: process.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: info.")
@click.option(
    "--start-timeout",
    type=DURATION,
    default="60s",
    show_default=True,
    help="With --detach: longest wait until it is ready.",
)
@output_option
def up(
    detach: bool,
    data_dir: Path | None,
    listen: str | None,
    jobs: str | None,
    runtime: str | None,
    log_level: str | None,
    start_timeout: float,
    output: str | None,
) -> None:
    """Start the gateway.

    In the foreground it runs until Ctrl-C (or SIGTERM), and then drains. All other settings are ONECONTAINER_… variables, see
    docs/reference/settings.md.

    \b
    Examples:
      oca up                                  here, until Ctrl-C
      oca up --detach --data-dir /srv/oca     in the background
      oca up --listen 127.0.0.1:0             on a free port
      oca up --jobs kafka://127.0.0.1:9092    jobs go over a broker
      oca up --runtime docker                 sidecars are containers
    """
    settings = settings_of(data_dir, listen=listen, dispatch_url=jobs, runtime=runtime, log_level=log_level)
    screen = screen_of(output)
    if detach:
        running = note_of(settings.data_dir)
        if running is not None:
            tell("already running", running, settings.data_dir, screen)
        else:
            tell("ready", start_detached(settings, timeout=start_timeout), settings.data_dir, screen)
        return
    # Imported here: the gateway brings its database and all else with it.
    from onecontainer.gateway.app import serve
    from onecontainer.gateway.logs import configure

    configure(settings.log_level, settings.log_format)

    def ready(address: str) -> None:
        if screen.is_json:
            screen.data({"state": "ready", "address": address, "pid": os.getpid(), "data_dir": str(settings.data_dir)})
        else:
            click.echo(f"oneContainer listens on {address}; data in {settings.data_dir}. Ctrl-C ends it.")

    asyncio.run(serve(settings, ready=ready, log_file=os.environ.get(LOG_FILE_VARIABLE, "")))
    screen.say("stopped")


def tell(state: str, note: Note, data_dir: Path, screen: Screen) -> None:
    """Where the gateway is, and how it is stopped."""
    if screen.is_json:
        screen.data({"state": state, "data_dir": str(data_dir), **asdict(note)})
        return
    screen.say(f"{state}: gateway on {note.address}, pid {note.pid}")
    screen.say(f"  data  {data_dir}")
    if note.log_file:
        screen.say(f"  log   {note.log_file}")
    if data_dir == settings_of(None).data_dir:
        screen.say("  stop  oca down")
    else:
        screen.say(f"  stop  oca down --data-dir {data_dir}")
        screen.say(f"  use   export ONECONTAINER_DATA_DIR={data_dir}   (the other commands then find it)")


@click.command()
@data_dir_option
@click.option(
    "--wait", "timeout", type=DURATION, help="Longest wait for it to end. Default: its drain timeout and 30s more."
)
@output_option
def down(data_dir: Path | None, timeout: float | None, output: str | None) -> None:
    """Stop the gateway of a data folder: it takes nothing new, lets running calls end, and stops its sidecars.
    Those in containers go on, and the next gateway goes on with them.

    Queued jobs wait for the next start. Does nothing if none runs.
    """
    settings = settings_of(data_dir)
    note = note_of(settings.data_dir)
    screen = screen_of(output)
    if note is None:
        screen.say(f"no gateway runs on {settings.data_dir}")
        if screen.is_json:
            screen.data({"state": "not running", "data_dir": str(settings.data_dir)})
        return
    screen.say(f"stopping the gateway on {note.address} (pid {note.pid}) …")
    try:
        stop(settings.data_dir, note, timeout=timeout or settings.gateway_drain_timeout + STOP_MARGIN)
    except OneContainerError:
        log = settings.data_dir / LOG_NAME
        if log.exists():
            click.echo(last_lines(log, 0), err=True)
        raise
    screen.say("stopped")
    if screen.is_json:
        screen.data({"state": "stopped", "data_dir": str(settings.data_dir), "pid": note.pid})
