"""From the repository's versions to the messages of the contract."""

from __future__ import annotations

import base64
import binascii
import re

from google.protobuf import timestamp_pb2

from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors, to_status
from onecontainer.driver.models.repository import Repository
from onecontainer.driver.models.version import Version

DEFAULT_PAGE, MAX_PAGE = 50, 1000
_FILTER = re.compile(r'\s*state\s*=\s*"?(READY|LOADING|FAILED|UNLOADED)"?\s*')


def model_to_proto(repository: Repository, service: str, model: str) -> model_pb2.Model:
    """Raises ModelNotFound."""
    versions = repository.versions(model)
    default = repository.default_version(model)
    return model_pb2.Model(
        name=f"{service}/models/{model}",
        state=next((v.state for v in versions if v.version == default), model_pb2.MODEL_STATE_UNSPECIFIED),
        default_version=default,
        is_default=repository.default_model == model,
        versions=[version_to_proto(version) for version in versions],
    )


def version_to_proto(found: Version) -> model_pb2.ModelVersion:
    message = model_pb2.ModelVersion(
        version=found.version,
        state=found.state,
        unload_reason=found.unload_reason
        if found.state == model_pb2.MODEL_STATE_UNLOADED
        else model_pb2.UNLOAD_REASON_UNSPECIFIED,
        config=found.config if found.served is not None or found.loading is None else found.loading,
        inputs=found.inputs,
        outputs=found.outputs,
        label_count=len(found.served.labels) if found.served is not None else 0,
        sha256=bytes.fromhex(found.material.sha256) if found.material is not None else b"",
        platform=found.platform,
        built_in=found.brought is not None,
    )
    if found.served is not None:
        message.config.execution.intra_op_threads = found.served.session.threads
    if found.error is not None:
        message.error.CopyFrom(to_status(found.error))
    if found.state == model_pb2.MODEL_STATE_LOADING:
        message.load_progress.message = found.phase
        message.load_progress.done = found.fetched
        if found.to_fetch is not None:
            message.load_progress.total, message.load_progress.unit = found.to_fetch, "bytes"
    if found.served is not None and found.memory_bytes:
        message.memory_bytes = found.memory_bytes
    if found.ready_time:
        message.ready_time.CopyFrom(timestamp(found.ready_time))
    if found.load_seconds:
        message.load_duration.FromNanoseconds(round(found.load_seconds * 1e9))
    if found.statistics.last_use:
        message.last_use_time.CopyFrom(timestamp(found.statistics.last_use))
    return message


def statistics_to_proto(service: str, found: Version) -> model_pb2.ModelStatistics:
    message = found.statistics.to_proto()
    message.model, message.version = f"{service}/models/{found.model}", found.version
    if found.served is not None:
        message.in_flight_count = found.served.in_flight
        if found.memory_bytes:
            message.memory_bytes = found.memory_bytes
    return message


def list_models(repository: Repository, service: str, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
    """Raises FieldInvalid."""
    if not 0 <= request.page_size <= MAX_PAGE:
        raise errors.FieldInvalid("page_size", f"must be 1 to {MAX_PAGE}")
    wanted = None
    if request.filter:
        match = _FILTER.fullmatch(request.filter)
        if match is None:
            raise errors.FieldInvalid("filter", 'must be `state = "READY"`, or LOADING, FAILED or UNLOADED')
        wanted = model_pb2.ModelState.Value(f"MODEL_STATE_{match[1]}")
    after = _after(request)
    names = [
        name
        for name in repository.names()
        if name > after and (wanted is None or any(v.state == wanted for v in repository.versions(name)))
    ]
    size = request.page_size or DEFAULT_PAGE
    response = pb.ListModelsResponse(models=[model_to_proto(repository, service, name) for name in names[:size]])
    if len(names) > size:
        token = f"{names[size - 1]}\n{request.filter}".encode()
        response.next_page_token = base64.urlsafe_b64encode(token).decode()
    return response


def _after(request: pb.ListModelsRequest) -> str:
    if not request.page_token:
        return ""
    try:
        name, _, used_filter = base64.urlsafe_b64decode(request.page_token).decode().partition("\n")
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise errors.FieldInvalid("page_token", "is none of this method's") from error
    if used_filter != request.filter:
        raise errors.FieldInvalid("page_token", "belongs to another filter")
    return name


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    message = timestamp_pb2.Timestamp()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
