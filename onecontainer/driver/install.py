"""`python -m onecontainer.driver.install FOLDER`: installs what a driver requires, for Dockerfiles; with a `constraints.txt` there,
in the versions that that says.

Not the driver itself: a sidecar runs it from its folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from onecontainer.driver.entry_point import missing_requirements


def run() -> int:
    """Exit code: pip's; 0 if there is nothing to install."""
    parser = argparse.ArgumentParser(prog="python -m onecontainer.driver.install", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with a pyproject.toml, or none if it requires nothing")
    folder: Path = parser.parse_args().folder
    missing = missing_requirements(folder)
    if not missing:
        return 0
    sys.stdout.write(f"installing {', '.join(missing)}\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", "pip", "install", "--quiet", *missing]
    constraints = folder / "constraints.txt"
    if constraints.exists():
        command += ["--constraint", str(constraints)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(run())
