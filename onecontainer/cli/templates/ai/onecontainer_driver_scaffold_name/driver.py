"""What the gateway calls: messages in, messages out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from google.protobuf import json_format

from onecontainer.api.ai.v1 import inference_pb2, model_pb2, usage_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import Attachment, Context, InferenceDriver, ProbeResult, errors, to_status
from onecontainer_driver_scaffold_name.classifier import LANGUAGES, Classifier

SERVICE = "onecontainer.api.ai.v1.InferenceService"
FUNCTIONS = {
    "BatchPredict": "A class for each text of a batch.",
    "GetModel": "The model.",
    "GetUsage": "What can be called.",
    "ListModels": "The model, in a list.",
    "Predict": "A class for each text.",
}
MODEL, VERSION = "text", "1"
DEFAULT_TOP_K = 5
MAX_TOP_K = 1000
MAX_BYTES_PER_CHAR = 4
MAX_LINES_BYTES = 16 * 1024 * 1024

Item = tuple[str, Callable[[], Awaitable[pb.PredictResponse]]]


class ScaffoldNameDriver(InferenceDriver):
    """Classifies text."""

    _classifier: Classifier | None = None

    def attach(self, attachment: Attachment) -> None:
        examples = attachment.options["examples"] or LANGUAGES
        if len(examples) < 2 or not all(isinstance(text, str) and text for text in examples.values()):
            raise errors.FieldInvalid("options.examples", "must have at least two labels, each with a text")
        self._max_chars: int = attachment.options["max_chars"]
        self._classifier = Classifier(examples)

    def detach(self) -> None:
        self._classifier = None

    def probe(self) -> ProbeResult:
        # With a backend: ask it, each time.
        self._model.classify("the answer")
        return ProbeResult(ready=True, backend_version=VERSION)

    @property
    def _model(self) -> Classifier:
        if self._classifier is None:
            raise errors.NotAttached("the driver is not attached to a service")
        return self._classifier

    def get_usage(self, request: pb.GetUsageRequest, context: Context) -> usage_pb2.Usage:
        return usage_pb2.Usage(
            summary="Classifies text.",
            functions=[
                usage_pb2.UsageFunction(method=f"{SERVICE}/{name}", description=description)
                for name, description in FUNCTIONS.items()
            ],
            built_in_models=[MODEL],
            models=[self._describe(context)],
        )

    def list_models(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        if request.page_token:
            raise errors.FieldInvalid("page_token", "is none of ours: all models are on the first page")
        state = request.filter.replace(" ", "").replace('"', "").removeprefix("state=")
        if request.filter and state not in {"READY", "LOADING", "FAILED", "UNLOADED"}:
            raise errors.FieldInvalid("filter", 'must be `state = "READY"`, or another state')
        return pb.ListModelsResponse(models=[self._describe(context)] if state in {"", "READY"} else [])

    def get_model(self, request: pb.GetModelRequest, context: Context) -> model_pb2.Model:
        if not request.model:
            raise errors.FieldRequired("model")
        _check_model(request.model, "", context)
        return self._describe(context)

    def predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        _check_model(request.model, request.version, context)
        _check_output(request.output)
        if not request.inputs:
            raise errors.FieldRequired("inputs")
        texts = []
        for index, item in enumerate(request.inputs):
            if item.WhichOneof("value") != "text":
                raise errors.FieldInvalid(f"inputs[{index}]", "must be `text`")
            texts.append(item.text)
        return self._answer(texts, [f"inputs[{index}].text" for index in range(len(texts))], request.output, context)

    async def batch_predict(self, request: pb.BatchPredictRequest, context: Context) -> pb.BatchPredictResult:
        _check_model(request.model, request.version, context)
        _check_output(request.output)
        items = await self._items(request, context)
        lines = context.scratch / "predictions.jsonl"
        failed = done = 0
        with lines.open("w") as file:
            for index, (name, classify) in enumerate(items):
                if context.finishing:
                    break
                line = pb.BatchPredictLine(index=index, item=name)
                try:
                    line.response.CopyFrom(await classify())
                except errors.OneContainerError as error:
                    # An item that fails does not fail the others.
                    line.error.CopyFrom(to_status(error))
                    failed += 1
                file.write(json_format.MessageToJson(line, indent=None) + "\n")
                done += 1
                context.progress(done, len(items), unit="items")
        filename = request.result_filename or lines.name
        artifact = await context.artifacts.put(lines, filename=filename, media_type="application/jsonl")
        return pb.BatchPredictResult(
            artifact=artifact.name,
            item_count=done,
            failed_count=failed,
            model=f"{context.service}/models/{MODEL}",
            version=VERSION,
        )

    async def _items(self, request: pb.BatchPredictRequest, context: Context) -> list[Item]:
        """Name of each item, and what classifies it."""
        match request.source.WhichOneof("source"):
            case "artifacts":
                names = request.source.artifacts.names
                if not names:
                    raise errors.FieldRequired("source.artifacts.names")
                return [(name, partial(self._classify_artifact, name, request.output, context)) for name in names]
            case "json_lines":
                data = await context.artifacts.read_bytes(request.source.json_lines, MAX_LINES_BYTES)
                return [
                    (line.item_id, partial(self._classify_line, line, request.output, context)) for line in _lines(data)
                ]
            case None:
                raise errors.FieldRequired("source")
            case other:
                raise errors.FieldInvalid(f"source.{other}", "must be `artifacts` or `json_lines`")

    async def _classify_line(
        self, line: pb.PredictStreamRequest, output: inference_pb2.OutputOptions, context: Context
    ) -> pb.PredictResponse:
        return self.predict(pb.PredictRequest(inputs=line.inputs, output=output), context)

    async def _classify_artifact(
        self, name: str, output: inference_pb2.OutputOptions, context: Context
    ) -> pb.PredictResponse:
        data = await context.artifacts.read_bytes(name, self._max_chars * MAX_BYTES_PER_CHAR)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise errors.DataInvalid("source.artifacts.names", f"{name} is not text in UTF-8") from None
        return self._answer([text], ["source.artifacts.names"], output, context)

    def _answer(
        self, texts: Sequence[str], paths: Sequence[str], output: inference_pb2.OutputOptions, context: Context
    ) -> pb.PredictResponse:
        response = pb.PredictResponse(model=f"{context.service}/models/{MODEL}", version=VERSION)
        for text, path in zip(texts, paths, strict=True):
            if len(text) > self._max_chars:
                raise errors.DataInvalid(path, f"has more than {self._max_chars} characters")
            try:
                found = self._model.classify(text)
            except ValueError as error:
                raise errors.DataInvalid(path, str(error)) from error
            classes = response.predictions.add().classification.classes
            for index, probability in found[: output.top_k or DEFAULT_TOP_K]:
                if probability >= output.min_probability:
                    classes.add(label=self._model.labels[index], index=index, probability=probability)
        return response

    def _describe(self, context: Context) -> model_pb2.Model:
        return model_pb2.Model(
            name=f"{context.service}/models/{MODEL}",
            state=model_pb2.MODEL_STATE_READY,
            default_version=VERSION,
            is_default=True,
            versions=[
                model_pb2.ModelVersion(
                    version=VERSION,
                    state=model_pb2.MODEL_STATE_READY,
                    label_count=len(self._model.labels),
                    built_in=True,
                )
            ],
        )


def _lines(data: bytes) -> list[pb.PredictStreamRequest]:
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            found.append(json_format.Parse(line, pb.PredictStreamRequest()))
        except (json_format.ParseError, UnicodeDecodeError) as error:
            raise errors.DataInvalid(
                "source.json_lines", f"line {number} is no PredictStreamRequest: {error}"
            ) from error
    return found


def _check_model(model: str, version: str, context: Context) -> None:
    prefix = f"{context.service}/models/"
    if "/" in model and not model.startswith(prefix):
        raise errors.FieldInvalid("model", f"is not a model of {context.service}")
    if model.removeprefix(prefix) not in {"", MODEL} or version not in {"", VERSION}:
        raise errors.ModelNotFound(f"there is no such model: this driver has {MODEL}, version {VERSION}")


def _check_output(output: inference_pb2.OutputOptions) -> None:
    if output.kind not in {inference_pb2.OUTPUT_KIND_UNSPECIFIED, inference_pb2.OUTPUT_KIND_CLASSIFICATION}:
        raise errors.FieldInvalid("output.kind", "must be OUTPUT_KIND_CLASSIFICATION")
    if not 0 <= output.top_k <= MAX_TOP_K:
        raise errors.FieldInvalid("output.top_k", f"must be 1 to {MAX_TOP_K}")
