"""Tries a model when it is served: whether it runs at all, and whether rows of different callers may go through it together.

Both are checks by example: a model that passes may still fail, or mix rows, on other inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onecontainer.api.ai.v1 import tensor_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.served import Served, check_label_count, scores_of
from onecontainer.driver.models.session import zeros
from onecontainer.driver.models.tensors import numpy_dtype

Array = npt.NDArray[Any]

MOST_ROWS = 4
FREE_LENGTH = 4
"""Of dimensions other than the first that a model leaves free."""
NOISE = {"float16": 2e-2}
"""What the same row may differ in two runs, as a part of the output's largest number: sums of floats depend on their order."""
USUAL_NOISE = 1e-3


def try_out(served: Served) -> None:
    """Runs the model once with zeros, where it declares its inputs well enough for that, and tries `dynamic_batching`. Blocks.

    Raises:
        DataInvalid: the model fails, has another number of classes than labels, or does not keep rows apart.
    """
    feeds: dict[str, Array] = {}
    for name in served.session.required:
        spec = served.session.input(name)
        array = None if spec is None else zeros(spec, _sizes(served, name))
        # What the model does not declare proves nothing. If more than the batch is free, a size out of thin air does not either.
        if spec is None or array is None or _free(spec, _sizes(served, name)) > 1:
            try_rows(served)
            return
        feeds[name] = array
    try:
        results = served.session.run(feeds, [spec.name for spec in served.session.outputs])
    except errors.BackendExecutionFailed as error:
        raise errors.DataInvalid("config.source", f"the model does not run on zeros: {error.message}") from error
    try_rows(served)
    if served.classification is not None:
        scores = np.asarray(scores_of(results, served.classification))
        check_label_count(served.labels, scores.shape[-1] if scores.ndim else None)


def _sizes(served: Served, name: str) -> Sequence[int]:
    return served.image.shape if served.image is not None and name == served.image_input else ()


def _free(spec: tensor_pb2.TensorSpec, sizes: Sequence[int]) -> int:
    return sum(n == -1 and size == -1 for n, size in zip(spec.shape, sizes or spec.shape, strict=False))


def try_rows(served: Served) -> None:
    """With `dynamic_batching`: runs a few different rows each alone, then together, then together in another order. Blocks.

    Raises:
        DataInvalid: a row's answer depends on the others, or rows have no answer of their own.
    """
    if served.batching is None:
        return
    path = "config.dynamic_batching"
    count = min(MOST_ROWS, served.batching.max_batch_size)
    # Random, but the same at each start.
    rng = np.random.default_rng(1)
    rows = [_row(served, rng) for _ in range(count)]
    outputs = [spec.name for spec in served.session.outputs]
    try:
        alone = [served.session.run(row, outputs) for row in rows]
    except errors.BackendExecutionFailed:
        # It takes no numbers out of thin air, so that they prove nothing.
        return
    for order in (range(count), range(count - 1, -1, -1)):
        together = {name: np.concatenate([rows[number][name] for number in order]) for name in rows[0]}
        try:
            results = served.session.run(together, outputs)
        except errors.BackendExecutionFailed as error:
            raise errors.DataInvalid(path, f"the model takes no {count} items: {error.message}") from error
        for name, value in results.items():
            if not value.ndim or len(value) != count:
                raise errors.DataInvalid(
                    path, f"{name!r} gives {list(value.shape)} for {count} items: it has no row for each"
                )
            for place, number in enumerate(order):
                _compare(name, alone[number][name], value[place : place + 1], path)


def _row(served: Served, rng: np.random.Generator) -> Mapping[str, Array]:
    """Random numbers for one item."""
    row: dict[str, Array] = {}
    for name in served.session.required:
        spec = served.session.input(name)
        assert spec is not None, "dynamic_batching needs declared inputs"
        sizes = _sizes(served, name) or spec.shape
        shape = [max(n, size) for n, size in zip(spec.shape, sizes, strict=True)]
        shape = [1, *(FREE_LENGTH if n == -1 else n for n in shape[1:])]
        dtype = numpy_dtype(spec.dtype)
        assert dtype is not None, "a session declares types that numpy has"
        if dtype.kind == "f":
            row[name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "O":
            row[name] = np.array([f"word {n}" for n in rng.integers(0, 1000, int(np.prod(shape)))], object).reshape(
                shape
            )
        else:
            # An index may have to be below a bound that nobody tells; nearly all have 0 and 1.
            row[name] = rng.integers(0, 2, shape).astype(dtype)
    return row


def _compare(name: str, alone: Array, beside: Array, path: str) -> None:
    if alone.shape != beside.shape:
        raise errors.DataInvalid(
            path, f"{name!r} gives {list(alone.shape)} for an item alone, and {list(beside.shape)} beside others"
        )
    if alone.dtype.kind != "f":
        same, much = bool((alone == beside).all()), ""
    else:
        finite = alone[np.isfinite(alone)].astype(np.float64)
        size = float(np.abs(finite).max()) if finite.size else 0.0
        noise = NOISE.get(alone.dtype.name, USUAL_NOISE)
        same = np.allclose(alone, beside, rtol=noise, atol=noise * size, equal_nan=True)
        with np.errstate(invalid="ignore"):
            much = f" by up to {np.nanmax(np.abs(alone.astype(np.float64) - beside)):.3g}"
    if not same:
        raise errors.DataInvalid(
            path,
            f"an item's {name!r} differs{much} when others are run with it: the model works across items, which would mix the data"
            " of different callers. Serve it without dynamic_batching",
        )
