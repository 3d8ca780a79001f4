"""Go, which programs beside the gateway are built with: where it is, how new it is, and how it is run.

Needs nothing but Python: what prepares a machine for the tests uses it too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

USUAL = Path("/usr/local/go/bin/go")


def find_go() -> str | None:
    """Path of the Go tool: of PATH, else where Go's own installation puts it. None: there is none."""
    return shutil.which("go") or (str(USUAL) if USUAL.exists() else None)


def go_environment(tool: str) -> dict[str, str]:
    """Variables that all builds run with, so that each finds in Go's cache what another has compiled of the same packages."""
    return {
        "CGO_ENABLED": "0",
        "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -trimpath".strip(),
        "PATH": f"{Path(tool).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def go_version(tool: str) -> tuple[int, ...]:
    """Its version, (1, 26, 8); empty: it does not run, or tells none."""
    try:
        # Its own: by default it takes (or fetches) the one that a go.mod nearby asks for.
        told = subprocess.run(
            [tool, "env", "GOVERSION"],
            env={**os.environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ()
    return numbers(told.stdout) if told.returncode == 0 else ()


def wanted_version(module: Path) -> tuple[int, ...]:
    """The version that a go.mod asks for; empty: any."""
    found = re.search(r"^go (\S+)$", module.read_text(), re.MULTILINE)
    return numbers(found[1]) if found else ()


def numbers(version: str) -> tuple[int, ...]:
    """(1, 26, 8) of `go1.26.8`."""
    found = re.search(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
