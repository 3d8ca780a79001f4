"""Hardware: what is decided by what a machine has and what works there, and what ffmpeg is told.

The machines that test this have none: there the refusal and the way back to software are seen on the real binary, and the rest with
a stand-in for trying a device, the only thing that a GPU would answer differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.hardware import Hardware, Use, choose, devices_here

from drivers.ffmpeg.tests.conftest import Bench
from drivers.ffmpeg.tests.test_pipeline import artifact_input, file_output, filter_of, run
from onecontainer.api.media.v1 import media_pb2, pipeline_pb2, stream_pb2
from onecontainer.api.media.v1.stream_pb2 import ElementaryStream, RateControl, VideoStream
from onecontainer.driver import errors

OFF, PREFERRED, REQUIRED = (
    stream_pb2.HARDWARE_MODE_OFF,
    stream_pb2.HARDWARE_MODE_PREFERRED,
    stream_pb2.HARDWARE_MODE_REQUIRED,
)
VAAPI, NVENC, QSV = stream_pb2.HARDWARE_API_VAAPI, stream_pb2.HARDWARE_API_NVENC, stream_pb2.HARDWARE_API_QSV
AT = "elementary_streams[0].video"
NODES = ("/dev/dri/renderD128", "/dev/dri/renderD129")
ENCODERS = frozenset({"libx264", "h264_vaapi", "hevc_vaapi", "h264_nvenc", "h264_qsv", "vp9_qsv"})


class Machine:
    """A stand-in for trying: `works` are encoders and devices that do; counts how often it was asked."""

    def __init__(
        self, *works: tuple[str, str], vaapi: Sequence[str] = NODES, nvenc: Sequence[str] = ("0", "1")
    ) -> None:
        self.tried: list[Sequence[str]] = []
        self._works = works
        self.hardware = Hardware(
            ENCODERS, self.answer, {"vaapi": tuple(vaapi), "nvenc": tuple(nvenc), "qsv": tuple(vaapi)}
        )

    async def answer(self, arguments: Sequence[str]) -> bool:
        self.tried.append(arguments)
        words = " ".join(arguments)
        return any(
            f"-c:v {encoder}" in words and (f"{device} " in words or f"-gpu {device}" in words)
            for encoder, device in self._works
        )


def asked(mode: stream_pb2.HardwareMode.ValueType, **fields: object) -> stream_pb2.Hardware:
    return stream_pb2.Hardware(mode=mode, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "works", "expected"),
    [
        (asked(REQUIRED), [("h264_vaapi", NODES[0]), ("h264_nvenc", "0")], Use("h264_vaapi", "vaapi", NODES[0])),
        (asked(REQUIRED), [("h264_vaapi", NODES[1])], Use("h264_vaapi", "vaapi", NODES[1])),
        (asked(PREFERRED), [("h264_nvenc", "1"), ("h264_qsv", NODES[0])], Use("h264_nvenc", "nvenc", "1")),
        (asked(PREFERRED), [("h264_qsv", NODES[0])], Use("h264_qsv", "qsv", NODES[0])),
        (asked(REQUIRED, api=QSV), [("h264_vaapi", NODES[0]), ("h264_qsv", NODES[0])], Use("h264_qsv", "qsv", NODES[0])),
        (asked(REQUIRED, device=NODES[1]), [("h264_vaapi", NODES[0]), ("h264_vaapi", NODES[1])], Use("h264_vaapi", "vaapi", NODES[1])),
    ],
)  # fmt: skip
async def test_the_first_that_works_is_taken(
    wish: stream_pb2.Hardware, works: list[tuple[str, str]], expected: Use
) -> None:
    assert await choose(wish, "libx264", "h264", Machine(*works).hardware, AT) == expected


async def test_what_is_not_there_is_refused_or_made_in_software() -> None:
    machine = Machine(("h264_vaapi", NODES[0]))
    for wish in (
        asked(REQUIRED, api=NVENC),
        asked(REQUIRED, device="/dev/dri/renderD200"),
        asked(REQUIRED, api=VAAPI, device="1"),
    ):
        with pytest.raises(errors.BackendCapabilityMissing) as caught:
            await choose(wish, "libx264", "h264", machine.hardware, AT)
        assert caught.value.violations[0].field == f"{AT}.hardware.mode"
        assert "PREFERRED" in str(caught.value)
    reason = await choose(asked(PREFERRED, api=NVENC), "libx264", "h264", machine.hardware, AT)
    assert isinstance(reason, str)
    assert "does not work on nvenc device 1" in reason
    assert "no encoder theora_vaapi" in str(await choose(asked(PREFERRED), "libtheora", "theora", machine.hardware, AT))
    bare = Machine(vaapi=(), nvenc=())
    assert "no vaapi device is here" in str(await choose(asked(PREFERRED), "libx264", "h264", bare.hardware, AT))
    assert not bare.tried  # fmt: skip


async def test_software_is_software() -> None:
    machine = Machine(("h264_vaapi", NODES[0]))
    assert await choose(asked(OFF), "libx264", "h264", machine.hardware, AT) is None
    assert await choose(stream_pb2.Hardware(), "libx264", "h264", machine.hardware, AT) is None
    assert not machine.tried
    with pytest.raises(errors.BackendCapabilityMissing) as caught:
        await choose(asked(OFF), "h264_vaapi", "h264", machine.hardware, AT)
    assert caught.value.violations[0].field == f"{AT}.codec"
    with pytest.raises(errors.FieldInvalid) as clash:
        await choose(asked(PREFERRED, api=NVENC), "h264_vaapi", "h264", machine.hardware, AT)
    assert clash.value.violations[0].field == f"{AT}.hardware.api"
    named = await choose(asked(PREFERRED), "h264_vaapi", "h264", machine.hardware, AT)
    assert named == Use("h264_vaapi", "vaapi", NODES[0])


async def test_a_device_is_tried_once() -> None:
    machine = Machine(("h264_vaapi", NODES[1]))
    for _ in range(3):
        await choose(asked(REQUIRED), "libx264", "h264", machine.hardware, AT)
    assert len(machine.tried) == 2
    assert await machine.hardware.working_devices("vaapi") == [NODES[1]]
    assert await machine.hardware.working_devices("nvenc") == []
    first = " ".join(machine.tried[0])
    assert first.startswith(f"-init_hw_device vaapi=gpu:{NODES[0]} -filter_hw_device gpu -f lavfi")
    assert "-vf format=yuv420p,format=nv12,hwupload -c:v h264_vaapi" in first


def test_devices_are_found(tmp_path: Path) -> None:
    (tmp_path / "dri").mkdir()
    for name in ("dri/renderD129", "dri/renderD128", "dri/card0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    nodes = (f"{tmp_path}/dri/renderD128", f"{tmp_path}/dri/renderD129")
    assert devices_here(tmp_path) == {"vaapi": nodes, "nvenc": ("2", "10"), "qsv": nodes}
    assert devices_here(tmp_path / "none") == {"vaapi": (), "nvenc": (), "qsv": ()}


async def shown(
    bench: Bench, source: str, capabilities_of: Machine, video: VideoStream
) -> pipeline_pb2.RunPipelineResult:
    """The command that would run on that machine, with the real binary's options."""
    runner = await bench.driver._attached()
    machine = capabilities_of.hardware
    runner.capabilities.hardware = Hardware(frozenset(runner.capabilities.encoders), machine.works, machine.devices)
    return await run(
        bench,
        inputs=[artifact_input(source)],
        elementary_streams=[ElementaryStream(key="v", video=video)],
        outputs=[file_output("out", "mp4", "v")],
        validate_only=True,
    )


