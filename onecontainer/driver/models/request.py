"""What a predict request asks for, checked against the model: tensors to share, and items to go through one by one.

Reading the request (`plan`) is cheap and happens in the event loop; decoding images and texts (`Item.array`) is not, and happens in
a worker thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import json_format, struct_pb2

from onecontainer.api.ai.v1 import inference_pb2, tensor_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.config import MAX_TOP_K
from onecontainer.driver.models.images import ImageError
from onecontainer.driver.models.served import Served
from onecontainer.driver.models.tensors import array_from_tensor, numpy_dtype

Array = npt.NDArray[Any]

MAX_ITEMS = 256

IGNORED = frozenset({"priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"})
"""Parameters of every request of the Open Inference Protocol and Triton's extensions of it: a model whose queue has no priorities, and
that keeps no sequences, does not look at them there either."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one encoded image may have."""

    image_bytes: int
    image_pixels: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """An artifact that an input names."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Item:
    """One image, text or JSON value."""

    path: str
    kind: str
    value: bytes | str | struct_pb2.Value

    def array(self, served: Served, name: str, limits: Limits) -> Array:
        """Raises DataInvalid or FieldInvalid."""
        if self.kind == "image":
            return self._image(served, name, limits)
        spec = served.session.input(name)
        if spec is None and self.kind == "json":
            return self._json(name, None, None)
        dtype = numpy_dtype(spec.dtype) if spec is not None else None
        if spec is None or dtype is None:
            raise errors.FieldInvalid(self.path, f"the input {name!r} takes neither text nor JSON")
        if self.kind == "text":
            if dtype.kind != "O":
                raise errors.FieldInvalid(self.path, f"the input {name!r} takes numbers, not text")
            return np.full([1] * len(spec.shape), self.value, object)
        return self._json(name, spec, dtype)

    def _image(self, served: Served, name: str, limits: Limits) -> Array:
        assert isinstance(self.value, bytes)
        if served.image is None or name != served.image_input:
            raise errors.FieldInvalid(
                self.path, f"the input {name!r} takes no images: the model was served without `config.image` for it"
            )
        if len(self.value) > limits.image_bytes:
            raise errors.DataInvalid(self.path, f"has {len(self.value)} bytes; {limits.image_bytes} are allowed")
        try:
            return served.image.run(self.value, max_pixels=limits.image_pixels)
        except ImageError as error:
            raise errors.DataInvalid(self.path, str(error)) from error

    def _json(self, name: str, spec: tensor_pb2.TensorSpec | None, dtype: np.dtype[Any] | None) -> Array:
        """`spec` None: the model does not say what it takes; the numbers do then."""
        assert isinstance(self.value, struct_pb2.Value)
        value = json_format.MessageToDict(self.value)
        try:
            array = np.array(value, dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise errors.DataInvalid(self.path, f"is no array that the input {name!r} takes: {error}") from error
        if spec is None:
            if array.dtype.kind not in "bif":
                raise errors.DataInvalid(self.path, f"is no array of numbers, which the input {name!r} takes")
            # JSON has one kind of numbers; models have weights of 32 bits as a rule.
            return array.astype(np.float32) if array.dtype.kind == "f" else array
        # One item of a batched input may come without the dimension that counts items.
        return array[None] if spec.batched and array.ndim == len(spec.shape) - 1 else array


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked request."""

    tensors: Mapping[str, Array]
    """Inputs that are given whole; all items share them."""
    items: Mapping[str, Sequence[Item]]
    """Inputs that are given item by item, all as often."""
    kind: inference_pb2.OutputKind.ValueType
    top_k: int
    min_probability: float
    outputs: Sequence[str]
    """Empty: all that the model gives."""
    paths: Mapping[str, str]
    """The field that each of `tensors` came from."""

    def not_finite(self) -> str:
        """The field of a tensor with NaN or an infinite number in it. Empty: there is none."""
        for name, array in self.tensors.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                return self.paths[name]
        return ""

    @property
    def item_count(self) -> int:
        """0: the request has tensors only and is one run."""
        return max((len(items) for items in self.items.values()), default=0)


def artifact_names(inputs: Sequence[inference_pb2.Input], path: str = "inputs") -> dict[str, str]:
    """The artifacts that a request names: path of the field → name."""
    names: dict[str, str] = {}
    for index, value in enumerate(inputs):
        if value.WhichOneof("value") == "artifact":
            names[f"{path}[{index}].artifact"] = value.artifact
        elif value.HasField("tensor") and value.tensor.WhichOneof("content") == "artifact":
            names[f"{path}[{index}].tensor.artifact"] = value.tensor.artifact
    return names


def plan(
    served: Served,
    inputs: Sequence[inference_pb2.Input],
    output: inference_pb2.OutputOptions,
    parameters: struct_pb2.Struct,
    fetched: Mapping[str, Fetched],
    root: str = "inputs",
) -> Plan:
    """Checks a request against the model.

    Args:
        fetched: what `artifact_names` asked for, by path.
        root: name of the field that the inputs are in.

    Raises:
        FieldRequired, FieldInvalid, DataInvalid: with the path of the field.
    """
    if not inputs:
        raise errors.FieldRequired(root, "needs at least one")
    if len(inputs) > MAX_ITEMS:
        raise errors.FieldInvalid(root, f"has {len(inputs)}; {MAX_ITEMS} are allowed")
    for name in parameters.fields.keys() - IGNORED:
        raise errors.FieldInvalid(f"parameters.{name}", "this model has no such parameter")
    tensors: dict[str, Array] = {}
    paths: dict[str, str] = {}
    items: dict[str, list[Item]] = {}
    for index, value in enumerate(inputs):
        path = f"{root}[{index}]"
        item = _tensor_or_item(served, value, path, fetched)
        name = value.name or _only_input(served, item, path)
        if name not in served.session.input_names:
            names = ", ".join(served.session.input_names)
            raise errors.FieldInvalid(f"{path}.name", f"the model has no input {name!r}; it has {names}")
        if name in tensors or (name in items and not isinstance(item, Item)):
            raise errors.FieldInvalid(path, f"the input {name!r} has a tensor already; a tensor holds its whole batch")
        if isinstance(item, Item):
            items.setdefault(name, []).append(item)
        else:
            served.session.check(name, item, f"{path}.tensor")
            tensors[name], paths[name] = item, f"{path}.tensor"
    _check_complete(served, tensors, items, root)
    return Plan(tensors, items, *_output(served, output), paths)


