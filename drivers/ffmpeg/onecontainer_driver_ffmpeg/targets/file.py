"""`Output.file`: one file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onecontainer.api.media.v1 import output_pb2, pipeline_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.containers import CONTAINERS, Container
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.sources import OpenedSource
from onecontainer_driver_ffmpeg.targets.target import Collection, Known, Made, MadeFile, NothingMade, Target, Written
from onecontainer_driver_ffmpeg.values import muxer_params

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class FileTarget(Target):
    takes_two_passes = True
    total_size_told = True

    def __init__(
        self, output: output_pb2.Output, at: str, container: Container, name: str, muxing: Sequence[str]
    ) -> None:
        super().__init__(output, at, container)
        self._file_name = f"{name}.{container.name}"
        self._muxing = muxing

    @property
    def default_kinds(self) -> Sequence[str]:
        return ("subtitle",) if self.container.name in ("srt", "vtt", "ass") else ("video", "audio")

    def write(self, known: Known) -> Written:
        path = known.folder / self._file_name
        return Written(
            [*self._muxing, "-f", self.container.muxer, f"file:{path}"],
            hidden={f"file:{path}": "{output}", str(path): "{output}"},
        )

    async def collect(self, made: Made) -> Collection:
        path = made.folder / self._file_name
        if not path.is_file():
            raise NothingMade
        return Collection(
            [MadeFile(path, path.name, pipeline_pb2.FILE_ROLE_MEDIA, self.container.media_type)],
            OpenedSource(f"file:{path}", False, path.name),
        )


async def check(output: output_pb2.Output, capabilities: Capabilities, settings: Settings, at: str) -> Target:
    container = CONTAINERS.get(output.file.container)
    if container is None or container not in capabilities.containers():
        raise errors.BackendCapabilityMissing(
            f"{at}.file.container", f"{output.file.container!r} is no container of this service"
        )
    name = output.file.name or output.key
    if not _FILE_NAME.fullmatch(name):
        raise errors.FieldInvalid(f"{at}.file.name", "is not of the form [A-Za-z0-9][A-Za-z0-9._-]{0,99}")
    own = await capabilities.muxer_options(container.muxer)
    muxing = muxer_params(output.muxer_params, container.muxer, own, f"{at}.muxer_params")
    if output.file.fast_start and "-movflags" not in muxing and container.fast_start:
        muxing += ["-movflags", "+faststart"]
    return FileTarget(output, at, container, name, muxing)
