"""A pipeline streams live to the backend `web-rtmp`, and a real browser shows it: gateway, sidecar, docker and Chromium are all real."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onecontainer_driver_ffmpeg import make_demo_clip

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.media.v1 import media_pb2, pipeline_pb2
from onecontainer.api.media.v1.input_pb2 import Input, MediaSource
from onecontainer.api.media.v1.output_pb2 import LiveOutput, Output, RtmpSink
from onecontainer.client import Client
from tests.e2e.test_backends import Installation
from tests.fixtures.backends import backends_of
from tests.fixtures.browser import chromium
from tests.fixtures.waiting import until

KEY = "k3y-0f-a-str3am"


@pytest.fixture
def made(tmp_path: Path, echo_drivers: Path) -> Iterator[Installation]:
    """A gateway with the backend `web-rtmp`, and the service `films`, which may send to it."""
    installation = Installation(tmp_path, echo_drivers)
    installation.data_dir.mkdir(mode=0o700)
    secrets = installation.data_dir / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "tube-key").write_text(KEY)
    (secrets / "tube-key").chmod(0o600)
    try:
        with backends_of(installation.installation):
            installation.oca("up", "--detach", "--backend", "web-rtmp")
            with Client(installation.variables["ONECONTAINER_LISTEN"]) as client:
                options: dict[str, Any] = {"sink_hosts": [installation.rtmp], "secrets": {"tube": "secrets/tube-key"}}
                client.services.create("films", app="ffmpeg", options=options)
                client.services.wait_ready("films", timeout=240)
            yield installation
    finally:
        installation.stop()


def test_a_live_pipeline_plays_in_a_browser(made: Installation, tmp_path: Path) -> None:
    clip = make_demo_clip(tmp_path / "clip.mp4", seconds=4, width=320, height=180)
    host, _, port = made.rtmp.rpartition(":")
    with Client(made.variables["ONECONTAINER_LISTEN"]) as client, chromium(tmp_path / "profile") as browser:
        source = MediaSource(artifact=client.artifacts.upload(clip).name)
        sink = RtmpSink(host=host, port=int(port), app="live", stream_key_secret="secrets/tube")
        job = client.media.run_pipeline(
            "films",
            media_pb2.RunPipelineRequest(
                inputs=[Input(source=source, loop_forever=True, real_time=True)],
                outputs=[Output(key="live", live=LiveOutput(rtmp=sink))],
            ),
        )
        browser.get(f"http://{made.http}/")

        def seen() -> float:
            """Where the video is, if pictures have been decoded."""
            script = "const v = document.querySelector('video'); return v.videoWidth === 320 ? v.currentTime : 0"
            return float(browser.execute_script(script))

        def told() -> str:
            return str(browser.find_element("id", "state").text)

        first = until(seen, f"the video; {told()}")
        assert told() == f"Playing {KEY}"  # the server knows the key, and ffmpeg never did
        until(lambda: seen() > first + 3, "three seconds more")
        # All that the page needs came from its own server.
        script = "return performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)"
        assert set(browser.execute_script(script)) <= {made.http, ""}
        assert [line for line in browser.get_log("browser") if "Content Security Policy" in line["message"]] == []

        job.cancel(finish=True)
        record = job.wait(timeout=180)
        assert (record.state, record.ended_early) == (job_pb2.JOB_STATE_SUCCEEDED, True)
        result = job.result(pipeline_pb2.RunPipelineResult)
        assert result.outputs[0].live_url == f"rtmp://{made.rtmp}/live"
        assert KEY not in str(result)
        until(lambda: told() in (f"{KEY} has ended.", "Nobody is streaming."), "that it has ended")
        with urllib.request.urlopen(f"http://{made.http}/stat", timeout=60) as answer:
            assert b"<publishing/>" not in answer.read()
        log = "\n".join(line.text for line in client.sidecars.logs(client.sidecars.list(service="films")[0].name))
        assert KEY not in log
