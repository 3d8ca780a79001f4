"""`python -m onecontainer.driver --driver-dir DIR`: runs the driver of a folder as a sidecar."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onecontainer.driver.entry_point import DriverUnusable, PackagesMissing, load_driver_class
from onecontainer.driver.serve import PACKAGES_MISSING, run_driver
from onecontainer.errors import OneContainerError
from onecontainer.rpc.manifest import METADATA_FILE, load_manifest

OPTIONS = (
    ("listen", "ADDRESS", "HOST:PORT or unix:PATH to serve on"),
    ("gateway", "TARGET", "the gateway's internal listener: register there"),
    ("service", "SERVICE", "the service to register for"),
    ("registration-token-file", "FILE", "the gateway's registration token"),
    ("advertise", "TARGET", "where the gateway reaches this sidecar; default: as --listen says"),
    ("tls-cert-file", "FILE", "certificate to serve with, beyond loopback"),
    ("tls-key-file", "FILE", "its private key"),
    ("state-dir", "FOLDER", "folder that survives restarts"),
    ("secrets-dir", "FOLDER", "folder with one file per secret"),
)
CA_HELP = "CA of the gateway's internal listener, beyond loopback (ONECONTAINER_TLS_CA_FILE)"


def run() -> int:
    """Exit code: see `run_driver`."""
    parser = argparse.ArgumentParser(prog="python -m onecontainer.driver", description=__doc__)
    parser.add_argument("--driver-dir", type=Path, required=True, help=f"folder with {METADATA_FILE}")
    for name, metavar, text in OPTIONS:
        parser.add_argument(
            f"--{name}", metavar=metavar, help=f"{text} (ONECONTAINER_{name.upper().replace('-', '_')})"
        )
    parser.add_argument("--ca-file", dest="tls_ca_file", metavar="FILE", help=CA_HELP)
    values = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    folder: Path = values.pop("driver_dir")
    try:
        driver_class = load_driver_class(folder, load_manifest(folder))
    except (DriverUnusable, OneContainerError) as error:
        sys.stderr.write(f"{error}\n")
        return PACKAGES_MISSING if isinstance(error, PackagesMissing) else 2
    return run_driver(driver_class, folder, **values)


if __name__ == "__main__":
    sys.exit(run())
