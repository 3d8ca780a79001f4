"""The AI vertical: serve models and ask them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, tensor_pb2, usage_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.ai.v1.inference_service_pb2_grpc import InferenceServiceStub
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.client.calls import Caller, iterate
from onecontainer.client.jobs import AsyncJob, Jobs
from onecontainer.client.names import all_pages, full_name, json_value, struct

InputLike = inference_pb2.Input | tensor_pb2.Tensor | bytes | Path | str | dict[str, Any]
"""An Input, a tensor, an encoded image (bytes, or the Path of its file), an `artifacts/…` name, text, or a JSON object.

A list is several inputs."""


class Ai:
    """Calls of InferenceService. Each method takes the service first.

    Attributes:
        stub: the generated InferenceService stub.
    """

    def __init__(self, caller: Caller, jobs: Jobs) -> None:
        self._caller = caller
        self._jobs = jobs
        self.stub = caller.stub(InferenceServiceStub, pb.DESCRIPTOR.services_by_name["InferenceService"])

    async def usage(self, service: str, *, timeout: float | None = None) -> usage_pb2.Usage:
        """What the service can do."""
        request = pb.GetUsageRequest(service=full_name("services", service))
        return await self._caller.unary(self.stub.GetUsage, request, timeout=timeout)

    async def predict(
        self,
        service: str,
        inputs: InputLike | list[InputLike],
        *,
        model: str = "",
        version: str = "",
        top_k: int = 0,
        output: inference_pb2.OutputOptions | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> pb.PredictResponse:
        """Asks a model about one input or several (a list); one prediction for each, in order."""
        several: Sequence[InputLike] = inputs if isinstance(inputs, list) else [inputs]
        found = [await asyncio.to_thread(to_input, value) for value in several]
        wanted = inference_pb2.OutputOptions()
        if output is not None:
            wanted.CopyFrom(output)
        if top_k:
            wanted.top_k = top_k
        request = pb.PredictRequest(
            service=full_name("services", service),
            model=model,
            version=version,
            inputs=found,
            output=wanted,
            parameters=struct(parameters),
        )
        return await self._caller.unary(self.stub.Predict, request, timeout=timeout)

    async def predict_stream(
        self,
        service: str,
        items: Iterable[pb.PredictStreamRequest] | AsyncIterable[pb.PredictStreamRequest],
        *,
        timeout: float | None = None,
    ) -> AsyncGenerator[pb.PredictStreamResponse]:
        """Asks item by item over one stream: an answer or an error for each, in order."""
        name = full_name("services", service)

        async def named() -> AsyncGenerator[pb.PredictStreamRequest]:
            async for item in iterate(items):
                item.service = name
                yield item

        async with aclosing(self._caller.talk(self.stub.PredictStream, named(), timeout=timeout)) as answers:
            async for answer in answers:
                yield answer

    async def serve_model(
        self,
        service: str,
        model: str,
        *,
        version: str = "",
        config: model_pb2.ModelConfig | None = None,
        replace: bool = False,
        make_default_version: bool = False,
        make_default_model: bool = False,
        options: job_options_pb2.JobOptions | None = None,
        timeout: float | None = None,
    ) -> AsyncJob:
        """Loads a model, as a job whose result is a ServeModelResult."""
        request = pb.ServeModelRequest(
            service=full_name("services", service),
            job_options=options,
            model=model,
            version=version,
            config=config,
            replace=replace,
            make_default_version=make_default_version,
            make_default_model=make_default_model,
        )
        record = await self._caller.unary(self.stub.ServeModel, request, timeout=timeout)
        return self._jobs.handle(record)

    async def batch_predict(
        self,
        service: str,
        source: pb.BatchSource,
        *,
        model: str = "",
        version: str = "",
        output: inference_pb2.OutputOptions | None = None,
        parameters: Mapping[str, Any] | None = None,
        result_filename: str = "",
        parallelism: int = 0,
        max_failed_items: int | None = None,
        options: job_options_pb2.JobOptions | None = None,
        timeout: float | None = None,
    ) -> AsyncJob:
        """Asks a model about many artifacts, as a job whose result is a BatchPredictResult."""
        request = pb.BatchPredictRequest(
            service=full_name("services", service),
            job_options=options,
            model=model,
            version=version,
            source=source,
            output=output,
            parameters=struct(parameters),
            result_filename=result_filename,
            parallelism=parallelism,
            max_failed_items=max_failed_items,
        )
        record = await self._caller.unary(self.stub.BatchPredict, request, timeout=timeout)
        return self._jobs.handle(record)

    async def get_model(self, service: str, model: str, *, timeout: float | None = None) -> model_pb2.Model:
        """A model with its versions; raises ModelNotFound."""
        request = pb.GetModelRequest(service=full_name("services", service), model=model)
        return await self._caller.unary(self.stub.GetModel, request, timeout=timeout)

    async def list_models(
        self,
        service: str,
        *,
        filter: str = "",  # noqa: A002 - the contract's word
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Sequence[model_pb2.Model]:
        """Models that are known, in whatever state."""

        async def fetch(size: int, token: str) -> tuple[Sequence[model_pb2.Model], str]:
            request = pb.ListModelsRequest(
                service=full_name("services", service), page_size=size, page_token=token, filter=filter
            )
            page = await self._caller.unary(self.stub.ListModels, request, timeout=timeout)
            return page.models, page.next_page_token

        return [model async for model in all_pages(fetch, limit)]

    async def unload_model(
        self, service: str, model: str, *, version: str = "", forget: bool = False, timeout: float | None = None
    ) -> pb.UnloadModelResponse:
        """Takes a version out of memory; answers when the memory is free."""
        request = pb.UnloadModelRequest(
            service=full_name("services", service), model=model, version=version, forget=forget
        )
        return await self._caller.unary(self.stub.UnloadModel, request, timeout=timeout)

    async def statistics(
        self, service: str, *, model: str = "", version: str = "", timeout: float | None = None
    ) -> pb.GetModelStatisticsResponse:
        """What models have done since the sidecar started."""
        request = pb.GetModelStatisticsRequest(service=full_name("services", service), model=model, version=version)
        return await self._caller.unary(self.stub.GetModelStatistics, request, timeout=timeout)


def to_input(value: InputLike) -> inference_pb2.Input:
    """An Input of what stands for one. Reads the file of a Path."""
    match value:
        case inference_pb2.Input():
            return value
        case tensor_pb2.Tensor():
            return inference_pb2.Input(tensor=value)
        case bytes():
            return inference_pb2.Input(image=value)
        case Path():
            return inference_pb2.Input(image=value.read_bytes())
        case str() if value.startswith("artifacts/"):
            return inference_pb2.Input(artifact=value)
        case str():
            return inference_pb2.Input(text=value)
        case _:
            return inference_pb2.Input(json=json_value(value))
