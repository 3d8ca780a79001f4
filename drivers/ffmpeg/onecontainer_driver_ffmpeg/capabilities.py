"""What one ffmpeg binary can do, read from the binary itself."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onecontainer.driver import errors
from onecontainer_driver_ffmpeg import allowed, listing
from onecontainer_driver_ffmpeg.containers import AUDIO_ONLY, CONTAINERS, SUBTITLES, Container
from onecontainer_driver_ffmpeg.hardware import Hardware
from onecontainer_driver_ffmpeg.process import run

_HARDWARE_SUFFIXES = (
    "_vaapi",
    "_nvenc",
    "_qsv",
    "_amf",
    "_v4l2m2m",
    "_vulkan",
    "_videotoolbox",
    "_mf",
    "_omx",
    "_rkmpp",
    "_d3d12va",
)
_TIMEOUT = 20.0


def hardware_of(encoder: str) -> str:
    """Suffix of an encoder that needs hardware, without the underscore; empty: it needs none."""
    return next((suffix[1:] for suffix in _HARDWARE_SUFFIXES if encoder.endswith(suffix)), "")


@dataclass
class Capabilities:
    """Facts about a build. Options of encoders, muxers and filters are read when they are first asked for, and kept."""

    ffmpeg: str
    folder: Path
    version: str
    configuration: tuple[str, ...]
    encoders: dict[str, listing.Encoder]
    codecs: dict[str, listing.Codec]
    formats: dict[str, listing.Format]
    filters: dict[str, listing.FilterEntry]
    input_protocols: frozenset[str]
    output_protocols: frozenset[str]
    pixel_formats: tuple[str, ...]
    hardware: Hardware
    _help: dict[tuple[str, str], listing.Help] = field(default_factory=dict)
    _file_options: bool | None = None

    @classmethod
    async def load(cls, ffmpeg: str, folder: Path) -> Capabilities:
        """Asks the binary. BackendUnreachable if it cannot be started or does not speak like ffmpeg."""

        async def ask(*arguments: str) -> str:
            return await _ask(ffmpeg, folder, *arguments)

        names = ("-version", "-encoders", "-codecs", "-formats", "-filters", "-protocols", "-pix_fmts")
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(ask(name)) for name in names]
        except ExceptionGroup as group:  # all for the same reason, so one of them tells it
            raise group.exceptions[0] from None
        version, encoders, codecs, formats, filters, protocols, pixel_formats = (task.result() for task in asked)
        number, configuration = listing.parse_version(version)
        inputs, outputs = listing.parse_protocols(protocols)
        loaded = cls(
            ffmpeg=ffmpeg,
            folder=folder,
            version=number,
            configuration=configuration,
            encoders=listing.parse_encoders(encoders),
            codecs=listing.parse_codecs(codecs),
            formats=listing.parse_formats(formats),
            filters=listing.parse_filters(filters),
            input_protocols=inputs,
            output_protocols=outputs,
            pixel_formats=listing.parse_pixel_formats(pixel_formats),
            hardware=Hardware(frozenset(listing.parse_encoders(encoders)), functools.partial(_works, ffmpeg, folder)),
        )
        missing = [
            part for part in ("version", "encoders", "codecs", "formats", "filters") if not getattr(loaded, part)
        ]
        if missing:
            raise errors.BackendUnreachable(
                f"{ffmpeg} does not answer like ffmpeg: no {', '.join(missing)} could be read from it"
            )
        return loaded

    async def encoder_options(self, encoder: str) -> dict[str, listing.OptionEntry]:
        return (await self._read_help("encoder", encoder, "E")).options

    async def muxer_options(self, muxer: str) -> dict[str, listing.OptionEntry]:
        return (await self._read_help("muxer", muxer, "E")).options

    async def filter_options(self, name: str) -> dict[str, listing.OptionEntry]:
        return (await self._read_help("filter", name, "F")).options

    async def default_encoder(self, container: Container, kind: str) -> str | None:
        """The encoder that the container's muxer takes by default for `kind`; None: it takes none of that kind."""
        if kind == "video" and container.name in AUDIO_ONLY:
            return None
        if (codec := dict(container.defaults).get(kind)) and (encoder := self.encoder_for(codec)):
            return encoder
        codec = (await self._read_help("muxer", container.muxer, "E")).defaults.get(kind)
        if kind == "subtitle" and codec in (None, "none"):
            codec = SUBTITLES.get(container.name)
        return self.encoder_for(codec) if codec and codec != "none" else None

    def encoder_for(self, name: str) -> str | None:
        """`name` itself if it is an encoder of this build, else the best one for the codec of that name: in software, and mature."""
        if name in self.encoders and name not in self.codecs:
            return name
        codec = self.codecs.get(name)
        if codec is None:
            return None
        candidates = [encoder for encoder in codec.encoders if encoder in self.encoders and not hardware_of(encoder)]
        candidates.sort(key=lambda encoder: self.encoders[encoder].experimental)  # stable: the build's own order else
        return candidates[0] if candidates else None

    async def takes_options_from_files(self) -> bool:
        """Whether options of muxers and protocols may be in a file (`-fpre`), so that secrets stay off the command line.

        Versions differ: 5.1 takes them, 9 reads the file and forgets them. Tried out, because a passphrase that is forgotten would
        mean a stream that is not encrypted: a possible value has to succeed and an impossible one to fail.
        """
        if self._file_options is not None:
            return self._file_options
        command = [self.ffmpeg, "-v", "quiet", "-f", "lavfi", "-i", "anullsrc", "-t", "0.01", "-fpre", "/dev/stdin"]
        codes = []
        for text in (b"max_delay=7\n", b"max_delay=never\n"):
            try:
                finished = await run([*command, "-f", "null", "-"], folder=self.folder, timeout=_TIMEOUT, stdin=text)
            except (OSError, TimeoutError) as error:
                raise errors.BackendUnreachable(f"{self.ffmpeg} cannot be started: {error}") from error
            codes.append(finished.return_code)
        self._file_options = takes = codes[0] == 0 != codes[1]
        return takes

    def demuxers_allowed(self, *, http: bool) -> frozenset[str]:
        """Names of the demuxers that may open a source by its content."""
        names = allowed.DEMUXERS | (allowed.PLAYLIST_DEMUXERS if http else frozenset())
        built = {part for entry in self.formats.values() if entry.demuxer for part in entry.name.split(",")}
        return frozenset(names & built)

    def demuxer_names(self) -> frozenset[str]:
        """Names of the demuxers that a request may name."""
        built = {part for entry in self.formats.values() if entry.demuxer for part in entry.name.split(",")}
        return frozenset((allowed.DEMUXERS | allowed.RAW_AUDIO_DEMUXERS | {allowed.RAW_VIDEO_DEMUXER}) & built)

    def containers(self) -> list[Container]:
        """The containers whose muxer is in this build."""
        muxers = {part for entry in self.formats.values() if entry.muxer for part in entry.name.split(",")}
        return [container for container in CONTAINERS.values() if container.muxer in muxers]

    async def _read_help(self, kind: str, name: str, flag: str) -> listing.Help:
        key = (kind, name)
        if key not in self._help:
            self._help[key] = listing.parse_help(await _ask(self.ffmpeg, self.folder, "-h", f"{kind}={name}"), flag)
        return self._help[key]


async def _works(ffmpeg: str, folder: Path, arguments: Sequence[str]) -> bool:
    try:
        finished = await run(
            [ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error", *arguments], folder=folder, timeout=_TIMEOUT
        )
    except (OSError, TimeoutError):
        return False
    return finished.return_code == 0


async def _ask(ffmpeg: str, folder: Path, *arguments: str) -> str:
    try:
        finished = await run(
            [ffmpeg, "-hide_banner" if arguments[0] != "-version" else "-nostdin", *arguments],
            folder=folder,
            timeout=_TIMEOUT,
        )
    except (OSError, TimeoutError) as error:
        raise errors.BackendUnreachable(f"{ffmpeg} cannot be started: {str(error) or 'no answer'}") from error
    if finished.return_code != 0:
        raise errors.BackendUnreachable(
            f"{ffmpeg} {' '.join(arguments)}: {' | '.join(finished.last_lines[-3:]) or finished.return_code}"
        )
    return finished.output.decode(errors="replace")
