"""The façade over drivers of all kinds: blocking ones, ones that lack methods, ones that do not want it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, tensor_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.driver.v1 import driver_pb2, driver_pb2_grpc
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.api.third_party.inference import grpc_service_pb2_grpc
from onecontainer.driver import Context, InferenceDriver, ProbeResult, errors
from onecontainer.driver.serve import serving
from onecontainer.driver.settings import SidecarSettings
from onecontainer.errors import DriverMisimplemented
from onecontainer.rpc import status
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.manifest import Manifest

AI, OIP = "onecontainer.api.ai.v1.InferenceService", "inference.GRPCInferenceService"
SERVICE = "services/m"


class OnlyPredict(InferenceDriver):
    """Blocks; answers with its input, under the name of the model that it was asked for."""

    def __init__(self) -> None:
        self.entered, self.left = threading.Event(), threading.Event()
        self.broken = False

    def probe(self) -> ProbeResult:
        if self.broken:
            raise errors.BackendUnreachable("gone")
        return ProbeResult(ready=True)

    def predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        if request.model == "hang":
            self.entered.set()
            while not context.cancelled:
                threading.Event().wait(0.01)
            self.left.set()
        named = tensor_pb2.NamedTensor(name=request.model or "default", tensor=request.inputs[0].tensor)
        answer = inference_pb2.Prediction(tensors=inference_pb2.TensorResult(tensors=[named]))
        return pb.PredictResponse(model=request.model, version="7", predictions=[answer])


class WrongAnswer(InferenceDriver):
    async def predict(self, request: pb.PredictRequest, context: Context) -> Any:
        return model_pb2.Model()


@asynccontextmanager
async def sidecar(driver: InferenceDriver, *services: str) -> AsyncIterator[grpc.aio.Channel]:
    folder = Path(tempfile.mkdtemp(prefix="oc-"))  # short: the path of a UNIX socket has at most 107 bytes
    manifest = Manifest(
        name="m", version="1", app="m", scope="ai", entry_point="m:M", services=list(services or (AI, OIP))
    )
    settings = SidecarSettings(
        listen=f"unix:{folder}/s", state_dir=folder / "state", scratch_dir=folder / "scratch", stop_timeout=5.0
    )
    try:
        async with serving(driver, manifest, settings) as server, open_channel(server.target) as channel:
            stub: Any = driver_pb2_grpc.DriverServiceStub(channel)  # type: ignore[no-untyped-call]
            await stub.Attach(
                driver_pb2.AttachRequest(service=SERVICE, service_uid="u", instance="sidecars/m", app="m")
            )
            yield channel
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def theirs(channel: grpc.aio.Channel) -> Any:
    return grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]


def ask(model: str, *values: int) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model, id="i")
    one = request.inputs.add(name="x", datatype="INT64", shape=[len(values)])
    one.contents.int64_contents.extend(values)
    return request


async def failure(call: Any) -> errors.OneContainerError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return status.from_rpc_error(caught.value)


@pytest.mark.parametrize(
    ("named", "asked"),
    [("m", "default"), ("m/", "default"), ("m/a", "a"), ("a", "a"), ("services/m/models/a", "a"), ("n/a", "n/a")],
)
async def test_a_blocking_driver_is_asked_by_all_names(named: str, asked: str) -> None:
    async with sidecar(OnlyPredict()) as channel:
        answer = await theirs(channel).ModelInfer(ask(named, 1, 2, 3), timeout=60)
    (output,) = answer.outputs
    assert (answer.model_name, answer.model_version, answer.id, output.name) == (named, "7", "i", asked)
    assert list(output.contents.int64_contents) == [1, 2, 3]
    assert (output.datatype, list(output.shape)) == ("INT64", [3])


async def test_what_the_driver_lacks_is_not_claimed() -> None:
    async with sidecar(OnlyPredict()) as channel:
        stub: Any = driver_pb2_grpc.DriverServiceStub(channel)  # type: ignore[no-untyped-call]
        info = await stub.GetDriverInfo(driver_pb2.GetDriverInfoRequest())
        told = {name.rpartition("/")[2] for name in info.methods if name.startswith(f"{OIP}/")}
        assert told == {"ServerLive", "ServerReady", "ServerMetadata", "ModelInfer", "ModelStreamInfer"}
        error = await failure(theirs(channel).ModelMetadata(oip.ModelMetadataRequest(name="m"), timeout=60))
        assert isinstance(error, errors.CapabilityMissing)
        metadata = await theirs(channel).ServerMetadata(oip.ServerMetadataRequest(), timeout=60)
        assert (metadata.name, metadata.version) == (SERVICE, "m 1")
        assert list(metadata.extensions) == ["classification"]


async def test_a_service_is_ready_when_its_backend_is() -> None:
    driver = OnlyPredict()
    async with sidecar(driver) as channel:
        assert (await theirs(channel).ServerReady(oip.ServerReadyRequest(), timeout=60)).ready
        driver.broken = True
        assert not (await theirs(channel).ServerReady(oip.ServerReadyRequest(), timeout=60)).ready


async def test_a_cancelled_call_tells_the_drivers_thread() -> None:
    driver = OnlyPredict()
    async with sidecar(driver) as channel:
        error = await failure(theirs(channel).ModelInfer(ask("m/hang", 1), timeout=0.5))
        assert isinstance(error, errors.DeadlineExceeded)
        assert await asyncio.to_thread(driver.left.wait, 60)
        driver.left.clear()
        driver.entered.clear()
        call = theirs(channel).ModelInfer(ask("m/hang", 1), timeout=60)
        assert await asyncio.to_thread(driver.entered.wait, 60)
        call.cancel()
        assert await asyncio.to_thread(driver.left.wait, 60)


async def test_a_driver_that_answers_with_something_else_is_told() -> None:
    async with sidecar(WrongAnswer()) as channel:
        error = await failure(theirs(channel).ModelInfer(ask("m", 1), timeout=60))
    assert isinstance(error, DriverMisimplemented)
    assert "PredictResponse" in error.message


async def test_a_driver_that_does_not_list_it_does_not_serve_it() -> None:
    async with sidecar(OnlyPredict(), AI) as channel:
        error = await failure(theirs(channel).ServerLive(oip.ServerLiveRequest(), timeout=60))
    assert isinstance(error, errors.MethodUnknown)
