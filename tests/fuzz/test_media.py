"""The corpus against the real driver and a real ffmpeg: all of it is refused or contained, and nothing leaks."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf import json_format
from onecontainer_driver_ffmpeg import make_demo_clip

from drivers.ffmpeg.tests.conftest import Bench, processes_of
from drivers.ffmpeg.tests.test_sources import web_server
from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.driver import errors

pytestmark = pytest.mark.asyncio(loop_scope="module")
CORPUS = Path(__file__).with_name("media")
# A size that no other picture here has: where it shows, the secret was read.
SECRET_SIZE = (48, 32)
BOUNDS = {
    "max_media_duration": 20.0,
    "max_output_bytes": 20_000_000,
    "max_memory_bytes": 700 * 1024**2,
    "max_cpu_time": 2.0,
    "threads": 2,
    "processes": 2,
}


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CORPUS / name).read_text().splitlines()]


def request_of(entry: dict[str, Any]) -> media_pb2.RunPipelineRequest:
    """The pipeline of a line of the corpus (README.md tells how it is written)."""
    one: dict[str, Any] = {"source": {"path": "clip.mp4"}} | entry.get("input", {})
    output: dict[str, Any] = {"key": "out", "file": {"container": "mp4"}} | entry.get("output", {})
    request: dict[str, Any] = {"inputs": [one], "outputs": [output]}
    for kind in ("video", "audio", "subtitle"):
        if kind in entry:
            request["elementary_streams"] = [{"key": "v", kind: entry[kind], **entry.get("stream", {})}]
            output.setdefault("streams", ["v"])
    # A null in JSON is a field that is not there.
    return json_format.ParseDict(request | entry.get("request", {}), media_pb2.RunPipelineRequest())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fortress(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """One attached driver for all of it, with tight bounds, and files that are not what they seem."""
    bench = Bench(tmp_path_factory.mktemp("fortress"))
    clip = make_demo_clip(bench.sources / "clip.mp4", seconds=3, width=160, height=90).read_bytes()
    make_demo_clip(bench.root / "secret.mp4", seconds=3, width=SECRET_SIZE[0], height=SECRET_SIZE[1])
    (bench.sources / "half.mp4").write_bytes(clip[:700])
    (bench.sources / "empty.mp4").write_bytes(b"")
    (bench.sources / "words.txt").write_text("no media at all\n" * 40)
    (bench.sources / "list.txt").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    (bench.sources / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:3,\n{bench.sources}/clip.mp4\n#EXT-X-ENDLIST\n")
    (bench.sources / "link").symlink_to("/etc")
    os.mkfifo(bench.sources / "fifo")
    await bench.attach(source_hosts=["allowed.example"], **BOUNDS)
    yield bench
    await bench.driver.detach()


async def outcome(bench: Bench, request: media_pb2.RunPipelineRequest) -> str:
    """Runs a pipeline. Empty: it succeeded; else what its typed error says. Anything else fails the test that asks."""
    context = bench.context()
    told = ""
    try:
        result = await bench.driver.run_pipeline(request, context)
        for output in result.outputs:
            # With one output there is nothing else that a success may be.
            assert output.state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
            assert sum(file.size_bytes for file in output.files) <= BOUNDS["max_output_bytes"]
            sizes = {(stream.video.width, stream.video.height) for stream in output.media_info.streams}
            assert SECRET_SIZE not in sizes
        shown = str(result)
    except errors.OneContainerError as error:
        told = shown = f"{error} {error.violations}"
    finally:
        context._end_of_events()
    assert str(bench.root) not in shown
    assert "root:" not in shown
    return told


async def test_refused_before_anything_runs(fortress: Bench) -> None:
    refused = lines_of("refused.jsonl")
    assert len(refused) >= 400
    wrong = []
    for entry in refused:
        context = fortress.context()
        try:
            await fortress.driver.run_pipeline(request_of(entry), context)
            wrong.append((entry, "was not refused"))
        except errors.OneContainerError as error:
            field = error.violations[0].field if error.violations else ""
            if (error.reason, field) != (entry["error"], entry["field"]):
                wrong.append((entry, f"{error.reason} {field} {error}"))
        if fortress.events.details():
            wrong.append((entry, "ran"))
    assert not wrong
    assert not fortress.artifacts.stored


async def run_contained(bench: Bench, entries: list[dict[str, Any]]) -> list[str]:
    before = sorted(path.name for path in bench.sources.iterdir())
    told = []
    for entry in entries:
        # A generous deadline for a slow machine; what has no end is ended by the bounds long before.
        async with asyncio.timeout(120):
            told.append(await outcome(bench, request_of(entry)))
    assert processes_of(bench.root) == []
    assert sorted(path.name for path in bench.sources.iterdir()) == before
    return told


async def test_some_of_what_only_bounds_contain(fortress: Bench) -> None:
    """A few of them; all of them are in the long run below."""
    await run_contained(fortress, lines_of("contained.jsonl")[::15])


@pytest.mark.slow
async def test_all_of_what_only_bounds_contain(fortress: Bench) -> None:
    entries = lines_of("contained.jsonl")
    assert len(entries) >= 80
    told = await run_contained(fortress, entries)
    # Both happen: bounds that refused everything would contain it too.
    assert any(told)
    assert not all(told)


async def test_an_expression_without_end_is_out_of_time(fortress: Bench) -> None:
    entry = {
        "video": {"filters": [{"name": "setpts", "arguments": [{"name": "expr", "value": {"text": "while(1,0)"}}]}]}
    }
    told = await outcome(fortress, request_of(entry))
    assert "max_cpu_time" in told


async def run_pointers(bench: Bench, *, all_ways: bool) -> None:
    async with web_server(lambda _path: ("200 OK", {}, b"secret")) as (host, asked):
        address, _, port = host.partition(":")
        texts = sorted((CORPUS / "sources").iterdir())
        assert len(texts) >= 25
        values = {"secret": str(bench.root / "secret.mp4"), "host": host, "address": address, "port": port}
        for template in texts:
            text = template.read_text()
            for name, value in values.items():
                text = text.replace(f"{{{name}}}", value)
            # Under its own name, where the name alone might open it, or as a film, where only the content could.
            for name in (template.name, f"{template.stem}.mp4") if all_ways else (template.name,):
                path = bench.root / f"fetched-{name}"
                path.write_text(text)
                source = {"artifact": bench.artifacts.add(path)}
                # Subtitles are media and may be read; there are no pictures in them to make a film of.
                assert await outcome(bench, request_of({"input": {"source": source}})), name
            if all_ways:
                (bench.sources / template.name).write_text(text)
                assert await outcome(bench, request_of({"input": {"source": {"path": template.name}}})), template.name
                (bench.sources / template.name).unlink()
    assert not asked


async def test_artifacts_that_point_elsewhere(fortress: Bench) -> None:
    await run_pointers(fortress, all_ways=False)


@pytest.mark.slow
async def test_files_that_point_elsewhere(fortress: Bench) -> None:
    await run_pointers(fortress, all_ways=True)


def png_bomb(side: int) -> bytes:
    """A few kilobytes that unpack to `side` times `side` pixels, black or white; of more than 16,000 rows the rest is not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(side // 8 + 2)
    packed = b"".join(packer.compress(row) for _ in range(min(side, 16_000))) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def lies(clip: bytes) -> dict[str, bytes]:
    """Media that says more than it has, or has more than it says."""
    box = clip.index(b"stts")
    riff = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0\x40\0\x80\xbb\0\0\0\xb8\x0b\0\x80\0\x10\0data\xff\xff\xff\xff"
    found = {
        "bomb.png": png_bomb(16_000),
        "wide.png": png_bomb(60_000),
        "huge-canvas.gif": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
        "endless.wav": riff + bytes(1000),
        "samples.mp4": clip[: box + 8] + b"\xff\xff\xff\xff" * 3 + clip[box + 20 :],
        "box-size.mp4": b"\xff\xff\xff\xff" + clip[4:],
        "box-zero.mp4": clip[:4] + b"ftyp" + bytes(4000),
        "nested.mp4": b"".join(struct.pack(">I", 8 * (5000 - depth)) + b"moov" for depth in range(5000)),
        "unknown-size.mkv": b"\x1aE\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xff" + bytes(500),
        "ogg.ogg": b"OggS\0\x02" + b"\xff" * 500,
        "flac.flac": b"fLaC\x86\xff\xff\xff" + b"\xff" * 500,
        "id3.mp3": b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + b"\xff\xfb\x90\0" * 200,
        "avi.avi": b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl" + b"\xff" * 400,
        "zeros.ts": b"\x47" + bytes(187) + (b"\x47\x1f\xff\x10" + bytes(184)) * 400,
    }  # fmt: skip
    for cut in range(1, 12):
        found[f"cut-{cut}.mp4"] = clip[: len(clip) * cut // 12]
    for seed in range(1, 12):
        # Deterministic damage: every so many bytes one is turned over.
        broken = bytearray(clip)
        for position in range(40 * seed, len(broken), 997 * seed):
            broken[position] ^= 0xFF
        found[f"damaged-{seed}.mp4"] = bytes(broken)
    return found


async def run_lies(bench: Bench, step: int) -> None:
    made = lies((bench.sources / "clip.mp4").read_bytes())
    told = {}
    for name in [*made][::step]:
        path = bench.root / f"lie-{name}"
        path.write_bytes(made[name])
        async with asyncio.timeout(120):
            told[name] = await outcome(
                bench, request_of({"input": {"source": {"artifact": bench.artifacts.add(path)}}})
            )
    assert processes_of(bench.root) == []
    # Not all of it is refused: what can be read of a film that breaks off is read.
    assert any(told.values())
    assert not all(told.values())


async def test_some_media_that_lie_or_break_off(fortress: Bench) -> None:
    await run_lies(fortress, 4)


@pytest.mark.slow
async def test_all_media_that_lie_or_break_off(fortress: Bench) -> None:
    await run_lies(fortress, 1)
