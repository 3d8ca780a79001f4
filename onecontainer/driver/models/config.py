"""Checks what a caller says about a model, before anything is fetched: ids, and the ModelConfig."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors

MODEL_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
VERSION_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_ANNOTATION_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
MAX_TOP_K = 1000
DEFAULT_TOP_K = 5


@dataclass(frozen=True, slots=True)
class Rules:
    """What a driver takes of a ModelConfig.

    Attributes:
        sources: fields of ModelSource.
        formats: of model files.
        devices: what a model may run on, the default first.
        batching: whether it puts calls together.
        check: looks at what only the driver knows, before anything is fetched; it raises as `checked` does.
    """

    sources: Sequence[str]
    formats: Sequence[str]
    devices: Sequence[str]
    batching: bool
    check: Callable[[model_pb2.ModelConfig], object]


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


def checked(config: model_pb2.ModelConfig, rules: Rules) -> model_pb2.ModelConfig:
    """A copy with the defaults filled in, but those that are settings of the service: two requests that say the same are equal whatever
    the settings were. What needs the model itself is checked after the load.

    Raises:
        FieldRequired, FieldInvalid, BackendCapabilityMissing: with the path of the field.
    """
    source = config.source.WhichOneof("source")
    if source is None:
        raise errors.FieldRequired("config.source")
    if source not in rules.sources:
        raise errors.FieldInvalid(f"config.source.{source}", f"is not a source here; {', '.join(rules.sources)} are")
    if config.source.format not in {"", *rules.formats}:
        raise errors.FieldInvalid(
            "config.source.format", " or ".join(["must be empty", *(f"`{name}`" for name in rules.formats)])
        )
    if config.HasField("dynamic_batching"):
        if not rules.batching:
            raise errors.FieldInvalid("config.dynamic_batching", "is not supported here; leave it out")
        _check_batching(config.dynamic_batching)
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
    _fill_execution(result.execution, rules.devices)
    rules.check(result)
    return result


def _check_batching(options: model_pb2.DynamicBatching) -> None:
    path = "config.dynamic_batching"
    if not 2 <= options.max_batch_size <= 1024:
        raise errors.FieldInvalid(f"{path}.max_batch_size", "must be 2 to 1024")
    if not 0 <= options.max_delay.ToNanoseconds() <= 1e9:
        raise errors.FieldInvalid(f"{path}.max_delay", "must be 0 to 1 s")
    if not 0 <= options.max_queue_size <= 65536:
        raise errors.FieldInvalid(f"{path}.max_queue_size", "must be 1 to 65536")


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


def _fill_execution(execution: model_pb2.Execution, available: Sequence[str]) -> None:
    path = "config.execution"
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
