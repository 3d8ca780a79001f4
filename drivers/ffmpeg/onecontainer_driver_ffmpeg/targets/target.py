"""What a target is: what an output becomes, whatever kind of thing that is. `plan.py` and `pipeline.py` know nothing else of them.

A target is made by its module's `check`, which looks at the target's own fields before any source is opened, and is then asked, in
this order: `draft` for each stream, `input_arguments` and `filters` and `write` when the inputs are known, and `collect` when ffmpeg
has ended.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from onecontainer.api.media.v1 import output_pb2, pipeline_pb2, stream_pb2
from onecontainer.api.media.v1.media_info_pb2 import StreamInfo
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.containers import Container
from onecontainer_driver_ffmpeg.sources import OpenedSource
from onecontainer_driver_ffmpeg.stream_plan import StreamDraft, draft_default, draft_stream


@dataclass(frozen=True)
class Pick:
    """A place in an output that takes an elementary stream. `kind` empty: any. `rung`: which variant of a ladder, from 0."""

    at: str
    key: str
    kind: str = ""
    rung: int = 0


@dataclass(frozen=True)
class Track:
    """A track that an output gets, in the order of the command's maps. `number` counts those of its kind, as in ffmpeg's `v:0`.

    `map` is what ffmpeg's `-map` takes. `apart`: it is none of the main address's, see `Target.apart`.
    """

    draft: StreamDraft
    number: int
    source: StreamInfo
    map: str
    rung: int = 0
    apart: bool = False


@dataclass(frozen=True)
class Known:
    """What is known of one output when the inputs are open. `folder` is the output's own, and ffmpeg's working folder; `expected`
    the length in seconds, None: not known. `bounds` are the arguments that a further address has to repeat: where to begin and end."""

    folder: Path
    tracks: Sequence[Track]
    expected: float | None
    bounds: Sequence[str]
    capabilities: Capabilities


@dataclass(frozen=True)
class Written:
    """What a target adds to the command.

    `arguments` follow the maps and the encoders; they end with the address, or the addresses. `folders` have to be there in the output's
    own. `hidden`: texts that callers must not see, in the command and in the log, and what they see in their place. `environment`:
    further variables of the process. `live_url`: address of a live sink, without secrets.
    """

    arguments: Sequence[str]
    folders: Sequence[str] = ()
    hidden: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    live_url: str = ""


@dataclass(frozen=True)
class Made:
    """What is known when ffmpeg has ended.

    `length`: seconds that were written, `expected`: seconds as Known has them. `run` runs ffmpeg once more in `folder`, bounded as the
    first time, with arguments that begin after the program's general ones; it raises what such a process's failure means. `warn` takes
    the field that a warning of the result is about, and its text.
    """

    folder: Path
    tracks: Sequence[Track]
    length: float
    expected: float | None
    ended_early: bool
    run: Callable[[Sequence[str]], Awaitable[None]]
    warn: Callable[[str, str], None]


@dataclass(frozen=True)
class MadeFile:
    """A file of an output. `name` has the folders inside the output, `720p/00001.ts`; `media_time` in seconds, of frames only."""

    path: Path
    name: str
    role: pipeline_pb2.FileRole.ValueType
    media_type: str
    media_time: float | None = None


@dataclass(frozen=True)
class Collection:
    """Files in the order of the result, the one to play first. `probe`: how to open the main one, None: it cannot be probed."""

    files: Sequence[MadeFile]
    probe: OpenedSource | None = None
    length: float | None = None


class NothingMade(Exception):
    """ffmpeg ended, and there is nothing that can be played."""


class Target(abc.ABC):
    """The target of one output; see the module."""

    makes_files: ClassVar[bool] = True
    """False: a live sink. It has no files, and the pipeline is not idempotent."""
    takes_two_passes: ClassVar[bool] = False
    total_size_told: ClassVar[bool] = False
    """ffmpeg itself tells how many bytes it has written; else the folder is looked at."""

    def __init__(self, output: output_pb2.Output, at: str, container: Container) -> None:
        self.output = output
        self.at = at
        self.container = container
        """What it holds and which codecs are its defaults."""

    @property
    def picks(self) -> Sequence[Pick]:
        """The streams that it takes; empty: the defaults of `default_kinds`."""
        return [Pick(f"{self.at}.streams[{index}]", key) for index, key in enumerate(self.output.streams)]

    @property
    def default_kinds(self) -> Sequence[str]:
        return ("video", "audio")

    async def draft(self, stream: stream_pb2.ElementaryStream, capabilities: Capabilities, at: str) -> StreamDraft:
        """`stream` as this target takes it. `at` is the stream's path in the request."""
        draft = await draft_stream(stream, self.container, capabilities, at)
        if draft.two_pass and not self.takes_two_passes:
            raise errors.FieldInvalid(
                f"{at}.video.rate_control.average_bitrate.two_pass",
                f"cannot go with {self.at}, only with file, HLS and DASH outputs",
            )
        return draft

    async def draft_default(self, kind: str, capabilities: Capabilities) -> StreamDraft | None:
        return await draft_default(kind, self.container, capabilities, self.at)

    def check_drafts(self, drafts: Sequence[tuple[Pick, StreamDraft]]) -> None:
        """Checks the streams together, such as those of a ladder. FieldInvalid."""
        return

    def apart(self, kind: str) -> bool:
        """Tracks of this kind are left out of the main address: `write` gives them addresses, maps and encoders of their own."""
        return False

    def input_arguments(self, tracks: Sequence[StreamDraft]) -> list[str]:
        """Options of every input, such as those of decoders."""
        return []

    def filters(self, expected: float | None) -> list[str]:
        """Filters after a video stream's own. `expected`: length of the output in seconds, None: not known."""
        return []

    @abc.abstractmethod
    def write(self, known: Known) -> Written:
        """The muxer's arguments and the address or addresses."""

    async def collect(self, made: Made) -> Collection:
        """Finds, after ffmpeg ended, the files that there are, and makes those that ffmpeg does not. NothingMade if there are none; an
        error of the SDK fails the output."""
        return Collection([])
