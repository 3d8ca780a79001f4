"""Dynamic batching: calls that wait share a run of the model, and each gets its own rows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onecontainer_driver_onnx import built_in

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, tensor_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import errors
from onecontainer.driver.models.batcher import Batcher
from onecontainer.driver.models.session import Session
from onecontainer.driver.models.tensors import array_from_tensor, tensor_from_array

Array = npt.NDArray[Any]


def batching(size: int, *, delay: float = 0.0, queue: int = 0) -> model_pb2.DynamicBatching:
    options = model_pb2.DynamicBatching(max_batch_size=size, max_queue_size=queue)
    options.max_delay.FromNanoseconds(round(delay * 1e9))
    return options


class Doubling(Session):
    """y = 2 · x, while the gate is open; rows below zero are what it fails on."""

    def __init__(self, *, splits: bool = True) -> None:
        self.inputs = [tensor_pb2.TensorSpec(name="x", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[-1, 1], batched=True)]
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self._splits = splits

    @property
    def memory_bytes(self) -> int:
        return 0

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        assert self.gate.wait(180)
        x = feeds["x"]
        self.sizes.append(len(x))
        if (x < 0).any():
            raise errors.BackendExecutionFailed("a row below zero")
        return {"y": 2 * x} if self._splits else {"y": 2 * x.sum(keepdims=True)}

    async def close(self) -> int:
        return 0


def batcher(session: Session, options: model_pb2.DynamicBatching, parallel: int = 1) -> Batcher:
    return Batcher(session, options, parallel, asyncio.to_thread)


def no_note(_size: int, _seconds: float) -> None:
    """For runs that nobody counts."""


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32)[:, None]}


@given(
    calls=st.lists(st.lists(st.integers(-1, 100), min_size=1, max_size=5), min_size=1, max_size=30),
    size=st.integers(2, 8),
    parallel=st.integers(1, 3),
    delay=st.sampled_from([0.0, 0.005]),
)
@settings(deadline=None, max_examples=60)
def test_each_caller_gets_its_own_rows(calls: list[list[int]], size: int, parallel: int, delay: float) -> None:
    session = Doubling()
    ran: list[int] = []

    async def main() -> list[Any]:
        queue = batcher(session, batching(size, delay=delay), parallel)
        asked = [queue.run(rows(*call), ["y"], len(call), lambda size, _: ran.append(size)) for call in calls]
        return await asyncio.gather(*asked, return_exceptions=True)

    for call, found in zip(calls, asyncio.run(main()), strict=True):
        if min(call) < 0:
            assert isinstance(found, errors.BackendExecutionFailed)
        else:
            assert found.results["y"].ravel().tolist() == [2 * value for value in call]
    good = [call for call in calls if min(call) >= 0]
    assert sum(ran) == sum(map(len, good))
    assert all(count <= max(size, *map(len, calls)) for count in session.sizes)


async def test_what_waits_goes_together() -> None:
    session = Doubling()
    queue = batcher(session, batching(8))
    session.gate.clear()
    tasks = [asyncio.create_task(queue.run(rows(value), ["y"], 1, no_note)) for value in range(10)]
    await asyncio.sleep(0)
    session.gate.set()
    found = await asyncio.gather(*tasks)
    assert session.sizes == [1, 8, 1]
    assert [share.batch_size for share in found] == [1, *[8] * 8, 1]


async def test_it_waits_for_others_as_long_as_it_may() -> None:
    session = Doubling()
    queue = batcher(session, batching(3, delay=60.0))
    first = asyncio.create_task(queue.run(rows(1), ["y"], 1, no_note))
    await asyncio.sleep(0.01)
    assert not session.sizes
    await asyncio.gather(first, *(queue.run(rows(value), ["y"], 1, no_note) for value in (2, 3)))
    assert session.sizes == [3]
    alone = await batcher(session, batching(3, delay=0.02)).run(rows(4), ["y"], 1, no_note)
    assert alone.batch_size == 1


async def test_more_than_may_wait_is_refused() -> None:
    session = Doubling()
    queue = batcher(session, batching(2, queue=2))
    session.gate.clear()
    tasks = [asyncio.create_task(queue.run(rows(value), ["y"], 1, no_note)) for value in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(errors.LimitExceeded, match="max_queue_size is 2") as caught:
        await queue.run(rows(9), ["y"], 1, no_note)
    assert caught.value.retry_after
    session.gate.set()
    assert len(await asyncio.gather(*tasks)) == 3


async def test_one_who_goes_leaves_the_queue() -> None:
    session = Doubling()
    queue = batcher(session, batching(4))
    session.gate.clear()
    running = asyncio.create_task(queue.run(rows(1), ["y"], 1, no_note))
    gone = asyncio.create_task(queue.run(rows(2), ["y"], 1, no_note))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    session.gate.set()
    await running
    await queue.run(rows(3), ["y"], 1, no_note)
    assert session.sizes == [1, 1]


async def test_a_model_whose_answers_cannot_be_told_apart_is_run_one_by_one() -> None:
    session = Doubling(splits=False)
    queue = batcher(session, batching(4))
    session.gate.clear()
    tasks = [asyncio.create_task(queue.run(rows(value), ["y"], 1, no_note)) for value in range(1, 4)]
    await asyncio.sleep(0)
    session.gate.set()
    assert [share.results["y"].item() for share in await asyncio.gather(*tasks)] == [2, 4, 6]


async def test_through_the_driver(bench: Any, linear: Callable[..., bytes]) -> None:
    config = model_pb2.ModelConfig(
        source=model_pb2.ModelSource(artifact=bench.artifacts.add(linear([[2.0], [1.0]]))),
        dynamic_batching=batching(16, delay=0.05),
    )
    await bench.serve("m", config=config)

    async def ask(value: float) -> float:
        tensor = tensor_from_array(np.array([[value, 1.0]], np.float32))
        response = await bench.predict(inference_pb2.Input(tensor=tensor), model="m")
        assert response.timing.batch_size >= 1
        answer = response.predictions[0].tensors.tensors[0].tensor
        return float(array_from_tensor(answer, answer.data, "answer").item())

    values = [float(value) for value in range(40)]
    assert await asyncio.gather(*map(ask, values)) == [2 * value + 1 for value in values]
    request = pb.GetModelStatisticsRequest(model="m")
    (statistics,) = (await bench.driver.get_model_statistics(request, bench.context())).models
    assert statistics.inference_count == 40
    assert statistics.execution_count < 40
    assert sum(one.batch_size * one.compute_infer.count for one in statistics.batches) == 40


async def test_a_model_without_a_free_first_dimension_is_refused(bench: Any, linear: Callable[..., bytes]) -> None:
    source = model_pb2.ModelSource(artifact=bench.artifacts.add(linear([[1.0]], inputs=[1, 1])))
    with pytest.raises(errors.FieldInvalid, match="its first dimension is not free"):
        await bench.serve("m", config=model_pb2.ModelConfig(source=source, dynamic_batching=batching(2)))


async def test_a_model_that_mixes_its_items_is_refused(bench: Any) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
        "sum",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    source = model_pb2.ModelSource(artifact=bench.artifacts.add(model.SerializeToString()))
    with pytest.raises(errors.DataInvalid, match="has no row for each"):
        await bench.serve("m", config=model_pb2.ModelConfig(source=source, dynamic_batching=batching(2)))


def across(nodes: list[Any], opset: int = 13, numbers: Any = None, shape: tuple[Any, ...] = ("batch", 4)) -> bytes:
    graph = onnx.helper.make_graph(
        nodes,
        "across",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        numbers or [],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


MEAN = onnx.helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1)


@pytest.mark.parametrize(
    ("nodes", "numbers"),
    [
        ([MEAN, onnx.helper.make_node("Sub", ["x", "m"], ["y"])], None),
        ([onnx.helper.make_node("Softmax", ["x"], ["y"], axis=0)], None),
        # Each row takes that of its neighbour: what is in the first place is right by itself.
        (
            [onnx.helper.make_node("CumSum", ["x", "axis"], ["y"])],
            [onnx.numpy_helper.from_array(np.array(0, np.int64), "axis")],
        ),
    ],
    ids=["mean", "softmax", "sum"],
)
@pytest.mark.parametrize("shape", [("batch", 4), ("batch", "words")], ids=["fixed", "free"])
async def test_a_model_that_works_across_rows_is_refused(
    bench: Any, nodes: list[Any], numbers: Any, shape: tuple[Any, ...]
) -> None:
    source = model_pb2.ModelSource(artifact=bench.artifacts.add(across(nodes, numbers=numbers, shape=shape)))
    config = model_pb2.ModelConfig(source=source, dynamic_batching=batching(8))
    with pytest.raises(errors.DataInvalid, match="across items") as caught:
        await bench.serve("m", config=config)
    assert caught.value.violations[0].field == "config.dynamic_batching"
    # Its own warm-up is no way around.
    own = inference_pb2.Input(tensor=tensor_from_array(np.ones((1, 4), np.float32)))
    with pytest.raises(errors.DataInvalid, match="across items"):
        await bench.serve("m", config=config, warm_up=[own])
    config.ClearField("dynamic_batching")
    await bench.serve("m", config=config)


async def test_along_a_row_it_may_work_as_it_likes(bench: Any) -> None:
    nodes = [onnx.helper.make_node("Softmax", ["x"], ["y"], axis=1)]
    source = model_pb2.ModelSource(artifact=bench.artifacts.add(across(nodes)))
    await bench.serve("m", config=model_pb2.ModelConfig(source=source, dynamic_batching=batching(8)))


async def test_the_real_classifier_keeps_its_rows_apart(cats: Any) -> None:
    config = built_in.config()
    config.dynamic_batching.CopyFrom(batching(8))
    await cats.serve("lite0", config=config)
