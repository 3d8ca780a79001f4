"""Runs a checked request through a model and puts the answer together. Everything here blocks and belongs in a worker thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import struct_pb2

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, tensor_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.request import Limits, Plan
from onecontainer.driver.models.served import Served, scores_of
from onecontainer.driver.models.statistics import CallTimes
from onecontainer.driver.models.tensors import tensor_from_array

Array = npt.NDArray[Any]

# Images of one call that go through the model at once: more gain nothing on a CPU and cost memory.
MAX_RUN = 8

Cancelled = Callable[[], bool]


def predict(
    served: Served, plan: Plan, limits: Limits, times: CallTimes, cancelled: Cancelled
) -> list[inference_pb2.Prediction]:
    """One prediction per item, in order; for tensors, one per row of a classifier, else one.

    Raises:
        DataInvalid, FieldInvalid: an item cannot be read.
        BackendExecutionFailed: the model failed.
        Cancelled: nobody waits for the answer any more.
    """
    if not plan.item_count:
        return answers(served, plan, _run(served, plan, dict(plan.tensors), 1, times), times)
    predictions = []
    for chunk in chunks(plan, MAX_RUN):
        for results in _run_items(served, plan, inputs(served, plan, chunk, limits, times, cancelled), times):
            predictions += answers(served, plan, results, times)
    return predictions


def chunks(plan: Plan, size: int) -> Iterator[range]:
    """The indices of a request's items, at most so many at a time: what is prepared takes memory."""
    for first in range(0, plan.item_count, size):
        yield range(first, min(first + size, plan.item_count))


def inputs(
    served: Served, plan: Plan, chunk: range, limits: Limits, times: CallTimes, cancelled: Cancelled
) -> list[dict[str, Array]]:
    """What the model gets for each of these items; for a request of tensors (an empty chunk) what it gets as a whole.

    Raises:
        DataInvalid, FieldInvalid: an item cannot be read.
        Cancelled: nobody waits for the answer any more.
    """
    if not plan.item_count:
        return [dict(plan.tensors)]
    started = time.perf_counter()
    feeds = []
    for index in chunk:
        if cancelled():
            raise errors.Cancelled
        feeds.append(_feeds(served, plan, index, limits))
    times.compute_input += time.perf_counter() - started
    return feeds


def answers(served: Served, plan: Plan, results: dict[str, Array], times: CallTimes) -> list[inference_pb2.Prediction]:
    """What one item's results say, or those of a request of tensors. Raises BackendExecutionFailed for an item with several answers."""
    started = time.perf_counter()
    found = list(_answers(served, plan, results))
    if plan.item_count and len(found) != 1:
        raise errors.BackendExecutionFailed(
            f"the model gave {len(found)} answers for one item", code=errors.Code.INTERNAL, hop="backend"
        )
    times.compute_output += time.perf_counter() - started
    return found


def _feeds(served: Served, plan: Plan, index: int, limits: Limits) -> dict[str, Array]:
    feeds = dict(plan.tensors)
    for name, items in plan.items.items():
        feeds[name] = items[index].array(served, name, limits)
        served.session.check(name, feeds[name], items[index].path)
    return feeds


def _run(served: Served, plan: Plan, feeds: dict[str, Array], size: int, times: CallTimes) -> dict[str, Array]:
    started = time.perf_counter()
    results = served.session.run(feeds, plan.outputs)
    seconds = time.perf_counter() - started
    if not plan.items:
        size = rows_of(served, feeds)
    times.compute_infer += seconds
    times.runs.append((size, seconds))
    return results


def rows_of(served: Served, feeds: dict[str, Array]) -> int:
    """Items in what the model gets: the first dimension, where the model says that it counts them."""
    for spec in served.session.inputs:
        if spec.batched:
            return max(1, len(feeds[spec.name]))
    return 1


