"""`inference.GRPCInferenceService` over the methods of an AI driver. What each method does is told in the proto.

Source: https://github.com/kserve/open-inference-protocol, and Triton's extensions of it for statistics, classes and the model repository.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import ClassVar

from google.protobuf.descriptor import ServiceDescriptor

from onecontainer import errors
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.ai.v1 import model_pb2, tensor_pb2
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver.context import Context
from onecontainer.driver.facade import Facade
from onecontainer.driver.isolation import Requests
from onecontainer.driver.open_inference import infer, mapping
from onecontainer.driver.runs import to_status

_KNOWS_MODELS = ("get_model", "list_models")
_PAGE = 1000


class OpenInference(Facade):
    """The façade."""

    service: ClassVar[ServiceDescriptor] = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "ModelReady": _KNOWS_MODELS,
        "ModelMetadata": _KNOWS_MODELS,
        "ModelConfig": _KNOWS_MODELS,
        "ModelInfer": ("predict",),
        "ModelStreamInfer": ("predict",),
        "ModelStatistics": ("get_model_statistics", *_KNOWS_MODELS),
        "RepositoryIndex": ("list_models",),
        "RepositoryModelLoad": ("serve_model",),
        "RepositoryModelUnload": ("unload_model",),
    }

    # --- the server ----------------------------------------------------------------------------------------------------

    async def server_live(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    async def server_ready(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:
        try:
            found = await self.behind.probe()
        except errors.OneContainerError:
            # The protocol has no word for why; CheckHeartbeat tells.
            return oip.ServerReadyResponse(ready=False)
        return oip.ServerReadyResponse(ready=found.ready)

    async def server_metadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:
        manifest, has = self.behind.manifest, self.behind.has
        extensions = {
            "classification": has("predict"),
            "model_configuration": has(*_KNOWS_MODELS),
            "model_repository": has("list_models"),
            "model_repository(unload_dependents)": False,
            "statistics": has("get_model_statistics", *_KNOWS_MODELS),
        }
        return oip.ServerMetadataResponse(
            name=context.service,
            version=f"{manifest.name} {manifest.version}",
            extensions=[name for name, served in extensions.items() if served],
        )

    # --- models --------------------------------------------------------------------------------------------------------

    async def model_ready(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        """A model that is not there is not ready, as Triton has it; a service that is not there is NOT_FOUND, by the gateway."""
        try:
            version = mapping.version_of(await self._model(request.name, context), request.version)
        except errors.ModelNotFound:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=version.state == model_pb2.MODEL_STATE_READY)

    async def model_metadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:
        model = await self._model(request.name, context)
        return mapping.metadata(request.name, model, mapping.version_of(model, request.version))

    async def model_config(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:
        model = await self._model(request.name, context)
        return mapping.config(request.name, mapping.version_of(model, request.version))

    async def model_statistics(
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        ours = pb.GetModelStatisticsRequest(service=context.service, version=request.version)
        if request.name:
            ours.model = mapping.model_id(context.service, request.name)
            if not ours.model:
                ours.model = (await self._default(context)).name
        found: pb.GetModelStatisticsResponse = await self.behind.call("get_model_statistics", ours, context)
        return mapping.statistics(context.service, found.models)

    async def repository_index(
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        models = [model async for model in self._models(context)]
        return mapping.index(context.service, models, request.ready)

    async def repository_model_load(
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        """Within this call, not as a job: a new model is ServeModel's."""
        for name in request.parameters:
            raise errors.FieldInvalid(f"parameters.{name[:64]}", "is not served here: a new config is for ServeModel")
        model = mapping.model_id(context.service, request.model_name)
        if not model and self.behind.has(*_KNOWS_MODELS):
            model = (await self._default(context)).name
        ours = pb.ServeModelRequest(service=context.service, model=model or self._named(request.model_name, context))
        await self.behind.call("serve_model", ours, context)
        return oip.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        for name in request.parameters:
            if name != "unload_dependents":
                raise errors.FieldInvalid(f"parameters.{name[:64]}", "is not served here")
        ours = pb.UnloadModelRequest(service=context.service, model=self._named(request.model_name, context))
        await self.behind.call("unload_model", ours, context)
        return oip.RepositoryModelUnloadResponse()

    # --- inference -----------------------------------------------------------------------------------------------------

    async def model_infer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        model = mapping.model_id(context.service, request.model_name)
        images = await self._images(request, context)
        asked = infer.question(request, context.service, model, images)
        try:
            answer: pb.PredictResponse = await self.behind.call("predict", asked.request, context)
        except errors.OneContainerError as error:
            raise infer.in_their_terms(error, asked.origins) from error
        return infer.infer_response(request, answer)

    async def model_stream_infer(
        self, requests: Requests[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """One at a time: who does not read is not asked for."""
        async for request in requests:
            try:
                response = await self.model_infer(request, context)
            except Exception as error:  # noqa: BLE001 - what is wrong with one request does not end the stream
                failed = oip.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield oip.ModelStreamInferResponse(error_message=to_status(error).message, infer_response=failed)
            else:
                yield oip.ModelStreamInferResponse(infer_response=response)

    async def _images(self, request: oip.ModelInferRequest, context: Context) -> frozenset[str]:
        """Inputs of numbers that the model makes of encoded images, where the request has BYTES for them."""
        texts = {one.name for one in request.inputs if one.datatype == "BYTES"}
        if not texts or not self.behind.has(*_KNOWS_MODELS):
            return frozenset()
        version = mapping.version_of(await self._model(request.model_name, context), request.model_version)
        if not version.config.HasField("image"):
            return frozenset()
        named = version.config.image.input
        numbers = {one.name for one in version.inputs if one.dtype != tensor_pb2.DATA_TYPE_BYTES}
        return frozenset(texts & numbers & ({named} if named else numbers))

    # --- names ---------------------------------------------------------------------------------------------------------

    def _named(self, name: str, context: Context) -> str:
        """A model by its name, as our methods take it. Raises FieldRequired: which one is the default is nothing to unload by."""
        model = mapping.model_id(context.service, name)
        if not model:
            own = context.service.removeprefix(mapping.SERVICES)
            raise errors.FieldRequired("model_name", f"must name a model of the service: {own}/MODEL")
        return model

    async def _model(self, name: str, context: Context) -> model_pb2.Model:
        """Raises ModelNotFound."""
        model = mapping.model_id(context.service, name)
        if not model:
            return await self._default(context)
        ours = pb.GetModelRequest(service=context.service, model=model)
        found: model_pb2.Model = await self.behind.call("get_model", ours, context)
        return found

    async def _default(self, context: Context) -> model_pb2.Model:
        async for model in self._models(context):
            if model.is_default:
                return model
        own = context.service.removeprefix(mapping.SERVICES)
        raise errors.ModelNotFound(f"{context.service} has no default model; name one: {own}/MODEL")

    async def _models(self, context: Context) -> AsyncIterator[model_pb2.Model]:
        token = ""
        while True:
            ours = pb.ListModelsRequest(service=context.service, page_size=_PAGE, page_token=token)
            page: pb.ListModelsResponse = await self.behind.call("list_models", ours, context)
            for model in page.models:
                yield model
            token = page.next_page_token
            if not token:
                return
