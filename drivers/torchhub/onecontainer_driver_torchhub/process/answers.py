"""Runs a model, and makes arrays of whatever it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from onecontainer_driver_torchhub.process.failures import Failure, Kind, words
from onecontainer_driver_torchhub.process.load import Loaded
from onecontainer_driver_torchhub.process.wire import Array

ONLY = "output"
"""The name of what a model returns that returns one thing."""


def run(loaded: Loaded, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
    """Raises Failure."""
    try:
        given = {name: torch.from_numpy(array).to(loaded.device) for name, array in feeds.items()}
        with torch.inference_mode():
            by_position = [given.pop(name) for name in loaded.names if name in given] if loaded.by_position else []
            answer = loaded.call(*by_position, **given)
            found = {name: _array(value, name) for name, value in _flat(answer, "")}
    except Failure:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise Failure(Kind.MEMORY, f"there is no memory for this input: {words(error)}") from error
    except Exception as error:
        raise Failure(Kind.FAILED, words(error)) from error
    missing = [name for name in outputs if name not in found]
    if missing:
        raise Failure(Kind.INVALID, f"the model gives {', '.join(found)}, no {', '.join(missing)}", "output.names")
    return {name: found[name] for name in outputs} if outputs else found


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The parts of nested dictionaries, lists and tuples, with names such as `out`, `0` and `0.boxes`."""
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
        value = dict(zip(fields, value, strict=True))
    match value:
        case dict():
            parts = [(str(key), part) for key, part in value.items()]
        case list() | tuple():
            parts = [(str(index), part) for index, part in enumerate(value)]
        case None:
            return
        case _:
            yield name or ONLY, value
            return
    for key, part in parts:
        yield from _flat(part, f"{name}.{key}" if name else key)


def _array(value: Any, name: str) -> Array:
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        found: Array = tensor.cpu().numpy()
        if found.dtype.kind in "bifu":
            return found
    elif isinstance(value, (bool, int, float, np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.kind in "bifu":
            return array
    raise Failure(Kind.FAILED, f"the model returned {type(value).__name__} as {name!r}, which is no tensor")