def _tensor_or_item(
    served: Served, value: inference_pb2.Input, path: str, fetched: Mapping[str, Fetched]
) -> Item | Array:
    match value.WhichOneof("value"):
        case "image":
            return Item(f"{path}.image", "image", value.image)
        case "tensor":
            artifact = fetched.get(f"{path}.tensor.artifact")
            return array_from_tensor(value.tensor, artifact.data if artifact else value.tensor.data, f"{path}.tensor")
        case "text":
            return Item(f"{path}.text", "text", value.text)
        case "json":
            return Item(f"{path}.json", "json", value.json)
        case "artifact":
            return _item_of_artifact(served, fetched[f"{path}.artifact"], f"{path}.artifact")
    raise errors.FieldRequired(path, "needs one of image, tensor, text, json and artifact")


def _item_of_artifact(served: Served, artifact: Fetched, path: str) -> Item:
    kind = artifact.media_type.partition(";")[0].strip().lower()
    if kind.startswith("image/") or (
        served.image is not None and not kind.startswith("text/") and kind != "application/json"
    ):
        return Item(path, "image", artifact.data)
    try:
        text = artifact.data.decode()
        if kind == "application/json":
            return Item(path, "json", json_format.Parse(text, struct_pb2.Value()))
    except (UnicodeDecodeError, json_format.ParseError) as error:
        raise errors.DataInvalid(
            path, f"is not {'JSON' if kind == 'application/json' else 'UTF-8 text'}: {error}"
        ) from error
    return Item(path, "text", text)


def _only_input(served: Served, item: Item | Array, path: str) -> str:
    if isinstance(item, Item) and item.kind == "image" and served.image_input:
        return served.image_input
    if len(served.session.required) != 1:
        names = ", ".join(served.session.input_names)
        raise errors.FieldRequired(f"{path}.name", f"the model has several inputs: {names}")
    return served.session.required[0]


def _check_complete(
    served: Served, tensors: Mapping[str, Array], items: Mapping[str, Sequence[Item]], root: str
) -> None:
    counts = {name: len(values) for name, values in items.items()}
    if len(set(counts.values())) > 1:
        raise errors.FieldInvalid(root, f"items must come as often for each input, not {counts}")
    missing = [name for name in served.session.required if name not in tensors and name not in items]
    if missing:
        raise errors.FieldRequired(root, f"the model also needs {', '.join(missing)}")


def _output(
    served: Served, output: inference_pb2.OutputOptions
) -> tuple[inference_pb2.OutputKind.ValueType, int, float, list[str]]:
    classifier = served.classification
    kind = output.kind
    if kind not in inference_pb2.OutputKind.values():
        raise errors.FieldInvalid("output.kind", f"is no OutputKind: {kind}")
    if kind == inference_pb2.OUTPUT_KIND_UNSPECIFIED:
        kind = inference_pb2.OUTPUT_KIND_TENSORS if classifier is None else inference_pb2.OUTPUT_KIND_CLASSIFICATION
    if kind == inference_pb2.OUTPUT_KIND_CLASSIFICATION and classifier is None:
        raise errors.FieldInvalid("output.kind", "the model was served without `config.classification`")
    if not 0 <= output.top_k <= MAX_TOP_K:
        raise errors.FieldInvalid("output.top_k", f"must be 1 to {MAX_TOP_K}")
    if not 0 <= output.min_probability <= 1:
        raise errors.FieldInvalid("output.min_probability", "must be 0 to 1")
    for index, name in enumerate(output.names):
        if served.session.outputs and served.session.output(name) is None:
            there = ", ".join(spec.name for spec in served.session.outputs)
            raise errors.FieldInvalid(f"output.names[{index}]", f"the model has no output {name!r}; it has {there}")
    # Without an activation scores may be anything; only who asks for a bound gets one.
    least = output.min_probability if output.HasField("min_probability") else -math.inf
    top_k = output.top_k or (classifier.top_k if classifier is not None else 0)
    if kind == inference_pb2.OUTPUT_KIND_CLASSIFICATION and classifier is not None:
        return kind, top_k, least, [classifier.output] if classifier.output else []
    # Maps and sequences, which classic machine learning models give, have no tensor: they are in JSON only.
    tensors_only = kind == inference_pb2.OUTPUT_KIND_TENSORS
    names = list(output.names) or [s.name for s in served.session.outputs if s.dtype or not tensors_only]
    for index, name in enumerate(output.names):
        spec = served.session.output(name)
        if tensors_only and spec is not None and not spec.dtype:
            raise errors.FieldInvalid(f"output.names[{index}]", f"{name!r} is not a tensor; ask for OUTPUT_KIND_JSON")
    return kind, top_k, least, names
