"""The program that serves REST, `onecontainer-rest`: where it is found, of which sources it is, or what builds it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

import onecontainer
from onecontainer.cli.golang import find_go, wanted_version
from onecontainer.errors import StateInvalid
from onecontainer.settings import Settings

PROGRAM = "onecontainer-rest"
SUFFIXES = frozenset({".go", ".mod", ".sum", ".yaml"})
ABOUT_SECONDS = 30.0
ELSEWISE = (
    f"name a {PROGRAM} that was built elsewhere (--rest-program FILE, ONECONTAINER_REST_PROGRAM, or put it on PATH), "
    "or run its image: docs/compose.md"
)


@dataclass(frozen=True, slots=True)
class About:
    """What a program tells of itself: its version, and the digest of its sources (empty: it was built by other means)."""

    version: str
    sources: str


def source_root() -> Path | None:
    """The folder that has `deploy/rest` and `protos` in it: in an installed wheel, else a source checkout. None: neither."""
    package = Path(onecontainer.__file__).resolve().parent
    for root in (package / "_bundled", package.parent):
        if build_script(root).is_file():
            return root
    return None


def build_script(root: Path) -> Path:
    return root / "deploy" / "rest" / "build.py"


def wanted_go(root: Path) -> tuple[int, ...]:
    """The oldest Go that builds it, (1, 26)."""
    return wanted_version(root / "deploy" / "rest" / "go.mod")[:2]


def digest(root: Path) -> str:
    """Another one if anything the program is made of is another; a wheel's is that of the checkout it was made of."""
    folder = root / "deploy" / "rest"
    own = [path for path in folder.iterdir() if path.suffix in SUFFIXES]
    found = hashlib.sha256(onecontainer.__version__.encode())
    for path in sorted([*own, build_script(root), *(root / "protos").rglob("*.proto")]):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def about(program: Path) -> About | None:
    """What a program tells of itself; None: there is none, it does not run here, or it is something else."""
    try:
        told = subprocess.run(
            [str(program), "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=ABOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match told.stdout.split():
        case [name, version, *more] if name == PROGRAM:
            return About(version, more[1] if more[:1] == ["sources"] and len(more) > 1 else "")
    return None


def cached() -> Path:
    """Where one is kept that was built on first use."""
    # Imported here: only who serves REST needs it.
    from platformdirs import user_cache_path

    return user_cache_path("onecontainer", appauthor=False) / "rest" / PROGRAM


def installed(settings: Settings) -> Path | None:
    """The program of the setting, the one beside this Python, or that on PATH. None: it has to be built."""
    if settings.rest_program is not None:
        return settings.rest_program
    return beside(PROGRAM)


def beside(name: str) -> Path | None:
    """A program that lies beside this Python, or else on PATH."""
    path = Path(sys.executable).with_name(name)
    found = str(path) if path.exists() else shutil.which(name)
    return Path(found) if found else None


def program(settings: Settings) -> Path:
    """The program: an installed one, or one that is built now and kept in the user's cache folder.

    Raises:
        StateInvalid: there is none, and it cannot be built here, or it is no program. It says what to do.
    """
    found = installed(settings)
    if found is not None:
        if not (found.is_file() and os.access(found, os.X_OK)):
            problem = "cannot be executed" if found.is_file() else "is not there"
            raise StateInvalid(f"{found} cannot be run: it {problem}; correct --rest-program, or {ELSEWISE}")
        return found
    root = source_root()
    if root is None:
        raise StateInvalid(f"{PROGRAM} is not installed, and its sources are not here: {ELSEWISE}")
    if find_go() is None:
        wanted = ".".join(map(str, wanted_go(root)))
        raise StateInvalid(
            f"{PROGRAM} is not installed, and Go, which builds it, is not either: install Go {wanted} or newer, or {ELSEWISE}"
        )
    out = cached()
    click.echo("REST: looking whether its program is up to date …", err=True)
    built = subprocess.run(
        [sys.executable, str(build_script(root)), "--quick", "--out", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if built.returncode:
        raise StateInvalid(f"{PROGRAM} could not be built; the lines above tell why. Or {ELSEWISE}")
    return out
