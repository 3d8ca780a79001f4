"""What is in a WAV file. Knows nothing of gRPC: replace it by your own backend."""

from __future__ import annotations

import platform
import wave
from dataclasses import dataclass
from pathlib import Path

VERSION = f"wave of Python {platform.python_version()}"
CODECS = {1: "pcm_u8", 2: "pcm_s16le", 3: "pcm_s24le", 4: "pcm_s32le"}
"""Names as others use them, by bytes per sample."""


class NotWav(Exception):
    """The file is no WAV file that can be read. The message is for people."""


@dataclass(frozen=True)
class Facts:
    """`size_bytes` of the whole file; a frame has one sample for each channel."""

    size_bytes: int
    sample_rate: int
    channels: int
    sample_bytes: int
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate

    @property
    def codec(self) -> str:
        return CODECS.get(self.sample_bytes, "")

    @property
    def bitrate(self) -> int:
        """Bits per second of the samples."""
        return self.sample_rate * self.channels * self.sample_bytes * 8


def look_into(path: Path) -> Facts:
    """Raises NotWav."""
    try:
        with wave.open(str(path), "rb") as file:
            rate, channels, width, frames = (
                file.getframerate(),
                file.getnchannels(),
                file.getsampwidth(),
                file.getnframes(),
            )
    except (wave.Error, EOFError) as error:
        raise NotWav(f"is no WAV file: {error or 'it ends too early'}") from error
    if not rate or not channels or not width:
        raise NotWav("is no WAV file: its header has zeros")
    # The header may promise more than there is: a file that was cut off, or a stream that was never finished.
    there = max(0, path.stat().st_size - 44) // (channels * width)
    return Facts(path.stat().st_size, rate, channels, width, min(frames, there))
