"""BatchPredict: sources, a line for every item, and going on after an attempt that was lost."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import zipfile
from typing import Any

import pytest
from google.protobuf import json_format

from onecontainer.api.ai.v1 import inference_pb2, model_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import JobAttempt, errors
from onecontainer.driver.models import driver as driver_module
from onecontainer.driver.models.repository import Repository

JOB = JobAttempt("jobs/b1", 1, 1)
TOP_1 = inference_pb2.OutputOptions(top_k=1)


async def run(bench: Any, job: JobAttempt = JOB, **fields: Any) -> tuple[pb.BatchPredictResult, list[Any]]:
    request = pb.BatchPredictRequest(service="services/cats", output=TOP_1, **fields)
    result = await bench.driver.batch_predict(request, bench.context(job))
    data, media_type = bench.artifacts.stored[result.artifact]
    assert media_type == "application/jsonl"
    found = [json_format.Parse(line, pb.BatchPredictLine()) for line in data.splitlines()]
    assert [line.index for line in found] == list(range(len(found)))
    assert result.item_count == len(found)
    assert result.failed_count == sum(line.HasField("error") for line in found)
    return result, found


def label(line: pb.BatchPredictLine) -> str:
    if line.HasField("error"):
        return f"error {line.error.code}"
    return line.response.predictions[0].classification.classes[0].label


def listed(*names: str) -> pb.BatchSource:
    return pb.BatchSource(artifacts=pb.ArtifactList(names=names))


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.mkdir("folder")
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes], kind: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{kind}") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


async def test_a_list_of_artifacts(cats: Any, cat: bytes) -> None:
    good, bad = cats.artifacts.add(cat, "image/png"), cats.artifacts.add(b"no image")
    result, found = await run(cats, source=listed(good, bad, "artifacts/none", *[good] * 20))
    assert [label(line) for line in found] == ["tiger cat", "error 3", "error 5", *["tiger cat"] * 20]
    assert [line.item for line in found][:3] == [good, bad, "artifacts/none"]
    assert (result.model, result.version) == ("services/cats/models/efficientnet-lite0", "1")
    last = pb.BatchPredictProgress()
    assert cats.events.checkpoints[-1].Unpack(last)
    assert (last.done_count, last.failed_count) == (23, 2)
    assert not list((cats.root / "state" / "batches").iterdir())


@pytest.mark.parametrize("kind", ["zip", "", "gz", "xz"])
async def test_an_archive(cats: Any, cat: bytes, kind: str) -> None:
    files = {"a/1.png": cat, "a/notes.txt": b"not for a classifier", "b/2.jpg": cat, "__MACOSX/x.png": b"", "c": b""}
    data = zipped(files) if kind == "zip" else tarred(files, kind)
    _, found = await run(cats, source=pb.BatchSource(archive=cats.artifacts.add(data)))
    assert [(line.item, label(line)) for line in found] == [
        ("a/1.png", "tiger cat"),
        ("a/notes.txt", "error 3"),
        ("b/2.jpg", "tiger cat"),
        ("c", "error 3"),
    ]


async def test_lines_of_json(cats: Any, cat: bytes) -> None:
    name = cats.artifacts.add(cat, "image/png")
    text = "\n".join(
        [
            json_format.MessageToJson(
                pb.PredictStreamRequest(item_id="x", inputs=[inference_pb2.Input(image=cat)]), indent=None
            ),
            "",
            json.dumps({"inputs": [{"artifact": name}], "output": {"topK": 3}}),
            "no json",
            json.dumps({"model": "other", "inputs": [{"artifact": name}]}),
        ]
    )
    source = pb.BatchSource(json_lines=cats.artifacts.add(text.encode()))
    _, found = await run(cats, source=source, result_filename="out.jsonl")
    assert [(line.item, label(line)) for line in found] == [
        ("x", "tiger cat"),
        ("line 3", "tiger cat"),
        ("line 4", "error 3"),
        ("line 5", "error 3"),
    ]
    assert len(found[1].response.predictions[0].classification.classes) == 3


async def test_the_next_attempt_goes_on(cats: Any, cat: bytes) -> None:
    names = [cats.artifacts.add(cat, "image/png") for _ in range(30)]
    request = pb.BatchPredictRequest(source=listed(*names), output=TOP_1, parallelism=2)
    first = asyncio.create_task(cats.driver.batch_predict(request, cats.context(JOB)))
    await asyncio.wait_for(cats.events.moved.wait(), 180)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    lines = cats.root / "state" / "batches" / "b1.jsonl"
    kept = lines.read_bytes()
    done = kept.count(b"\n")
    assert 0 < done < 30
    lines.write_bytes(kept + b'{"index": "99", "it')
    await cats.restart()
    await cats.ready()
    reads = cats.artifacts.reads
    result, found = await run(cats, JobAttempt("jobs/b1", 2, 2), source=listed(*names))
    assert cats.artifacts.reads - reads == 30 - done
    assert result.item_count == 30
    assert [line.item for line in found] == names


async def test_an_attempt_waits_for_a_model_that_comes_back(cats: Any, cat: bytes) -> None:
    """The sidecar was started again, and its worker takes the job before the models are there."""
    name = cats.artifacts.add(cat, "image/png")
    request = pb.BatchPredictRequest(service="services/cats", source=listed(name), output=TOP_1)
    await cats.restart()
    assert not (await cats.driver.probe()).ready
    result = await asyncio.wait_for(cats.driver.batch_predict(request, cats.context(JOB)), 180)
    assert (result.item_count, result.failed_count) == (1, 0)
    # A call by itself is not given to a sidecar before it is ready; a job may be of any method.
    await cats.restart()
    call = pb.PredictRequest(service="services/cats", inputs=[inference_pb2.Input(image=cat)])
    with pytest.raises(errors.ModelNotReady, match="loading"):
        await cats.driver.predict(call, cats.context())
    assert (await asyncio.wait_for(cats.driver.predict(call, cats.context(JOB)), 180)).predictions


async def test_an_attempt_that_waits_hears_how_the_load_ends(bench: Any, cat: bytes) -> None:
    bench.artifacts.hold = asyncio.Event()
    source = model_pb2.ModelSource(artifact=bench.artifacts.add(b"no model"))
    load = asyncio.create_task(bench.serve("m", config=model_pb2.ModelConfig(source=source)))
    async with asyncio.timeout(180):
        await bench.artifacts.reading.wait()
    request = pb.BatchPredictRequest(source=listed(bench.artifacts.add(cat)), model="m")
    waiting = asyncio.create_task(bench.driver.batch_predict(request, bench.context(JOB)))
    await asyncio.sleep(0)
    bench.artifacts.hold.set()
    with pytest.raises(errors.ModelNotReady, match="has failed"):
        await asyncio.wait_for(waiting, 180)
    with pytest.raises(errors.DataInvalid):
        await load


async def test_a_load_that_hangs_does_not_keep_the_others_away(
    bench: Any, monkeypatch: pytest.MonkeyPatch, linear: Any
) -> None:
    for model in ("slow", "quick"):
        source = model_pb2.ModelSource(artifact=bench.artifacts.add(linear([[1]])))
        await bench.serve(model, config=model_pb2.ModelConfig(source=source))
    monkeypatch.setattr(driver_module, "LOAD_PATIENCE", 0.05)
    await bench.driver.detach()
    loaded = Repository.load_again

    async def load_again(self: Repository, found: Any) -> None:
        if found.model == "slow":
            await asyncio.Event().wait()
        await loaded(self, found)

    monkeypatch.setattr(Repository, "load_again", load_again)
    bench.driver = type(bench.driver)()
    await bench.attach(default_model="none")
    await bench.ready()
    async with asyncio.timeout(180):
        # The quick one, too, may take longer than that bit of patience.
        while (await bench.driver.probe()).message != "1 models are ready":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    models = {model.name.rpartition("/")[2]: model.state for model in await listing(bench)}
    assert models == {"slow": model_pb2.MODEL_STATE_LOADING, "quick": model_pb2.MODEL_STATE_READY}


async def listing(bench: Any) -> Any:
    return (await bench.driver.list_models(pb.ListModelsRequest(service="services/cats"), bench.context())).models


async def test_it_can_be_finished_early(cats: Any, cat: bytes) -> None:
    names = [cats.artifacts.add(cat, "image/png")] * 500
    context = cats.context(JOB)
    request = pb.BatchPredictRequest(source=listed(*names), parallelism=2)
    task = asyncio.create_task(cats.driver.batch_predict(request, context))
    await asyncio.wait_for(cats.events.moved.wait(), 180)
    context._finish()
    result = await task
    assert 0 < result.item_count < 500


async def test_what_ends_the_job(cats: Any, cat: bytes) -> None:
    bad = cats.artifacts.add(b"no image")
    with pytest.raises(errors.DataInvalid, match="2 are allowed"):
        await run(cats, source=listed(*[bad] * 50), max_failed_items=2)
    for source, field in (
        (pb.BatchSource(), "source"),
        (listed(), "source.artifacts.names"),
        (pb.BatchSource(artifact_filter="x"), "source.artifact_filter"),
        (pb.BatchSource(archive=bad), "source.archive"),
        (pb.BatchSource(archive=cats.artifacts.add(tarred({"a": cat}, "gz")[:5000])), "source.archive"),
    ):
        with pytest.raises(errors.OneContainerError) as caught:
            await run(cats, JobAttempt("jobs/b2", 1, 1), source=source)
        assert caught.value.violations[0].field == field
    with pytest.raises(errors.ModelNotFound):
        await run(cats, JobAttempt("jobs/b3", 1, 1), source=listed(bad), model="dogs")
    with pytest.raises(errors.FieldInvalid, match="parallelism"):
        await run(cats, source=listed(bad), parallelism=65)
