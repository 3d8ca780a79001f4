"""What the Open Inference Protocol tells of models, from our messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from onecontainer import errors
from onecontainer.api.ai.v1 import model_pb2, tensor_pb2
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver.open_inference.tensors import CONFIG_TYPES, NAMES

SERVICES = "services/"
_STATES = {model_pb2.MODEL_STATE_READY: "READY", model_pb2.MODEL_STATE_LOADING: "LOADING"}
"""Words of Triton's repository index; what is neither is UNAVAILABLE."""


def model_id(service: str, name: str) -> str:
    """The model that a name means: `SERVICE` (empty: its default), `SERVICE/MODEL`, `services/SERVICE/models/MODEL`, or `MODEL` alone."""
    own = service.removeprefix(SERVICES)
    head, _, rest = name.removeprefix(SERVICES).partition("/")
    return rest.removeprefix("models/") if head == own else name


def full_name(service: str, model: str) -> str:
    """`SERVICE/MODEL` of a model's resource name: it finds the service by itself."""
    return f"{service.removeprefix(SERVICES)}/{model.rpartition('/')[2]}"


def version_of(model: model_pb2.Model, version: str) -> model_pb2.ModelVersion:
    """The version, the default one if none is named. Raises ModelNotFound."""
    wanted = version or model.default_version
    for one in model.versions:
        if one.version == wanted:
            return one
    raise errors.ModelNotFound(f"{model.name} has no version {wanted[:64]!r}; RepositoryIndex lists them")


def metadata(name: str, model: model_pb2.Model, version: model_pb2.ModelVersion) -> oip.ModelMetadataResponse:
    kind = oip.ModelMetadataResponse.TensorMetadata

    def tensors(specs: Iterable[tensor_pb2.TensorSpec]) -> Iterator[oip.ModelMetadataResponse.TensorMetadata]:
        for spec in specs:
            yield kind(name=spec.name, datatype=NAMES.get(spec.dtype, ""), shape=spec.shape)

    return oip.ModelMetadataResponse(
        name=name,
        versions=[one.version for one in model.versions],
        platform=version.platform,
        inputs=tensors(version.inputs),
        outputs=tensors(version.outputs),
    )


def config(name: str, version: model_pb2.ModelVersion) -> oip.ModelConfigResponse:
    """With dynamic batching the dimensions are those of one item, as Triton has them; else they are all there."""
    most = version.config.dynamic_batching.max_batch_size

    def dims(spec: tensor_pb2.TensorSpec) -> list[int]:
        return list(spec.shape[1:] if most and spec.batched else spec.shape)

    return oip.ModelConfigResponse(
        config=oip.ModelConfig(
            name=name,
            platform=version.platform,
            backend=version.platform.partition(" ")[0],
            max_batch_size=most,
            input=[
                oip.ModelInput(name=one.name, data_type=CONFIG_TYPES.get(one.dtype, oip.TYPE_INVALID), dims=dims(one))
                for one in version.inputs
            ],
            output=[
                oip.ModelOutput(name=one.name, data_type=CONFIG_TYPES.get(one.dtype, oip.TYPE_INVALID), dims=dims(one))
                for one in version.outputs
            ],
        )
    )


def index(service: str, models: Iterable[model_pb2.Model], ready: bool) -> oip.RepositoryIndexResponse:
    """One entry per version; `ready`: only those that answer."""
    response = oip.RepositoryIndexResponse()
    for model in models:
        for version in model.versions:
            if ready and version.state != model_pb2.MODEL_STATE_READY:
                continue
            response.models.add(
                name=full_name(service, model.name),
                version=version.version,
                state=_STATES.get(version.state, "UNAVAILABLE"),
                reason=_reason(version),
            )
    return response


def _reason(version: model_pb2.ModelVersion) -> str:
    if version.state == model_pb2.MODEL_STATE_FAILED:
        return str(version.error.message)
    if version.state == model_pb2.MODEL_STATE_UNLOADED:
        return "unloaded"
    return ""


def statistics(service: str, models: Iterable[model_pb2.ModelStatistics]) -> oip.ModelStatisticsResponse:
    return oip.ModelStatisticsResponse(model_stats=[_statistics(service, one) for one in models])


def _statistics(service: str, ours: model_pb2.ModelStatistics) -> oip.ModelStatistics:
    times = ours.inference
    theirs = oip.ModelStatistics(
        name=full_name(service, ours.model),
        version=ours.version,
        last_inference=_milliseconds(ours.last_inference_time),
        inference_count=ours.inference_count,
        execution_count=ours.execution_count,
        inference_stats=oip.InferStatistics(
            success=_duration(times.success),
            fail=_duration(times.failure),
            queue=_duration(times.queue),
            compute_input=_duration(times.compute_input),
            compute_infer=_duration(times.compute_infer),
            compute_output=_duration(times.compute_output),
        ),
        batch_stats=[
            oip.InferBatchStatistics(
                batch_size=batch.batch_size,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for batch in ours.batches
        ],
    )
    if ours.HasField("memory_bytes"):
        theirs.memory_usage.add(type="CPU", byte_size=ours.memory_bytes)
    return theirs


def _duration(ours: model_pb2.StatisticDuration) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=ours.count, ns=ours.total.ToNanoseconds())


def _milliseconds(time: Timestamp) -> int:
    return time.ToMilliseconds()
