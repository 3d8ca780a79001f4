"""What requests are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.media.v1 import input_pb2, stream_pb2
from onecontainer.client.channel import Tls, open_channel
from onecontainer.client.jobs import job_error, result_type
from onecontainer.client.media import to_source, transcode_request
from onecontainer.client.names import all_pages, filter_of, full_name, job_options
from onecontainer.errors import Cancelled, DriverMisimplemented, FieldInvalid


def test_names_may_be_short_or_full() -> None:
    assert full_name("services", "cat") == full_name("services", "services/cat") == "services/cat"
    assert full_name("drivers", "") == ""


def test_filters_quote_what_is_in_them() -> None:
    assert filter_of({"service": 'a"b\\', "state": "", "job": None}) == 'service = "a\\"b\\\\"'
    assert filter_of({"service": "services/x", "state": "QUEUED"}) == 'service = "services/x" AND state = "QUEUED"'


def test_job_options_leave_absent_what_is_not_said() -> None:
    assert job_options().ByteSize() == 0
    options = job_options(priority="high", result_ttl=0, total_timeout=1.5, max_attempts=2)
    assert options.HasField("result_ttl")
    assert options.total_timeout.ToMilliseconds() == 1500
    assert options.retry_policy.max_attempts == 2
    with pytest.raises(ValueError, match="urgent"):
        job_options(priority="urgent")


async def test_pages_are_read_to_the_end_or_to_the_limit() -> None:
    asked: list[tuple[int, str]] = []

    async def fetch(size: int, token: str) -> tuple[Sequence[int], str]:
        asked.append((size, token))
        begin = int(token or 0)
        return list(range(begin, begin + min(size, 3))), "" if begin >= 6 else str(begin + 3)

    assert [item async for item in all_pages(fetch, None)] == list(range(9))
    asked.clear()
    assert [item async for item in all_pages(fetch, 4)] == [0, 1, 2, 3]
    assert asked == [(4, ""), (1, "3")]


def test_media_sources_are_told_apart() -> None:
    assert to_source("artifacts/x").artifact == "artifacts/x"
    assert to_source("https://host/a.mp4").url == "https://host/a.mp4"
    assert to_source("clips/a.mp4").path == "clips/a.mp4"
    assert to_source(input_pb2.MediaSource(path="artifacts/x")).path == "artifacts/x"


def test_a_transcode_takes_the_defaults_or_names_its_streams() -> None:
    plain = transcode_request("artifacts/x", "webm")
    assert not plain.elementary_streams
    assert plain.outputs[0].file.container == "webm"
    both = transcode_request(
        "artifacts/x", "mp4", video=stream_pb2.VideoStream(width=64), audio=stream_pb2.AudioStream()
    )
    assert list(both.outputs[0].streams) == ["video", "audio"]
    assert both.elementary_streams[1].skip_if_missing


def test_a_result_artifact_tells_its_message_or_the_method_does() -> None:
    job = job_pb2.Job(method="onecontainer.api.media.v1.MediaService/RunPipeline")
    told = artifact_pb2.Artifact(media_type='application/x-protobuf; messageType="a.b.C"')
    assert result_type(told, job) == "a.b.C"
    assert result_type(artifact_pb2.Artifact(), job) == "onecontainer.api.media.v1.RunPipelineResult"
    with pytest.raises(DriverMisimplemented, match="octet"):
        result_type(artifact_pb2.Artifact(media_type="application/octet-stream"), job_pb2.Job(method="x.Y/Z"))


def test_a_cancelled_job_without_an_error_is_a_cancellation() -> None:
    assert isinstance(job_error(job_pb2.Job(name="jobs/1", state=job_pb2.JOB_STATE_CANCELLED)), Cancelled)


def test_a_ca_file_without_a_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate\n")
    with pytest.raises(FieldInvalid, match=r"ca.pem has no certificate in it") as caught:
        open_channel("gateway.example:443", tls=Tls(ca_file=tmp_path / "ca.pem"), token=None)
    assert caught.value.violations[0].field == "ca_file"


async def test_a_token_does_not_cross_a_network_in_the_clear() -> None:
    with pytest.raises(FieldInvalid, match="in the clear"):
        open_channel("gateway.example:443", tls=None, token="secret")
    for address, tls in (("127.0.0.1:1", None), ("unix:/tmp/x", None), ("gateway.example:443", Tls())):
        await open_channel(address, tls=tls, token="secret").close()
