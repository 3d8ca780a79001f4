"""A model that answers: its session, how images are made ready for it, how its output is read, and who is inside."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onecontainer.api.ai.v1 import model_pb2, tensor_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.batcher import Batcher
from onecontainer.driver.models.preprocess import ImagePipeline
from onecontainer.driver.models.session import Session, class_count
from onecontainer.driver.models.tensors import dtype_name, numpy_dtype

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Served:
    """A loaded model. Its calls are counted in the event loop's thread, so that it never goes while one is inside."""

    session: Session
    image: ImagePipeline | None
    image_input: str
    classification: model_pb2.Classification | None
    labels: Sequence[str]
    slots: asyncio.Semaphore | None
    concurrency: int = 0
    """Runs at the same time; 0: as the service says."""
    batching: model_pb2.DynamicBatching | None = None
    batcher: Batcher | None = None
    """Set by the first call of a model with `batching`."""
    in_flight: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when no call is inside. The owner sees to it that none comes in meanwhile."""
        if self.in_flight:
            await self._idle.wait()


def served_of(
    session: Session, config: model_pb2.ModelConfig, labels: Sequence[str], default_concurrency: int = 0
) -> Served:
    """Checks the config against a model that declares what it takes. `default_concurrency` 0: no limit.

    Raises:
        DataInvalid, FieldInvalid: with the path in the config.
    """
    image, image_input = None, ""
    if config.HasField("image"):
        image, image_input = _image_pipeline(session, config.image)
    classification = None
    if config.HasField("classification"):
        classification = _classification(session, config.classification, labels)
    limit = config.execution.max_concurrency or default_concurrency
    slots = asyncio.Semaphore(limit) if limit else None
    batching = config.dynamic_batching if config.HasField("dynamic_batching") else None
    if batching is not None:
        _check_first_dimension(session, image)
    return Served(session, image, image_input, classification, labels, slots, limit, batching)


def _check_first_dimension(session: Session, image: ImagePipeline | None) -> None:
    path = "config.dynamic_batching"
    for spec in session.inputs:
        if not spec.batched:
            raise errors.FieldInvalid(path, f"{spec.name!r} takes {list(spec.shape)}: its first dimension is not free")
    if not session.inputs or (image is not None and not image.batched):
        raise errors.FieldInvalid(
            path, "needs a model whose inputs, images too, have a first dimension that counts items"
        )


def image_input(session: Session, spec: model_pb2.ImagePreprocess) -> str:
    """The name of the input that images are for. Raises FieldRequired or FieldInvalid."""
    path = "config.image"
    name = spec.input
    if not name:
        if len(session.required) != 1:
            raise errors.FieldRequired(f"{path}.input", f"the model has several: {', '.join(session.input_names)}")
        name = session.required[0]
    if name not in session.input_names:
        raise errors.FieldInvalid(
            f"{path}.input", f"the model has no input {name!r}; it has {', '.join(session.input_names)}"
        )
    return name


def pixel_dtype(dtype: int, name: str) -> np.dtype[Any]:
    """Raises FieldInvalid if pixels cannot be of that type."""
    found = numpy_dtype(tensor_pb2.DataType.ValueType(dtype))
    if found is None or found.kind not in "fiu":
        raise errors.FieldInvalid(
            "config.image.dtype", f"{name!r} takes {dtype_name(dtype)}: not numbers that pixels can be"
        )
    return found


def _image_pipeline(session: Session, spec: model_pb2.ImagePreprocess) -> tuple[ImagePipeline, str]:
    path = "config.image"
    name = image_input(session, spec)
    declared = session.input(name)
    if declared is None:
        # A model that does not say what it takes is given what the config says.
        return ImagePipeline(spec, pixel_dtype(spec.dtype or tensor_pb2.DATA_TYPE_FLOAT32, name)), name
    dtype = pixel_dtype(spec.dtype or declared.dtype, name)
    if spec.dtype and spec.dtype != declared.dtype:
        raise errors.FieldInvalid(f"{path}.dtype", f"{name!r} takes {dtype_name(declared.dtype)}")
    pipeline = ImagePipeline(spec, dtype)
    wanted, given = list(declared.shape), pipeline.shape
    if len(wanted) != len(given) or any(-1 not in {a, b} and a != b for a, b in zip(wanted, given, strict=True)):
        raise errors.FieldInvalid(path, f"gives {list(given)} (-1: any), but {name!r} takes {wanted}")
    return pipeline, name


def _classification(
    session: Session, declared: model_pb2.Classification, labels: Sequence[str]
) -> model_pb2.Classification:
    path = "config.classification"
    result = model_pb2.Classification()
    result.CopyFrom(declared)
    if not session.outputs:
        # It is seen when the model has run.
        return result
    if not result.output:
        if len(session.outputs) != 1:
            raise errors.FieldRequired(
                f"{path}.output", f"the model has several: {', '.join(s.name for s in session.outputs)}"
            )
        result.output = session.outputs[0].name
    spec = session.output(result.output)
    if spec is None:
        raise errors.FieldInvalid(f"{path}.output", f"the model has no output {result.output!r}")
    dtype = numpy_dtype(spec.dtype)
    if dtype is None or dtype.kind not in "fiu" or not spec.shape:
        raise errors.FieldInvalid(
            f"{path}.output", f"{result.output!r} is not scores: {dtype_name(spec.dtype)} {list(spec.shape)}"
        )
    check_label_count(labels, class_count(session, result))
    return result


def check_label_count(labels: Sequence[str], classes: int | None) -> None:
    """Raises DataInvalid when the labels are for another model."""
    if labels and classes is not None and len(labels) != classes:
        raise errors.DataInvalid(
            "config.classification.labels", f"has {len(labels)} names, but the model has {classes} classes"
        )


def scores_of(results: dict[str, Array], classification: model_pb2.Classification) -> Array:
    """The output that holds the scores. Raises DataInvalid if the model does not give it."""
    path = "config.classification.output"
    if classification.output:
        if classification.output not in results:
            raise errors.DataInvalid(path, f"the model gives {', '.join(results)}, no {classification.output!r}")
        scores = results[classification.output]
    elif len(results) == 1:
        (scores,) = results.values()
    else:
        raise errors.DataInvalid(path, f"is needed: the model gives {', '.join(results)}")
    if scores.dtype.kind not in "fiu":
        raise errors.DataInvalid(path, f"is not scores: {scores.dtype}")
    return scores
