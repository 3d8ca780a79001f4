"""What this driver takes of a ModelConfig, and how a session is set up of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnxruntime  # type: ignore[import-untyped]
from google.protobuf import json_format

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.config import Rules

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# Session settings of ONNX Runtime that a caller may set, and what they mean. None of them names a file.
RUNTIME_OPTIONS = {
    "session.intra_op.allow_spinning": "`1`: threads wait actively between operators: faster alone, costly beside others. Default `0`.",
    "session.set_denormal_as_zero": "`1`: numbers near zero count as zero. Default `0`.",
    "session.disable_prepacking": "`1`: less memory, slower. Default `0`.",
}


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


def rules() -> Rules:
    return Rules(("artifact", "path", "built_in"), ("onnx",), devices(), True, runtime_options)


def runtime_options(config: model_pb2.ModelConfig) -> dict[str, str]:
    """Raises FieldInvalid with the path in the config."""
    options: dict[str, str] = {}
    for name, value in json_format.MessageToDict(config.execution.runtime_options).items():
        # 1, true and "1" are the same to a person who writes JSON.
        text = {True: "1", False: "0", "1": "1", "0": "0"}.get(value) if isinstance(value, (bool, float, str)) else None
        if name not in RUNTIME_OPTIONS or text is None:
            raise errors.FieldInvalid(
                f"config.execution.runtime_options.{name}",
                f"must be `0` or `1` and one of {', '.join(RUNTIME_OPTIONS)}",
            )
        options[name] = text
    return options


def session_options(config: model_pb2.ModelConfig, default_threads: int) -> SessionOptions:
    """Of a config that `checked` has returned."""
    execution = config.execution
    return SessionOptions(
        execution.device,
        execution.intra_op_threads or default_threads,
        execution.inter_op_threads,
        runtime_options(config),
    )
