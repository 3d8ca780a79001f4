"""Base class of drivers that run models themselves: their life cycle, and the methods of the contract over a repository of models."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf import struct_pb2

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, usage_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import Context, ProbeResult, Requests, errors
from onecontainer.driver.ai import InferenceDriver
from onecontainer.driver.models import predict as prediction
from onecontainer.driver.models.batch import Batches
from onecontainer.driver.models.calls import Calls
from onecontainer.driver.models.config import Rules, checked, model_id, version_id
from onecontainer.driver.models.mapping import list_models, model_to_proto, statistics_to_proto
from onecontainer.driver.models.repository import Repository
from onecontainer.driver.models.request import Fetched, Limits, plan
from onecontainer.driver.models.served import Served
from onecontainer.driver.models.statistics import CallTimes
from onecontainer.driver.models.trial import try_out, try_rows
from onecontainer.driver.models.version import Fetch, Report, Version

if TYPE_CHECKING:
    from onecontainer.driver.artifacts import Artifacts

log = logging.getLogger(__name__)

FIRST_RETRY, LAST_RETRY = 2.0, 60.0
SWEEP_SECONDS = 1.0
LOAD_PATIENCE = 600.0
"""Seconds that one model's load may keep the service from being ready, and the next model from being loaded; it goes on beside them."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_options(options: Mapping[str, Any]) -> None:
    """Checks the options that all these drivers have. Raises FieldInvalid."""
    for name in ("threads", "concurrency", "max_loaded_models"):
        if not 0 <= options[name] <= 1024:
            raise errors.FieldInvalid(f"options.{name}", "must be 0 to 1024")
    for name in ("max_image_pixels", "max_image_bytes", "max_model_bytes"):
        if options[name] < 1:
            raise errors.FieldInvalid(f"options.{name}", "must be more than 0")


@dataclass(frozen=True, slots=True)
class ModelBackend:
    """Everything of one attachment."""

    repository: Repository
    calls: Calls
    batches: Batches
    max_model_bytes: int
    fetch: Callable[[Artifacts | None], Fetch]
    """How a load gets its material; None: from what was kept."""
    starting: list[Version] = field(default_factory=list)
    """Versions that were served before, and built-in ones: they come back before the service is ready."""


