"""The service's options, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.egress import HostRules
from onecontainer_driver_ffmpeg.request_checks import LEAST_MEMORY
from onecontainer_driver_ffmpeg.secrets import Secrets
from onecontainer_driver_ffmpeg.sinks import SinkRules
from onecontainer_driver_ffmpeg.sources import SourceRules


@dataclass(frozen=True)
class Settings:
    """Options of a service; what each means is told in metadata.json. 0 is "no bound" where a bound may be missing."""

    ffmpeg_path: str = ""
    ffprobe_path: str = ""
    sources: SourceRules = field(default_factory=SourceRules)
    sinks: SinkRules = field(default_factory=SinkRules)
    secrets: Secrets = field(default_factory=Secrets)
    upload_hosts: HostRules = field(default_factory=lambda: HostRules(()))
    threads: int = 0
    processes: int = 2
    max_media_duration: float = 12 * 3600.0
    max_output_bytes: int = 64 * 1024**3
    max_memory_bytes: int = 4 * 1024**3
    max_cpu_time: float = 96 * 3600.0
    max_scratch_bytes: int = 128 * 1024**3

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Settings:
        """FieldInvalid for a value that cannot be used."""
        folders = []
        for index, text in enumerate(options.get("source_folders") or ()):
            folder = Path(str(text)).expanduser()
            if not folder.is_absolute() or not folder.is_dir():
                raise errors.FieldInvalid(
                    f"options.source_folders[{index}]", f"{text!r} is no absolute path of a folder here"
                )
            folders.append(folder.resolve())
        numbers = {name: options[name] for name in _LEAST if options.get(name) is not None}
        for name, value in numbers.items():
            if value < _LEAST[name]:
                raise errors.FieldInvalid(f"options.{name}", f"is below {_LEAST[name]}")
        return cls(
            ffmpeg_path=options.get("ffmpeg_path") or "",
            ffprobe_path=options.get("ffprobe_path") or "",
            sources=SourceRules(tuple(folders), _hosts(options, "source_hosts")),
            sinks=SinkRules(_hosts(options, "sink_hosts")),
            secrets=Secrets.from_option(options.get("secrets")),
            upload_hosts=_hosts(options, "upload_hosts"),
            **numbers,
        )


def _hosts(options: Mapping[str, Any], name: str) -> HostRules:
    try:
        return HostRules.parse(str(entry) for entry in options.get(name) or ())
    except ValueError as error:
        raise errors.FieldInvalid(f"options.{name}", str(error)) from error


_LEAST = {
    "threads": 0,
    "processes": 1,
    "max_media_duration": 1,
    "max_output_bytes": 1024,
    "max_memory_bytes": LEAST_MEMORY,
    "max_cpu_time": 1,
    "max_scratch_bytes": 1024,
}
