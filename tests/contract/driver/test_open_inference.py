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
        if request.model == "refuse":
            raise errors.DataInvalid(
                violations=[
                    errors.FieldViolation("inputs[1].tensor.dtype", "'int64' takes FLOAT32, not int64"),
                    errors.FieldViolation("inputs[0].tensor.data", "is short"),
                ]
            )
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


async def test_errors_are_in_the_protocols_terms() -> None:
    request = ask("m/refuse", 1)
    request.inputs.add(name="int64", datatype="INT64", shape=[1]).contents.int64_contents.append(1)
    async with sidecar(OnlyPredict()) as channel:
        error = await failure(theirs(channel).ModelInfer(request, timeout=60))
    assert [(one.field, one.description) for one in error.violations] == [
        ("inputs[1].datatype", "'int64' takes FP32, not INT64"),
        ("inputs[0]", "is short"),
    ]


class Images(OnlyPredict):
    """Has a default model of images, which cannot read the last one; tells what it was asked to load and unload."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def get_model(self, request: pb.GetModelRequest, context: Context) -> model_pb2.Model:
        return self._model()

    def list_models(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._model()])

    def _model(self) -> model_pb2.Model:
        model = model_pb2.Model(name=f"{SERVICE}/models/cats", is_default=True, default_version="1")
        version = model.versions.add(version="1", state=model_pb2.MODEL_STATE_READY)
        version.config.image.SetInParent()
        version.inputs.add(name="images", dtype=tensor_pb2.DATA_TYPE_FLOAT32)
        return model

    def predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        raise errors.DataInvalid(f"inputs[{len(request.inputs) - 1}].image", "is no image")

    def serve_model(self, request: pb.ServeModelRequest, context: Context) -> pb.ServeModelResult:
        self.asked.append(f"load {request.model}")
        return pb.ServeModelResult()

    def unload_model(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        self.asked.append(f"unload {request.model}")
        return pb.UnloadModelResponse()


async def test_the_element_is_named_that_is_no_image() -> None:
    typed = oip.ModelInferRequest(model_name="m")
    one = typed.inputs.add(name="images", datatype="BYTES", shape=[2])
    one.contents.bytes_contents.extend([b"a", b"b"])
    raw = oip.ModelInferRequest(model_name="m", raw_input_contents=[b"\1\0\0\0a\1\0\0\0b"])
    raw.inputs.add(name="images", datatype="BYTES", shape=[2])
    async with sidecar(Images()) as channel:
        for request, told in (
            (typed, "inputs[0].contents.bytes_contents[1]: is no image"),
            (raw, "raw_input_contents[0]: element 1: is no image"),
        ):
            error = await failure(theirs(channel).ModelInfer(request, timeout=60))
            assert error.message == told


async def test_a_service_means_its_default_model_also_where_one_is_loaded() -> None:
    driver = Images()
    async with sidecar(driver) as channel:
        error = await failure(
            theirs(channel).RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="m"), timeout=60)
        )
        assert error.violations[0].field == "model_name", "nobody unloads by accident what others call"
        await theirs(channel).RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="m/b"), timeout=60)
        await theirs(channel).RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="m"), timeout=60)
        await theirs(channel).RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="m/b"), timeout=60)
    assert driver.asked == ["unload b", f"load {SERVICE}/models/cats", "load b"]


async def test_what_tells_how_http_carries_a_tensor_says_nothing_here() -> None:
    request = ask("m", 1)
    request.inputs[0].parameters["binary_data_size"].int64_param = 8
    request.outputs.add(name="y").parameters["binary_data"].bool_param = True
    async with sidecar(OnlyPredict()) as channel:
        assert (await theirs(channel).ModelInfer(request, timeout=60)).outputs


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
        for timeout in (0.5, 5.0, 50.0):  # as long as it takes this machine to begin with it
            error = await failure(theirs(channel).ModelInfer(ask("m/hang", 1), timeout=timeout))
            assert isinstance(error, errors.DeadlineExceeded)
            if driver.entered.is_set():
                break
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
