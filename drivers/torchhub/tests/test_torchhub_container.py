"""Models of PyTorch Hub in a container: the real classifier, and small ones that show how models come, go, fail and come back."""

from __future__ import annotations

import io
import math
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import duration_pb2
from PIL import Image

from onecontainer.api.ai.v1 import inference_pb2, model_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.type.v1 import job_options_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.preprocess import ImagePipeline
from onecontainer.driver.models.tensors import tensor_from_array
from tests.fixtures.waiting import until

READY, FAILED, UNLOADED, LOADING = (
    model_pb2.MODEL_STATE_READY,
    model_pb2.MODEL_STATE_FAILED,
    model_pb2.MODEL_STATE_UNLOADED,
    model_pb2.MODEL_STATE_LOADING,
)
ONCE = job_options_pb2.JobOptions(retry_policy=job_options_pb2.RetryPolicy(max_attempts=1))
CATS = [("tiger cat", 0.395), ("Egyptian cat", 0.355), ("tabby", 0.170)]
LONG = 300
STATE = "/var/lib/onecontainer"


def best(answer: pb.PredictResponse, index: int = 0) -> list[tuple[str, float]]:
    return [(one.label, one.probability) for one in answer.predictions[index].classification.classes]


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def test_a_photo(bench: Any, cat: bytes) -> None:
    reports: list[Any] = []
    job = bench.job("lite0", bench.classifier())
    ended = job.wait(on_progress=reports.append, timeout=LONG)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended.error
    assert reports
    version = bench.state("lite0")
    assert (version.state, version.label_count) == (READY, 1000)
    assert version.platform.startswith("torch 2.")
    assert version.memory_bytes > 50e6
    (taken,) = version.inputs
    assert (taken.name, list(taken.shape), taken.batched) == ("inputs", [-1, 3, 224, 224], True)
    assert [(one.name, list(one.shape)) for one in version.outputs] == [("output", [-1, 1000])]

    answer = bench.client.ai.predict("vision", cat, top_k=3)
    found = best(answer)
    assert [label for label, _ in found] == [label for label, _ in CATS]
    assert [p for _, p in found] == pytest.approx([p for _, p in CATS], abs=0.01)
    assert (answer.model, answer.version) == ("services/vision/models/lite0", "1")

    # Other formats, and one that is larger than what gRPC takes by itself.
    picture = Image.open(io.BytesIO(cat)).convert("RGB")
    large = encoded(picture.resize((451 * 4, 300 * 4), Image.Resampling.LANCZOS), "BMP")
    assert len(large) > 4 * 1024 * 1024
    several = [large, encoded(picture, "JPEG", quality=95), encoded(picture, "WEBP", lossless=True)]
    answer = bench.client.ai.predict("vision", several)
    assert [best(answer, index)[0][0] for index in range(3)] == ["tiger cat"] * 3
    assert [len(one.classification.classes) for one in answer.predictions] == [5] * 3

    # The tensor that the declared preparation makes is the same question.
    array = ImagePipeline(bench.classifier().image, np.dtype("<f4")).run(cat, max_pixels=10**6)
    tensor = inference_pb2.Input(tensor=tensor_from_array(array))
    assert [p for _, p in best(bench.client.ai.predict("vision", tensor, top_k=3))] == pytest.approx(
        [p for _, p in found], abs=1e-4
    )
    raw = inference_pb2.OutputOptions(kind=inference_pb2.OUTPUT_KIND_TENSORS)
    (scores,) = bench.client.ai.predict("vision", cat, output=raw).predictions[0].tensors.tensors
    assert (scores.name, list(scores.tensor.shape)) == ("output", [1, 1000])
    with pytest.raises(errors.DataInvalid, match="not an image"):
        bench.client.ai.predict("vision", b"no image")
    usage = bench.client.ai.usage("vision")
    assert list(usage.devices) == ["cpu"]
    assert [model.is_default for model in usage.models] == [True]


