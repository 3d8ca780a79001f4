"""What is asked over gRPC, and the model without any server. Requests are made once; answers are not decoded while it counts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import grpc
import numpy as np
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from onecontainer.api.ai.v1 import inference_pb2, tensor_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.client import AsyncClient
from onecontainer.rpc.channel import channel_options
from tests.bench.ai.environments import environment
from tests.bench.ai.peers.classifier import CORES, SHAPE, Classifier
from tests.bench.ai.system import PEERS, PNG, TENSOR, Call, Work, peer
from tests.fixtures.processes import GatewayProcess, Process, free_port, running

SERVICE = "services/classifier"
ROOT = PEERS.parents[3]


def channel(stack: AsyncExitStack, address: str) -> grpc.aio.Channel:
    opened = grpc.aio.insecure_channel(address, options=channel_options())
    stack.push_async_callback(opened.close)
    return opened


def unary(on: grpc.aio.Channel, path: str, request: bytes) -> Call:
    stub = on.unary_unary(path)

    async def call() -> bytes:
        answer: bytes = await stub(request, timeout=120)
        return answer

    return call


class InProcess:
    name = "in_process"

    async def start(self, work: Work, stack: AsyncExitStack) -> Mapping[str, Call]:
        classifier, pool = Classifier(str(work.model)), stack.enter_context(ThreadPoolExecutor(CORES))
        loop = asyncio.get_running_loop()
        tensor, image = work.tensor.read_bytes(), work.image.read_bytes()

        async def ask_tensor() -> bytes:
            return await loop.run_in_executor(pool, classifier.scores_of_bytes, tensor)

        async def ask_image() -> bytes:
            return json.dumps(await loop.run_in_executor(pool, classifier.classes, image)).encode()

        return {TENSOR: ask_tensor, PNG: ask_image}

    def best(self, kind: str, answer: bytes) -> int:
        return int(np.frombuffer(answer, np.float32).argmax()) if kind == TENSOR else int(json.loads(answer)[0][0])


class Minimal:
    name = "minimal"

    async def start(self, work: Work, stack: AsyncExitStack) -> Mapping[str, Call]:
        address = f"127.0.0.1:{free_port()}"
        peer(stack, self.name, ["python", str(PEERS / "minimal.py"), address, str(work.model)], "READY", own=True)
        on = channel(stack, address)
        return {
            kind: unary(on, f"/bench.Minimal/{method}", BytesValue(value=file.read_bytes()).SerializeToString())
            for kind, method, file in ((TENSOR, "Tensor", work.tensor), (PNG, "Image", work.image))
        }

    def best(self, kind: str, answer: bytes) -> int:
        if kind == TENSOR:
            return int(np.frombuffer(BytesValue.FromString(answer).value, np.float32).argmax())
        return int(json.loads(StringValue.FromString(answer).value)[0][0])


class Ours:
    """The onnx driver: asked directly, and through a gateway. The same sidecar serves both."""

    def __init__(self, name: str, sidecar: Sidecar) -> None:
        self.name = name
        self._sidecar = sidecar

    async def start(self, work: Work, stack: AsyncExitStack) -> Mapping[str, Call]:
        on = channel(stack, await self._sidecar.address(self.name, work))
        tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=SHAPE, data=work.tensor.read_bytes())
        asked = {
            TENSOR: pb.PredictRequest(
                service=SERVICE,
                inputs=[inference_pb2.Input(tensor=tensor)],
                output=inference_pb2.OutputOptions(kind=inference_pb2.OUTPUT_KIND_TENSORS),
            ),
            PNG: pb.PredictRequest(service=SERVICE, inputs=[inference_pb2.Input(image=work.image.read_bytes())]),
        }
        path = "/onecontainer.api.ai.v1.InferenceService/Predict"
        return {kind: unary(on, path, request.SerializeToString()) for kind, request in asked.items()}

    def best(self, kind: str, answer: bytes) -> int:
        (found,) = pb.PredictResponse.FromString(answer).predictions
        if kind == TENSOR:
            return int(np.frombuffer(found.tensors.tensors[0].tensor.data, np.float32).argmax())
        return found.classification.classes[0].index


class Sidecar:
    """The sidecar and the gateway, started when the first of the two ways needs them; they end with the stack given here."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._addresses: dict[str, str] = {}

    async def address(self, name: str, work: Work) -> str:
        if not self._addresses:
            self._addresses = await self._start(work)
        return self._addresses[name]

    async def _start(self, work: Work) -> dict[str, str]:
        direct, state = f"127.0.0.1:{free_port()}", work.folder / "sidecar"
        state.mkdir()
        environment = {
            "ONECONTAINER_LISTEN": direct,
            "ONECONTAINER_STATE_DIR": str(state),
            "ONECONTAINER_SCRATCH_DIR": str(state),
        }
        command = [sys.executable, "-m", "onecontainer.driver", "--driver-dir", str(ROOT / "drivers" / "onnx")]
        self._stack.enter_context(running(Process(command, environment, "serves on")))
        gateway = GatewayProcess(work.folder / "data")
        self._stack.enter_context(running(gateway))
        async with AsyncClient(gateway.address) as client:
            await client.services.create(
                SERVICE.removeprefix("services/"),
                app="onnx",
                # As the others: one thread for each run, as many runs at a time as there are cores.
                options={"threads": 1, "concurrency": os.cpu_count() or 1},
                runtime=resources_pb2.Runtime(kind=resources_pb2.RUNTIME_KIND_ATTACHED, endpoint=direct),
            )
            await client.services.wait_ready(SERVICE, timeout=120)
        return {"direct": direct, "gateway": gateway.address}


class MlServer:
    name = "mlserver"

    async def start(self, work: Work, stack: AsyncExitStack) -> Mapping[str, Call]:
        folder, port = work.folder / self.name, free_port()
        folder.mkdir()
        settings = {
            "parallel_workers": CORES, "http_port": free_port(), "grpc_port": port, "metrics_port": free_port(),
            "host": "127.0.0.1", "grpc_max_message_length": 64 * 1024 * 1024,
        }  # fmt: skip
        model = {
            "name": "classifier",
            "implementation": "mlserver_model.Served",
            "parameters": {"uri": str(work.model)},
        }
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(model))
        python = environment(self.name) / "python"
        made = [python, PEERS / "mlserver_requests.py", work.tensor, work.image, folder]
        await asyncio.to_thread(
            subprocess.run, list(map(str, made)), check=True, env={**os.environ, "PYTHONPATH": str(PEERS)}
        )
        peer(stack, self.name, ["mlserver", "start", str(folder)], "Loaded model 'classifier' successfully")
        on = channel(stack, f"127.0.0.1:{port}")
        path = "/inference.GRPCInferenceService/ModelInfer"
        return {
            kind: unary(on, path, (folder / file).read_bytes())
            for kind, file in ((TENSOR, "tensor.bin"), (PNG, "image.bin"))
        }

    def best(self, kind: str, answer: bytes) -> int:
        # The answer's last field is the contents; without the protocol's stubs they are found by their shape.
        if kind == TENSOR:
            return int(np.frombuffer(answer[-4000:], np.float32).argmax())
        return int(json.loads(answer[answer.index(b"[[") : answer.rindex(b"]]") + 2])[0][0])
