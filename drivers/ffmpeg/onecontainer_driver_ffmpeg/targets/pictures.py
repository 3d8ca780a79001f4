"""`Output.frames` and `Output.sprites`: still pictures of a video.

ffmpeg names each picture by its time stamp, so that what is there tells its time itself, however the process ended. Sheets are put
together afterwards, by a second process, when it is known how many tiles there are.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onecontainer.api.media.v1 import output_pb2, pipeline_pb2, stream_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.containers import Container
from onecontainer_driver_ffmpeg.images import Image, find_image
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.sources import OpenedSource
from onecontainer_driver_ffmpeg.stream_plan import StreamDraft, draft_picture
from onecontainer_driver_ffmpeg.targets.picks import FrameChoice, check_pick
from onecontainer_driver_ffmpeg.targets.target import (
    Collection,
    Known,
    Made,
    MadeFile,
    NothingMade,
    Pick,
    Target,
    Written,
)
from onecontainer_driver_ffmpeg.values import muxer_params

_TICKS = 1_000_000
# The ways to let every frame through as it is, with its time in microseconds.
_EXACT = (("-fps_mode", "passthrough"), ("-enc_time_base", f"1:{_TICKS}"))
_RAW = "raw"
_MOST_URL_PREFIX = 1024


@dataclass(frozen=True)
class _Picture:
    """A picture as ffmpeg made it. `time` in seconds."""

    path: Path
    time: float


class PictureTarget(Target):
    """What frames and sheets have in common: pictures in a folder of their own, `raw/{microseconds}.{extension}`."""

    def __init__(
        self,
        output: output_pb2.Output,
        at: str,
        choice: FrameChoice,
        image: Image,
        quality: int,
        muxing: Sequence[str],
    ) -> None:
        super().__init__(output, at, Container(at, "image2", image.media_type))
        self.choice = choice
        self.image = image
        self.quality = quality
        self.muxing = muxing

    @property
    def made(self) -> Image:
        """The format of what ffmpeg makes at first."""
        return self.image

    @property
    def picks(self) -> Sequence[Pick]:
        return [Pick(pick.at, pick.key, "video") for pick in super().picks]

    async def draft(self, stream: stream_pb2.ElementaryStream, capabilities: Capabilities, at: str) -> StreamDraft:
        return await draft_picture(stream, self.made.encoder, self._encoding(), capabilities, at)

    async def draft_default(self, kind: str, capabilities: Capabilities) -> StreamDraft | None:
        if kind != "video":
            return None
        selectors = [stream_pb2.StreamSelector()]
        return StreamDraft("", kind, self.at, selectors, self.made.encoder, self._encoding(), skip_if_missing=True)

    def input_arguments(self, tracks: Sequence[StreamDraft]) -> list[str]:
        # Decoding key frames only is far quicker; a filter might want the others too.
        alone = all(not track.chain and len(track.selectors) == 1 for track in tracks)
        return ["-skip_frame:v", "nokey"] if self.choice.key_frames and alone else []

    def filters(self, expected: float | None) -> list[str]:
        return [*self.choice.filters(expected), f"settb=expr=1/{_TICKS}"]

    def write(self, known: Known) -> Written:
        # One more than there may be tells whether there would have been more.
        most = min(self.choice.most + 1, self.choice.asked or self.choice.most + 1)
        words = ["-frames:v", str(most), "-f", "image2", "-frame_pts", "1", "-atomic_writing", "1", *self.muxing]
        return Written([*words, f"{_RAW}/%d.{self.made.extension}"], folders=[_RAW])

    def _encoding(self) -> tuple[tuple[str, str], ...]:
        return (*self.made.quality(self.quality), *_EXACT)

    async def pictures(self, made: Made) -> list[_Picture]:
        """Those that are kept, by time."""
        paths = await asyncio.to_thread(lambda: list((made.folder / _RAW).glob(f"*.{self.made.extension}")))
        found = sorted((_Picture(path, int(path.stem) / _TICKS) for path in paths), key=lambda picture: picture.time)
        if not found:
            if made.ended_early:
                raise NothingMade
            raise errors.DataInvalid(self.choice.at, "picks no frame: the video has none at or after such a time")
        asked = self.choice.asked
        if len(found) > self.choice.most or (asked and asked > self.choice.most):
            over = f"{asked} frames were asked for" if asked else f"there are more than {self.choice.most} frames"
            made.warn(f"{self.choice.at}.max_frames", f"{over}: those after the first {self.choice.most} are left out")
        elif asked and len(found) < asked and not made.ended_early:
            made.warn(self.choice.at, f"{asked} frames were asked for, and the video has {len(found)} such frames")
        return found[: self.choice.most]

    def length(self, made: Made, pictures: Sequence[_Picture]) -> float:
        """Seconds that the pictures stand for."""
        if made.expected is not None and not made.ended_early:
            return max(made.expected, pictures[-1].time)
        gap = pictures[-1].time - pictures[-2].time if len(pictures) > 1 else self.choice.interval or 1.0
        return max(made.length, pictures[-1].time + gap)


class FramesTarget(PictureTarget):
    async def collect(self, made: Made) -> Collection:
        pictures = await self.pictures(made)
        files = []
        for number, picture in enumerate(pictures, 1):
            name = f"{self.output.key}-{number:05d}.{self.image.extension}"
            path = await asyncio.to_thread(picture.path.rename, made.folder / name)
            files.append(
                MadeFile(
                    path, name, pipeline_pb2.FILE_ROLE_FRAME, self.image.media_type, media_time=max(picture.time, 0.0)
                )
            )
        first = OpenedSource(f"file:{files[0].path}", False, files[0].name, self.image.demuxer)
        return Collection(files, first, length=self.length(made, pictures))


class SpritesTarget(PictureTarget):
    def __init__(
        self,
        output: output_pb2.Output,
        at: str,
        choice: FrameChoice,
        image: Image,
        quality: int,
        muxing: Sequence[str],
        tile: Image,
    ) -> None:
        super().__init__(output, at, choice, image, quality, muxing)
        self._tile = tile
        sprites = output.sprites
        self._columns, self._rows = sprites.columns or 10, sprites.rows or 10

    @property
    def made(self) -> Image:
        # Tiles lose nothing before they are part of a sheet.
        return self._tile

    def filters(self, expected: float | None) -> list[str]:
        width, height = self.output.sprites.tile_width or 160, self.output.sprites.tile_height
        # Pixels need not be square: the shape of a tile is that of the picture as it is shown. Even, for the colours of JPEG.
        tall = str(height) if height else f"clip(2*round({width}/dar/2)\\,2\\,1080)"
        return [*super().filters(expected), f"scale=w={width}:h={tall}", "setsar=sar=1", "format=pix_fmts=rgb24"]

    async def collect(self, made: Made) -> Collection:
        pictures = await self.pictures(made)
        tiles = made.folder / "tiles"
        await asyncio.to_thread(tiles.mkdir, exist_ok=True)
        for number, picture in enumerate(pictures, 1):
            await asyncio.to_thread(picture.path.rename, tiles / f"{number:05d}.png")
        width, height = await asyncio.to_thread(_size_of_png, tiles / "00001.png")
        a_sheet = self._columns * self._rows
        whole, rest = divmod(len(pictures), a_sheet)
        if whole:
            await self._make_sheets(made, first=0, sheets=whole, columns=self._columns, rows=self._rows)
        if rest:
            columns, rows = min(rest, self._columns), math.ceil(rest / self._columns)
            await self._make_sheets(made, first=whole, sheets=1, columns=columns, rows=rows)
        names = [self._sheet_name(number) for number in range(whole + bool(rest))]
        track = made.folder / f"{self.output.key}.vtt"
        length = self.length(made, pictures)
        text = self._track([picture.time for picture in pictures], length, names, width, height)
        await asyncio.to_thread(track.write_text, text, "utf-8")
        files = [MadeFile(track, track.name, pipeline_pb2.FILE_ROLE_THUMBNAIL_TRACK, "text/vtt")]
        files += [
            MadeFile(made.folder / name, name, pipeline_pb2.FILE_ROLE_SPRITE, self.image.media_type) for name in names
        ]
        return Collection(files, length=length)

    def _sheet_name(self, number: int) -> str:
        return f"{self.output.key}-{number + 1:03d}.{self.image.extension}"

    async def _make_sheets(self, made: Made, *, first: int, sheets: int, columns: int, rows: int) -> None:
        """Sheets from number `first` on, counted from 0, of so many tiles each."""
        words = ["-f", "image2", "-framerate", "1", "-start_number", str(first * self._columns * self._rows + 1)]
        words += ["-i", "tiles/%05d.png", "-vf", f"tile=layout={columns}x{rows}", "-frames:v", str(sheets)]
        words += ["-c:v", self.image.encoder]
        words += [word for pair in self.image.quality(self.quality) for word in (f"{pair[0]}:v", pair[1])]
        words += ["-start_number", str(first + 1), "-f", "image2", f"{self.output.key}-%03d.{self.image.extension}"]
        await made.run(words)

    def _track(self, times: Sequence[float], length: float, names: Sequence[str], width: int, height: int) -> str:
        """The WebVTT file. A tile is shown until the next one's time, the first one from the start on."""
        starts = [0.0, *times[1:]]
        lines = ["WEBVTT", ""]
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], length], strict=True)):
            sheet, place = divmod(number, self._columns * self._rows)
            row, column = divmod(place, self._columns)
            lines += [
                f"{_clock(start)} --> {_clock(max(end, start + 0.001))}",
                f"{self.output.sprites.url_prefix}{names[sheet]}#xywh={column * width},{row * height},{width},{height}",
                "",
            ]
        return "\n".join(lines)


