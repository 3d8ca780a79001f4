"""Which ffmpeg runs."""

from __future__ import annotations

import shutil

from imageio_ffmpeg import get_ffmpeg_exe

from onecontainer.driver import errors


def find_ffmpeg(option: str) -> str:
    """The program for the option `ffmpeg_path`.

    Empty: the one that comes with the driver, so that a service does the same on every machine, whatever is installed there. A name
    without a slash is looked up on PATH. FieldInvalid if it is not there.
    """
    if option:
        return _find("options.ffmpeg_path", option)
    try:
        return str(get_ffmpeg_exe())
    except RuntimeError as error:
        raise errors.FieldInvalid(
            "options.ffmpeg_path", "this platform has no bundled ffmpeg: set it to an ffmpeg program"
        ) from error


def find_ffprobe(option: str) -> str | None:
    """The program for the option `ffprobe_path`; None: the driver probes with FFmpeg's libraries (PyAV), which come with it."""
    return _find("options.ffprobe_path", option) if option else None


def _find(field: str, option: str) -> str:
    found = shutil.which(option)
    if found is None:
        raise errors.FieldInvalid(field, f"{option!r} is no program here")
    return found