@pytest.mark.parametrize(
    ("works", "video", "expected", "api"),
    [
        (
            ("h264_vaapi", NODES[0]),
            VideoStream(filters=[filter_of("hflip")], width=64, rate_control=RateControl(constant_quality=23)),
            ["-init_hw_device", f"vaapi=gpu:{NODES[0]}", "-filter_hw_device", "gpu",
             "[0:0]hflip,scale=w=64:h=-2,format=nv12,hwupload[s0]", "-rc_mode:v:0", "CQP", "-qp:v:0", "23"],
            VAAPI,
        ),
        (
            ("h264_nvenc", "1"),
            VideoStream(preset="p2", profile="main", rate_control=RateControl(constant_quality=30)),
            ["-gpu:v:0", "1", "-preset:v:0", "p2", "-profile:v:0", "main", "-cq:v:0", "30", "-rc:v:0", "vbr"],
            NVENC,
        ),
        (
            ("h264_qsv", NODES[1]),
            VideoStream(pixel_format="nv12", rate_control=RateControl(constant_quality=25)),
            ["-init_hw_device", f"qsv=gpu,child_device={NODES[1]}", "-global_quality:v:0", "25", "-pix_fmt:v:0", "nv12"],
            QSV,
        ),
    ],
)  # fmt: skip
async def test_what_ffmpeg_is_told(
    bench: Bench,
    clip: Path,
    works: tuple[str, str],
    video: VideoStream,
    expected: list[str],
    api: stream_pb2.HardwareApi.ValueType,
) -> None:
    video.hardware.mode = REQUIRED
    result = await shown(bench, bench.artifacts.add(clip), Machine(works), video)
    command = list(result.outputs[0].command)
    assert set(expected) <= set(command), command
    if "-init_hw_device" in command:
        assert command.index("-init_hw_device") < command.index("-i")
    stream = result.outputs[0].streams[0]
    assert (stream.encoder, stream.hardware) == (works[0], api)
    assert not result.warnings


