"""A client that waits for a job outlives its gateway: kill -9 and a restart on the same address."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.catalog.drivers import bundled_folder
from onecontainer.cli.process import note_of, settings_of, start_detached, stop
from onecontainer.client import Client, transcode_request
from tests.fixtures.processes import free_port

CLIP_SECONDS = 4


def make_clip(path: Path) -> Path:
    folder = bundled_folder()
    assert folder is not None
    code = (
        "import sys; from pathlib import Path; from onecontainer_driver_ffmpeg import make_demo_clip; "
        f"make_demo_clip(Path(sys.argv[1]), seconds={CLIP_SECONDS}, width=160, height=90)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=folder / "ffmpeg", check=True, timeout=180)
    return path


@pytest.mark.slow
def test_a_waiting_client_outlives_a_killed_gateway() -> None:
    with tempfile.TemporaryDirectory(prefix="oca-") as folder:
        settings = settings_of(Path(folder) / "data", listen=f"127.0.0.1:{free_port()}")
        first = start_detached(settings, timeout=180)
        killed: list[int] = []

        def kill_once(record: job_pb2.Job) -> None:
            if record.progress.done > 0.2 and not killed:
                os.kill(first.pid, signal.SIGKILL)
                killed.append(start_detached(settings, timeout=180).pid)

        try:
            with Client(first.address) as client:
                client.services.create("films", "ffmpeg")
                client.services.wait_ready("films", timeout=180)
                source = client.artifacts.upload(make_clip(Path(folder) / "clip.mp4"))
                request = transcode_request(source.name, "mp4")
                # At the pace of playing: then there is time to be killed in.
                request.inputs[0].real_time = True
                job = client.media.run_pipeline("films", request)
                result = job.result(pipeline_pb2.RunPipelineResult, on_progress=kill_once, timeout=240)
        finally:
            note = note_of(settings.data_dir)
            if note is not None:
                stop(settings.data_dir, note, timeout=180)
        assert killed
        assert killed != [first.pid]
        assert result.outputs[0].state == pipeline_pb2.OUTPUT_STATE_SUCCEEDED
        assert job.record.attempt_count == 2
