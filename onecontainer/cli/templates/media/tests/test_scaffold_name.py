"""Tests of the driver without a gateway: `pytest` in this folder."""

from __future__ import annotations

import asyncio
import shutil
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onecontainer_driver_scaffold_name import ScaffoldNameDriver

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.media.v1 import input_pb2, media_info_pb2
from onecontainer.api.media.v1 import media_pb2 as pb
from onecontainer.driver import errors
from onecontainer.driver.testing import attachment_of

FOLDER = Path(__file__).parent.parent


class Artifacts:
    """One file, as `context.artifacts` gives it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def get(self, name: str) -> artifact_pb2.Artifact:
        return artifact_pb2.Artifact(name=name, size_bytes=self._path.stat().st_size)

    async def fetch(self, name: str, path: Path) -> None:
        shutil.copy(self._path, path)


def probe(path: Path, folder: Path, **options: object) -> media_info_pb2.MediaInfo:
    driver = ScaffoldNameDriver()
    driver.attach(attachment_of(FOLDER, folder, options))
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    context: Any = SimpleNamespace(service="services/test", scratch=scratch, artifacts=Artifacts(path))
    request = pb.ProbeRequest(source=input_pb2.MediaSource(artifact="artifacts/a"))
    return asyncio.run(driver.probe_media(request, context)).media_info


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Half a second in stereo."""
    path = tmp_path / "clip.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(4 * 4000))
    return path


def test_a_file_is_described(clip: Path, tmp_path: Path) -> None:
    info = probe(clip, tmp_path)
    assert info.format.duration.ToMilliseconds() == 500
    audio = info.streams[0].audio
    assert (info.streams[0].codec, audio.sample_rate, audio.channel_layout) == ("pcm_s16le", 8000, "stereo")


def test_a_file_that_was_cut_off_is_as_long_as_it_is(clip: Path, tmp_path: Path) -> None:
    clip.write_bytes(clip.read_bytes()[: 44 + 4 * 1000])
    assert probe(clip, tmp_path).streams[0].frame_count == 1000


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not a WAV file at all", b"RIFF\x00\x00\x00\x00WAVEfmt "])
def test_what_is_no_wav_file_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(errors.DataInvalid, match=r"source\.artifact"):
        probe(path, tmp_path)


def test_what_is_too_large_is_not_fetched(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.LimitExceeded):
        probe(clip, tmp_path, max_bytes=100)


def test_the_backend_is_tried() -> None:
    assert ScaffoldNameDriver().probe().ready
