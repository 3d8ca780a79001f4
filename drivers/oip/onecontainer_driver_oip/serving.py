"""ServeModel and UnloadModel: names of ours for models of the server, loaded and unloaded there if that is asked for."""

from __future__ import annotations

import asyncio
import re

from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.ai.v1 import model_pb2
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver import Context, errors
from onecontainer_driver_oip.models import NO_VERSION, NOT_THERE, Models, model_name
from onecontainer_driver_oip.served import Served
from onecontainer_driver_oip.upstream import Code, Unanswered, typed

MODEL_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
POLL_SECONDS = 0.2


async def serve(models: Models, request: pb.ServeModelRequest, context: Context) -> pb.ServeModelResult:
    """Raises what the contract lists for ServeModel."""
    name = model_name(context.service, request.model)
    wanted = _wanted(models, name, request)
    before = models.served.get(name)
    if before is not None and before != wanted and not request.replace:
        raise errors.ResourceConflict(
            f"{name} stands for {before.model!r} already: set `replace`, or take another name",
            resource=("onecontainer.dev/Model", f"{context.service}/models/{name}"),
        )
    already = before == wanted and await models.ready(wanted, "", context)
    if not already:
        if wanted.managed:
            context.progress(0, None, "", "loading", pb.ServeModelProgress(phase=pb.SERVE_MODEL_PHASE_LOADING))
            await _repository(models, wanted, context, load=True)
        elif not await models.ready(wanted, "", context):
            raise await _not_ready(models, wanted, context)
        models.forget(wanted)
        models.served.put(name, wanted)
    model = await models.get(name, context)
    return pb.ServeModelResult(model=model, version=model.default_version, already_served=already)


def _wanted(models: Models, name: str, request: pb.ServeModelRequest) -> Served:
    if not name:
        raise errors.FieldRequired("model")
    if request.make_default_model:
        raise errors.FieldInvalid("make_default_model", "is not supported here: set the option `default_model`")
    if request.warm_up:
        raise errors.FieldInvalid("warm_up", "is not supported here: the server warms its models up itself")
    if not request.HasField("config"):
        known = models.served.get(name)
        if known is None:
            raise errors.ModelNotFound(f"{name[:64]} was not served here: give a `config` with `source.oip`")
        return known
    if not MODEL_ID.fullmatch(name):
        raise errors.FieldInvalid("model", f"must match {MODEL_ID.pattern}")
    config = request.config
    kind = config.source.WhichOneof("source")
    if kind is None:
        raise errors.FieldRequired("config.source")
    if kind != "oip":
        raise errors.FieldInvalid(f"config.source.{kind}", "is not a source here; oip is")
    for part in ("image", "classification", "execution", "dynamic_batching", "residency"):
        if config.HasField(part):
            raise errors.FieldInvalid(f"config.{part}", "is the server's own matter here; leave it out")
    source = config.source.oip
    version = request.version or source.version
    if source.version and version != source.version:
        raise errors.FieldInvalid("version", f"must be that of the source, {source.version!r}, or empty")
    return Served(
        source.model or name, "" if version == NO_VERSION and not source.version else version, source.manage_repository
    )


async def _not_ready(models: Models, wanted: Served, context: Context) -> errors.OneContainerError:
    if wanted.model in await models.index(context):
        return errors.ModelNotReady(
            f"the inference server has {wanted.model!r}, but not loaded: load it there, or set `manage_repository`"
        )
    return errors.ModelNotFound(f"the inference server has no model {wanted.model[:200]!r}")


async def _repository(models: Models, wanted: Served, context: Context, *, load: bool) -> None:
    """Has the server load or unload, and waits until it has."""
    method = "RepositoryModelLoad" if load else "RepositoryModelUnload"
    try:
        if load:
            await models.upstream.ask(
                method,
                oip.RepositoryModelLoadRequest(model_name=wanted.model),
                oip.RepositoryModelLoadResponse,
                remaining=context.time_remaining(),
            )
        else:
            await models.upstream.ask(
                method,
                oip.RepositoryModelUnloadRequest(model_name=wanted.model),
                oip.RepositoryModelUnloadResponse,
                remaining=context.time_remaining(),
            )
    except Unanswered as error:
        if not load and error.code in NOT_THERE:
            return
        if error.code is Code.UNIMPLEMENTED:
            raise errors.BackendCapabilityMissing(
                "config.source.oip.manage_repository", "this inference server has no model repository to load from"
            ) from error
        if error.code is Code.NOT_FOUND:
            raise errors.ModelNotFound(
                f"the inference server has no model {wanted.model[:200]!r}: {error.message}"
            ) from error
        raise typed(error, f"to {'load' if load else 'unload'} {wanted.model}") from error
    models.forget(wanted)
    # Until the call's deadline, or the job's: the protocol has no way to be told.
    while await models.ready(wanted, "", context) != load:  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)


async def unload(models: Models, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
    """Only what was served with `manage_repository` is unloaded there; another name of ours can be forgotten."""
    name = model_name(context.service, request.model)
    if not name:
        raise errors.FieldRequired("model")
    served = models.served.get(name)
    model = await models.get(name, context)
    if request.version and request.version not in {one.version for one in model.versions}:
        raise errors.ModelNotFound(f"{name} has no version {request.version[:64]!r}")
    if served is None or not (served.managed or request.forget):
        raise errors.BackendCapabilityMissing(
            "model", "belongs to the inference server: unload it there, or serve it here with `manage_repository` first"
        )
    if served.managed:
        await _repository(models, served, context, load=False)
    if request.forget:
        models.served.remove(name)
        return pb.UnloadModelResponse(model=model_pb2.Model(name=model.name))
    return pb.UnloadModelResponse(model=await models.get(name, context))