def test_answers_are_not_swapped(bench: Any, cat: bytes) -> None:
    """200 interleaved calls with 10 images over two models, whose answers are never the same."""
    jobs = [
        bench.job("straight", bench.classifier()),
        bench.job("mirrored", bench.classifier(mirrored=True)),
    ]
    for job in jobs:
        job.result(pb.ServeModelResult, timeout=LONG)
    picture = Image.open(io.BytesIO(cat)).convert("RGB")
    images = [encoded(picture.rotate(36 * turn), "PNG") for turn in range(10)]

    def ask(model: str, index: int) -> list[tuple[int, float]]:
        answer = bench.client.ai.predict("vision", images[index], model=model, top_k=2, timeout=LONG)
        assert answer.model == f"services/vision/models/{model}"
        return [(one.index, one.probability) for one in answer.predictions[0].classification.classes]

    wanted = {(model, index): ask(model, index) for model in ("straight", "mirrored") for index in range(10)}
    assert len({str(one) for one in wanted.values()}) == 20
    for index in range(10):
        assert wanted["mirrored", index][0][0] == 999 - wanted["straight", index][0][0]
    questions = list(wanted) * 10
    random.Random(6).shuffle(questions)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda question: ask(*question), questions))
    swapped = [
        question
        for question, answer in zip(questions, answers, strict=True)
        if [index for index, _ in answer] != [index for index, _ in wanted[question]]
        or not math.isclose(answer[0][1], wanted[question][0][1], abs_tol=1e-4)
    ]
    assert (len(answers), swapped) == (200, [])


@pytest.mark.slow
def test_weights_of_their_own(bench: Any, cat: bytes) -> None:
    config = bench.classifier(pretrained=False)
    config.source.torch_hub.weights_artifact = bench.weights
    bench.serve("own", config)
    assert best(bench.client.ai.predict("vision", cat))[0] == (CATS[0][0], pytest.approx(CATS[0][1], abs=0.01))
    config.source.torch_hub.weights_artifact = bench.small
    with pytest.raises(errors.DataInvalid, match=r"weights_artifact.*no state dict"):
        bench.serve("other", config, options=ONCE)


def test_tensors_and_json(bench: Any) -> None:
    bench.serve("line", bench.config("line", factor=3, offset=1))
    assert bench.values([1, 2.5]) == [4.0, 8.5]
    assert bench.values([[1], [2]], model="line") == [[4.0], [7.0]]
    bench.serve("several", bench.config("several"))
    left, right = (
        inference_pb2.Input(name=name, tensor=tensor_from_array(np.array(values, np.float32)))
        for name, values in (("left", [1, 2]), ("right", [10, 20]))
    )
    answer = bench.client.ai.predict("vision", [left, right], model="several")
    found = {one.name: np.frombuffer(one.tensor.data, "<f4").tolist() for one in answer.predictions[0].tensors.tensors}
    assert found == {"sum": [11, 22], "parts.0": [1, 2], "parts.1.right": [10, 20]}
    only = inference_pb2.OutputOptions(names=["sum"])
    answer = bench.client.ai.predict("vision", [left, right], model="several", output=only)
    assert [one.name for one in answer.predictions[0].tensors.tensors] == ["sum"]
    with pytest.raises(errors.FieldRequired, match="right"):
        bench.client.ai.predict("vision", [left], model="several")
    with pytest.raises(errors.FieldInvalid, match="no input 'middle'"):
        bench.client.ai.predict("vision", [inference_pb2.Input(name="middle", tensor=left.tensor)], model="several")
    with pytest.raises(errors.BackendExecutionFailed, match="size of tensor"):
        wide = inference_pb2.Input(name="left", tensor=tensor_from_array(np.zeros(3, np.float32)))
        bench.client.ai.predict("vision", [wide, right], model="several")
    # A function is a model, too; its process sees nothing of the sidecar's settings.
    bench.serve("function", bench.config("environment"))
    assert bench.values(0, model="function") == 0


