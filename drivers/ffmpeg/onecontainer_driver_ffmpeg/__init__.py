"""oneContainer driver for ffmpeg: probing, transcoding with progress, single frames."""

from __future__ import annotations

from onecontainer_driver_ffmpeg.demo import make_demo_clip
from onecontainer_driver_ffmpeg.driver import FfmpegDriver

__all__ = ["FfmpegDriver", "make_demo_clip"]
