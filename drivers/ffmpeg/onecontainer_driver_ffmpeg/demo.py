"""A clip to show things with, made on the spot: nothing to download, nobody's rights."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from onecontainer_driver_ffmpeg.binaries import find_ffmpeg


def make_demo_clip(path: Path, *, seconds: int = 24, width: int = 960, height: int = 540) -> Path:
    """Writes an MP4 (H.264 at 30 frames per second, AAC) with moving pictures, a clock and a rising tone to `path`, and returns it.

    Blocks for about two seconds. CalledProcessError, with what ffmpeg said in it, if it fails.
    """
    picture = f"testsrc2=size={width}x{height}:rate=30:duration={seconds}"
    tone = f"aevalsrc=0.2*sin(2*PI*(220+{440 / seconds:.3f}*t)*t):sample_rate=48000:duration={seconds}"
    command = [find_ffmpeg(""), "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
    command += ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone]
    command += [
        "-c:v",
        "libx264",
        "-preset",
        "superfast",
        "-crf",
        "28",
        "-pix_fmt",
        "yuv420p",
        "-c:a",
        "aac",
        "-b:a",
        "96k",
    ]
    command += ["-metadata", "title=oneContainer demo clip", "-movflags", "+faststart", "-f", "mp4", f"file:{path}"]
    subprocess.run(
        command, check=True, capture_output=True, stdin=subprocess.DEVNULL, env={"HOME": os.environ.get("HOME", "/")}
    )
    return path
