"""A model in memory: one ONNX Runtime session, what it takes and gives, and one way to run it."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # type: ignore[import-untyped]

from onecontainer.api.ai.v1 import model_pb2, tensor_pb2
from onecontainer.driver import errors
from onecontainer_driver_onnx.tensors import dtype_from_onnx, dtype_name, numpy_dtype

Array = npt.NDArray[Any]

# Of malloc.h; musl has neither it nor several heaps.
_M_ARENA_MAX = -8

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# Session settings of ONNX Runtime that a caller may set, and what they mean. None of them names a file.
RUNTIME_OPTIONS = {
    "session.intra_op.allow_spinning": "`1`: threads wait actively between operators: faster alone, costly beside others. Default `0`.",
    "session.set_denormal_as_zero": "`1`: numbers near zero count as zero. Default `0`.",
    "session.disable_prepacking": "`1`: less memory, slower. Default `0`.",
}

_UNREADABLE = (
    ort_errors.InvalidProtobuf,
    ort_errors.InvalidGraph,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.NoModel,
)
_RUN_ERRORS = (ort_errors.InvalidArgument, ort_errors.RuntimeException, ort_errors.Fail, ort_errors.EPFail)


def devices() -> list[str]:
    """What a model may run on here, the default first."""
    available = set(onnxruntime.get_available_providers())
    return [name for name in ("cuda", "cpu") if PROVIDERS[name] in available]


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session runs. `threads` is within one run of the model."""

    device: str = "cpu"
    threads: int = 1
    inter_op_threads: int = 1
    runtime_options: Mapping[str, str] = field(default_factory=dict)


class Session:
    """A loaded model. `run` may be called from several threads at once."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        """Reads the model into memory. Blocks.

        Raises:
            DataInvalid: it is not an ONNX model, or one that this runtime cannot read.
            BackendCapabilityMissing: it has an operator that is not there.
            FieldInvalid: a runtime option has a wrong value.
        """
        self.options = options
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = options.inter_op_threads
        if options.inter_op_threads > 1:
            settings.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        for name, value in {"session.intra_op.allow_spinning": "0", **options.runtime_options}.items():
            settings.add_session_config_entry(name, value)
        before = resident_bytes()
        device, _, number = options.device.partition(":")
        provider: Any = PROVIDERS[device]
        if number:
            provider = (provider, {"device_id": number})
        try:
            self._session: Any = onnxruntime.InferenceSession(os.fspath(path), settings, providers=[provider])
        except ort_errors.NotImplemented as error:
            raise errors.BackendCapabilityMissing("config.source", _first_line(error)) from error
        except _UNREADABLE as error:
            raise errors.DataInvalid(
                "config.source", f"cannot be loaded as an ONNX model: {_first_line(error)}"
            ) from error
        self.memory_bytes = max(0, resident_bytes() - before)
        self.inputs = [_spec(value) for value in self._session.get_inputs()]
        self.outputs = [_spec(value) for value in self._session.get_outputs()]
        self.platform = f"onnxruntime {onnxruntime.__version__}, {', '.join(self._session.get_providers())}"
        self._run_errors = _RUN_ERRORS

    def input(self, name: str) -> tensor_pb2.TensorSpec | None:
        return next((spec for spec in self.inputs if spec.name == name), None)

    def output(self, name: str) -> tensor_pb2.TensorSpec | None:
        return next((spec for spec in self.outputs if spec.name == name), None)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Runs the model once. Blocks, without holding the interpreter.

        Raises:
            BackendExecutionFailed: the model failed on this input.
        """
        try:
            results = self._session.run(list(outputs), dict(feeds))
        except self._run_errors as error:
            raise errors.BackendExecutionFailed(
                f"the model failed on this input: {_first_line(error)}",
                code=errors.Code.INVALID_ARGUMENT,
                hop="backend",
            ) from error
        return [value if isinstance(value, np.ndarray) else np.asarray(value) for value in results]

    def check(self, name: str, array: Array, path: str) -> None:
        """Checks an array against what the model declares. `path` is the field that the array came from.

        Raises:
            FieldInvalid: no such input.
            DataInvalid: another type, rank or length.
        """
        shape_path, dtype_path = (f"{path}.shape", f"{path}.dtype") if path.endswith(".tensor") else (path, path)
        spec = self.input(name)
        if spec is None:
            raise errors.FieldInvalid(
                path, f"the model has no input {name!r}; it has {', '.join(s.name for s in self.inputs)}"
            )
        wanted = numpy_dtype(spec.dtype)
        if wanted is None:
            raise errors.DataInvalid(path, f"the model's input {name!r} has a type that cannot be sent")
        if array.dtype != wanted and not (wanted.kind == "O" and array.dtype.kind in {"O", "U", "S"}):
            raise errors.DataInvalid(dtype_path, f"{name!r} takes {dtype_name(spec.dtype)}, not {array.dtype}")
        shape = list(spec.shape)
        if len(shape) != array.ndim or any(n not in {-1, m} for n, m in zip(shape, array.shape, strict=True)):
            raise errors.DataInvalid(shape_path, f"{name!r} takes {shape} (-1: any), not {list(array.shape)}")

    def close(self) -> int:
        """Frees the memory, and returns how many bytes went back to the system. Nothing may run in it any more. Blocks."""
        before = resident_bytes()
        self._session = None
        release_memory()
        return max(0, before - resident_bytes())


