"""The driver itself: which call goes where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.ai.v1 import model_pb2, usage_pb2
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver import Attachment, Context, InferenceDriver, ProbeResult, Requests, errors, to_status
from onecontainer_driver_oip import serving
from onecontainer_driver_oip.models import Models, model_name
from onecontainer_driver_oip.predict import predict
from onecontainer_driver_oip.served import ServedModels
from onecontainer_driver_oip.settings import read_settings
from onecontainer_driver_oip.upstream import Code, Unanswered, Upstream, typed
from onecontainer_driver_oip.usage import usage

MAX_ITEM_ID = 128
USAGE_MODELS = 100


class OipDriver(InferenceDriver):
    """The models of an inference server that speaks the Open Inference Protocol."""

    _models: Models | None = None

    async def attach(self, attachment: Attachment) -> None:
        settings = read_settings(attachment.options, attachment.endpoints)
        served = await asyncio.to_thread(ServedModels, attachment.state_dir)
        self._models = Models(Upstream(settings), served)

    async def detach(self) -> None:
        models, self._models = self._models, None
        if models is not None:
            await models.upstream.close()

    @property
    def _attached(self) -> Models:
        if self._models is None:
            raise errors.NotAttached("the driver is not attached to a service")
        return self._models

    async def probe(self) -> ProbeResult:
        """It is there, it takes calls, or it is still starting; a server of another kind is told as broken."""
        upstream = self._attached.upstream
        timeout = upstream.settings.probe_timeout
        try:
            live = await upstream.ask("ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse, remaining=timeout)
            ready = await upstream.ask(
                "ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse, remaining=timeout
            )
            told = await upstream.ask(
                "ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse, remaining=timeout
            )
        except errors.DeadlineExceeded as error:
            raise upstream.unreachable(f"no answer in {timeout} s") from error
        except Unanswered as error:
            if error.code is Code.UNIMPLEMENTED:
                raise errors.BackendExecutionFailed(
                    f"{upstream.settings.target} speaks gRPC, but not the Open Inference Protocol",
                    code=Code.FAILED_PRECONDITION,
                ) from error
            raise typed(error, "the probe") from error
        working = live.live and ready.ready
        return ProbeResult(
            ready=working,
            message="" if working else "the inference server is live, but not ready",
            backend_version=f"{told.name} {told.version}".strip(),
            details={"target": upstream.settings.target, "extensions": ", ".join(told.extensions)},
        )

    async def get_usage(self, request: pb.GetUsageRequest, context: Context) -> usage_pb2.Usage:
        models = self._attached
        listed = await models.list(pb.ListModelsRequest(page_size=USAGE_MODELS), context)
        settings = models.upstream.settings
        return usage(context.service, settings.target, settings.max_message_bytes, list(listed.models))

    async def serve_model(self, request: pb.ServeModelRequest, context: Context) -> pb.ServeModelResult:
        return await serving.serve(self._attached, request, context)

    async def unload_model(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        return await serving.unload(self._attached, request, context)

    async def get_model(self, request: pb.GetModelRequest, context: Context) -> model_pb2.Model:
        name = model_name(context.service, request.model)
        if not name:
            raise errors.FieldRequired("model")
        return await self._attached.get(name, context)

    async def list_models(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return await self._attached.list(request, context)

    async def predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        return await predict(self._attached, request, context)

    async def predict_stream(
        self, requests: Requests[pb.PredictStreamRequest], context: Context
    ) -> AsyncIterator[pb.PredictStreamResponse]:
        """One item at a time: the next is not read before the answer is taken."""
        index = 0
        async for request in requests:
            if request.service and request.service != context.service:
                raise errors.FieldInvalid("service", f"the stream is for {context.service}")
            response = pb.PredictStreamResponse(index=index, item_id=request.item_id[:MAX_ITEM_ID])
            index += 1
            try:
                if len(request.item_id) > MAX_ITEM_ID:
                    raise errors.FieldInvalid("item_id", f"has more than {MAX_ITEM_ID} characters")
                response.response.CopyFrom(await predict(self._attached, request, context))
            except errors.OneContainerError as error:
                response.error.CopyFrom(to_status(error))
            yield response
