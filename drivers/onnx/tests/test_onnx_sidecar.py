"""The driver as a sidecar, over the wire."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onecontainer_driver_onnx import OnnxDriver, built_in

from onecontainer.api.ai.v1 import inference_pb2, inference_service_pb2_grpc, model_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.driver.v1 import driver_pb2, driver_pb2_grpc
from onecontainer.api.job.v1 import job_lease_service_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.tensors import tensor_from_array
from onecontainer.driver.serve import serving
from onecontainer.driver.settings import SidecarSettings
from onecontainer.rpc import status
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.manifest import Manifest

SERVICE = "services/cats"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: the path of a UNIX socket has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="oc-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def channel(folder: Path, manifest: Manifest, model_file: Path) -> AsyncIterator[grpc.aio.Channel]:
    settings = SidecarSettings(
        listen=f"unix:{folder}/s", state_dir=folder / "state", scratch_dir=folder / "scratch", stop_timeout=5.0
    )
    driver = OnnxDriver()
    async with serving(driver, manifest, settings) as server, open_channel(server.target) as channel:
        stub: Any = driver_pb2_grpc.DriverServiceStub(channel)
        await stub.Attach(
            driver_pb2.AttachRequest(
                service=SERVICE, service_uid="u", instance="sidecars/c", app="onnx", app_version="1.0"
            )
        )
        assert driver._loader is not None
        await asyncio.wait_for(asyncio.shield(driver._loader), 120)
        assert (await stub.Probe(driver_pb2.ProbeRequest())).ready
        yield channel


@pytest.fixture
def ai(channel: grpc.aio.Channel) -> Any:
    return inference_service_pb2_grpc.InferenceServiceStub(channel)


async def test_what_is_announced(channel: grpc.aio.Channel, ai: Any) -> None:
    stub: Any = driver_pb2_grpc.DriverServiceStub(channel)
    info = await stub.GetDriverInfo(driver_pb2.GetDriverInfoRequest())
    # Those of its façades are described by the contracts that they are of.
    own = [name for name in info.methods if name.startswith("onecontainer.")]
    told = {name.rpartition("/")[2] for name in own}
    usage = await ai.GetUsage(pb.GetUsageRequest(service=SERVICE))
    assert told == {function.method.rpartition("/")[2] for function in usage.functions}


async def test_predict(ai: Any, cat: bytes) -> None:
    response = await ai.Predict(pb.PredictRequest(service=SERVICE, inputs=[inference_pb2.Input(image=cat)]))
    assert response.predictions[0].classification.classes[0].label == "tiger cat"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ai.Predict(pb.PredictRequest(service=SERVICE, inputs=[inference_pb2.Input(image=cat[:9999])]))
    error = status.from_rpc_error(caught.value)
    assert isinstance(error, errors.DataInvalid)
    assert [violation.field for violation in error.violations] == ["inputs[0].image"]


async def test_large_messages(ai: Any) -> None:
    batch = np.zeros((20, 3, 224, 224), np.float32)
    assert batch.nbytes > 8 * 1024 * 1024
    request = pb.PredictRequest(
        service=SERVICE,
        inputs=[inference_pb2.Input(tensor=tensor_from_array(batch))],
        output=inference_pb2.OutputOptions(top_k=1),
    )
    response = await ai.Predict(request)
    assert len(response.predictions) == 20
    assert len({p.classification.classes[0].probability for p in response.predictions}) == 1


async def test_a_deadline_frees_the_threads(ai: Any, cat: bytes) -> None:
    """A caller that has gone is not worked for: its images are not all decoded."""
    many = pb.PredictRequest(service=SERVICE, inputs=[inference_pb2.Input(image=cat)] * 256)
    for _ in range(4):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ai.Predict(many, timeout=0.1)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    unloaded = await ai.UnloadModel(pb.UnloadModelRequest(service=SERVICE, model=built_in.NAME), timeout=180)
    assert unloaded.model.state == model_pb2.MODEL_STATE_UNLOADED


async def test_serve_is_a_job(channel: grpc.aio.Channel, ai: Any, cat: bytes) -> None:
    request = pb.ServeModelRequest(service=SERVICE, model="own", config=built_in.config())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ai.ServeModel(request)
    assert isinstance(status.from_rpc_error(caught.value), errors.NeedsGateway)
    grant = job_lease_service_pb2.Grant(
        job="jobs/1",
        attempt=1,
        fence=1,
        method="onecontainer.api.ai.v1.InferenceService/ServeModel",
        service=SERVICE,
        request=request.SerializeToString(),
    )
    stub: Any = driver_pb2_grpc.DriverServiceStub(channel)
    events = [event async for event in stub.Run(driver_pb2.RunRequest(grant=grant))]
    result = pb.ServeModelResult()
    result.ParseFromString(events[-1].succeeded.result)
    assert result.model.state == model_pb2.MODEL_STATE_READY
    progress = [event.progress for event in events if event.WhichOneof("event") == "progress"]
    assert progress
    details = pb.ServeModelProgress()
    assert progress[0].details.Unpack(details)
    answer = await ai.Predict(pb.PredictRequest(service=SERVICE, model="own", inputs=[inference_pb2.Input(image=cat)]))
    assert answer.predictions[0].classification.classes[0].label == "tiger cat"


async def test_a_stream(ai: Any, cat: bytes) -> None:
    call = ai.PredictStream()
    await call.write(pb.PredictStreamRequest(service=SERVICE, inputs=[inference_pb2.Input(image=cat)]))
    first = await call.read()
    assert first.response.predictions[0].classification.classes[0].label == "tiger cat"
    await call.write(pb.PredictStreamRequest(item_id="bad", inputs=[inference_pb2.Input(image=b"x")]))
    second = await call.read()
    assert (second.index, second.item_id, second.error.code) == (1, "bad", errors.Code.INVALID_ARGUMENT)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