class ModelDriver(InferenceDriver):
    """What is left to the driver: an `attach` that ends in `start`, its rules, and what it tells of itself."""

    def __init__(self) -> None:
        self._backend: ModelBackend | None = None
        self._loader: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._late: set[asyncio.Task[None]] = set()
        """Loads that nothing waits for any more."""
        self._broken: errors.OneContainerError | None = None

    @property
    def _attached(self) -> ModelBackend:
        if self._backend is None:
            raise errors.NotAttached("the driver is not attached to a service")
        return self._backend

    @abstractmethod
    async def rules(self) -> Rules:
        """What it takes of a ModelConfig. Raises why no model can be served."""

    @abstractmethod
    async def runtime_version(self) -> str:
        """Of what runs the models. Raises why it does not run."""

    @abstractmethod
    async def usage(self, backend: ModelBackend, service: str) -> usage_pb2.Usage:
        """What the service can do."""

    # --- life cycle ----------------------------------------------------------------------------------------------------

    def start(self, backend: ModelBackend) -> None:
        """Brings back what was served; the last thing in `attach`."""
        self._backend = backend
        self._loader = asyncio.create_task(self._load_all(backend))
        self._sweeper = asyncio.create_task(self._sweep(backend))

    async def _load_all(self, backend: ModelBackend) -> None:
        """Loads what is to be there. A built-in model is tried again until it is: its weights come over the network."""
        delay = FIRST_RETRY
        while backend.starting:
            again = []
            for found in list(backend.starting):
                try:
                    await self._load_again(backend, found)
                    self._broken = None
                except errors.OneContainerError as error:
                    if found.brought is not None:
                        self._broken = error
                        again.append(found)
                        continue
                backend.starting.remove(found)
            if again:
                await asyncio.sleep(delay)
                delay = min(delay * 2, LAST_RETRY)

    async def _load_again(self, backend: ModelBackend, found: Version) -> None:
        """Raises what the load raises, unless it takes longer than LOAD_PATIENCE: then it goes on, and the version is LOADING."""
        load = asyncio.create_task(backend.repository.load_again(found))
        self._late.add(load)
        try:
            await asyncio.wait_for(asyncio.shield(load), LOAD_PATIENCE)
        except TimeoutError:
            log.warning(
                "%s is still not loaded after %g s; the service does not wait for it", found.model, LOAD_PATIENCE
            )
            load.add_done_callback(self._late_end)
            return
        except asyncio.CancelledError:
            load.cancel()
            raise
        finally:
            if load.done():
                self._late.discard(load)

    def _late_end(self, load: asyncio.Task[None]) -> None:
        self._late.discard(load)
        if not load.cancelled():
            # Taken note of: the version tells it.
            load.exception()

    async def _sweep(self, backend: ModelBackend) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await backend.repository.unload_idle()

    async def detach(self) -> None:
        tasks = [task for task in (self._loader, self._sweeper, *self._late) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loader = self._sweeper = None
        backend, self._backend, self._broken = self._backend, None, None
        if backend is not None:
            await asyncio.to_thread(backend.calls.pool.shutdown, cancel_futures=True)
            await backend.repository.close()

    async def probe(self) -> ProbeResult:
        """Ready when what was served before, and a built-in model, is back."""
        backend = self._attached
        version = await self.runtime_version()
        for task in (self._loader, self._sweeper):
            if task is not None and task.done():
                # A defect in them must not look like a long start, or like nothing.
                task.result()
        if backend.starting:
            if self._broken is not None:
                raise self._broken
            names = ", ".join(f"{v.model} ({v.phase or 'waits'})" for v in backend.starting)
            return ProbeResult(ready=False, message=f"loading {names}", backend_version=version)
        repository = backend.repository
        versions = [found for name in repository.names() for found in repository.versions(name)]
        ready = [found for found in versions if found.served is not None]
        failed = [f"{found.model}/{found.version}" for found in versions if found.state == model_pb2.MODEL_STATE_FAILED]
        message = f"{len(ready)} models are ready" + (f"; failed: {', '.join(failed)}" if failed else "")
        return ProbeResult(
            ready=True,
            message=message,
            backend_version=version,
            details={"models_ready": str(len(ready)), "models_failed": str(len(failed))},
        )

    # --- models --------------------------------------------------------------------------------------------------------

    async def get_usage(self, request: pb.GetUsageRequest, context: Context) -> usage_pb2.Usage:
        return await self.usage(self._attached, context.service)

    async def serve_model(self, request: pb.ServeModelRequest, context: Context) -> pb.ServeModelResult:
        backend = self._attached
        model = model_id(context.service, request.model)
        if not model:
            raise errors.FieldRequired("model")
        config = checked(request.config, await self.rules()) if request.HasField("config") else None
        warm_up = try_out
        if request.warm_up:
            fetched = await backend.calls.fetch(request.warm_up, context, "warm_up")
            warm_up = functools.partial(_warm_up, request=request, fetched=fetched, limits=backend.calls.limits)
        # A call that reaches the sidecar without a gateway has no artifacts, and does not need any for the other sources.
        stored = config is None or _has_artifacts(config)
        found, already = await backend.repository.serve(
            model,
            version_id(request.version),
            config,
            backend.fetch(context.artifacts if stored else None),
            _progress(context),
            replace=request.replace,
            make_default_version=request.make_default_version,
            make_default_model=request.make_default_model,
            warm_up=warm_up,
        )
        return pb.ServeModelResult(
            model=model_to_proto(backend.repository, context.service, found.model),
            version=found.version,
            already_served=already,
        )

    async def get_model(self, request: pb.GetModelRequest, context: Context) -> model_pb2.Model:
        model = model_id(context.service, request.model)
        if not model:
            raise errors.FieldRequired("model")
        return model_to_proto(self._attached.repository, context.service, model)

    async def list_models(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return list_models(self._attached.repository, context.service, request)

    async def unload_model(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        repository = self._attached.repository
        model = model_id(context.service, request.model)
        if not model:
            raise errors.FieldRequired("model")
        released = await repository.unload(model, version_id(request.version), forget=request.forget)
        left = model_pb2.Model(name=f"{context.service}/models/{model}")
        if model in repository.names():
            left = model_to_proto(repository, context.service, model)
        return pb.UnloadModelResponse(model=left, released_bytes=released)

    async def get_model_statistics(
        self, request: pb.GetModelStatisticsRequest, context: Context
    ) -> pb.GetModelStatisticsResponse:
        repository = self._attached.repository
        model, version = model_id(context.service, request.model), version_id(request.version)
        if version and not model:
            raise errors.FieldInvalid("version", "needs `model`")
        if version:
            chosen = [repository.find(model, version)]
        else:
            names = [model] if model else repository.names()
            chosen = [v for name in names for v in sorted(repository.versions(name), key=lambda v: v.version)]
        return pb.GetModelStatisticsResponse(models=[statistics_to_proto(context.service, v) for v in chosen])

    # --- calls ---------------------------------------------------------------------------------------------------------

    async def predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        return await self._attached.calls.predict(
            request.model, request.version, request.inputs, request.output, request.parameters, context
        )

    async def predict_stream(
        self, requests: Requests[pb.PredictStreamRequest], context: Context
    ) -> AsyncIterator[pb.PredictStreamResponse]:
        answers = self._attached.calls.stream(requests, context)
        try:
            async for answer in answers:
                yield answer
        finally:
            await answers.aclose()

    async def batch_predict(self, request: pb.BatchPredictRequest, context: Context) -> pb.BatchPredictResult:
        return await self._attached.batches.run(request, context)


def _has_artifacts(config: model_pb2.ModelConfig) -> bool:
    hub = config.source.torch_hub
    return (
        config.source.HasField("artifact")
        or config.classification.labels.HasField("artifact")
        or bool(hub.repo_artifact or hub.weights_artifact)
    )


def _progress(context: Context) -> Report:
    """Tells the job how far a load is. Bytes count while the model is fetched; what comes then has no measure."""
    done = 0
    whole: int | None = None

    def report(
        phase: pb.ServeModelPhase.ValueType, message: str = "", fetched: int = 0, total: int | None = None
    ) -> None:
        nonlocal done, whole
        done, whole = max(done, fetched), whole if total is None else total
        details = pb.ServeModelProgress(phase=phase, fetched_bytes=done)
        if whole is not None:
            details.total_bytes = whole
        name = pb.ServeModelPhase.Name(phase).removeprefix("SERVE_MODEL_PHASE_").lower().replace("_", " ")
        context.progress(done, whole, "bytes" if whole is not None else "", message or name, details)

    return report


def _warm_up(served: Served, *, request: pb.ServeModelRequest, fetched: Mapping[str, Fetched], limits: Limits) -> None:
    """Tries a model with the caller's own input; what it raises is why the load fails."""
    checked_input = plan(
        served, request.warm_up, inference_pb2.OutputOptions(), struct_pb2.Struct(), fetched, "warm_up"
    )
    prediction.predict(served, checked_input, limits, CallTimes(), lambda: False)
    try_rows(served)
