"""What the driver says of itself and of its ffmpeg."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from onecontainer_driver_ffmpeg import allowed, listing
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.containers import CONTAINERS
from onecontainer_driver_ffmpeg.process import run
from onecontainer_driver_ffmpeg.targets import TARGETS

from drivers.ffmpeg.tests.conftest import Bench
from onecontainer.api.media.v1 import media_info_pb2, media_pb2
from onecontainer.driver import errors


async def test_capabilities_are_those_of_the_binary(bench: Bench, ffmpeg: str) -> None:
    answer = await bench.driver.list_capabilities(media_pb2.ListCapabilitiesRequest(), bench.context())
    told = (await run([ffmpeg, "-version"], folder=bench.root)).output.decode()
    assert answer.version
    assert answer.version in told.splitlines()[0]
    encoders = {encoder.name: encoder for encoder in answer.encoders}
    assert encoders["libx264"].codec == "h264"
    assert encoders["libx264"].kind == media_info_pb2.STREAM_KIND_VIDEO
    assert {codec.name: codec.encoders[0] for codec in answer.codecs if codec.encoders}["vorbis"] == "libvorbis"
    containers = {container.name: container for container in answer.containers}
    assert containers["mp4"].default_audio_encoder == "aac"
    assert not containers["wav"].default_video_encoder
    filters = {entry.name: entry for entry in answer.filters}
    assert filters["scale"].allowed
    assert filters["hstack"].dynamic_inputs
    assert "movie" in filters
    assert not filters["movie"].allowed
    protocols = {protocol.name: protocol.allowed for protocol in answer.protocols}
    assert protocols["file"]
    assert not protocols["http"]  # no host is allowed
    assert not protocols["tcp"]
    assert list(answer.targets) == list(TARGETS)
    assert set(answer.targets) >= {"file", "hls", "dash", "frames", "sprites"}
    assert answer.limits.threads == 2


async def test_every_container_has_a_muxer_and_legal_defaults(capabilities: Capabilities) -> None:
    assert capabilities.containers() == list(CONTAINERS.values())
    for container in capabilities.containers():
        for kind in ("video", "audio", "subtitle"):
            encoder = await capabilities.default_encoder(container, kind)
            if encoder and container.holds is not None:
                assert capabilities.encoders[encoder].codec in container.holds, (container.name, encoder)


@pytest.mark.slow
def test_allowed_filters_open_no_files(ffmpeg: str) -> None:
    """No allowed filter has a text option that FFmpeg itself describes as a file, but those that are refused."""

    def ask(*arguments: str) -> str:
        return subprocess.run([ffmpeg, "-hide_banner", *arguments], check=True, capture_output=True, text=True).stdout

    for name in allowed.FILTERS & set(listing.parse_filters(ask("-filters"))):
        text = ask("-h", f"filter={name}")
        for option, entry in listing.parse_help(text, "F").options.items():
            if entry.type == "string" and allowed.filter_option_allowed(option):
                line = next(line for line in text.splitlines() if line.split()[:1] == [option])
                assert " file" not in line.lower(), line


async def test_probe_tells_the_version_and_a_broken_ffmpeg(bench: Bench, tmp_path: Path) -> None:
    result = await bench.driver.probe()
    assert result.ready
    assert result.backend_version
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    broken.chmod(0o755)
    await bench.attach(ffmpeg_path=str(broken))
    with pytest.raises(errors.BackendUnreachable, match="broken"):
        await bench.driver.probe()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("source_folders", ["relative"]),
        ("source_hosts", ["http://a"]),
        ("threads", -1),
        ("processes", 0),
        ("ffmpeg_path", "no-such"),
    ],
)
async def test_wrong_options_are_named(bench: Bench, option: str, value: object) -> None:
    with pytest.raises(errors.FieldInvalid) as caught:
        await bench.attach(**{option: value})
    assert caught.value.violations[0].field.startswith(f"options.{option}")


def test_help_with_ranges_and_words() -> None:
    text = """Encoder x [X]:
x AVOptions:
  -mode              <int>        E..V....... How (from -1 to 2) (default -1)
     none            0            E..V.......
     best            1            E..V....... The best
  -only_decoding     <int>        .D.V....... Not for us
  -q                 <float>      E..V....... Quality (from 0 to FLT_MAX) (default 1)
"""
    options = listing.parse_help(text, "E").options
    assert options["mode"] == listing.OptionEntry("mode", "int", -1, 2, frozenset({"none", "best"}))
    assert set(options) == {"mode", "q"}
    assert options["q"].high == float("inf")


def test_formats_without_devices() -> None:
    text = " Formats:\n D.. = Demuxing supported\n ---\n"
    text += " D   mov,mp4         QuickTime / MOV\n  E  mp4             MP4\n D d lavfi           device\n"
    formats = listing.parse_formats(text)
    assert set(formats) == {"mov,mp4", "mp4"}
    assert formats["mp4"].muxer
    assert not formats["mp4"].demuxer


def test_filters_of_older_builds_have_wider_flags() -> None:
    text = " TSC hflip             V->V       Flips\n ... amix              N->A       Mixes\n ..C nullsrc           |->V       Null\n"
    filters = listing.parse_filters(text)
    assert filters["hflip"].inputs == ("video",)
    assert filters["amix"].inputs is None
    assert filters["nullsrc"].inputs == ()
