"""BatchPredict with a real gateway whose sidecar is killed in the middle: the next attempt goes on where the last one stopped."""

from __future__ import annotations

import io
import json
import os
import signal
import time
import zipfile
from pathlib import Path

from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.job.v1 import job_pb2
from onecontainer.client import Client, job_options
from tests.fixtures.processes import GatewayProcess, running

PHOTO = Path(__file__).parents[2] / "drivers/onnx/onecontainer_driver_onnx/assets/chelsea.png"
ITEMS = 200


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for number in range(ITEMS):
            made.writestr(f"{number:04}.png", PHOTO.read_bytes())
    return out.getvalue()


def test_a_killed_sidecar_costs_an_attempt_and_no_item(tmp_path: Path) -> None:
    gateway = GatewayProcess(
        tmp_path / "data",
        lease_duration="4",
        job_sweep_interval="0.1",
        probe_interval="1",
        restart_backoff_initial="0.1",
    )
    with running(gateway), Client(gateway.address) as client:
        client.services.create("cats", "onnx")
        client.services.wait_ready("cats", timeout=180)
        source = pb.BatchSource(archive=client.artifacts.upload(archive(), filename="in.zip").name)
        pid = int(client.sidecars.list(service="services/cats")[0].runtime_id)
        job = client.ai.batch_predict("cats", source, options=job_options(max_attempts=2))
        end = time.monotonic() + 180
        try:
            # It gets on by small pieces, so that it is in the middle when that is seen, however long the looking takes.
            while client.jobs.get(job.name).progress.done < 10:
                assert time.monotonic() < end, "no progress"
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.05)
                os.kill(pid, signal.SIGSTOP)
        finally:
            os.kill(pid, signal.SIGKILL)
        result = job.result(pb.BatchPredictResult, timeout=180)
        record = client.jobs.get(job.name)
        # The killed one was in the middle, and so is where the second one began.
        assert [attempt.state for attempt in record.attempts] == [
            job_pb2.ATTEMPT_STATE_LOST,
            job_pb2.ATTEMPT_STATE_SUCCEEDED,
        ]
        lines = [json.loads(line) for line in b"".join(client.artifacts.read(result.artifact)).splitlines()]
        assert (result.item_count, result.failed_count) == (ITEMS, 0)
        assert [line["item"] for line in lines] == [f"{number:04}.png" for number in range(ITEMS)]
        # Not counted again: this sidecar has answered only what was left.
        calls = client.ai.statistics("cats").models[0].inference_count
        assert 0 < calls < ITEMS
