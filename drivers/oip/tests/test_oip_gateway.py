"""As a user has it: a service in a gateway in front of a real MLServer, asked by ours and, over the façade, by its own protocol;
and the server comes back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from drivers.oip.tests.asking import PATIENCE, floats, question, tensor
from onecontainer import errors
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.ai.v1 import inference_service_pb2_grpc, model_pb2
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.api.third_party.inference import grpc_service_pb2_grpc
from onecontainer.client import Client
from onecontainer.rpc import status
from tests.fixtures.open_inference.place import MLServer
from tests.fixtures.processes import GatewayProcess, running

SERVE = "onecontainer.api.ai.v1.InferenceService/ServeModel"


def test_a_service_of_a_gateway(upstream: MLServer, tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path / "data")
    with running(gateway), Client(gateway.address) as client:
        client.services.create("models", "oip", endpoints={"one": upstream.address})
        client.services.wait_ready("models", timeout=240)
        with grpc.insecure_channel(gateway.address) as channel:
            ai = inference_service_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            assert floats(ai.Predict(question("double", tensor((1, 2, 3))), timeout=180)) == [2, 4, 6]
            config = model_pb2.ModelConfig(
                source=model_pb2.ModelSource(oip=model_pb2.OipSource(model="double-idle", manage_repository=True))
            )
            job = client.jobs.create(
                "models", SERVE, pb.ServeModelRequest(service="services/models", model="twice", config=config)
            )
            assert job.result(pb.ServeModelResult, timeout=180).model.state == model_pb2.MODEL_STATE_READY
            # The same protocol on both sides of us.
            theirs = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            request = oip.ModelInferRequest(model_name="models/twice")
            one = request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
            one.contents.fp32_contents.extend([1, 2, 3])
            answer = theirs.ModelInfer(request, timeout=180)
            assert list(answer.outputs[0].contents.fp32_contents) == [2, 4, 6]
            # A job of it: field 1 of its request is not the service.
            asked = client.jobs.create("models", "inference.GRPCInferenceService/ModelInfer", request)
            answer = asked.result(oip.ModelInferResponse, timeout=180)
            assert list(answer.outputs[0].contents.fp32_contents) == [2, 4, 6]
            upstream.kill()
            try:
                with pytest.raises(grpc.RpcError) as caught:
                    ai.Predict(question("double", tensor((1, 2, 3))), timeout=180)
                error = status.from_rpc_error(caught.value)  # type: ignore[arg-type]
                assert isinstance(error, errors.BackendUnreachable)
                assert error.metadata["hop"] == "backend"
            finally:
                upstream.start()
            assert floats(predicted(ai)) == [2, 4, 6]


def predicted(ai: Any) -> pb.PredictResponse:
    """The answer, once the connection is made again."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ai.Predict(question("double", tensor((1, 2, 3))), timeout=180)
        except grpc.RpcError as error:
            unavailable = error.code() == grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            if not unavailable or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
