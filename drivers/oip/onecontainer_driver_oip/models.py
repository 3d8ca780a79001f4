"""The models of the server as ours: names, states, versions, what they take and give."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.ai.v1 import model_pb2, tensor_pb2
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver import Context, errors, to_status
from onecontainer.driver.open_inference.tensors import DATATYPES
from onecontainer_driver_oip.served import Served, ServedModels
from onecontainer_driver_oip.upstream import Code, Unanswered, Upstream, typed

NO_VERSION = "1"
"""What the only version of a model is called here whose server does not count them."""
PAGE, MAX_PAGE = 50, 1000
AT_ONCE = 8
NOT_THERE = frozenset({Code.NOT_FOUND, Code.UNKNOWN, Code.INVALID_ARGUMENT, Code.UNAVAILABLE, Code.FAILED_PRECONDITION})
"""Statuses by which servers say that they do not have a model, or do not have it loaded."""
_FILTER = re.compile(r'\s*state\s*=\s*"?(READY|LOADING|FAILED|UNLOADED)"?\s*')


def model_name(service: str, name: str) -> str:
    """The bare name. Raises FieldInvalid for a model of another service."""
    prefix = f"{service}/models/"
    if name.startswith("services/"):
        if not name.startswith(prefix):
            raise errors.FieldInvalid("model", f"is a model of another service; this one's are {prefix}…")
        name = name.removeprefix(prefix)
    if len(name) > 256:
        raise errors.FieldInvalid("model", "has more than 256 characters")
    return name


@dataclass(frozen=True, slots=True)
class Listed:
    """Versions of a model in the server's index: version → (state, reason)."""

    versions: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class Models:
    """Finds models. `served` holds the names that are ours."""

    def __init__(self, upstream: Upstream, served: ServedModels) -> None:
        self.upstream = upstream
        self.served = served
        self._specs: dict[tuple[str, str], oip.ModelMetadataResponse] = {}

    def target(self, name: str) -> Served:
        """What a name stands for there."""
        return self.served.get(name) or Served(name)

    async def index(self, context: Context) -> dict[str, Listed]:
        """The server's own list; empty if it has none."""
        try:
            answer = await self.upstream.ask(
                "RepositoryIndex",
                oip.RepositoryIndexRequest(),
                oip.RepositoryIndexResponse,
                remaining=context.time_remaining(),
            )
        except Unanswered as error:
            if error.code is Code.UNIMPLEMENTED:
                return {}
            raise typed(error, "RepositoryIndex") from error
        found: dict[str, dict[str, tuple[str, str]]] = {}
        for one in answer.models:
            found.setdefault(one.name, {})[one.version] = (one.state, one.reason)
        return {name: Listed(versions) for name, versions in found.items()}

    async def names(self, context: Context, index: Mapping[str, Listed]) -> list[str]:
        """All names, sorted: the server's, those of the option `models`, and ours."""
        return sorted({*index, *self.upstream.settings.models, *self.served})

    async def default(self, context: Context) -> str:
        """The name of the default model. Raises ModelNotFound."""
        name = self.upstream.settings.default_model
        if name:
            return name
        names = await self.names(context, await self.index(context))
        if len(names) != 1:
            raise errors.ModelNotFound(
                f"{context.service} has {len(names)} models and no default: name one, or set the option `default_model`"
            )
        return names[0]

    async def ready(self, served: Served, version: str, context: Context) -> bool:
        """Whether the server says that it answers for a model; one that it does not know is not ready."""
        request = oip.ModelReadyRequest(name=served.model, version=version or served.version)
        try:
            answer = await self.upstream.ask(
                "ModelReady", request, oip.ModelReadyResponse, remaining=context.time_remaining()
            )
        except Unanswered as error:
            if error.code in NOT_THERE:
                return False
            raise typed(error, "ModelReady") from error
        return answer.ready

    async def spec(
        self, served: Served, version: str, context: Context, *, fresh: bool = False
    ) -> oip.ModelMetadataResponse:
        """What a model takes and gives; kept until `fresh` is asked for. Raises Unanswered."""
        key = (served.model, version or served.version)
        if fresh or key not in self._specs:
            request = oip.ModelMetadataRequest(name=key[0], version=key[1])
            self._specs[key] = await self.upstream.ask(
                "ModelMetadata", request, oip.ModelMetadataResponse, remaining=context.time_remaining()
            )
        return self._specs[key]

    def forget(self, served: Served) -> None:
        for key in [key for key in self._specs if key[0] == served.model]:
            del self._specs[key]

    # --- as messages ---------------------------------------------------------------------------------------------------

    async def get(self, name: str, context: Context) -> model_pb2.Model:
        """Raises ModelNotFound."""
        index = await self.index(context)
        names = await self.names(context, index)
        if name not in names and not await self.ready(self.target(name), "", context):
            raise errors.ModelNotFound(
                f"the inference server at {self.upstream.settings.target} has no model {name[:64]!r}; ListModels tells which there are"
            )
        return await self._model(name, index, names, context)

    async def list(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Raises FieldInvalid."""
        if not 0 <= request.page_size <= MAX_PAGE:
            raise errors.FieldInvalid("page_size", f"must be 1 to {MAX_PAGE}")
        wanted = None
        if request.filter:
            match = _FILTER.fullmatch(request.filter)
            if match is None:
                raise errors.FieldInvalid("filter", 'must be `state = "READY"`, or LOADING, FAILED or UNLOADED')
            wanted = model_pb2.ModelState.Value(f"MODEL_STATE_{match[1]}")
        after, _, of_filter = request.page_token.partition("\n")
        if request.page_token and of_filter != f"filter:{request.filter}":
            raise errors.FieldInvalid("page_token", "is none of this method's, or belongs to another filter")
        index = await self.index(context)
        names = await self.names(context, index)
        size = request.page_size or PAGE
        response = pb.ListModelsResponse()
        left = [name for name in names if name > after]
        while left and len(response.models) < size:
            chunk, left = left[:AT_ONCE], left[AT_ONCE:]
            made = await asyncio.gather(*(self._model(name, index, names, context) for name in chunk))
            for number, model in enumerate(made):
                if wanted is not None and all(version.state != wanted for version in model.versions):
                    continue
                if len(response.models) == size:
                    left = chunk[number:] + left
                    break
                response.models.append(model)
                after = chunk[number]
        if left:
            response.next_page_token = f"{after}\nfilter:{request.filter}"
        return response

    async def _model(
        self, name: str, index: Mapping[str, Listed], names: Sequence[str], context: Context
    ) -> model_pb2.Model:
        served = self.target(name)
        ready = await self.ready(served, "", context)
        spec = oip.ModelMetadataResponse()
        if ready:
            try:
                spec = await self.spec(served, "", context, fresh=True)
            except Unanswered as error:
                if error.code not in NOT_THERE:
                    raise typed(error, "ModelMetadata") from error
        listed = index.get(served.model, Listed())
        versions = [served.version] if served.version else list(spec.versions) or [v for v in listed.versions if v]
        default = versions[-1] if versions else NO_VERSION
        default_model = self.upstream.settings.default_model
        made = [self._version(one, served, listed, spec, ready and one == default) for one in versions or [NO_VERSION]]
        made.reverse()
        return model_pb2.Model(
            name=f"{context.service}/models/{name}",
            state=made[0].state,
            default_version=default,
            is_default=name == default_model if default_model else len(names) == 1,
            versions=made,
        )

    def _version(
        self, version: str, served: Served, listed: Listed, spec: oip.ModelMetadataResponse, ready: bool
    ) -> model_pb2.ModelVersion:
        state, reason = listed.versions.get(version) or listed.versions.get("") or ("", "")
        source = model_pb2.OipSource(model=served.model, version=served.version, manage_repository=served.managed)
        made = model_pb2.ModelVersion(
            version=version, config=model_pb2.ModelConfig(source=model_pb2.ModelSource(oip=source))
        )
        if ready or (state == "READY" and spec.name):
            made.state = model_pb2.MODEL_STATE_READY
            made.inputs.extend(specs(spec.inputs))
            made.outputs.extend(specs(spec.outputs))
            made.platform = spec.platform
        elif state == "LOADING" or (state == "UNKNOWN" and not reason):
            made.state = model_pb2.MODEL_STATE_LOADING
        elif reason and reason != "unloaded":
            made.state = model_pb2.MODEL_STATE_FAILED
            failed = errors.BackendExecutionFailed(f"the inference server says: {reason[:500]}", hop="backend")
            made.error.CopyFrom(to_status(failed))
        else:
            made.state = model_pb2.MODEL_STATE_UNLOADED
            made.unload_reason = model_pb2.UNLOAD_REASON_REQUESTED
        return made


def specs(told: Sequence[oip.ModelMetadataResponse.TensorMetadata]) -> list[tensor_pb2.TensorSpec]:
    """A first dimension that is free counts items, by the custom of these servers."""
    return [
        tensor_pb2.TensorSpec(
            name=one.name,
            dtype=DATATYPES.get(one.datatype, tensor_pb2.DATA_TYPE_UNSPECIFIED),
            shape=one.shape,
            batched=len(one.shape) > 0 and one.shape[0] == -1,
        )
        for one in told
    ]