async def test_what_hardware_cannot_do_is_done_in_software(bench: Bench, clip: Path) -> None:
    source, machine = bench.artifacts.add(clip), Machine(("h264_vaapi", NODES[0]))
    wishes = {
        "preset": VideoStream(preset="veryfast"),
        "pixel_format": VideoStream(pixel_format="yuv420p"),
        "profile": VideoStream(profile="high444"),
        "rate_control.lossless": VideoStream(rate_control=RateControl(lossless=True)),
    }
    for field, video in wishes.items():
        video.hardware.mode = PREFERRED
        result = await shown(bench, source, machine, video)
        assert (result.outputs[0].streams[0].encoder, result.outputs[0].streams[0].hardware) == ("libx264", 0)
        assert [warning.field for warning in result.warnings] == [f"{AT}.hardware.mode"]
        assert field.rpartition(".")[2] in result.warnings[0].message
        video.hardware.mode = REQUIRED
        with pytest.raises(errors.BackendCapabilityMissing) as caught:
            await shown(bench, source, machine, video)
        assert caught.value.violations[0].field == f"{AT}.{field}"


async def test_a_named_encoder_gives_way_to_its_codec(bench: Bench, clip: Path) -> None:
    video = VideoStream(codec="hevc_nvenc", hardware=asked(PREFERRED))
    result = await shown(bench, bench.artifacts.add(clip), Machine(), video)
    assert result.outputs[0].streams[0].encoder == "libx265"


async def test_the_real_machine(bench: Bench, clip: Path, capabilities: Capabilities) -> None:
    """Preferred hardware comes to a file and says how; required hardware runs nothing where there is none."""
    source = bench.artifacts.add(clip)
    streams = [ElementaryStream(key="v", video=VideoStream(width=160, hardware=asked(PREFERRED)))]
    answer = await bench.driver.list_capabilities(media_pb2.ListCapabilitiesRequest(), bench.context())
    devices = {entry.api: list(entry.devices) for entry in answer.hardware}
    assert {entry.api: entry.compiled_in for entry in answer.hardware} == {
        api: any(name.endswith(f"_{suffix}") for name in capabilities.encoders)
        for suffix, api in (("vaapi", VAAPI), ("nvenc", NVENC), ("qsv", QSV))
    }
    request = {"inputs": [artifact_input(source)], "outputs": [file_output("out", "mp4", "v")]}
    result = await run(bench, **request, elementary_streams=streams)
    assert result.outputs[0].state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
    achieved = result.outputs[0].streams[0]
    assert bool(achieved.hardware) == any(devices.values())
    assert bool(result.warnings) != any(devices.values())
    streams[0].video.hardware.mode = REQUIRED
    if any(devices.values()):
        result = await run(bench, **request, elementary_streams=streams)
        assert result.outputs[0].streams[0].hardware
        return
    stored = len(bench.artifacts.stored)
    with pytest.raises(errors.BackendCapabilityMissing) as caught:
        await run(bench, **request, elementary_streams=streams)
    assert caught.value.violations[0].field == f"{AT}.hardware.mode"
    assert not bench.events.details()
    assert len(bench.artifacts.stored) == stored


async def test_trying_a_device_on_the_real_binary(capabilities: Capabilities) -> None:
    """What tries a device can tell yes from no: software encoders work here, and a device that is none does not."""
    works = capabilities.hardware.works
    color = ["-f", "lavfi", "-i", "color=size=64x64:duration=0.1", "-f", "null", "-"]
    assert await works(["-loglevel", "error", *color])
    assert not await works([*Use("h264_vaapi", "vaapi", "/dev/null").general(), *color])
