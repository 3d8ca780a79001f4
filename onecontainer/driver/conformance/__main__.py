"""`python -m onecontainer.driver.conformance DRIVER`: the kit where there is no `oca`, beside a driver that has the base install only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onecontainer.driver.conformance import render
from onecontainer.driver.conformance.command import Order
from onecontainer.driver.conformance.kit import DriverAbsent, DriverElsewhere, Selection
from onecontainer.driver.conformance.model import Result
from onecontainer.errors import OneContainerError


def parser() -> argparse.ArgumentParser:
    """Its arguments."""
    found = argparse.ArgumentParser(prog="python -m onecontainer.driver.conformance", description=__doc__)
    found.add_argument("driver", help="folder of a driver, or the address of one that runs (HOST:PORT, unix:PATH)")
    found.add_argument("--service-file", type=Path, help="JSON file with the options and endpoints to attach it with")
    found.add_argument(
        "--examples", type=Path, help="JSON file with requests for its methods; default: examples.json of the folder"
    )
    found.add_argument("--token-file", type=Path, help="file with the instance token of a driver that runs")
    found.add_argument("--ca-file", type=Path, help="PEM file with the CA of its certificate")
    found.add_argument("--only", action="append", default=[], help="only these checks and what they need (pattern)")
    found.add_argument("--skip", action="append", default=[], help="not these checks (pattern)")
    found.add_argument("--timeout", type=float, default=30.0, help="seconds that one call gets")
    found.add_argument("--smoke", action="store_true", help="only the quick checks, which attach to nothing")
    found.add_argument("--json", action="store_true", help="the report as JSON")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 it conforms, 1 it does not, 2 it could not be tested, 3 nor can it be in this environment, which lacks packages."""
    given = parser().parse_args(arguments)
    order = Order(
        given.driver,
        service_file=given.service_file,
        examples=given.examples,
        token_file=given.token_file,
        ca_file=given.ca_file,
        timeout=given.timeout,
        selection=Selection(given.smoke, given.only, given.skip),
    )

    def tell(result: Result) -> None:
        (sys.stderr if given.json else sys.stdout).write(render.line(result) + "\n")

    try:
        report = order.run(tell)
    except (OneContainerError, DriverAbsent, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 3 if isinstance(error, DriverElsewhere) else 2
    sys.stdout.write((render.as_json(report) if given.json else render.conclusion(report)) + "\n")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