async def check_frames(output: output_pb2.Output, capabilities: Capabilities, settings: Settings, at: str) -> Target:
    frames = output.frames
    image = find_image(frames.format, capabilities, f"{at}.frames.format")
    muxing = _check_picture(output, frames.quality, f"{at}.frames", at)
    return FramesTarget(output, at, check_pick(frames.pick, f"{at}.frames.pick"), image, frames.quality or 85, muxing)


async def check_sprites(output: output_pb2.Output, capabilities: Capabilities, settings: Settings, at: str) -> Target:
    sprites = output.sprites
    where = f"{at}.sprites"
    image = find_image(sprites.format, capabilities, f"{where}.format")
    tile = find_image(output_pb2.IMAGE_FORMAT_PNG, capabilities, f"{where}.format")
    muxing = _check_picture(output, sprites.quality, where, at)
    for name, least, most in (("tile_width", 16, 1920), ("tile_height", 16, 1080), ("columns", 1, 64), ("rows", 1, 64)):
        value = getattr(sprites, name)
        if value and not least <= value <= most:
            raise errors.FieldInvalid(f"{where}.{name}", f"is not between {least} and {most}")
    prefix = sprites.url_prefix
    if len(prefix) > _MOST_URL_PREFIX or "-->" in prefix or any(character.isspace() for character in prefix):
        raise errors.FieldInvalid(
            f"{where}.url_prefix", f"has blanks, an arrow, or more than {_MOST_URL_PREFIX} characters"
        )
    choice = check_pick(sprites.pick, f"{where}.pick")
    return SpritesTarget(output, at, choice, image, sprites.quality or 75, muxing, tile)


def _check_picture(output: output_pb2.Output, quality: int, where: str, at: str) -> list[str]:
    """Arguments for `muxer_params`."""
    if not 0 <= quality <= 100:
        raise errors.FieldInvalid(f"{where}.quality", "is not between 1 and 100")
    if len(output.streams) > 1:
        raise errors.FieldInvalid(f"{at}.streams[1]", "is one too many: pictures are made of exactly one video stream")
    return muxer_params(output.muxer_params, "image2", {}, f"{at}.muxer_params")


def _size_of_png(path: Path) -> tuple[int, int]:
    """Width and height. Source: PNG specification, 11.2.1: IHDR comes first."""
    with path.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width, height


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"
