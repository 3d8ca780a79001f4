"""A model in memory: one ONNX Runtime session, what it takes and gives, and one way to run it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
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
from onecontainer.driver.models.served import Served, served_of
from onecontainer.driver.models.session import Session
from onecontainer.driver.models.version import Material, Open, Report
from onecontainer_driver_onnx.config import PROVIDERS, SessionOptions, session_options

Array = npt.NDArray[Any]

# Of malloc.h; musl has neither it nor several heaps.
_M_ARENA_MAX = -8

_DTYPES = {
    "tensor(bool)": tensor_pb2.DATA_TYPE_BOOL,
    "tensor(uint8)": tensor_pb2.DATA_TYPE_UINT8,
    "tensor(uint16)": tensor_pb2.DATA_TYPE_UINT16,
    "tensor(uint32)": tensor_pb2.DATA_TYPE_UINT32,
    "tensor(uint64)": tensor_pb2.DATA_TYPE_UINT64,
    "tensor(int8)": tensor_pb2.DATA_TYPE_INT8,
    "tensor(int16)": tensor_pb2.DATA_TYPE_INT16,
    "tensor(int32)": tensor_pb2.DATA_TYPE_INT32,
    "tensor(int64)": tensor_pb2.DATA_TYPE_INT64,
    "tensor(float16)": tensor_pb2.DATA_TYPE_FLOAT16,
    "tensor(bfloat16)": tensor_pb2.DATA_TYPE_BFLOAT16,
    "tensor(float)": tensor_pb2.DATA_TYPE_FLOAT32,
    "tensor(double)": tensor_pb2.DATA_TYPE_FLOAT64,
    "tensor(string)": tensor_pb2.DATA_TYPE_BYTES,
}


_UNREADABLE = (
    ort_errors.InvalidProtobuf,
    ort_errors.InvalidGraph,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.NoModel,
)
_RUN_ERRORS = (ort_errors.InvalidArgument, ort_errors.RuntimeException, ort_errors.Fail, ort_errors.EPFail)


class OnnxSession(Session):
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
        self._memory_bytes = max(0, resident_bytes() - before)
        self.inputs = [_spec(value) for value in self._session.get_inputs()]
        self.outputs = [_spec(value) for value in self._session.get_outputs()]
        self.platform = f"onnxruntime {onnxruntime.__version__}, {', '.join(self._session.get_providers())}"
        self.threads = options.threads
        self._run_errors = _RUN_ERRORS

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs the model once. Blocks, without holding the interpreter.

        Raises:
            BackendExecutionFailed: the model failed on this input.
        """
        try:
            names = list(outputs) or [spec.name for spec in self.outputs]
            results = self._session.run(names, dict(feeds))
        except self._run_errors as error:
            raise errors.BackendExecutionFailed(
                f"the model failed on this input: {_first_line(error)}",
                code=errors.Code.INVALID_ARGUMENT,
                hop="backend",
            ) from error
        return {
            name: value if isinstance(value, np.ndarray) else np.asarray(value)
            for name, value in zip(names, results, strict=True)
        }

    async def close(self) -> int:
        return await asyncio.to_thread(self._close)

    def _close(self) -> int:
        before = resident_bytes()
        self._session = None
        release_memory()
        return max(0, before - resident_bytes())


def dtype_from_onnx(kind: str) -> tensor_pb2.DataType.ValueType:
    """Of ONNX Runtime's words for a type. UNSPECIFIED: not a tensor that the wire has."""
    return _DTYPES.get(kind, tensor_pb2.DATA_TYPE_UNSPECIFIED)


def _spec(value: Any) -> tensor_pb2.TensorSpec:
    # A free dimension is a name or None.
    shape = [n if isinstance(n, int) and n >= 0 else -1 for n in value.shape]
    # Only a free first dimension can count items; ONNX itself has no notion of a batch.
    return tensor_pb2.TensorSpec(
        name=value.name, dtype=dtype_from_onnx(value.type), shape=shape, batched=bool(shape) and shape[0] == -1
    )


def opener(default_threads: int) -> Open:
    """How a load makes a session of a model's file."""

    async def open_model(material: Material, config: model_pb2.ModelConfig, report: Report) -> Served:
        return await asyncio.to_thread(open_material, material, config, default_threads)

    return open_model


def open_material(material: Material, config: model_pb2.ModelConfig, default_threads: int) -> Served:
    """Loads a model and checks the config against it. Blocks.

    Raises:
        DataInvalid, FieldInvalid, BackendCapabilityMissing: with the path in the config.
    """
    assert material.path is not None
    check_model_file(material.path, external_data=config.source.HasField("path"))
    return open_served(material.path, config, material.labels, default_threads)


def open_served(path: Path, config: model_pb2.ModelConfig, labels: Sequence[str], default_threads: int) -> Served:
    """The same for a file that is known to be a model."""
    return served_of(OnnxSession(path, session_options(config, default_threads)), config, labels)


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
