"""Predict: one question to the server, or one per item."""

from __future__ import annotations

import asyncio

from google.protobuf import struct_pb2

from onecontainer.api.ai.v1 import inference_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver import Context, errors
from onecontainer_driver_oip.answers import broken, prediction_of
from onecontainer_driver_oip.inputs import requests_of
from onecontainer_driver_oip.models import NO_VERSION, NOT_THERE, Models, model_name
from onecontainer_driver_oip.served import Served
from onecontainer_driver_oip.upstream import Code, Unanswered, typed

AT_ONCE = 8
"""Items of one call that are with the server at the same time."""

Question = pb.PredictRequest | pb.PredictStreamRequest


async def predict(models: Models, request: Question, context: Context) -> pb.PredictResponse:
    """Raises what the contract lists for Predict."""
    name = model_name(context.service, request.model) or await models.default(context)
    served = models.target(name)
    version = _version(served, request.version)
    answers = await _answers(models, name, served, version, request, context)
    predictions = [prediction_of(one, request.output.kind) for one in answers]
    return pb.PredictResponse(
        model=f"{context.service}/models/{name}",
        version=answers[0].model_version or version or served.version or NO_VERSION,
        predictions=predictions,
    )


def _version(served: Served, wanted: str) -> str:
    """The version to ask for. Raises ModelNotFound for another one than a name stands for."""
    if served.version and wanted and wanted != served.version:
        raise errors.ModelNotFound(f"this name stands for version {served.version} of {served.model}")
    return served.version or wanted


async def _answers(
    models: Models, name: str, served: Served, version: str, request: Question, context: Context
) -> list[oip.ModelInferResponse]:
    try:
        known = await models.spec(served, version, context)
    except Unanswered as error:
        raise await absent(models, name, served, version, error, context) from error
    try:
        questions = _questions(served, version, request, known)
    except errors.OneContainerError:
        # What the model takes may have changed since it was asked.
        try:
            known = await models.spec(served, version, context, fresh=True)
        except Unanswered as error:
            raise await absent(models, name, served, version, error, context) from error
        questions = _questions(served, version, request, known)
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(question: oip.ModelInferRequest) -> oip.ModelInferResponse:
        async with slots:
            answer = await models.upstream.ask(
                "ModelInfer", question, oip.ModelInferResponse, remaining=context.time_remaining()
            )
        if answer.model_name and answer.model_name != served.model:
            raise broken(f"{answer.model_name!r} has answered for {served.model!r}")
        return answer

    try:
        if len(questions) == 1:
            return [await ask(questions[0])]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(question)) for question in questions]
        return [task.result() for task in tasks]
    except Unanswered as error:
        raise await _refused(models, name, served, version, error, context) from error
    except BaseExceptionGroup as group_of:
        first = group_of.exceptions[0]
        if isinstance(first, Unanswered):
            raise await _refused(models, name, served, version, first, context) from first
        raise first from None


def _questions(
    served: Served, version: str, request: Question, spec: oip.ModelMetadataResponse
) -> list[oip.ModelInferRequest]:
    parameters = request.parameters if request.HasField("parameters") else struct_pb2.Struct()
    output = request.output if request.HasField("output") else inference_pb2.OutputOptions()
    sent = "" if version == NO_VERSION and not spec.versions else version
    return requests_of(served.model, sent, request.inputs, output, parameters, spec)


async def _refused(
    models: Models, name: str, served: Served, version: str, error: Unanswered, context: Context
) -> errors.OneContainerError:
    """Why the server did not answer: it does not have the model, or the model does not take the data."""
    models.forget(served)
    if error.code in NOT_THERE and not await models.ready(served, version, context):
        return await absent(models, name, served, version, error, context)
    if error.code is Code.INVALID_ARGUMENT:
        return errors.DataInvalid("inputs", f"the model does not take them: {error.message}", hop="backend")
    return typed(error, f"the inference with {served.model}")


async def absent(
    models: Models, name: str, served: Served, version: str, error: Unanswered, context: Context
) -> errors.OneContainerError:
    """ModelNotFound, ModelNotReady, or what else the status says."""
    if error.code not in NOT_THERE:
        return typed(error, f"the model {served.model}")
    listed = (await models.index(context)).get(served.model)
    if listed is not None and (not version or version in listed.versions or "" in listed.versions):
        state, reason = next(iter(listed.versions.values()))
        if state != "READY":
            return errors.ModelNotReady(
                f"{name} is {state or 'not ready'} on the inference server{f': {reason}' if reason else ''}; load it there, or serve it "
                "with manage_repository",
                metadata={"model_state": state or "UNKNOWN"},
                hop="backend",
            )
    what = f"{served.model}, version {version}" if version else served.model
    return errors.ModelNotFound(
        f"the inference server has no model {what[:200]!r}: {error.message[:200]}; ListModels tells which there are"
    )
