"""`oca doctor`: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import click
from packaging.requirements import Requirement

from onecontainer.catalog.drivers import bundled_folder
from onecontainer.cli.doctor_rest import rest
from onecontainer.cli.finding import BAD, NOTE, OK, Finding
from onecontainer.cli.options import data_dir_option, output_option
from onecontainer.cli.process import note_of, settings_of
from onecontainer.cli.render import screen_of, size
from onecontainer.rpc.manifest import load_manifest
from onecontainer.settings import Settings

MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 256 * 1024 * 1024
LITTLE_FREE_BYTES = 4 * 1024 * 1024 * 1024


@click.command()
@data_dir_option
@output_option
def doctor(data_dir: Path | None, output: str | None) -> None:
    """Check this machine: Python, packages, drivers, ffmpeg, disk, data folder, port, Docker, REST.

    Each line says what to do about what is wrong. Fails if something is that the gateway or a driver needs.
    """
    screen = screen_of(output)
    findings = list(examine(settings_of(data_dir)))
    if screen.is_json:
        screen.data([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            sign, colour = {OK: ("✓", "green"), NOTE: ("·", "yellow"), BAD: ("✗", "red")}[finding.level]
            click.echo(f"{click.style(sign, fg=colour)} {finding.what}: {finding.detail}")
            if finding.hint:
                click.echo(f"    → {finding.hint}")
    if any(finding.level == BAD for finding in findings):
        raise click.exceptions.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """All checks, in order."""
    yield python(sys.version_info[:3])
    yield from packages(
        importlib.metadata.requires("onecontainer") or [], ("gateway", "cli"), "onecontainer[gateway,cli]"
    )
    yield from drivers(bundled_folder(), settings.driver_paths)
    yield ffmpeg()
    yield from data_folder(settings.data_dir)
    yield from secrets(settings.secrets_dir)
    yield port(settings)
    yield docker()
    yield rest(settings)


def python(version: tuple[int, int, int]) -> Finding:
    text = ".".join(map(str, version))
    if version >= MIN_PYTHON:
        return Finding(OK, "Python", text)
    return Finding(BAD, "Python", f"{text} is too old", "Install Python 3.11 or newer and make the environment anew.")


def packages(
    requirements: Iterable[str], extras: tuple[str, ...], package: str, what: str = "packages"
) -> Iterator[Finding]:
    """Whether what a distribution requires, with its extras, is installed in the right versions."""
    wrong = []
    for text in requirements:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, not {requirement.specifier}")
    if wrong:
        yield Finding(BAD, what, "; ".join(wrong), f"pip install '{package}'")
    else:
        yield Finding(OK, what, "all there")


def drivers(bundled: Path | None, further: Iterable[Path]) -> Iterator[Finding]:
    """Whether each driver's metadata reads, and what it requires is there."""
    if bundled is None:
        yield Finding(BAD, "drivers", "the bundled drivers are not there", "Install oneContainer again.")
    folders = [
        folder for root in (bundled, *further) if root is not None for folder in sorted(root.glob("*/metadata.json"))
    ]
    for metadata in folders:
        folder = metadata.parent
        what = f"driver {folder.name}"
        try:
            load_manifest(folder)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it is a finding
            yield Finding(BAD, what, f"broken: {error}", f"Correct {metadata}.")
            continue
        project = folder / "pyproject.toml"
        needed = (
            tomllib.loads(project.read_text()).get("project", {}).get("dependencies", []) if project.exists() else []
        )
        yield from packages(
            [text for text in needed if Requirement(text).name != "onecontainer"], (), str(folder), what
        )


def ffmpeg() -> Finding:
    """The ffmpeg that drivers find."""
    try:
        import imageio_ffmpeg

        program = str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
        if found is None:
            return Finding(
                NOTE, "ffmpeg", "not found", "Only for media: pip install imageio-ffmpeg, or your system's package."
            )
        program = found
    answer = subprocess.run([program, "-version"], capture_output=True, text=True, check=False, timeout=30)
    if answer.returncode:
        return Finding(BAD, "ffmpeg", f"{program} does not run: {answer.stderr.strip()[:200]}", "Install it again.")
    return Finding(OK, "ffmpeg", f"{answer.stdout.split()[2]} ({program})")


def data_folder(path: Path) -> Iterator[Finding]:
    """Whether the data folder is there, ours alone, and has room."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            BAD,
            "data folder",
            f"{existing} cannot be written",
            f"chown it to yourself, or choose another --data-dir than {path}.",
        )
        return
    if path.exists() and path.stat().st_uid == os.getuid() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Finding(
            NOTE, "data folder", f"{path} can be entered by others", f"chmod 700 {path} (the next start does it)."
        )
    else:
        yield Finding(OK, "data folder", str(path) if path.exists() else f"{path} (made at the first start)")
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        yield Finding(BAD, "disk", f"{size(free)} free at {existing}", "Free some space, or choose another --data-dir.")
    elif free < LITTLE_FREE_BYTES:
        yield Finding(NOTE, "disk", f"{size(free)} free at {existing}", "Little for artifacts; watch it.")
    else:
        yield Finding(OK, "disk", f"{size(free)} free")


def secrets(folder: Path) -> Iterator[Finding]:
    """Secrets that others can read."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Finding(BAD, "secret", f"{path} can be read by others", f"chmod 600 {path}")


def port(settings: Settings) -> Finding:
    """Whether our gateway listens, or could."""
    note = note_of(settings.data_dir)
    if note is not None:
        return Finding(OK, "gateway", f"runs on {note.address}, pid {note.pid}")
    host, _, number = settings.listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(number)))
        except OSError as error:
            return Finding(
                BAD,
                "port",
                f"{settings.listen}: {error.strerror}",
                "Another program has it: `oca up --listen 127.0.0.1:0` takes a free one.",
            )
    return Finding(OK, "port", f"{settings.listen} is free")


def docker() -> Finding:
    """Docker, which is needed for `--runtime docker` and for backends as containers only."""
    program = shutil.which("docker")
    if program is None:
        return Finding(
            NOTE,
            "Docker",
            "not found",
            "Only needed for services with --runtime docker, and for backends as containers.",
        )
    answer = subprocess.run(
        [program, "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=False, timeout=30
    )
    if answer.returncode:
        return Finding(
            NOTE,
            "Docker",
            "its daemon does not answer",
            "Only needed for --runtime docker and for backends as containers: start it, and be in its group.",
        )
    return Finding(OK, "Docker", answer.stdout.strip())
