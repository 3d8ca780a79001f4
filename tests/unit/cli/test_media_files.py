"""What `oca media transcode` writes where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.cli import media_files


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where artifacts would be downloaded to, by their names."""
    found: dict[str, Path] = {}

    def fetch(_session: Any, name: str, path: Path, *, resume: bool) -> Path:
        found[name] = path
        return path

    monkeypatch.setattr(media_files, "fetch", fetch)
    return found


def output(*names: str) -> pipeline_pb2.OutputResult:
    files = [pipeline_pb2.OutputFile(name=name, artifact=f"artifacts/{name}") for name in names]
    return pipeline_pb2.OutputResult(files=files)


def test_one_file_is_the_target_and_several_go_into_it(tmp_path: Path, written: dict[str, Path]) -> None:
    media_files.save(None, output("main.mp4"), tmp_path / "clip.mp4")  # type: ignore[arg-type]
    assert written == {"artifacts/main.mp4": tmp_path / "clip.mp4"}
    written.clear()
    media_files.save(None, output("main.m3u8", "360p/00001.ts"), tmp_path / "clip")  # type: ignore[arg-type]
    assert written == {
        "artifacts/main.m3u8": tmp_path / "clip/main.m3u8",
        "artifacts/360p/00001.ts": tmp_path / "clip/360p/00001.ts",
    }
    assert (tmp_path / "clip/360p").is_dir()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_nothing_is_written_outside_the_folder(tmp_path: Path, written: dict[str, Path], name: str) -> None:
    with pytest.raises(click.ClickException, match="not inside"):
        media_files.save(None, output("main.m3u8", name), tmp_path / "clip")  # type: ignore[arg-type]
    assert f"artifacts/{name}" not in written
