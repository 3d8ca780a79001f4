"""`oca driver check`: is it a driver?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onecontainer.cli.options import DURATION, JSON_PAIR, PAIR
from onecontainer.errors import OneContainerError

if TYPE_CHECKING:
    from onecontainer.driver.conformance import Result

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
NOT_TESTED = 2
COLOURS = {"pass": "green", "FAIL": "red", "skipped": "yellow"}


@click.command()
@click.argument("driver")
@click.option("--option", "options", type=JSON_PAIR, multiple=True, help="NAME=VALUE of the service; may be repeated.")
@click.option("--endpoint", "endpoints", type=PAIR, multiple=True, help="NODE=ADDRESS of the backend; may be repeated.")
@click.option(
    "--broken-option", "broken_options", type=JSON_PAIR, multiple=True, help="NAME=VALUE with which no backend answers."
)
@click.option(
    "--broken-endpoint", "broken_endpoints", type=PAIR, multiple=True, help="NODE=ADDRESS where no backend answers."
)
@click.option(
    "--service-file", type=FILE, help="JSON: app, app_version, options, endpoints, broken {options, endpoints}."
)
@click.option(
    "--examples",
    type=FILE,
    help="JSON: requests for its methods (docs/conformance.md). Default: examples.json of the folder.",
)
@click.option("--app-version", default="", help="Version of the app that it is attached for.")
@click.option("--token-file", type=FILE, help="With an address: file with the driver's instance token.")
@click.option("--ca-file", type=FILE, help="With an address: PEM file with the CA of the driver's certificate.")
@click.option(
    "--listen", default="", help="With an address: where the kit waits for the driver's worker. Default: a UNIX socket."
)
@click.option("--secrets-dir", type=FOLDER, help="With a folder: one file per secret, for options secrets/NAME.")
@click.option("--smoke", is_flag=True, help="Only the quick checks, which attach to nothing.")
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Only these checks and what they need, `run.*`; may be repeated."
)
@click.option("--skip", multiple=True, metavar="PATTERN", help="Not these checks; may be repeated.")
@click.option("--timeout", type=DURATION, default=30.0, show_default=True, help="What one call gets.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def check(driver: str, smoke: bool, only: tuple[str, ...], skip: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Test whether DRIVER keeps the contract of drivers, over the wire, in whatever language it is written.

    DRIVER is a driver's folder, which is started for it, or the address (HOST:PORT, unix:PATH) of one that runs and that nobody
    else uses: it is attached, called, and in the end drained. Exit code 0: it conforms; 1: it does not; 2: it could not be tested.

    \b
    Examples:
      oca driver check ./drivers/sql
      oca driver check ./drivers/onnx --option default_model=none
      oca driver check 127.0.0.1:50061 --token-file token --examples examples.json
      oca driver check ./my-driver --smoke --json
    """
    # Here: the other commands start without the kit and all that it imports.
    from onecontainer.driver.conformance import DriverAbsent, Selection, render
    from onecontainer.driver.conformance.command import Order

    for name in ("options", "endpoints", "broken_options", "broken_endpoints"):
        given[name] = dict(given[name])

    def tell(result: Result) -> None:
        line = render.line(result)
        told = result.outcome.value
        click.echo(line.replace(f" {told} ", f" {click.style(told, fg=COLOURS[told])} ", 1), err=as_json)

    try:
        report = Order(driver, selection=Selection(smoke, only, skip), **given).run(tell)
    except (OneContainerError, DriverAbsent, OSError) as error:
        click.echo(f"{driver} could not be tested: {error}", err=True)
        sys.exit(NOT_TESTED)
    click.echo(render.as_json(report) if as_json else render.conclusion(report))
    sys.exit(0 if report.passed else 1)