@pytest.mark.slow
def test_weights_that_are_fetched(bench: Any) -> None:
    """torch.hub's own way to fetch weights, whose progress is the job's."""
    reports: list[Any] = []
    job = bench.job("fetched", bench.config("fetched", megabytes=40))
    ended = job.wait(on_progress=reports.append, timeout=LONG)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended.error
    # Not the words beside it: what is told quickly one after the other may come as its last.
    assert max(one.progress.done for one in reports) > 1e6
    assert bench.values(1) == 7


def test_versions_and_defaults(bench: Any) -> None:
    bench.serve("line", bench.config("line", offset=1))
    bench.serve("line", bench.config("line", offset=2), version="2")
    assert bench.values(0, model="line") == 1
    assert bench.values(0, model="line", version="2") == 2
    bench.serve("line", bench.config("line", offset=2), version="2", make_default_version=True)
    assert bench.values(0) == 2
    # The old one answers until the new one does.
    with pytest.raises(errors.ResourceConflict):
        bench.serve("line", bench.config("line", offset=3), version="2", options=ONCE)
    bench.serve("line", bench.config("line", offset=3), version="2", replace=True)
    assert bench.values(0) == 3
    with pytest.raises(errors.DataInvalid, match="broken on purpose"):
        bench.serve("line", bench.config("broken"), version="2", replace=True, options=ONCE)
    assert bench.values(0) == 3
    assert bench.state("line", "2").state == READY
    assert len(bench.processes()) == 2
    released = bench.client.ai.unload_model("vision", "line", version="2", timeout=LONG)
    assert released.released_bytes > 50e6
    assert len(bench.processes()) == 1
    with pytest.raises(errors.ModelNotReady):
        bench.values(0)
    assert bench.values(0, version="1") == 1


def test_those_who_wait_join_the_running_load(bench: Any) -> None:
    config = bench.config("line", load_seconds=8)
    jobs = [bench.job("slow", config) for _ in range(3)]
    until(lambda: bench.state("slow").state == LOADING if _known(bench, "slow") else None, "loading", timeout=LONG)
    with pytest.raises(errors.ModelNotReady) as caught:
        bench.values(1, model="slow")
    assert caught.value.metadata["model_state"] == "LOADING"
    results = [job.result(pb.ServeModelResult, timeout=LONG) for job in jobs]
    assert sorted(result.already_served for result in results) == [False, True, True]
    assert len(bench.processes()) == 1
    assert bench.values(1) == 2


def _known(bench: Any, model: str) -> bool:
    return any(one.name.endswith(f"/{model}") for one in bench.client.ai.list_models("vision"))


def test_what_fails_says_why(bench: Any) -> None:
    with pytest.raises(errors.DataInvalid, match="ValueError: broken on purpose"):
        bench.serve("broken", bench.config("broken"), options=ONCE)
    version = bench.state("broken")
    assert version.state == FAILED
    assert "broken on purpose" in version.error.message
    with pytest.raises(errors.ModelNotReady, match="broken on purpose"):
        bench.values(1, model="broken")
    labels = bench.classifier()
    labels.classification.labels.list.names.extend(["one", "two"])
    wrong = (
        (bench.config("absent"), errors.ResourceNotFound, "no function 'absent'"),
        (bench.config("no_model"), errors.DataInvalid, "returned str"),
        (bench.config("line", colour="red"), errors.DataInvalid, "colour"),
        (labels, errors.DataInvalid, "2 names, but the model has 1000 classes"),
    )
    jobs = [bench.job(f"bad{index}", config, options=ONCE) for index, (config, _, _) in enumerate(wrong)]
    for job, (_, error, match) in zip(jobs, wrong, strict=True):
        with pytest.raises(error, match=match):
            job.result(pb.ServeModelResult, timeout=LONG)
    hub = model_pb2.TorchHubSource(repo="pytorch/vision", entrypoint="resnet18")
    with pytest.raises(errors.SourceNotAllowed, match="allowed_repos"):
        bench.serve("git", model_pb2.ModelConfig(source=model_pb2.ModelSource(torch_hub=hub)), options=ONCE)
    until(lambda: not bench.processes(), "no process left of loads that failed")


