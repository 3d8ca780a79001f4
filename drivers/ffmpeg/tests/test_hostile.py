"""What strangers may try, beside the corpus in tests/fuzz: what needs a setting of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onecontainer_driver_ffmpeg.binaries import find_ffmpeg
from onecontainer_driver_ffmpeg.filters import escape

from drivers.ffmpeg.tests.conftest import Bench
from onecontainer.api.media.v1 import media_pb2
from onecontainer.api.media.v1.input_pb2 import Input, InputFormat, MediaSource, RawVideoFormat
from onecontainer.api.media.v1.output_pb2 import FileOutput, Output
from onecontainer.api.media.v1.pipeline_pb2 import PipelineLimits
from onecontainer.api.media.v1.stream_pb2 import (
    AudioStream,
)
from onecontainer.driver import errors


def with_output(**fields: object) -> media_pb2.RunPipelineRequest:
    """A request with one output of the defaults."""
    fields = {"key": "out", "file": FileOutput(container="mp4")} | fields
    return media_pb2.RunPipelineRequest(
        inputs=[Input(source=MediaSource(path="clip.mp4"))],
        outputs=[Output(**fields)],  # type: ignore[arg-type]
    )


async def test_a_stream_that_nothing_takes_is_refused(bench: Bench) -> None:
    request = with_output()
    request.elementary_streams.add(key="lost", audio=AudioStream())
    with pytest.raises(errors.FieldInvalid) as caught:
        await bench.driver.run_pipeline(request, bench.context())
    assert caught.value.violations[0].field == "elementary_streams[0].key"


async def test_negative_limits_are_refused(bench: Bench) -> None:
    request = with_output()
    request.limits.CopyFrom(PipelineLimits(threads=-1))
    with pytest.raises(errors.FieldInvalid):
        await bench.driver.run_pipeline(request, bench.context())


@pytest.mark.parametrize(
    "source_format",
    [
        InputFormat(demuxer="concat"),
        InputFormat(demuxer="lavfi"),
        InputFormat(demuxer="image2"),
        InputFormat(demuxer="hls"),
        InputFormat(demuxer="sdp"),
        InputFormat(raw_video=RawVideoFormat(width=16, height=16, pixel_format="yuv420p:x")),
    ],
)
async def test_demuxers_that_follow_references_cannot_be_named(
    bench: Bench, clip: Path, source_format: InputFormat
) -> None:
    (bench.sources / "clip.mp4").write_bytes(clip.read_bytes())
    request = media_pb2.ProbeRequest(source=MediaSource(path="clip.mp4"), format=source_format)
    with pytest.raises(errors.BackendCapabilityMissing) as caught:
        await bench.driver.probe_media(request, bench.context())
    assert caught.value.violations[0].field.startswith("format.")


async def test_a_file_that_draws_in_another_is_contained(bench: Bench, clip: Path) -> None:
    """An HLS list under the name of a video, and one that a path may reach: neither opens what it names."""
    secret = bench.root / "secret.mp4"
    secret.write_bytes(clip.read_bytes())
    lie = bench.sources / "movie.mp4"
    lie.write_text(f"#EXTM3U\n#EXTINF:3,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    with pytest.raises(errors.DataInvalid):
        await bench.driver.probe_media(media_pb2.ProbeRequest(source=MediaSource(path="movie.mp4")), bench.context())


FFMPEG = find_ffmpeg("")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.text(
        st.characters(
            min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f", exclude_categories=("Cs", "Cc")
        ),
        min_size=1,
        max_size=40,
    )
)
def test_whatever_is_in_a_filter_value_stays_in_it(value: str) -> None:
    """ffmpeg itself reads the escaped value back, as a tag of a frame."""
    graph = f"color=size=16x16:duration=0.04,metadata=mode=add:key=k:value={escape(value)},metadata=mode=print:file=-"
    command = [
        FFMPEG,
        "-nostdin",
        "-loglevel",
        "error",
        "-f",
        "lavfi",
        "-i",
        graph,
        "-frames:v",
        "1",
        "-f",
        "null",
        "-",
    ]
    printed = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    assert printed.partition("\nk=")[2] == f"{value}\n"


async def test_the_disk_of_a_pipeline_holds_inputs_and_outputs_together(bench: Bench, clip: Path) -> None:
    size = clip.stat().st_size
    source = Input(source=MediaSource(artifact=bench.artifacts.add(clip)))
    copied = media_pb2.RunPipelineRequest(
        inputs=[source], outputs=[Output(key="out", file=FileOutput(container="wav"))]
    )
    await bench.attach(max_scratch_bytes=size - 1)
    with pytest.raises(errors.LimitExceeded, match=r"inputs\[0\]\.source\.artifact .* max_scratch_bytes"):
        await bench.driver.run_pipeline(copied, bench.context())
    assert not bench.events.details()
    # The copy of the input fits, and then the sound, which is larger, does not.
    await bench.attach(max_scratch_bytes=size + 100_000)
    with pytest.raises(errors.LimitExceeded, match=r"outputs\[0\] .* max_scratch_bytes"):
        await bench.driver.run_pipeline(copied, bench.context())
    # Both inputs are copied, so the second has what the first leaves.
    (bench.sources / "again.mp4").write_bytes(clip.read_bytes())
    copied.inputs.add().source.artifact = bench.artifacts.add(bench.sources / "again.mp4")
    with pytest.raises(errors.LimitExceeded, match=r"inputs\[1\]"):
        await bench.driver.run_pipeline(copied, bench.context())
