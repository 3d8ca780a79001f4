"""The conformance kit: tells whether something is a driver, in whatever language, over the wire only.

    report = await Kit(Folder(Path("drivers/sql"))).run()
    assert report.passed, render.text(report)

`oca driver check` is the same as a command, and docs/conformance.md tells of both.
"""

from __future__ import annotations

from onecontainer.driver.conformance.examples import Example, Examples, read_examples
from onecontainer.driver.conformance.kit import CHECKS, DriverAbsent, Kit, Selection
from onecontainer.driver.conformance.model import Check, Outcome, Report, Result
from onecontainer.driver.conformance.place import Endpoint, Folder, Place, Starter
from onecontainer.driver.conformance.session import ServiceSpec

__all__ = [
    "CHECKS",
    "Check",
    "DriverAbsent",
    "Endpoint",
    "Example",
    "Examples",
    "Folder",
    "Kit",
    "Outcome",
    "Place",
    "Report",
    "Result",
    "Selection",
    "ServiceSpec",
    "Starter",
    "read_examples",
]