def test_a_load_is_cancelled(bench: Any) -> None:
    job = bench.job("endless", bench.config("line", load_seconds=600))
    until(bench.processes, "its process", timeout=LONG)
    job.cancel()
    assert job.wait(timeout=LONG).state == job_pb2.JOB_STATE_CANCELLED
    until(lambda: not bench.processes(), "its process gone")
    until(lambda: bench.state("endless").state == FAILED, "FAILED")
    # It may be served anew.
    bench.serve("endless", bench.config("line"), replace=True)
    assert bench.values(1) == 2


def test_a_model_that_dies(bench: Any) -> None:
    bench.serve("line", bench.config("line"))
    bench.serve("deadly", bench.config("deadly"))
    with pytest.raises(errors.BackendExecutionFailed, match=r"SIGABRT(.|\n)*my last words"):
        bench.values(1, model="deadly")
    until(lambda: bench.state("deadly").state == FAILED, "FAILED")
    assert "SIGABRT" in bench.state("deadly").error.message
    with pytest.raises(errors.ModelNotReady):
        bench.values(1, model="deadly")
    assert bench.values(1, model="line") == 2
    # Killed from outside while nobody is inside, as the kernel does when memory is short.
    (process,) = bench.processes()
    os.kill(process, signal.SIGKILL)
    until(lambda: bench.state("line").state == FAILED, "FAILED")
    bench.serve("line", None)
    assert bench.values(1, model="line") == 2


def test_the_cap(bench: Any) -> None:
    """Three in memory: the least recently used one goes for a fourth, and comes back when it is called; a pinned one stays."""
    jobs = []
    for name in ("pinned", "b", "c"):
        config = bench.config("line", offset=len(name))
        config.residency.pinned = name == "pinned"
        jobs.append(bench.job(name, config))
    for job in jobs:
        job.result(pb.ServeModelResult, timeout=LONG)
    assert bench.values(0, model="c") == 1
    assert bench.values(0, model="b") == 1
    bench.serve("d", bench.config("line", offset=4))
    assert bench.in_memory() == {"pinned", "b", "d"}
    assert bench.state("c").unload_reason == model_pb2.UNLOAD_REASON_EVICTED
    assert bench.values(0, model="c") == 1
    assert bench.in_memory() == {"pinned", "c", "d"}
    assert len(bench.processes()) == 3
    assert bench.values(0, model="pinned") == 6


def test_none_goes_while_a_call_is_inside(bench: Any) -> None:
    bench.serve("slow", bench.config("line", seconds=8))
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(bench.values, 1, model="slow")
        until(
            lambda: any(one.in_flight_count for one in bench.client.ai.statistics("vision").models),
            "a call inside",
        )
        unloaded = bench.client.ai.unload_model("vision", "slow", timeout=LONG)
        # The driver tells that the call had ended by then: of two answers on their way to us either may be the first.
        (told,) = bench.client.ai.statistics("vision").models
        assert (told.inference.success.count, told.in_flight_count) == (1, 0)
        assert asked.result(LONG) == 2
    assert unloaded.released_bytes > 50e6
    assert bench.state("slow").state == UNLOADED


@pytest.mark.slow
def test_an_idle_one_goes_and_comes_back(bench: Any) -> None:
    config = bench.config("line")
    config.residency.idle_timeout.CopyFrom(duration_pb2.Duration(seconds=1))
    bench.serve("idle", config)
    until(lambda: bench.state("idle").state == UNLOADED, "UNLOADED", timeout=LONG)
    assert bench.state("idle").unload_reason == model_pb2.UNLOAD_REASON_IDLE
    assert bench.values(1) == 2


def test_served_models_come_back(bench: Any, cat: bytes) -> None:
    bench.serve("lite0", bench.classifier())
    bench.serve("line", bench.config("line", offset=7), version="v7", make_default_model=True)
    bench.serve("out", bench.config("line"))
    bench.client.ai.unload_model("vision", "out", timeout=LONG)
    (container,) = bench.gateway.containers("vision")
    container.kill()
    until(
        lambda: [one for one in bench.gateway.containers("vision") if one.id != container.id],
        "another container",
        timeout=LONG,
    )
    bench.client.services.wait_ready("vision", timeout=LONG)
    until(lambda: bench.in_memory() == {"lite0", "line"}, "both are back", timeout=LONG)
    assert bench.values(0) == 7
    assert best(bench.client.ai.predict("vision", cat, model="lite0"))[0][0] == "tiger cat"
    assert bench.state("out").unload_reason == model_pb2.UNLOAD_REASON_REQUESTED


