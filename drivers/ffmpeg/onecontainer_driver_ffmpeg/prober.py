"""Probes a source: by ffprobe if the service has one, else by FFmpeg's libraries in a child process."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecontainer.api.media.v1.media_info_pb2 import MediaInfo
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg import allowed
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.egress import EgressGuard, certificate_authorities
from onecontainer_driver_ffmpeg.media_info import media_info
from onecontainer_driver_ffmpeg.probe_server import ProbeServer
from onecontainer_driver_ffmpeg.process import Bounds, Finished, run
from onecontainer_driver_ffmpeg.sources import OpenedSource

_READ_TIMEOUT = 15.0
_TOTAL_TIMEOUT = 45.0
_BOUNDS = Bounds(memory_bytes=2 * 1024**3)


def input_options(source: OpenedSource, capabilities: Capabilities) -> dict[str, str]:
    """What every opening of a source gets, in a probe as in a pipeline: what it may open, and how long it may wait."""
    protocols = allowed.HTTP_PROTOCOLS if source.http else allowed.FILE_PROTOCOLS
    options = {"protocol_whitelist": ",".join(protocols)}
    if not source.demuxer:
        options["format_whitelist"] = ",".join(sorted(capabilities.demuxers_allowed(http=source.http)))
    if source.http:
        options["rw_timeout"] = str(int(_READ_TIMEOUT * 1_000_000))
    if source.address.startswith("https:"):
        # Said outright: FFmpeg before version 9 does not verify by default, and a static build finds no authorities by itself.
        options |= {"tls_verify": "1", "ca_file": certificate_authorities()}
    return options | dict(source.demuxer_options)


_Answer = tuple[dict[str, Any] | None, list[str]]
"""What was seen, None: nothing; and the last lines of what was said about it."""


@dataclass(frozen=True)
class Prober:
    """`ffprobe` None: FFmpeg's libraries."""

    ffprobe: str | None
    capabilities: Capabilities
    _libraries: ProbeServer = field(default_factory=ProbeServer)

    async def probe(
        self,
        source: OpenedSource,
        *,
        at: str,
        folder: Path,
        guard: EgressGuard | None,
        with_raw: bool = False,
    ) -> MediaInfo:
        """What is in `source`. `at` is the request's field that named it; DataInvalid if it is no media."""
        environment = guard.environment() if guard else None
        ask = self._ask_program if self.ffprobe else self._ask_libraries
        try:
            async with asyncio.timeout(_TOTAL_TIMEOUT):
                facts, last_lines = await ask(source, folder, environment)
        except TimeoutError as error:
            raise errors.DataInvalid(at, f"could not be read in {_TOTAL_TIMEOUT:.0f} s") from error
        if facts is None or not facts.get("streams"):
            raise failure(source, last_lines, at=at, guard=guard)
        version = facts.pop("program_version", {}).get("version")
        prober = str(facts.pop("prober", "") or f"ffprobe {version}")
        raw = ""
        if self.ffprobe and with_raw:
            facts.get("format", {}).pop("filename", None)
            raw = json.dumps(facts, ensure_ascii=False)
        return media_info(facts, prober=prober, raw_json=raw)

    async def _ask_program(self, source: OpenedSource, folder: Path, environment: dict[str, str] | None) -> _Answer:
        command = [str(self.ffprobe), "-hide_banner", "-loglevel", "error", "-print_format", "json"]
        command += ["-show_format", "-show_streams", "-show_chapters", "-show_program_version"]
        for name, value in input_options(source, self.capabilities).items():
            command += [f"-{name}", value]
        command += [*(["-f", source.demuxer] if source.demuxer else []), "-i", source.address]
        finished = await run(command, folder=folder, bounds=_BOUNDS, environment=environment)
        return _facts(finished), finished.last_lines

    async def _ask_libraries(self, source: OpenedSource, folder: Path, environment: dict[str, str] | None) -> _Answer:
        request = {
            "address": source.address,
            "demuxer": source.demuxer,
            "options": input_options(source, self.capabilities),
            "timeout": _READ_TIMEOUT,
        }
        facts = await self._libraries.ask(request, folder=folder, environment=environment)
        if not isinstance(facts, dict) or "error" in facts:
            return None, [str(facts["error"])] if isinstance(facts, dict) else []
        return facts, []


def _facts(finished: Finished) -> dict[str, Any] | None:
    if finished.return_code != 0 or finished.output_truncated:
        return None
    try:
        facts = json.loads(finished.output)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def failure(
    source: OpenedSource, last_lines: list[str], *, at: str, guard: EgressGuard | None
) -> errors.OneContainerError:
    """The error for a source that could not be opened, by where it failed."""
    if guard and guard.refused:
        return errors.SourceNotAllowed(
            at, f"{source.label} leads to {guard.refused[0]}, which this service does not allow (option source_hosts)"
        )
    if guard and guard.unreachable:
        return errors.BackendUnreachable(f"{at}: {source.label}: {guard.unreachable[0]}", retry_after=5.0)
    if last_lines and last_lines[-1].endswith(
        "Immediate exit requested"
    ):  # FFmpeg's words for a reader whose time is over
        return errors.BackendUnreachable(
            f"{at}: {source.label}: nothing came for {_READ_TIMEOUT:.0f} s", retry_after=5.0
        )
    words = last_lines[-1].replace(source.address, source.label) if last_lines else "no audio, video or subtitles in it"
    if words.endswith("Invalid argument"):  # FFmpeg's whole answer to a format that is not on the list
        words = "no media of a format that this service reads"
    return errors.DataInvalid(at, f"{source.label}: {words}")
