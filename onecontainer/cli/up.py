"""`oca up` and `oca down`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click
from click.core import ParameterSource

from onecontainer.cli.backends.catalog import Backend, choose, load
from onecontainer.cli.options import DURATION, data_dir_option, output_option
from onecontainer.cli.process import LOG_FILE_VARIABLE, LOG_NAME, last_lines, note_of, settings_of, start_detached, stop
from onecontainer.cli.render import Screen, screen_of
from onecontainer.cli.rest import DEFAULT_LISTEN, RestFront, check_free, rest_of, wait_for_note
from onecontainer.cli.rest_program import program
from onecontainer.errors import OneContainerError
from onecontainer.gateway.lock import Note, check_unused
from onecontainer.settings import Settings

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
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    help="Start this backend of the catalog too, and register it; may be repeated; `all`: each. See `oca backend`.",
)
@click.option(
    "--rest",
    envvar="ONECONTAINER_REST_LISTEN",
    is_flag=False,
    flag_value=DEFAULT_LISTEN,
    metavar="[HOST:PORT]",
    help="Serve the API as REST too, with its pages at /docs. Without an address: 127.0.0.1:8000; port 0 takes a free one.",
)
@click.option(
    "--rest-program",
    envvar="ONECONTAINER_REST_PROGRAM",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The program that serves REST. Default: onecontainer-rest on PATH, else one that is built now, with Go.",
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
    backends: tuple[str, ...],
    rest: str | None,
    rest_program: Path | None,
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
      oca up --backend web-rtmp               with a backend as a container
      oca up --rest                           with REST on 127.0.0.1:8000
    """
    settings = settings_of(
        data_dir,
        listen=listen,
        dispatch_url=jobs,
        runtime=runtime,
        rest_listen=rest,
        rest_program=rest_program,
        log_level=log_level,
        backends=list(backends) or None,
    )
    screen = screen_of(output)
    chosen = choose(load(settings), settings.backends) if settings.backends else []
    running = note_of(settings.data_dir) if detach else None
    if not detach:
        check_unused(settings.data_dir)
    if settings.rest_listen and running is None:
        # Before anything is built or started.
        check_free(settings.rest_listen)
        settings = settings.model_copy(update={"rest_program": program(settings)})
    if detach:
        note = running or start_detached(settings, timeout=start_timeout)
        told = "already running" if running is not None else "ready"
        if running is None and settings.rest_listen:
            wait_for_note(settings.data_dir, note, timeout=start_timeout)
        if running is not None and _said("listen", "jobs", "runtime", "rest", "rest_program", "log_level"):
            click.echo("It keeps the settings that it was started with; for others: oca down, then oca up.", err=True)
        if not chosen:
            tell(told, note, settings.data_dir, screen)
        elif code := start_chosen(told, note, settings, chosen, screen):
            raise click.exceptions.Exit(code)
        return
    # Imported here: the gateway brings its database and all else with it.
    from onecontainer.gateway.app import serve
    from onecontainer.gateway.logs import configure

    configure(settings.log_level, settings.log_format)
    beside: list[subprocess.Popen[bytes]] = []

    front = RestFront(settings)

    def ready(address: str) -> None:
        more = {"rest": front.start(address)} if settings.rest_listen else {}
        if screen.is_json:
            place = {"address": address, "pid": os.getpid(), "data_dir": str(settings.data_dir)}
            screen.data({"state": "ready", **place, **more})
        else:
            for url in more.values():
                click.echo(f"REST on {url}, pages at {url}/docs")
            click.echo(f"oneContainer listens on {address}; data in {settings.data_dir}. Ctrl-C ends it.")
        if chosen:
            beside.append(start_beside(address, settings, [backend.name for backend in chosen], screen))

    try:
        asyncio.run(serve(settings, ready=ready, log_file=os.environ.get(LOG_FILE_VARIABLE, "")))
    finally:
        front.stop()
        for child in beside:
            child.terminate()
            child.wait()
    screen.say("stopped")


def _said(*options: str) -> bool:
    """Whether one of the options stands on the command line, and not in a variable that is always there."""
    context = click.get_current_context()
    return any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in options)


def start_chosen(told: str, note: Note, settings: Settings, chosen: list[Backend], screen: Screen) -> int:
    """Starts backends for the gateway that runs; the exit code. A program gets one answer for all."""
    # Imported here: the usage must not wait for grpc.
    from onecontainer.cli.backends.start import start_backends
    from onecontainer.cli.session import session_at

    if not screen.is_json:
        tell(told, note, settings.data_dir, screen)
    session = session_at(note.address, screen.output)
    try:
        shown, code = start_backends(session, settings, chosen)
    finally:
        session.close()
    if screen.is_json:
        tell(told, note, settings.data_dir, screen, backends=shown)
    return code


def start_beside(address: str, settings: Settings, names: list[str], screen: Screen) -> subprocess.Popen[bytes]:
    """Starts backends in a process of its own: whatever becomes of it, the gateway goes on."""
    from onecontainer.cli.session import connection_flags, connection_variables

    catalog = (
        {} if settings.backend_catalog is None else {"ONECONTAINER_BACKEND_CATALOG": str(settings.backend_catalog)}
    )
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "onecontainer.cli", *connection_flags(), "backend", "start", *names],
        stdin=subprocess.DEVNULL,
        env={
            **os.environ,
            **connection_variables(),
            **catalog,
            "ONECONTAINER_ADDRESS": address,
            "ONECONTAINER_DATA_DIR": str(settings.data_dir),
            "ONECONTAINER_OUTPUT": screen.output,
        },
    )


def tell(state: str, note: Note, data_dir: Path, screen: Screen, **more: object) -> None:
    """Where the gateway is, and how it is stopped."""
    rest = rest_of(data_dir, note)
    if screen.is_json:
        more = {**more, "rest": rest} if rest else more
        screen.data({"state": state, "data_dir": str(data_dir), **asdict(note), **more})
        return
    screen.say(f"{state}: gateway on {note.address}, pid {note.pid}")
    if rest:
        screen.say(f"  REST  {rest}, pages at {rest}/docs")
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