@pytest.mark.slow
def test_what_comes_from_github_and_from_a_folder(bench: Any) -> None:
    """There is no GitHub here: the repository is in the cache, where PyTorch looks first, as it is when it was fetched before."""
    client, local = bench.client, "/opt/driver/hub"
    bench.start("hub", allowed_repos=["acme/models:v1"], hub_dir=local, allow_repo_artifacts=False)
    (container,) = bench.gateway.containers("hub")
    (state,) = [Path(one["Source"]) for one in container.attrs["Mounts"] if one["Destination"] == STATE]
    (state / "hub/acme_models_v1").mkdir()
    (state / "hub/acme_models_v1/hubconf.py").write_bytes(Path(__file__).with_name("hubconf.py").read_bytes())

    def serve(model: str, repo: str, **kwargs: Any) -> pb.ServeModelResult:
        config = bench.config("line", **kwargs)
        config.source.torch_hub.ClearField("repo_artifact")
        config.source.torch_hub.repo = repo
        job = client.ai.serve_model("hub", model, config=config, options=ONCE)
        result: pb.ServeModelResult = job.result(pb.ServeModelResult, timeout=LONG)
        return result

    assert serve("cached", "acme/models:v1", load_seconds=0).model.state == READY
    assert serve("local", local).model.state == READY
    for repo, option in (
        ("acme/models:v2", "allowed_repos"),
        ("acme/models", "allowed_repos"),
        ("acme/other:v1", "allowed_repos"),
        ("/opt/driver", "hub_dir"),
        (f"{local}/../onecontainer_driver_torchhub", "hub_dir"),
        ("/etc", "hub_dir"),
    ):
        with pytest.raises(errors.SourceNotAllowed, match=option):
            serve("no", repo)
    with pytest.raises(errors.ResourceNotFound):
        serve("no", f"{local}/absent")
    with pytest.raises(errors.SourceNotAllowed, match="allow_repo_artifacts"):
        client.ai.serve_model("hub", "no", config=bench.config("line"), options=ONCE).result(
            pb.ServeModelResult, timeout=LONG
        )
    client.services.delete("hub")


@pytest.mark.slow
def test_memory_comes_back(bench: Any) -> None:
    """50 loads and unloads: the container has what it had before, but for 5 %."""
    bench.serve("first", bench.config("large", megabytes=100))
    bench.client.ai.unload_model("vision", "first", timeout=LONG)
    before, figures = _memory(bench), []
    began = time.monotonic()
    for _ in range(50):
        bench.serve("large", bench.config("large", megabytes=100))
        loaded = _memory(bench)
        unloaded = bench.client.ai.unload_model("vision", "large", timeout=LONG)
        figures.append((loaded, unloaded.released_bytes, _memory(bench)))
    after = figures[-1][2]
    print(f"before {before / 1e6:.1f} MB, after {after / 1e6:.1f} MB, {time.monotonic() - began:.0f} s")
    print("loaded, released, after (MB):", [tuple(round(one / 1e6, 1) for one in line) for line in figures[::10]])
    assert all(loaded - before > 100e6 and released > 100e6 for loaded, released, _ in figures)
    assert after <= before * 1.05


def _memory(bench: Any) -> int:
    """Bytes that all processes of the container have for themselves; what is read from files is the system's to keep or drop."""
    (container,) = bench.gateway.containers("vision")
    top = container.top(ps_args="-eo pid,args")
    total = 0
    for row in top["Processes"]:
        lines = Path(f"/proc/{row[top['Titles'].index('PID')]}/smaps_rollup").read_text().splitlines()
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total
