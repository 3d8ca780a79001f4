"""`oca driver new`: the folder of a driver that works, to begin with."""

from __future__ import annotations

import re
from pathlib import Path

import click

from onecontainer.catalog.drivers import bundled_folder
from onecontainer.cli.driver_build import COMPILER, build_driver, has_compiler
from onecontainer.errors import FieldInvalid, ResourceConflict
from onecontainer.rpc.manifest import METADATA_FILE, NAME_PATTERN

TEMPLATES = Path(__file__).parent / "templates"
SCOPES = ("ai", "db", "media", "hpc")
LEFT_OUT = {"__pycache__"}
RESERVED = {"google", "grpc", "onecontainer"}
"""Proto packages of others begin so."""


def check_name(name: str) -> None:
    """Raises FieldInvalid."""
    if not re.fullmatch(NAME_PATTERN, name) or name.endswith("-") or "--" in name:
        raise FieldInvalid(
            "name", f"{name!r} must be a small letter, then small letters, digits and single hyphens, at most 63"
        )
    if name in RESERVED:
        raise FieldInvalid("name", f"{name!r} is the name of a proto package of others: choose another one")


def new_driver(name: str, scope: str, folder: Path) -> list[Path]:
    """Writes a driver's folder; returns its files, those that `build_driver` made included.

    Raises FieldInvalid for the name, and ResourceConflict for a folder that is not empty.
    """
    check_name(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ResourceConflict(f"{folder} is there and not empty: name another folder with --dir")
    words = {
        "scaffold-name": name,
        "scaffold_name": name.replace("-", "_"),
        "ScaffoldName": "".join(part.capitalize() for part in name.split("-")),
    }
    written = []
    for template in (TEMPLATES / "common", TEMPLATES / scope):
        for path in sorted(template.rglob("*")):
            if path.is_file() and not LEFT_OUT.intersection(path.parts):
                target = folder / _filled(path.relative_to(template).as_posix(), words)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(_filled(path.read_text(encoding="utf-8"), words), encoding="utf-8")
                written.append(target)
    if has_compiler():
        written += [path for path in build_driver(folder) if path not in written]
    return written


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub("|".join(words), lambda match: words[match[0]], text)


@click.command()
@click.argument("name")
@click.option("--scope", type=click.Choice(SCOPES), required=True, help="hpc: with a service of its own.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Folder to make. Default: NAME, in this one.")
def new(name: str, scope: str, folder: Path | None) -> None:
    """Make the folder of a driver that works, to begin with.

    It comes with tests, a README and a Dockerfile. It is its own backend: replace that by what you drive.
    """
    bundled = bundled_folder()
    if bundled is not None and (bundled / name / METADATA_FILE).is_file():
        raise click.UsageError(f"{name} is the name of a driver that comes with oneContainer; take another one")
    target = folder or Path(name)
    for path in new_driver(name, scope, target):
        click.echo(f"wrote {path}")
    if scope == "hpc" and not has_compiler():
        click.echo(
            f"\nIts protos are not compiled yet, for there is no {COMPILER}:\n  pip install {COMPILER}\n  oca driver build {target}"
        )
    click.echo(
        f"\nNext:\n  pytest {target}                       # its tests\n"
        f"  oca driver check {target}\n"
        f"  oca driver install {target}\n"
        f"  oca service create my-{name} --app {name} --wait"
    )
