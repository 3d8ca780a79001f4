"""Writes .ci/constraints.txt: the exact versions that the checks run with, without any index's address."""

import subprocess
import sys
from pathlib import Path

HEADER = "# Versions that all checks run with. Written by `make constraints`; `make setup` installs by it.\n"
OURS = ("onecontainer",)


def main() -> None:
    freeze = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check", "--exclude-editable"],
        check=True,
        capture_output=True,
        text=True,
    )
    pins = [
        line
        for line in freeze.stdout.splitlines()
        if "==" in line and not line.startswith((*OURS, "pip==", "setuptools=="))
    ]
    Path(__file__).with_name("constraints.txt").write_text(
        HEADER + "".join(f"{pin}\n" for pin in sorted(pins, key=str.lower))
    )


if __name__ == "__main__":
    main()
