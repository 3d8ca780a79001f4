"""`python -m onecontainer.driver --driver-dir DIR`: runs the driver of a folder as a sidecar."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onecontainer.driver.entry_point import DriverUnusable, load_driver_class
from onecontainer.driver.serve import run_driver
from onecontainer.errors import OneContainerError
from onecontainer.rpc.manifest import METADATA_FILE, load_manifest


def run() -> int:
    """Exit code: see `run_driver`."""
    parser = argparse.ArgumentParser(prog="python -m onecontainer.driver", description=__doc__)
    parser.add_argument("--driver-dir", type=Path, required=True, help=f"folder with {METADATA_FILE}")
    folder: Path = parser.parse_args().driver_dir
    try:
        driver_class = load_driver_class(folder, load_manifest(folder))
    except (DriverUnusable, OneContainerError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return run_driver(driver_class, folder)


if __name__ == "__main__":
    sys.exit(run())