def _spec(value: Any) -> tensor_pb2.TensorSpec:
    # A free dimension is a name or None.
    shape = [n if isinstance(n, int) and n >= 0 else -1 for n in value.shape]
    # Only a free first dimension can count items; ONNX itself has no notion of a batch.
    return tensor_pb2.TensorSpec(
        name=value.name, dtype=dtype_from_onnx(value.type), shape=shape, batched=bool(shape) and shape[0] == -1
    )


def zeros(spec: tensor_pb2.TensorSpec, sizes: Sequence[int] = ()) -> Array | None:
    """An input of zeros to try a model with, free dimensions 1, or as `sizes` says. None: the type does not allow it."""
    dtype = numpy_dtype(spec.dtype)
    if dtype is None:
        return None
    shape = [n if n >= 0 else 1 for n in spec.shape]
    if len(sizes) == len(shape):
        shape = [n if n >= 0 else max(size, 1) for n, size in zip(spec.shape, sizes, strict=True)]
    return np.full(shape, "", object) if dtype.kind == "O" else np.zeros(shape, dtype)


def check_model_file(path: Path, *, external_data: bool) -> None:
    """Looks into a model file for what must not come from a stranger: tensors whose data are in other files.

    Args:
        external_data: such files may lie beside the model or below its folder.

    Raises:
        DataInvalid: it is not an ONNX model, or it refers to files that it must not.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise errors.DataInvalid("config.source", "is not an ONNX model") from error
    if not model.graph.node and not model.graph.output:
        raise errors.DataInvalid("config.source", "is not an ONNX model, or an empty one")
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if not external_data:
            raise errors.DataInvalid(
                "config.source", "keeps weights in other files; merge them into the model's own file"
            )
        folder = path.parent.resolve()
        if not location or not (folder / location).resolve().is_relative_to(folder):
            raise errors.DataInvalid("config.source", f"refers to the file {location!r} outside its folder")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield sparse.values
                yield sparse.indices
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graph_tensors(graph)


def class_count(session: Session, classification: model_pb2.Classification) -> int | None:
    """How many classes the declared output has. None: the model does not say before it runs."""
    spec = session.output(classification.output)
    return spec.shape[-1] if spec is not None and spec.shape and spec.shape[-1] > 0 else None


def _first_line(error: BaseException) -> str:
    """ONNX Runtime puts the place in its own source, and a stack, around what it has to say."""
    return str(error).strip().splitlines()[0][:500] if str(error).strip() else type(error).__name__


def resident_bytes() -> int:
    """Memory of this process that is in RAM. 0: this system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def limit_arenas() -> None:
    """Keeps the C library from giving each thread a heap of its own: what one thread has freed would stay there for it alone, and the
    memory of models that come and go in changing threads would never be whole again."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 2)


def release_memory() -> None:
    """Gives freed memory back to the system, where the C library can."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
        if trim is not None:
            trim(0)
