"""The driver against a real MLServer."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from onecontainer_driver_oip import OipDriver

from drivers.oip.tests.asking import JSON, SERVICE, Attached, call, floats, innermost, json, question, tensor, until
from onecontainer.api.ai.v1 import inference_pb2, model_pb2, tensor_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import errors
from tests.fixtures.open_inference.place import MLServer


async def test_the_probe_recognises_it(driver: OipDriver) -> None:
    found = await driver.probe()
    assert found.ready
    assert found.backend_version == "mlserver 1.7.1"


async def test_models_are_those_of_the_server(driver: OipDriver) -> None:
    first = await driver.list_models(pb.ListModelsRequest(service=SERVICE, page_size=4), call())
    rest = await driver.list_models(
        pb.ListModelsRequest(service=SERVICE, page_size=4, page_token=first.next_page_token), call()
    )
    assert not rest.next_page_token
    models = {model.name.rpartition("/")[2]: model for model in (*first.models, *rest.models)}
    assert list(models) == ["broken", "double", "double-idle", "shout", "silent", "slow"]
    double = models["double"]
    assert (double.state, double.default_version, double.is_default) == (model_pb2.MODEL_STATE_READY, "v1", True)
    (version,) = double.versions
    assert [(one.name, one.dtype, list(one.shape), one.batched) for one in version.inputs] == [
        ("x", tensor_pb2.DATA_TYPE_FLOAT32, [-1, 3], True)
    ]
    assert [one.name for one in models["shout"].versions[0].outputs] == ["shouted", "length"]
    assert models["double-idle"].state == model_pb2.MODEL_STATE_UNLOADED
    assert models["shout"].default_version == "1"
    unloaded = await driver.list_models(pb.ListModelsRequest(service=SERVICE, filter='state = "UNLOADED"'), call())
    assert [model.name for model in unloaded.models] == [f"{SERVICE}/models/double-idle"]
    assert await driver.get_model(pb.GetModelRequest(service=SERVICE, model="double"), call()) == double
    with pytest.raises(errors.ModelNotFound, match="none"):
        await driver.get_model(pb.GetModelRequest(service=SERVICE, model="none"), call())


async def test_tensors_go_there_and_come_back(driver: OipDriver) -> None:
    answer = await driver.predict(question("double", tensor((1, 2, 3), (4, 5, 6))), call())
    assert floats(answer) == [2, 4, 6, 8, 10, 12]
    assert (answer.model, answer.version) == (f"{SERVICE}/models/double", "v1")
    by_default = await driver.predict(question("", tensor((1, 1, 1), name="")), call())
    assert by_default.model == f"{SERVICE}/models/double"
    assert floats(by_default) == [2, 2, 2]


async def test_a_model_that_declares_nothing_is_asked_too(driver: OipDriver) -> None:
    assert floats(await driver.predict(question("silent", tensor((1, 2, 3))), call())) == [2, 4, 6]
    with pytest.raises(errors.FieldRequired, match="does not say"):
        await driver.predict(question("silent", tensor((1, 2, 3), name="")), call())


async def test_json_in_and_out(driver: OipDriver) -> None:
    answer = await driver.predict(question("double", json([[1, 2, 3]]), output=JSON), call())
    (prediction,) = answer.predictions
    (row,) = prediction.json.struct_value.fields["y"].list_value.values
    assert [value.number_value for value in row.list_value.values] == [2, 4, 6]
    items = await driver.predict(question("double", json([1, 2, 3]), json([4, 5, 6])), call())
    assert len(items.predictions) == 2
    assert [floats(pb.PredictResponse(predictions=[one])) for one in items.predictions] == [[2, 4, 6], [8, 10, 12]]


async def test_texts_and_images_are_bytes(driver: OipDriver) -> None:
    texts = [inference_pb2.Input(text=text) for text in ("ab", "äbc", "")]
    answer = await driver.predict(question("shout", *texts, output=JSON), call())
    fields = [prediction.json.struct_value.fields for prediction in answer.predictions]
    assert [innermost(one["shouted"]).string_value for one in fields] == ["AB", "ÄBC", ""]
    assert [innermost(one["length"]).number_value for one in fields] == [2, 3, 0]
    image = await driver.predict(question("shout", inference_pb2.Input(image=b"pixels"), output=JSON), call())
    assert innermost(image.predictions[0].json.struct_value.fields["shouted"]).string_value == "PIXELS"
    only = inference_pb2.OutputOptions(names=["length"])
    length = await driver.predict(question("shout", texts[0], output=only), call())
    assert "length" in [one.name for one in length.predictions[0].tensors.tensors]


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (question("double"), errors.FieldRequired, "inputs"),
        (question("none", tensor((1, 2, 3))), errors.ModelNotFound, "none"),
        (question("double", tensor((1, 2, 3)), version="v9"), errors.ModelNotFound, "v9"),
        (question("double-idle", tensor((1, 2, 3))), errors.ModelNotReady, "manage_repository"),
        (question("double", tensor((1, 2, 3), name="z")), errors.FieldInvalid, "inputs[0].name"),
        (question("double", tensor((1, 2, 3)), tensor((1, 2, 3))), errors.FieldInvalid, "inputs[1]"),
        (question("double", json([1, 2])), errors.DataInvalid, "inputs[0].json"),
        (question("double", json([[1, 2, 3], [4, 5]])), errors.DataInvalid, "ragged"),
        (question("double", json(["a", "b", "c"])), errors.DataInvalid, "FP32"),
        (question("double", inference_pb2.Input(text="a")), errors.FieldInvalid, "inputs[0].text"),
        (question("double", inference_pb2.Input(artifact="artifacts/a")), errors.FieldInvalid, "inputs[0].artifact"),
        (
            question("double", tensor((1, 2, 3)), output=inference_pb2.OutputOptions(names=["z"])),
            errors.FieldInvalid,
            "output.names[0]",
        ),
        (
            question("double", tensor((1, 2, 3)), output=inference_pb2.OutputOptions(kind=1)),  # type: ignore[arg-type]
            errors.FieldInvalid,
            "output.kind",
        ),
        (question("broken", tensor((1, 2, 3))), errors.DataInvalid, "does not like this"),
    ],
)
async def test_errors(driver: OipDriver, request_: pb.PredictRequest, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        await driver.predict(request_, call())
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dtype": tensor_pb2.DATA_TYPE_FLOAT64}, "inputs[0].tensor.dtype"),
        ({"shape": [3]}, "inputs[0].tensor.shape"),
        ({"shape": [1, 4]}, "inputs[0].tensor.shape"),
        ({"shape": [1, -3]}, "inputs[0].tensor.shape"),
        ({"data": b"1234"}, "inputs[0].tensor.data"),
        ({"dtype": 0}, "inputs[0].tensor.dtype"),
    ],
)
async def test_wrong_tensors_have_the_path_of_what_is_wrong(
    driver: OipDriver, change: dict[str, Any], field: str
) -> None:
    given = tensor((1, 2, 3))
    for name, value in change.items():
        given.tensor.ClearField(name)
        given.tensor.MergeFrom(tensor_pb2.Tensor(**{name: value}))
    with pytest.raises((errors.DataInvalid, errors.FieldRequired)) as caught:
        await driver.predict(question("double", given), call())
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_model_of_the_repository_is_served_and_unloaded(
    upstream: MLServer, attached: Attached, tmp_path: Path
) -> None:
    config = model_pb2.ModelConfig(
        source=model_pb2.ModelSource(oip=model_pb2.OipSource(model="double-idle", manage_repository=True))
    )
    request = pb.ServeModelRequest(service=SERVICE, model="twice", config=config)
    async with attached(upstream.address) as driver:
        with pytest.raises(errors.BackendCapabilityMissing, match="belongs to the inference server"):
            await driver.unload_model(pb.UnloadModelRequest(service=SERVICE, model="double"), call())
        served = await driver.serve_model(request, call())
        assert (served.model.name, served.model.state) == (f"{SERVICE}/models/twice", model_pb2.MODEL_STATE_READY)
        assert not served.already_served
        assert (await driver.serve_model(request, call())).already_served
        assert floats(await driver.predict(question("twice", tensor((1, 2, 3))), call())) == [2, 4, 6]
        other = pb.ServeModelRequest(service=SERVICE, model="twice", config=config)
        other.config.source.oip.model = "shout"
        with pytest.raises(errors.ResourceConflict, match="double-idle"):
            await driver.serve_model(other, call())
    # The name is there after a restart.
    async with attached(upstream.address) as driver:
        assert floats(await driver.predict(question("twice", tensor((1, 1, 1))), call())) == [2, 2, 2]
        unloaded = await driver.unload_model(pb.UnloadModelRequest(service=SERVICE, model="twice"), call())
        assert unloaded.model.state == model_pb2.MODEL_STATE_UNLOADED
        with pytest.raises(errors.ModelNotReady):
            await driver.predict(question("twice", tensor((1, 2, 3))), call())
        again = pb.ServeModelRequest(service=SERVICE, model="twice")
        assert (await driver.serve_model(again, call())).model.state == model_pb2.MODEL_STATE_READY
        await driver.unload_model(pb.UnloadModelRequest(service=SERVICE, model="twice", forget=True), call())
        with pytest.raises(errors.ModelNotFound):
            await driver.get_model(pb.GetModelRequest(service=SERVICE, model="twice"), call())


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        (model_pb2.ModelSource(), errors.FieldRequired, "config.source"),
        (model_pb2.ModelSource(path="/m"), errors.FieldInvalid, "config.source.path"),
        (model_pb2.ModelSource(oip=model_pb2.OipSource(model="none")), errors.ModelNotFound, "none"),
        (
            model_pb2.ModelSource(oip=model_pb2.OipSource(model="double-idle")),
            errors.ModelNotReady,
            "manage_repository",
        ),
        (
            model_pb2.ModelSource(oip=model_pb2.OipSource(model="none", manage_repository=True)),
            errors.ModelNotFound,
            "none",
        ),
    ],
)
async def test_what_cannot_be_served(
    driver: OipDriver, source: model_pb2.ModelSource, kind: type[Exception], words: str
) -> None:
    request = pb.ServeModelRequest(service=SERVICE, model="own", config=model_pb2.ModelConfig(source=source))
    with pytest.raises(kind, match=words):
        await driver.serve_model(request, call())
    with pytest.raises(errors.ModelNotFound):
        await driver.get_model(pb.GetModelRequest(service=SERVICE, model="own"), call())


async def test_a_cancelled_call_is_cancelled_there(driver: OipDriver, upstream: MLServer) -> None:
    for name in ("begun", "cancelled"):
        (upstream.folder / name).unlink(missing_ok=True)
    running = asyncio.create_task(driver.predict(question("slow", tensor((1, 2, 3))), call()))
    await until((upstream.folder / "begun").exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until((upstream.folder / "cancelled").exists)


async def test_a_deadline_goes_there(driver: OipDriver, upstream: MLServer) -> None:
    for name in ("begun", "cancelled"):
        (upstream.folder / name).unlink(missing_ok=True)
    # What the model takes is asked for before, and kept: the deadline is that of the call alone.
    await driver.get_model(pb.GetModelRequest(service=SERVICE, model="slow"), call())
    for seconds in (1.0, 10.0, 30.0):  # as long as it takes this machine to begin with it
        with pytest.raises(errors.DeadlineExceeded, match="did not answer ModelInfer"):
            await driver.predict(question("slow", tensor((1, 2, 3))), call(seconds=seconds))
        if (upstream.folder / "begun").exists():
            break
    await until((upstream.folder / "cancelled").exists)


async def test_the_services_own_timeout_is_a_deadline_too(upstream: MLServer, attached: Attached) -> None:
    async with attached(upstream.address, request_timeout="1s") as driver:
        while (
            True
        ):  # the metadata, which is kept, has a second too, and more tries where the machine stands still just then
            with contextlib.suppress(errors.DeadlineExceeded):
                await driver.get_model(pb.GetModelRequest(service=SERVICE, model="slow"), call())
                break
        with pytest.raises(errors.DeadlineExceeded, match="did not answer ModelInfer"):
            await driver.predict(question("slow", tensor((1, 2, 3))), call())


async def test_a_stream_has_an_answer_or_an_error_for_each_item(driver: OipDriver) -> None:
    async def items() -> Any:
        for inputs in ([tensor((1, 2, 3))], [], [tensor((4, 5, 6))]):
            yield pb.PredictStreamRequest(service=SERVICE, model="double", inputs=inputs, item_id=str(len(inputs)))

    answers = [one async for one in driver.predict_stream(items(), call())]
    assert [one.WhichOneof("result") for one in answers] == ["response", "error", "response"]
    assert [one.index for one in answers] == [0, 1, 2]
    assert floats(answers[2].response) == [8, 10, 12]
    assert answers[1].error.code == errors.Code.INVALID_ARGUMENT


async def test_parallel_calls_get_their_own_answers(driver: OipDriver) -> None:
    async def ask(number: int) -> list[float]:
        return floats(await driver.predict(question("double", tensor((number, 0, -number))), call()))

    answers = await asyncio.gather(*(ask(number) for number in range(50)))
    assert answers == [[2.0 * number, 0.0, -2.0 * number] for number in range(50)]


async def test_the_example_of_the_usage_works(driver: OipDriver) -> None:
    usage = await driver.get_usage(pb.GetUsageRequest(service=SERVICE), call())
    (example,) = next(one for one in usage.functions if one.method.endswith("/Predict")).examples
    request = pb.PredictRequest()
    assert example.request.Unpack(request)
    # It is for the first model that is ready, which here refuses everything.
    assert request.model == "broken"
    request.model = "double"
    assert floats(await driver.predict(request, call())) == [0, 0, 0]
