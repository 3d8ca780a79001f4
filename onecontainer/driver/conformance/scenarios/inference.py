"""InferenceService: the models that are there, or a tiny one that the kit serves."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Sequence

from google.protobuf import json_format
from google.protobuf.message import Message

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, tensor_pb2, usage_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver.conformance.expect import refused, require
from onecontainer.driver.conformance.model import Skipped
from onecontainer.driver.conformance.scenarios.work import Work, Works
from onecontainer.driver.conformance.session import SERVICE, Sample, Session, Slow
from onecontainer.errors import Code, Reason

NAME = "onecontainer.api.ai.v1.InferenceService"
MODEL = "conformance"
HELD_ITEMS = 100
# y = 2 x + 1 over rows of three floats, opset 13: the smallest model whose answers tell callers apart.
ONNX_MODEL = base64.b64decode(
    "CAcSADpzChAKAXgKA3R3bxIBZCIDTXVsChAKAWQKA29uZRIBeSIDQWRkEgNraXQqDRABIgQAAABAQgN0d28qDRABIgQAAIA/"
    "QgNvbmVaFAoBeBIPCg0IARIJCgMSAW4KAggDYhQKAXkSDwoNCAESCQoDEgFuCgIIA0IECgAQDQ=="
)
# A PNG of 8 × 8 pixels, one colour.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mM4EaCBFTEMLQkAaplQAbIh774AAAAASUVORK5CYII="
)
SIZES = {
    tensor_pb2.DATA_TYPE_FLOAT32: 4,
    tensor_pb2.DATA_TYPE_FLOAT64: 8,
    tensor_pb2.DATA_TYPE_FLOAT16: 2,
    tensor_pb2.DATA_TYPE_INT64: 8,
    tensor_pb2.DATA_TYPE_INT32: 4,
    tensor_pb2.DATA_TYPE_UINT8: 1,
}
MOST_INPUT_BYTES = 4 * 1024 * 1024
NO_MODEL = (
    "there is no model that the kit could ask: give --examples with a ServeModel, or an option that brings one along"
)


class Inference:
    """The works of an InferenceService."""

    def __init__(self) -> None:
        self._model = ""
        self._inputs: list[Sequence[inference_pb2.Input]] = []
        """Inputs of the model that may be asked: each for one call."""
        self._served = False

    def works(self) -> Works:
        return {
            f"{NAME}/{method}": Work(run, after=tuple(f"{NAME}/{one}" for one in after))
            for method, run, after in (
                ("GetUsage", self.usage, ()),
                ("ServeModel", self.serve, ()),
                ("ListModels", self.list_models, ("ServeModel",)),
                ("GetModel", self.get, ("ListModels",)),
                ("Predict", self.predict, ("ServeModel",)),
                ("PredictStream", self.stream, ("Predict",)),
                ("BatchPredict", self.batch, ("Predict",)),
                ("GetModelStatistics", self.statistics, ("Predict",)),
                ("UnloadModel", self.unload, ("ServeModel",)),
            )
        }

    # --- models --------------------------------------------------------------------------------------------------------

    async def usage(self, session: Session) -> None:
        request = pb.GetUsageRequest(service=SERVICE)
        answer = await session.one_as(f"{NAME}/GetUsage", request, usage_pb2.Usage)
        require(answer.summary, "GetUsage", "no summary")
        listed = {function.method for function in answer.functions}
        claimed = {name for name in session.info.methods if name.startswith(f"{NAME}/")}
        told = f"functions that differ from its methods: {', '.join(sorted(listed ^ claimed))}"
        require(listed == claimed, "GetUsage", told)

    async def serve(self, session: Session) -> None:
        method = session.contract[f"{NAME}/ServeModel"]
        examples = session.examples.of(method.name)
        if examples:
            message = examples[0].messages(method, SERVICE)[0]
            request = pb.ServeModelRequest.FromString(message.SerializeToString())
        else:
            await self._takes_onnx(session)
            artifact = session.desk.keep(ONNX_MODEL, "model.onnx", "application/octet-stream")
            source = model_pb2.ModelSource(artifact=artifact, format="onnx")
            request = pb.ServeModelRequest(service=SERVICE, model=MODEL, config=model_pb2.ModelConfig(source=source))
        sent = f"Run of {method.short}"
        result = await session.result(method, request)
        served = pb.ServeModelResult.FromString(result.SerializeToString())
        wanted = f"{SERVICE}/models/{request.model.rpartition('/')[2]}"
        require(served.model.name == wanted, sent, f"the model {served.model.name!r} instead of {wanted!r}")
        state = model_pb2.ModelState.Name(served.model.state)
        require(served.model.state == model_pb2.MODEL_STATE_READY, sent, state)
        self._served = True
        self._model = request.model.rpartition("/")[2]
        session.jobs.append((method, request))

    async def _takes_onnx(self, session: Session) -> None:
        usage = f"{NAME}/GetUsage"
        if not session.claims(usage):
            raise Skipped("it does not tell which models it takes; give --examples with a ServeModel")
        told = await session.one_as(usage, pb.GetUsageRequest(service=SERVICE), usage_pb2.Usage)
        if "artifact" not in told.model_sources or "onnx" not in told.model_formats:
            raise Skipped("it takes no ONNX models as artifacts; give --examples with a ServeModel")

    async def list_models(self, session: Session) -> None:
        names = [model.name for model in await self._models(session)]
        require(names == sorted(names), "ListModels", f"not by name: {names}")
        if self._served:
            require(f"{SERVICE}/models/{self._model}" in names, "ListModels after ServeModel", f"{names}")

    async def _models(self, session: Session) -> list[model_pb2.Model]:
        found: list[model_pb2.Model] = []
        token = ""
        while True:
            request = pb.ListModelsRequest(service=SERVICE, page_size=100, page_token=token)
            page = await session.one_as(f"{NAME}/ListModels", request, pb.ListModelsResponse)
            found += page.models
            token = page.next_page_token
            if not token:
                return found

    async def _known(self, session: Session) -> model_pb2.Model:
        """The model that is asked. Raises Skipped if there is none."""
        models = await self._models(session) if session.claims(f"{NAME}/ListModels") else []
        wanted = f"{SERVICE}/models/{self._model}"
        models.sort(key=lambda model: (model.name != wanted, not model.is_default))
        ready = [model for model in models if model.state == model_pb2.MODEL_STATE_READY]
        if not ready:
            raise Skipped(NO_MODEL)
        self._model = ready[0].name.rpartition("/")[2]
        return ready[0]

    async def get(self, session: Session) -> None:
        known = await self._known(session)
        request = pb.GetModelRequest(service=SERVICE, model=self._model)
        model = await session.one_as(f"{NAME}/GetModel", request, model_pb2.Model)
        require(model.name == known.name, f"GetModel of {self._model}", f"the name {model.name!r}")
        require(model.versions and model.default_version, f"GetModel of {self._model}", "no versions")
        missing = pb.GetModelRequest(service=SERVICE, model="conformance-none")
        answer = await session.call(f"{NAME}/GetModel", missing)
        refused(answer, "GetModel of a model that is not there", Code.NOT_FOUND, Reason.MODEL_NOT_FOUND)

    # --- asking --------------------------------------------------------------------------------------------------------

    async def predict(self, session: Session) -> None:
        method = session.contract[f"{NAME}/Predict"]
        self._inputs = list(self._made(session, await self._version(session)))
        answers = []
        for inputs in self._inputs:
            request = pb.PredictRequest(service=SERVICE, model=self._model, inputs=inputs)
            answer = await session.one_as(method.name, request, pb.PredictResponse)
            sent = f"Predict with the model {self._model}"
            require(answer.model == f"{SERVICE}/models/{self._model}", sent, f"the model {answer.model!r}")
            require(answer.predictions, sent, "no predictions")
            answers.append(_predictions(answer))
            session.samples.append(Sample(method, request, _predictions))
        if self._served and not session.examples.of(f"{NAME}/ServeModel"):
            for number, inputs in enumerate(self._inputs):
                wanted = [2 * one + 1 for one in _row(number)]
                request = pb.PredictRequest(service=SERVICE, model=self._model, inputs=inputs)
                answer = await session.one_as(method.name, request, pb.PredictResponse)
                got = list(_floats(answer))
                require(got == wanted, f"Predict of 2 x + 1 for {_row(number)}", f"{got} instead of {wanted}")
        nothing = pb.PredictRequest(service=SERVICE, model=self._model)
        refused(
            await session.call(method.name, nothing),
            "Predict without inputs",
            Code.INVALID_ARGUMENT,
            Reason.FIELD_REQUIRED,
        )
        missing = pb.PredictRequest(service=SERVICE, model="conformance-none", inputs=self._inputs[0])
        answer_missing = await session.call(method.name, missing)
        refused(answer_missing, "Predict with a model that is not there", Code.NOT_FOUND, Reason.MODEL_NOT_FOUND)

    async def _version(self, session: Session) -> model_pb2.ModelVersion:
        model = await self._known(session)
        found = [version for version in model.versions if version.version == model.default_version]
        return found[0] if found else model_pb2.ModelVersion()

    def _made(self, session: Session, version: model_pb2.ModelVersion) -> Iterator[Sequence[inference_pb2.Input]]:
        """Three calls' inputs: what the model says it takes, or what the author's example of Predict has. Raises Skipped."""
        method = session.contract[f"{NAME}/Predict"]
        examples = [one for one in session.examples.of(method.name) if not one.error]
        if examples:
            for example in examples:
                message = example.messages(method, SERVICE)[0]
                yield pb.PredictRequest.FromString(message.SerializeToString()).inputs
            return
        if version.config.HasField("image"):
            yield [inference_pb2.Input(image=PNG)]
            return
        for number in range(4):
            yield [self._tensor(spec, number) for spec in version.inputs]
        if not version.inputs:
            raise Skipped(f"the model {self._model} does not say what it takes; give --examples with a Predict")

    def _tensor(self, spec: tensor_pb2.TensorSpec, number: int) -> inference_pb2.Input:
        shape = [1 if length < 0 else length for length in spec.shape]
        count = 1
        for length in shape:
            count *= length
        size = SIZES.get(spec.dtype, 0)
        if not size or count * size > MOST_INPUT_BYTES:
            raise Skipped(f"the kit cannot make up the input {spec.name!r}; give --examples with a Predict")
        floats = spec.dtype == tensor_pb2.DATA_TYPE_FLOAT32
        data = (
            struct.pack(f"<{count}f", *(float(number * 10 + at % 10) for at in range(count)))
            if floats
            else bytes(count * size)
        )
        return inference_pb2.Input(name=spec.name, tensor=tensor_pb2.Tensor(dtype=spec.dtype, shape=shape, data=data))

    async def stream(self, session: Session) -> None:
        method = f"{NAME}/PredictStream"
        inputs = self._asked()
        items: list[Message] = [
            pb.PredictStreamRequest(service=SERVICE, item_id=f"item-{number}", model=self._model, inputs=one)
            for number, one in enumerate(inputs)
        ]
        items.insert(1, pb.PredictStreamRequest(service=SERVICE, item_id="wrong", model=self._model))
        answers = await session.ask_as(method, items, pb.PredictStreamResponse)
        sent = f"PredictStream of {len(items)} items, the second of them wrong"
        require(
            [one.index for one in answers] == list(range(len(items))), sent, f"indices {[one.index for one in answers]}"
        )
        kinds = [one.WhichOneof("result") for one in answers]
        wanted = ["error" if number == 1 else "response" for number in range(len(items))]
        require(kinds == wanted, sent, f"results {kinds} instead of {wanted}")
        session.holding[method] = pb.PredictStreamRequest(
            service=SERVICE, model=self._model, inputs=inputs[0]
        ).SerializeToString()

    def _asked(self) -> list[Sequence[inference_pb2.Input]]:
        if not self._inputs:
            raise Skipped(NO_MODEL)
        return self._inputs

    async def batch(self, session: Session) -> None:
        method = session.contract[f"{NAME}/BatchPredict"]
        lines = [
            json_format.MessageToJson(pb.PredictStreamRequest(item_id=f"item-{number}", inputs=one), indent=None)
            for number, one in enumerate(self._asked())
        ]
        artifact = session.desk.keep("\n".join(lines).encode(), "items.jsonl", "application/jsonl")
        request = pb.BatchPredictRequest(service=SERVICE, model=self._model, source=pb.BatchSource(json_lines=artifact))
        sent = f"Run of BatchPredict of {len(lines)} lines"
        found = await session.result(method, request)
        result = pb.BatchPredictResult.FromString(found.SerializeToString())
        told = f"item_count {result.item_count}, failed_count {result.failed_count}"
        require((result.item_count, result.failed_count) == (len(lines), 0), sent, told)
        stored = session.desk.artifacts.get(result.artifact)
        require(stored is not None, sent, f"the artifact {result.artifact!r} was not uploaded")
        made = [] if stored is None else stored[1].splitlines()
        require(len(made) == len(lines), sent, f"{len(made)} lines in the result")
        session.jobs.append((method, request))
        # Each item waits for the kit to give it: so long the job runs.
        item = session.desk.keep(json.dumps(_row(0)).encode(), "item.json", "application/json")
        held = pb.BatchSource(artifacts=pb.ArtifactList(names=[item] * HELD_ITEMS))
        session.slow.append(
            Slow(method, pb.BatchPredictRequest(service=SERVICE, model=self._model, source=held), held=True)
        )

    async def statistics(self, session: Session) -> None:
        request = pb.GetModelStatisticsRequest(service=SERVICE, model=self._model)
        answer = await session.one_as(f"{NAME}/GetModelStatistics", request, pb.GetModelStatisticsResponse)
        counts = {one.model: one.inference_count for one in answer.models}
        wanted = f"{SERVICE}/models/{self._model}"
        require(counts.get(wanted, 0) > 0, "GetModelStatistics after Predict", f"the counts {counts}")

    async def unload(self, session: Session) -> None:
        if not self._served or session.examples.of(f"{NAME}/ServeModel"):
            raise Skipped("there is no model that the kit may unload")
        serve = session.contract[f"{NAME}/ServeModel"]
        source = model_pb2.ModelSource(
            artifact=session.desk.keep(ONNX_MODEL, "model.onnx", "application/octet-stream"), format="onnx"
        )
        config = model_pb2.ModelConfig(source=source)
        await session.result(serve, pb.ServeModelRequest(service=SERVICE, model=f"{MODEL}-gone", config=config))
        request = pb.UnloadModelRequest(service=SERVICE, model=f"{MODEL}-gone", forget=True)
        await session.one_as(f"{NAME}/UnloadModel", request, pb.UnloadModelResponse)
        if session.claims(f"{NAME}/GetModel"):
            gone = await session.call(f"{NAME}/GetModel", pb.GetModelRequest(service=SERVICE, model=f"{MODEL}-gone"))
            refused(gone, "GetModel of what was unloaded and forgotten", Code.NOT_FOUND, Reason.MODEL_NOT_FOUND)


def _row(number: int) -> list[float]:
    """What `_tensor` puts into a row of three."""
    return [float(number * 10 + at) for at in range(3)]


def _predictions(response: Message) -> object:
    """What of an answer is compared: not the time that it took."""
    told = pb.PredictResponse.FromString(response.SerializeToString())
    told.ClearField("timing")
    return told.SerializeToString(deterministic=True)


def _floats(response: pb.PredictResponse) -> Iterator[float]:
    for prediction in response.predictions:
        for one in prediction.tensors.tensors:
            yield from struct.unpack(f"<{len(one.tensor.data) // 4}f", one.tensor.data)
