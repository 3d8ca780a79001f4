"""Turns a MediaSource into something that ffmpeg may open, or refuses it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.media.v1.input_pb2 import InputFormat, MediaSource
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg import allowed
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.egress import HostRules

_MOST_PIXELS_A_SIDE = 16384


class Artifacts(Protocol):
    """The part of the SDK's `context.artifacts` that sources need."""

    async def get(self, name: str) -> artifact_pb2.Artifact: ...

    async def fetch(self, name: str, path: Path) -> None: ...


@dataclass(frozen=True)
class OpenedSource:
    """`address` is what follows `-i`; it always begins with its protocol, so it is never taken for an option."""

    address: str
    http: bool
    label: str
    """How the source may be named in logs and errors: as the request did, a URL without its query."""
    demuxer: str = ""
    demuxer_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceRules:
    """The service's options `source_folders` and `source_hosts`."""

    folders: Sequence[Path] = ()
    hosts: HostRules = field(default_factory=lambda: HostRules(()))

    async def open(
        self,
        source: MediaSource,
        source_format: InputFormat,
        *,
        at: str,
        copy: Path,
        artifacts: Artifacts | None,
        capabilities: Capabilities,
        room: int = 0,
    ) -> OpenedSource:
        """Checks a source; an artifact is copied to `copy`. `at` is the request's field that holds both messages, as `inputs[0].`

        `room` is how many bytes the copy may have; 0: as many as the disk has.
        """
        demuxer, options = check_format(source_format, at=f"{at}format", capabilities=capabilities)
        kind = source.WhichOneof("source")
        if kind is None:
            raise errors.FieldRequired(f"{at}source")
        if kind == "artifact":
            if not source.artifact.startswith("artifacts/"):
                raise errors.FieldInvalid(
                    f"{at}source.artifact", "is no resource name of the form artifacts/{artifact}"
                )
            if artifacts is None:
                raise errors.StateInvalid("artifacts cannot be reached from here")
            try:
                await _check_room(source.artifact, artifacts, copy.parent, room, f"{at}source.artifact")
                await artifacts.fetch(source.artifact, copy)
            except errors.ResourceNotFound as error:
                raise errors.ResourceNotFound(f"{at}source.artifact: {error}") from error
            except errors.FieldInvalid as error:  # the gateway's word on the name
                raise errors.FieldInvalid(f"{at}source.artifact", error.violations[0].description) from error
            return OpenedSource(f"file:{copy}", False, source.artifact, demuxer, options)
        if kind == "path":
            path = await asyncio.to_thread(self._find_file, source.path, f"{at}source.path")
            return OpenedSource(f"file:{path}", False, source.path, demuxer, options)
        return OpenedSource(
            self._check_url(source.url, f"{at}source.url"), True, source.url.partition("?")[0], demuxer, options
        )

    def _find_file(self, text: str, at: str) -> Path:
        if not text or "\0" in text:
            raise errors.FieldInvalid(at, "is no path")
        if not self.folders:
            raise errors.SourceNotAllowed(at, "this service allows no folders; upload the file as an artifact")
        folders = [folder.resolve() for folder in self.folders]
        try:
            path = (
                folders[0] / text
            ).resolve()  # an absolute text replaces the folder; symbolic links are followed now
            path.exists()
        except OSError as error:
            raise errors.FieldInvalid(at, f"is no path: {error.strerror}") from error
        if not any(path.is_relative_to(folder) for folder in folders):
            raise errors.SourceNotAllowed(
                at, f"{text!r} is not in a folder that this service allows (option source_folders)"
            )
        if not path.exists():
            raise errors.ResourceNotFound(f"{at}: there is no file {text!r}")
        if not path.is_file():
            raise errors.FieldInvalid(at, "is not an ordinary file")
        return path

    def _check_url(self, url: str, at: str) -> str:
        if any(ord(character) <= 32 or ord(character) == 127 for character in url):
            raise errors.FieldInvalid(at, "has a space or a control character")
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise errors.FieldInvalid(at, f"is no URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise errors.FieldInvalid(at, "is no http:// or https:// URL")
        if parts.username is not None or parts.password is not None:
            raise errors.FieldInvalid(at, "has a user name or password in it")
        if not self.hosts.allow_url(url):
            raise errors.SourceNotAllowed(
                at, f"{parts.netloc} is not a host that this service allows (option source_hosts)"
            )
        return url


async def _check_room(name: str, artifacts: Artifacts, folder: Path, room: int, at: str) -> None:
    """LimitExceeded if a copy of the artifact is beyond the bound, or beyond what the disk has left."""
    size = (await artifacts.get(name)).size_bytes
    free = (await asyncio.to_thread(shutil.disk_usage, folder)).free
    if 0 < room < size:
        raise errors.LimitExceeded(
            f"{at} has {size} bytes, and {room} are left of the bound (option max_scratch_bytes)"
        )
    if size > free:
        raise errors.LimitExceeded(f"{at} has {size} bytes, and the sidecar's disk has {free} left")


def check_format(source_format: InputFormat, *, at: str, capabilities: Capabilities) -> tuple[str, dict[str, str]]:
    """Name of the demuxer and its options; both empty: detect the format."""
    kind = source_format.WhichOneof("format")
    if kind is None:
        return "", {}
    if kind == "demuxer":
        name = source_format.demuxer
        if name not in capabilities.demuxer_names():
            raise errors.BackendCapabilityMissing(
                f"{at}.demuxer", f"{name!r} is no demuxer that this service has for requests"
            )
        return name, {}
    if kind == "raw_video":
        video = source_format.raw_video
        for side in ("width", "height"):
            if not 1 <= getattr(video, side) <= _MOST_PIXELS_A_SIDE:
                raise errors.FieldInvalid(f"{at}.raw_video.{side}", f"is not between 1 and {_MOST_PIXELS_A_SIDE}")
        if video.pixel_format not in capabilities.pixel_formats:
            raise errors.BackendCapabilityMissing(
                f"{at}.raw_video.pixel_format", f"{video.pixel_format!r} is no pixel format here"
            )
        rate = video.frame_rate if video.HasField("frame_rate") else None
        if rate is not None and (rate.numerator <= 0 or rate.denominator <= 0):
            raise errors.FieldInvalid(f"{at}.raw_video.frame_rate", "is not more than 0")
        return allowed.RAW_VIDEO_DEMUXER, {
            "video_size": f"{video.width}x{video.height}",
            "pixel_format": video.pixel_format,
            "framerate": f"{rate.numerator}/{rate.denominator}" if rate else "25/1",
        }
    audio = source_format.raw_audio
    if audio.sample_format not in allowed.RAW_AUDIO_DEMUXERS & capabilities.demuxer_names():
        raise errors.BackendCapabilityMissing(
            f"{at}.raw_audio.sample_format", f"{audio.sample_format!r} is no raw format here"
        )
    if not 1 <= audio.sample_rate <= 768_000:
        raise errors.FieldInvalid(f"{at}.raw_audio.sample_rate", "is not between 1 and 768000")
    if not 1 <= audio.channels <= 64:
        raise errors.FieldInvalid(f"{at}.raw_audio.channels", "is not between 1 and 64")
    return audio.sample_format, {"sample_rate": str(audio.sample_rate), "ch_layout": f"{audio.channels}C"}