def _run_items(
    served: Served, plan: Plan, feeds: Sequence[dict[str, Array]], times: CallTimes
) -> Iterator[dict[str, Array]]:
    """The results of each item by itself, whether they went through the model together or one by one."""
    name = served.image_input
    spec = served.session.input(name) if name else None
    # Only an image's layout says for sure that the first dimension counts items: elsewhere it may be time or words.
    together = (
        len(feeds) > 1
        and served.image is not None
        and served.image.batched
        and spec is not None
        and spec.batched
        and set(feeds[0]) == {name}
        and len({feed[name].shape for feed in feeds}) == 1
    )
    if together:
        results = _run(served, plan, {name: np.concatenate([feed[name] for feed in feeds])}, len(feeds), times)
        if all(value.ndim and value.shape[0] == len(feeds) for value in results.values()):
            for index in range(len(feeds)):
                yield {output: value[index : index + 1] for output, value in results.items()}
            return
    for feed in feeds:
        yield _run(served, plan, feed, 1, times)


def _answers(served: Served, plan: Plan, results: dict[str, Array]) -> Iterator[inference_pb2.Prediction]:
    match plan.kind:
        case inference_pb2.OUTPUT_KIND_CLASSIFICATION:
            assert served.classification is not None
            scores = np.asarray(scores_of(results, served.classification))
            for row in scores.reshape(-1, scores.shape[-1]) if scores.ndim else scores.reshape(1, 1):
                yield inference_pb2.Prediction(classification=classify(row, served.classification, served.labels, plan))
        case inference_pb2.OUTPUT_KIND_TENSORS:
            tensors = [
                tensor_pb2.NamedTensor(name=name, tensor=tensor_from_array(value)) for name, value in results.items()
            ]
            yield inference_pb2.Prediction(tensors=inference_pb2.TensorResult(tensors=tensors))
        case _:
            fields = {name: json_value(value.tolist()) for name, value in results.items()}
            yield inference_pb2.Prediction(json=struct_pb2.Value(struct_value=struct_pb2.Struct(fields=fields)))


def classify(
    row: Array, classification: model_pb2.Classification, labels: Sequence[str], plan: Plan
) -> inference_pb2.ClassificationResult:
    """The best classes of one row of scores; equal ones by index."""
    probabilities = activate(row.astype(np.float64), classification.activation)
    if not np.isfinite(probabilities).all():
        if path := plan.not_finite():
            raise errors.DataInvalid(path, "has NaN or infinite numbers, of which the model makes no scores")
        raise errors.BackendExecutionFailed(
            "the model gave scores that are not numbers", code=errors.Code.INTERNAL, hop="backend"
        )
    best = np.argsort(-probabilities, kind="stable")[: plan.top_k]
    result = inference_pb2.ClassificationResult()
    for rank, index in enumerate(best.tolist()):
        probability = float(probabilities[index])
        if rank and probability < plan.min_probability:
            break
        label = labels[index] if index < len(labels) else ""
        result.classes.add(label=label, index=index, probability=probability)
    return result


def activate(scores: npt.NDArray[np.float64], activation: int) -> npt.NDArray[np.float64]:
    """Scores to probabilities; float64 in and out."""
    match activation:
        case model_pb2.ACTIVATION_SOFTMAX:
            powers: npt.NDArray[np.float64] = np.exp(scores - scores.max())
            powers /= powers.sum()
            return powers
        case model_pb2.ACTIVATION_SIGMOID:
            return np.exp(-np.logaddexp(0.0, -scores))
    return scores


def json_value(value: Any) -> struct_pb2.Value:
    """Numbers that JSON does not have become their names, as proto3 JSON writes them."""
    match value:
        case None:
            return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
        case bool():
            return struct_pb2.Value(bool_value=value)
        case int() | float():
            if math.isfinite(value):
                return struct_pb2.Value(number_value=value)
            return struct_pb2.Value(
                string_value="NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            )
        case bytes():
            return struct_pb2.Value(string_value=value.decode(errors="replace"))
        case dict():
            fields = {str(key): json_value(item) for key, item in value.items()}
            return struct_pb2.Value(struct_value=struct_pb2.Struct(fields=fields))
        case list() | tuple():
            return struct_pb2.Value(list_value=struct_pb2.ListValue(values=[json_value(item) for item in value]))
    return struct_pb2.Value(string_value=str(value))
