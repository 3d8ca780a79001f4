"""NVIDIA's tritonclient as it is, against the address given: prints what each call gave, as JSON. Runs in an environment of its own."""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

SERVICE = "cats"
HEADERS = {"onecontainer-service": f"services/{SERVICE}"}
MODEL = f"{SERVICE}/efficientnet-lite0"


def told(call: Callable[[], Any]) -> Any:
    """What a call gave, or `{"error": CODE, "message": …}` as tritonclient has it."""
    try:
        return call()
    except triton.InferenceServerException as error:
        return {"error": str(error.status()), "message": error.message()}
    except grpc.RpcError as error:
        return {"error": str(error.code()), "message": error.details()}


def tensor(shape: list[int], dtype: str = "FP32") -> triton.InferInput:
    kind = {"FP32": np.float32, "FP64": np.float64}[dtype]
    found = triton.InferInput("images", shape, dtype)
    found.set_data_from_numpy(np.linspace(-1, 1, int(np.prod(shape)), dtype=kind).reshape(shape))
    return found


def encoded(*images: bytes) -> triton.InferInput:
    found = triton.InferInput("images", [len(images)], "BYTES")
    found.set_data_from_numpy(np.array(images, dtype=np.object_))
    return found


def scores(result: triton.InferResult) -> dict[str, Any]:
    values = result.as_numpy("logits")
    response = result.get_response()
    return {
        "shape": list(values.shape),
        "best": [int(one) for one in values.argmax(axis=1)],
        "sum": float(values.sum()),
        "id": response.id,
        "model": response.model_name,
        "version": response.model_version,
        "raw": len(response.raw_output_contents),
    }


def typed(address: str) -> dict[str, Any]:
    """tritonclient sends raw contents only: typed ones by its generated stub."""
    values = np.linspace(-1, 1, 3 * 224 * 224, dtype=np.float32)
    request = service_pb2.ModelInferRequest(model_name=SERVICE)
    one = request.inputs.add(name="images", datatype="FP32", shape=[1, 3, 224, 224])
    one.contents.fp32_contents.extend(values.tolist())
    with grpc.insecure_channel(address) as channel:
        response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    got = np.array(response.outputs[0].contents.fp32_contents, np.float32)
    return {"raw": len(response.raw_output_contents), "sum": float(got.sum()), "best": [int(got.argmax())]}


def streamed(client: triton.InferenceServerClient) -> list[Any]:
    """A good request, a bad one, a good one."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)), headers=HEADERS)
    try:
        for shape in ([1, 3, 224, 224], [1, 3, 7, 7], [2, 3, 224, 224]):
            client.async_stream_infer(MODEL, [tensor(shape)])
        found = [answers.get(timeout=60) for _ in range(3)]
    finally:
        client.stop_stream()
    return [error.message() if error is not None else scores(result)["shape"] for result, error in found]


def late(client: triton.InferenceServerClient) -> Any:
    """More than can be done in the time; how the call ends."""
    many = tensor([64, 3, 224, 224])
    return told(lambda: client.infer(MODEL, [many], client_timeout=0.05).get_response().id)


def classes(client: triton.InferenceServerClient, *images: bytes) -> list[list[str]]:
    wanted = [triton.InferRequestedOutput("logits", class_count=3)]
    found = client.infer(SERVICE, [encoded(*images)], outputs=wanted).as_numpy("logits")
    return [[text.decode() for text in row] for row in found]


def main(address: str, photo: str) -> None:
    image = Path(photo).read_bytes()
    client = triton.InferenceServerClient(address)
    good = tensor([1, 3, 224, 224])
    plain = [triton.InferRequestedOutput("logits")]
    shared = triton.InferInput("images", [1, 3, 224, 224], "FP32")
    shared.set_shared_memory("region", 4 * 3 * 224 * 224)
    found = {
        "live": told(client.is_server_live),
        "ready": told(client.is_server_ready),
        "server": told(lambda: client.get_server_metadata(as_json=True)),
        "service_ready": told(lambda: client.is_server_ready(headers=HEADERS)),
        "service": told(lambda: client.get_server_metadata(headers=HEADERS, as_json=True)),
        "model_ready": [told(lambda name=name: client.is_model_ready(name)) for name in (SERVICE, MODEL)],
        "model_ready_by_header": told(lambda: client.is_model_ready("efficientnet-lite0", headers=HEADERS)),
        "no_such_model_ready": told(lambda: client.is_model_ready(f"{SERVICE}/none")),
        "no_such_service_ready": told(lambda: client.is_model_ready("none")),
        "metadata": told(lambda: client.get_model_metadata(SERVICE, as_json=True)),
        "config": told(lambda: client.get_model_config(MODEL, as_json=True)),
        "index": told(lambda: client.get_model_repository_index(headers=HEADERS, as_json=True)),
        "index_without_a_service": told(client.get_model_repository_index),
        "infer": told(lambda: scores(client.infer(SERVICE, [good], outputs=plain, request_id="r-1"))),
        "infer_by_name": told(lambda: scores(client.infer(MODEL, [good], model_version="1"))),
        "infer_by_header": told(lambda: scores(client.infer("efficientnet-lite0", [good], headers=HEADERS))),
        "typed": told(lambda: typed(address)),
        "batch": told(lambda: scores(client.infer(SERVICE, [tensor([3, 3, 224, 224])]))),
        "images": told(lambda: scores(client.infer(SERVICE, [encoded(image, image)]))),
        "classes": told(lambda: classes(client, image, image)),
        "stream": told(lambda: streamed(client)),
        "wrong_model": told(lambda: client.infer(f"{SERVICE}/none", [good])),
        "wrong_service": told(lambda: client.infer("none/efficientnet-lite0", [good])),
        "wrong_version": told(lambda: client.infer(MODEL, [good], model_version="9")),
        "wrong_shape": told(lambda: client.infer(MODEL, [tensor([1, 3, 7, 7])])),
        "wrong_dtype": told(lambda: client.infer(MODEL, [tensor([1, 3, 224, 224], "FP64")])),
        "wrong_output": told(lambda: client.infer(MODEL, [good], outputs=[triton.InferRequestedOutput("none")])),
        "wrong_parameter": told(lambda: client.infer(MODEL, [good], parameters={"temperature": 1})),
        "wrong_image": told(lambda: client.infer(MODEL, [encoded(b"no image")])),
        "sequence": told(lambda: scores(client.infer(MODEL, [good], sequence_id=7, sequence_start=True))),
        "queue": told(lambda: scores(client.infer(MODEL, [good], priority=2, timeout=5_000_000))),
        "shared_memory_input": told(lambda: client.infer(MODEL, [shared])),
        "shared_memory": told(client.get_system_shared_memory_status),
        "late": late(client),
        "statistics": told(lambda: client.get_inference_statistics(MODEL, as_json=True)),
        "unload_default": told(lambda: client.unload_model(SERVICE)),
        "load_default": told(lambda: client.load_model(SERVICE)),
        "ready_after_load_of_default": told(lambda: client.is_model_ready(SERVICE)),
        "unload": told(lambda: client.unload_model(MODEL)),
        "ready_after_unload": told(lambda: client.is_model_ready(MODEL)),
        "infer_after_unload": told(lambda: client.infer(MODEL, [good])),
        "load": told(lambda: client.load_model(MODEL)),
        "ready_after_load": told(lambda: client.is_model_ready(MODEL)),
        "load_of_none": told(lambda: client.load_model(f"{SERVICE}/none")),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
