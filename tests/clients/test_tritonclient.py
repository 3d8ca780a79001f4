"""NVIDIA's tritonclient, unchanged, against a real gateway with the onnx driver's classifier: it sees a Triton."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import onecontainer
from onecontainer.client import Client
from tests.fixtures.open_inference.place import python
from tests.fixtures.processes import GatewayProcess, running

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "drivers/onnx/onecontainer_driver_onnx/assets/chelsea.png"
TIGER_CAT, CLASSES = 282, 1000


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each call of `triton.py` gave."""
    gateway = GatewayProcess(tmp_path_factory.mktemp("gateway") / "data")
    with running(gateway), Client(gateway.address) as client:
        client.services.create("cats", "onnx")
        client.services.wait_ready("cats", timeout=180)
        command = [str(python()), str(Path(__file__).with_name("triton.py")), gateway.address, str(PHOTO)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_gateway_answers_for_itself_where_no_service_is_named(found: Any) -> None:
    assert found["live"] is True
    assert found["ready"] is True
    assert found["server"] == {"name": "onecontainer", "version": onecontainer.__version__}


def test_a_service_answers_where_it_is_named(found: Any) -> None:
    assert found["service_ready"] is True
    assert found["service"]["name"] == "services/cats"
    assert found["service"]["version"].startswith("onnx ")
    assert set(found["service"]["extensions"]) == {
        "classification",
        "model_configuration",
        "model_repository",
        "statistics",
    }


def test_models_are_told(found: Any) -> None:
    assert found["model_ready"] == [True, True]
    assert found["model_ready_by_header"] is True
    assert found["no_such_model_ready"] is False
    assert found["no_such_service_ready"]["error"] == "StatusCode.NOT_FOUND"
    metadata = found["metadata"]
    assert metadata["name"] == "cats"
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": ["-1", "3", "224", "224"]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", "1000"]}]
    assert metadata["platform"].startswith("onnxruntime")
    config = found["config"]["config"]
    assert config["backend"] == "onnxruntime"
    assert config["input"][0] == {"name": "images", "data_type": "TYPE_FP32", "dims": ["-1", "3", "224", "224"]}
    assert found["index"]["models"] == [{"name": "cats/efficientnet-lite0", "version": "1", "state": "READY"}]
    lost = found["index_without_a_service"]
    assert lost["error"] == "StatusCode.INVALID_ARGUMENT"
    assert "onecontainer-service" in lost["message"]


def test_inference_with_raw_and_with_typed_contents_is_the_same(found: Any) -> None:
    first = found["infer"]
    assert first["shape"] == [1, CLASSES]
    assert (first["id"], first["model"], first["version"], first["raw"]) == ("r-1", "cats", "1", 1)
    for other in ("infer_by_name", "infer_by_header", "typed"):
        assert found[other]["best"] == first["best"], other
        assert found[other]["sum"] == pytest.approx(first["sum"], rel=1e-4, abs=1e-2), other
    assert found["typed"]["raw"] == 0
    assert found["batch"]["shape"] == [3, CLASSES]


def test_bytes_for_a_model_of_images_are_encoded_images(found: Any) -> None:
    assert found["images"]["shape"] == [2, CLASSES]
    assert found["images"]["best"] == [TIGER_CAT, TIGER_CAT]


def test_classes_are_asked_for_as_of_triton(found: Any) -> None:
    rows = [[text.split(":") for text in row] for row in found["classes"]]
    assert [len(row) for row in rows] == [3, 3]
    for row in rows:
        assert row[0][1:] == [str(TIGER_CAT), "tiger cat"]
        assert float(row[0][0]) == pytest.approx(0.395, abs=0.02)


def test_a_stream_goes_on_behind_an_error(found: Any) -> None:
    one, error, two = found["stream"]
    assert (one, two) == ([1, CLASSES], [2, CLASSES])
    assert "inputs[0]" in error


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("wrong_model", "NOT_FOUND", "none"),
        ("wrong_service", "NOT_FOUND", "services/none"),
        ("wrong_version", "NOT_FOUND", "9"),
        ("wrong_shape", "INVALID_ARGUMENT", "inputs[0].shape"),
        ("wrong_dtype", "INVALID_ARGUMENT", "inputs[0].datatype: 'images' takes FP32, not FP64"),
        ("wrong_output", "INVALID_ARGUMENT", "outputs[0].name"),
        ("wrong_parameter", "INVALID_ARGUMENT", "parameters.temperature"),
        ("wrong_image", "INVALID_ARGUMENT", "raw_input_contents[0]: element 0"),
        ("shared_memory_input", "INVALID_ARGUMENT", "inputs[0].parameters.shared_memory"),
        ("shared_memory", "UNIMPLEMENTED", "SystemSharedMemoryStatus"),
        ("late", "DEADLINE_EXCEEDED", ""),
        ("infer_after_unload", "FAILED_PRECONDITION", "efficientnet-lite0"),
        ("load_of_none", "NOT_FOUND", "none"),
    ],
)
def test_errors_are_status_codes(found: Any, call: str, code: str, words: str) -> None:
    assert found[call]["error"] == f"StatusCode.{code}"
    assert words in found[call]["message"]


def test_what_every_request_may_say_of_its_place_in_a_queue_is_taken(found: Any) -> None:
    assert found["queue"]["best"] == found["sequence"]["best"] == found["infer"]["best"]


def test_statistics_are_told_as_triton_has_them(found: Any) -> None:
    (one,) = found["statistics"]["model_stats"]
    assert one["name"] == "cats/efficientnet-lite0"
    assert int(one["inference_stats"]["success"]["count"]) >= 9
    assert int(one["inference_stats"]["compute_infer"]["ns"]) > 0
    assert {batch["batch_size"] for batch in one["batch_stats"]} >= {"1", "2", "3"}


def test_a_model_is_unloaded_and_loaded_again(found: Any) -> None:
    assert "must name a model of the service" in str(found["unload_default"])
    assert found["load_default"] is None
    assert found["ready_after_load_of_default"] is True
    assert found["unload"] is None
    assert found["ready_after_unload"] is False
    assert found["load"] is None
    assert found["ready_after_load"] is True
