"""Checks what a caller says about a model, before anything is fetched: ids, and the ModelConfig."""

from __future__ import annotations

import re

from google.protobuf import json_format

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors
from onecontainer_driver_onnx.session import RUNTIME_OPTIONS, SessionOptions, devices

MODEL_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
VERSION_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_ANNOTATION_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
MODEL_SOURCES = ("artifact", "path", "built_in")
MAX_TOP_K = 1000
DEFAULT_TOP_K = 5


def model_id(service: str, name: str) -> str:
    """The bare id of a model, given as that or as `services/{service}/models/{model}`. Empty stays empty.

    Raises:
        FieldInvalid: not an id, or a model of another service.
    """
    if "/" in name:
        prefix = f"{service}/models/"
        if not name.startswith(prefix):
            raise errors.FieldInvalid("model", f"is a model of another service; this one's are {prefix}…")
        name = name.removeprefix(prefix)
    if name and not MODEL_ID.fullmatch(name):
        raise errors.FieldInvalid("model", f"must match {MODEL_ID.pattern}")
    return name


def version_id(version: str) -> str:
    """Raises FieldInvalid; empty stays empty."""
    if version and not VERSION_ID.fullmatch(version):
        raise errors.FieldInvalid("version", f"must match {VERSION_ID.pattern}")
    return version


def checked(config: model_pb2.ModelConfig) -> model_pb2.ModelConfig:
    """A copy with the defaults filled in, but those that are settings of the service: two requests that say the same are equal whatever
    the settings were. What needs the model itself is checked after the load.

    Raises:
        FieldRequired, FieldInvalid, BackendCapabilityMissing: with the path of the field.
    """
    source = config.source.WhichOneof("source")
    if source is None:
        raise errors.FieldRequired("config.source")
    if source not in MODEL_SOURCES:
        raise errors.FieldInvalid(f"config.source.{source}", f"is not a source here; {', '.join(MODEL_SOURCES)} are")
    if config.source.format not in {"", "onnx"}:
        raise errors.FieldInvalid("config.source.format", "must be `onnx` or empty")
    if config.HasField("dynamic_batching"):
        raise errors.FieldInvalid("config.dynamic_batching", "is not supported here; leave it out")
    idle = config.residency.idle_timeout.ToNanoseconds() / 1e9
    if config.residency.HasField("idle_timeout") and idle and (idle < 1 or config.residency.pinned):
        raise errors.FieldInvalid(
            "config.residency.idle_timeout", "must be 1 s or more, and not together with `pinned`"
        )
    if len(config.annotations) > 32:
        raise errors.FieldInvalid("config.annotations", "has more than 32 entries")
    for key, value in config.annotations.items():
        if not _ANNOTATION_KEY.fullmatch(key) or len(value) > 256:
            raise errors.FieldInvalid(
                f"config.annotations[{key!r}]", f"keys match {_ANNOTATION_KEY.pattern}, values have 256 characters"
            )
    result = model_pb2.ModelConfig()
    result.CopyFrom(config)
    if config.HasField("classification"):
        _fill_classification(result.classification)
    _fill_execution(result.execution)
    return result


def _fill_classification(classification: model_pb2.Classification) -> None:
    path = "config.classification"
    if classification.activation not in model_pb2.Activation.values():
        raise errors.FieldInvalid(f"{path}.activation", f"is no Activation: {classification.activation}")
    classification.activation = classification.activation or model_pb2.ACTIVATION_SOFTMAX
    if not 0 <= classification.top_k <= MAX_TOP_K:
        raise errors.FieldInvalid(f"{path}.top_k", f"must be 1 to {MAX_TOP_K}")
    classification.top_k = classification.top_k or DEFAULT_TOP_K
    if classification.HasField("labels"):
        kind = classification.labels.WhichOneof("source")
        if kind is None:
            raise errors.FieldRequired(f"{path}.labels", "needs one of list, artifact and well_known")
        if kind == "list" and not classification.labels.list.names:
            raise errors.FieldRequired(f"{path}.labels.list.names")


def _fill_execution(execution: model_pb2.Execution) -> None:
    path = "config.execution"
    available = devices()
    execution.device = execution.device or available[0]
    device, _, number = execution.device.partition(":")
    if device not in {"cpu", "cuda"} or (number and (device == "cpu" or not number.isdigit())):
        raise errors.FieldInvalid(f"{path}.device", "must be cpu, cuda or cuda:N")
    if device not in available:
        raise errors.BackendCapabilityMissing(f"{path}.device", f"{device} is not there; {', '.join(available)} is")
    for name in ("intra_op_threads", "inter_op_threads", "max_concurrency"):
        if not 0 <= getattr(execution, name) <= 1024:
            raise errors.FieldInvalid(f"{path}.{name}", "must be 1 to 1024")
    execution.inter_op_threads = execution.inter_op_threads or 1
    _runtime_options(execution)


def _runtime_options(execution: model_pb2.Execution) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in json_format.MessageToDict(execution.runtime_options).items():
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
        _runtime_options(execution),
    )
