"""The driver of docs/drivers.md, run as the guide says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from onecontainer import errors
from onecontainer.api.ai.v1 import inference_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as ai_pb
from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.job.v1 import job_lease_service_pb2 as lease_pb2
from onecontainer.catalog.drivers import scan
from onecontainer.catalog.methods import MethodTable
from onecontainer.catalog.model import DriverSource, DriverState
from tests.contract.driver.test_direct_calls import error_of
from tests.contract.driver.test_process import command, started
from tests.fakes.lease import FakeGateway

GUIDE = Path(__file__).parents[3] / "docs" / "drivers.md"
ECHO = Path(__file__).parents[2] / "drivers" / "echo" / "echo.proto"
ECHO_SERVICE = "onecontainer.test.echo.v1.EchoService"
SERVICE = "onecontainer.api.ai.v1.InferenceService"


def write_guides_driver(folder: Path) -> Path:
    text = GUIDE.read_text()
    for name, language in (("metadata.json", "json"), ("tiny_driver.py", "python")):
        [block] = re.findall(rf"`{re.escape(name)}`:\n\n```{language}\n(.*?)```", text, re.DOTALL)
        (folder / name).write_text(block)
    return folder


def test_a_gateway_loads_the_guides_driver(folder: Path) -> None:
    """As docs/drivers.md has it, and nothing else in its folder."""
    driver = folder / "drivers" / "tiny"
    driver.mkdir(parents=True)
    write_guides_driver(driver)
    [record], descriptors = scan([(folder / "drivers", DriverSource.PLUGIN)], now=1)
    assert (record.state, record.error) == (DriverState.READY, None)
    assert record.descriptor_digest in descriptors
    assert record.methods is not None
    batch = record.methods.methods[f"{SERVICE}/BatchPredict"]
    assert batch.result_type == "onecontainer.api.ai.v1.BatchPredictResult"
    assert record.manifest is not None
    assert record.manifest.job_slots > 1


def test_the_guides_command_makes_descriptors_of_an_own_service(folder: Path) -> None:
    [block] = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    driver = folder / "driver"
    driver.mkdir()
    shutil.copy(ECHO, driver / "my.proto")
    shutil.copy(ECHO.with_name("metadata.json"), driver)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", block], cwd=driver, env=environment, check=True, capture_output=True)
    assert (driver / "my_pb2.py").exists()
    assert MethodTable((driver / "descriptors.binpb").read_bytes(), [ECHO_SERVICE]).services == (ECHO_SERVICE,)


async def test_the_guides_driver(folder: Path) -> None:
    driver = folder / "driver"
    driver.mkdir()
    write_guides_driver(driver)
    assert len(json.loads((driver / "metadata.json").read_text())["options"]) == 2
    request = driver_pb2.AttachRequest(service="services/t", service_uid="u", instance="sidecars/tiny-1", app="tiny")
    async with started(folder, *command(driver)) as process:
        request.options.update({"label": "not a word"})
        error = await error_of(process.driver.Attach(request, wait_for_ready=True, timeout=180))
        assert [violation.field for violation in error.violations] == ["options.label"]
        request.options.update({"label": "dog"})
        await process.driver.Attach(request)
        assert (await process.driver.Probe(driver_pb2.ProbeRequest())).backend_version == "1.0"
        answer = await process.ai.Predict(ai_pb.PredictRequest(inputs=[inference_pb2.Input()]))
        assert answer.predictions[0].classification.classes[0].label == "dog"
        assert (await error_of(process.ai.Predict(ai_pb.PredictRequest()))).reason is errors.Reason.FIELD_REQUIRED


async def test_the_guides_job(folder: Path) -> None:
    driver = folder / "driver"
    driver.mkdir()
    write_guides_driver(driver)
    (folder / "token").write_text("s3cret")
    bearer = (("authorization", "Bearer s3cret"),)
    async with (
        FakeGateway(folder) as gateway,
        started(folder, *command(driver), ONECONTAINER_TOKEN_FILE=str(folder / "token")) as process,
    ):
        request = driver_pb2.AttachRequest(
            service="services/t", service_uid="u", instance="sidecars/tiny-1", app="tiny"
        )
        request.job_source.internal_target = gateway.target
        request.job_source.slots = 1
        request.job_source.embedded.SetInParent()
        await process.driver.Attach(request, wait_for_ready=True, timeout=180, metadata=bearer)
        batch = ai_pb.BatchPredictRequest()
        batch.source.artifacts.names.extend(["artifacts/1", "artifacts/2"])
        await gateway.submit(
            lease_pb2.Grant(
                job="jobs/1",
                attempt=1,
                fence=1,
                service="services/t",
                method=f"{SERVICE}/BatchPredict",
                request=batch.SerializeToString(),
            )
        )
        outcome = await gateway.outcome("jobs/1")
        result = ai_pb.BatchPredictResult.FromString(outcome.succeeded.result)
        assert result.item_count == 2
        artifact, data = gateway.artifacts[result.artifact]
        assert artifact.media_type == "application/jsonl"
        assert data.count(b"\n") == 2
        assert gateway.kinds("jobs/1")[-2:] == ["progress", "succeeded"]
