"""make conformance: the kit on every driver that comes along and on those of the tests, on every runtime; red when a check fails.

python -m tests.conformance [--only NAME] [--runtime NAME]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from onecontainer.driver.conformance import DriverAbsent, Result, render
from onecontainer.errors import OneContainerError
from tests.conformance.subjects import RUNTIMES, SUBJECTS, Subject


def tell(result: Result) -> None:
    print(render.line(result), flush=True)


def examined(subject: Subject, runtime: str) -> tuple[bool, str]:
    """Prints the report; whether it passed, and its last line."""
    print(f"\n--- {subject.name}, {runtime} " + "-" * 40)
    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch, subject.kit(runtime, Path(scratch), tell) as kit:
            report = asyncio.run(kit.run())
    except (DriverAbsent, OneContainerError) as error:
        print(error)
        passed, end = False, "could not be tested"
    else:
        print(render.conclusion(report))
        passed, end = report.passed, render.summary(report)
    return passed, f"{subject.name:<16} {runtime:<8} {time.monotonic() - begin:6.1f} s  {end}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[subject.name for subject in SUBJECTS], action="append")
    parser.add_argument("--runtime", choices=list(RUNTIMES), action="append")
    given = parser.parse_args()
    ends = [
        examined(subject, runtime)
        for subject in SUBJECTS
        for runtime in subject.runtimes
        if (not given.only or subject.name in given.only) and (not given.runtime or runtime in given.runtime)
    ]
    print("\n" + "\n".join(told for _, told in ends))
    return 0 if all(passed for passed, _ in ends) else 1


if __name__ == "__main__":
    sys.exit(main())
