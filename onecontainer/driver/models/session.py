"""A model in memory, as all here see it: what it takes and gives, and one way to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onecontainer.api.ai.v1 import model_pb2, tensor_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.tensors import dtype_name, numpy_dtype

Array = npt.NDArray[Any]
Lost = Callable[[errors.OneContainerError], None]


class Session(ABC):
    """A loaded model. `run` may be called from several threads at once.

    Attributes:
        inputs, outputs: what the model declares. A model that does not say, says nothing here.
        threads: within one run of the model.
        platform: what runs it, for people.
    """

    inputs: Sequence[tensor_pb2.TensorSpec] = ()
    outputs: Sequence[tensor_pb2.TensorSpec] = ()
    threads: int = 1
    platform: str = ""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """What it takes in memory. 0: it cannot be measured."""

    @property
    def input_names(self) -> Sequence[str]:
        """All that it takes, declared or not."""
        return [spec.name for spec in self.inputs]

    @property
    def required(self) -> Sequence[str]:
        """The inputs that every call must give."""
        return self.input_names

    def input(self, name: str) -> tensor_pb2.TensorSpec | None:
        return next((spec for spec in self.inputs if spec.name == name), None)

    def output(self, name: str) -> tensor_pb2.TensorSpec | None:
        return next((spec for spec in self.outputs if spec.name == name), None)

    @abstractmethod
    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs the model once and returns the outputs that are asked for, all if none is, in the model's order. Blocks.

        Raises:
            BackendExecutionFailed: the model failed on this input.
        """

    @abstractmethod
    async def close(self) -> int:
        """Frees the memory, and returns how many bytes went back to the system. Nothing may run in it any more. Again is fine."""

    def watch(self, lost: Lost) -> None:  # noqa: B027 - nothing to tell for one that cannot be lost
        """From now on `lost` is called, in the event loop's thread, when the model ends by itself."""

    def check(self, name: str, array: Array, path: str) -> None:
        """Checks an array against what the model declares. `path` is the field that the array came from.

        Raises:
            FieldInvalid: no such input.
            DataInvalid: another type, rank or length.
        """
        shape_path, dtype_path = (f"{path}.shape", f"{path}.dtype") if path.endswith(".tensor") else (path, path)
        if name not in self.input_names:
            raise errors.FieldInvalid(path, f"the model has no input {name!r}; it has {', '.join(self.input_names)}")
        spec = self.input(name)
        if spec is None:
            return
        wanted = numpy_dtype(spec.dtype)
        if wanted is None:
            raise errors.DataInvalid(path, f"the model's input {name!r} has a type that cannot be sent")
        if array.dtype != wanted and not (wanted.kind == "O" and array.dtype.kind in {"O", "U", "S"}):
            raise errors.DataInvalid(dtype_path, f"{name!r} takes {dtype_name(spec.dtype)}, not {array.dtype}")
        shape = list(spec.shape)
        if len(shape) != array.ndim or any(n not in {-1, m} for n, m in zip(shape, array.shape, strict=True)):
            raise errors.DataInvalid(shape_path, f"{name!r} takes {shape} (-1: any), not {list(array.shape)}")


def zeros(spec: tensor_pb2.TensorSpec, sizes: Sequence[int] = ()) -> Array | None:
    """An input of zeros to try a model with, free dimensions 1, or as `sizes` says. None: the type does not allow it."""
    dtype = numpy_dtype(spec.dtype)
    if dtype is None:
        return None
    shape = [n if n >= 0 else 1 for n in spec.shape]
    if len(sizes) == len(shape):
        shape = [n if n >= 0 else max(size, 1) for n, size in zip(spec.shape, sizes, strict=True)]
    return np.full(shape, "", object) if dtype.kind == "O" else np.zeros(shape, dtype)


def class_count(session: Session, classification: model_pb2.Classification) -> int | None:
    """How many classes the declared output has. None: the model does not say before it runs."""
    spec = session.output(classification.output)
    return spec.shape[-1] if spec is not None and spec.shape and spec.shape[-1] > 0 else None
