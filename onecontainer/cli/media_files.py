"""Presets and files of `oca media transcode`: which target a preset takes, and what is written where."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.cli.artifact import fetch
from onecontainer.cli.session import Session
from onecontainer.client.media import IMAGE_FORMATS, presets

_ENDINGS_OF_FILES = frozenset({"m3u8", "mpd", "vtt", "mp4", "m4s", "ts", "mkv", "webm", *IMAGE_FORMATS, "jpg"})


def preset_options(preset: str, target: Path, wishes: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a preset for these wishes and this target. UsageError for one that it does not have."""
    ending = target.suffix.removeprefix(".").lower()
    known = inspect.signature(presets.NAMES[preset]).parameters
    options: dict[str, Any] = {}
    for name, value in wishes.items():
        argument = "at" if preset == "thumbnail" and name == "start" else name
        if argument not in known:
            raise click.UsageError(f"--{name} cannot go with --preset {preset}")
        options[argument] = value
    if preset == "audio-only":
        if ending not in presets.AUDIO_ENCODERS:
            raise click.UsageError(f"{target} must end in .{', .'.join(presets.AUDIO_ENCODERS)}")
        options["container"] = ending
    elif preset == "thumbnail":
        if ending.replace("jpg", "jpeg") not in IMAGE_FORMATS:
            raise click.UsageError(f"{target} must end in .jpg, .png or .webp")
        options["image_format"] = IMAGE_FORMATS[ending.replace("jpg", "jpeg")]
    elif wanted := {"web-mp4": "mp4", "archive": "mkv"}.get(preset, ""):
        if wanted != ending:
            raise click.UsageError(f"{target} must end in .{wanted} with --preset {preset}")
    elif ending in _ENDINGS_OF_FILES or target.is_file():
        raise click.UsageError(f"{target} must be a folder with --preset {preset}, for it gets several files")
    return options


def save(session: Session, output: pipeline_pb2.OutputResult, target: Path) -> None:
    """Downloads what an output made: its one file as `target`, several into `target` as a folder, under their own names."""
    if len(output.files) == 1 and target.suffix:
        fetch(session, output.files[0].artifact, target, resume=False)
        return
    root = target.resolve()
    for file in output.files:
        path = (root / file.name).resolve()
        if not path.is_relative_to(root):  # whatever a server says, nothing is written elsewhere
            raise click.ClickException(f"the output has a file {file.name!r}, which is not inside a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch(session, file.artifact, path, resume=False)
