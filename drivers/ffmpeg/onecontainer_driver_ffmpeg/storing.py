"""Files of outputs: counted, stored as artifacts, removed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer_driver_ffmpeg.media_info import to_duration
from onecontainer_driver_ffmpeg.targets.target import MadeFile


class ArtifactStore(Protocol):
    """The part of the SDK's `context.artifacts` that outputs need."""

    async def put(self, path: Path, *, filename: str | None = None, media_type: str = "") -> artifact_pb2.Artifact: ...


async def store_files(files: Sequence[MadeFile], store: ArtifactStore) -> list[pipeline_pb2.OutputFile]:
    """Puts all files of one output into the artifact store, in order. A file in a folder gets the folder into its file name."""
    stored = []
    for file in files:
        artifact = await store.put(file.path, filename=file.name.replace("/", "-"), media_type=file.media_type)
        stored.append(await describe_file(file, artifact.name))
    return stored


async def describe_file(file: MadeFile, artifact: str) -> pipeline_pb2.OutputFile:
    """`artifact` empty: it is not kept as one."""
    size = (await asyncio.to_thread(file.path.stat)).st_size
    return pipeline_pb2.OutputFile(
        name=file.name,
        role=file.role,
        artifact=artifact,
        media_type=file.media_type,
        size_bytes=size,
        media_time=None if file.media_time is None else to_duration(file.media_time),
    )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder that may be written to meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                total += path.stat().st_size
        except FileNotFoundError:  # renamed since
            continue
    return total


def remove_files(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
